"""Costs of a network from its traced program: mult-adds, memory, receptive fields."""
