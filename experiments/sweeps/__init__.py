"""Sweeps: a config with other values of some keys, as trials; a table, pictures and the best command."""
