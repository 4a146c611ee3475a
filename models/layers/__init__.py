"""Layers of networks, and the fields that choose them."""
