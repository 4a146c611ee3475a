"""Optimizers, schedules, and what wraps an optimizer: pruning, shared values, Lookahead."""
