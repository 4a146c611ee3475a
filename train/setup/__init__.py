"""What a config means: strict reading, its small language, rules between features, the weights to start from."""
