"""Meaning of a config: strict reading, its small language, rules between features, the weights to start from."""
