"""Data: sources, the order of examples, streaming and resident pipelines, augmentation.

Nothing here imports jax before it is needed: the worker processes of the streaming pipeline import these modules.
"""
