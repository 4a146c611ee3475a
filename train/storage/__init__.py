"""A run's folder: who has it, what is in it, and how it stays whole."""
