"""Kinds of data sets, one per file."""
