"""Runs side by side: groups of runs that differ only by their seed, their curves, tables and disagreements."""
