"""Compression of trained networks, as pure functions of parameters.

prune.py, shrink.py       masks for weights or filters; the smaller dense network without masked filters
codebook.py               weight sharing, with few values per layer
fold.py                   batch normalization folded into the preceding layer
file.py, packed.py        one file per compressed network; its arrays, coded by sparse.py and huffman.py
"""
