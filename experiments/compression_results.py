"""What the trials of experiments/compression.py say."""
