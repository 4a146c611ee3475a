"""Compression: pure functions of parameters. See prune.py, codebook.py, huffman.py."""
