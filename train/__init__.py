"""How networks learn: one loop, and what plugs into it."""

from typing import Any


def __getattr__(name: str) -> Any:
    """`train.train` and `train.recalibrate_batch_norm`, imported when they are used: --help needs no JAX."""
    if name == "train":
        from train.loop import train as found
    elif name == "recalibrate_batch_norm":
        from train.recalibrate import recalibrate_batch_norm as found
    else:
        raise AttributeError(f"module 'train' has no attribute '{name}'")
    return found
