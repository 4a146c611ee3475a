"""The study of explanations."""
