"""Compression: pure functions of parameters, and low-bit layers.

prune.py, shrink.py       weights or filters that go; the smaller dense network without these filters
codebook.py               few values a layer
fold.py                   batch normalization folded into the layer before it
file.py, packed.py        one file of a compressed network; how it holds arrays, by sparse.py and huffman.py
"""
