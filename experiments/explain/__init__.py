"""Pictures of what a trained network sees, and what it bases its decision on. `python -m experiments.explain`."""
