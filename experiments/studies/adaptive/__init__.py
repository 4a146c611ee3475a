"""The study of adaptive inference."""
