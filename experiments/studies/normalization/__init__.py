"""The study of normalization."""
