"""Data: sources, the order of examples, streaming and resident pipelines, and augmentation.

This file imports nothing, since each worker process of the streaming pipeline imports it to unpickle its source.
"""
