"""Pictures to try a trained network on, drawn by `python -m experiments.samples`."""
