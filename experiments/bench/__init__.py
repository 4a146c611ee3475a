"""How fast: ours beside PyTorch, interleaved in one run. `python -m experiments.bench`."""
