"""Optimizers, schedules, and wrappers of optimizers: pruning, weight sharing, Lookahead."""
