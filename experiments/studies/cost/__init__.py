"""The study of cost."""
