"""Configs: plain data, read by path."""
