"""The study of translation."""
