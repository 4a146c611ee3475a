"""Pictures of what a trained network sees and bases its decisions on. `python -m experiments.explain`."""
