"""The study of depth."""
