"""Reports of a run: its metrics while it trains, its summary, and the dry run."""
