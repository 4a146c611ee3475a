"""The study of initialization."""
