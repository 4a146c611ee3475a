"""The benchmark of speed: ours beside PyTorch, interleaved in one run. `python -m experiments.bench`."""
