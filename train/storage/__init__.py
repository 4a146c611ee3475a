"""The folder of a run: its lock, its files and checkpoints, and how they are written safely and verified."""
