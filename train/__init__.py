"""Training: one loop, and the data, tasks, optimizers and hooks that plug into it."""

import os
import signal
import sys
from typing import Any

if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Python is importing the package of `python -m train…`. Until the command begins (train/cli.py), nothing needs to
    # be closed; a KeyboardInterrupt during an import could print a traceback, crash native code, or be lost.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))


def __getattr__(name: str) -> Any:
    """Imports the functions of the package when they are used, because --help needs no JAX."""
    if name == "train":
        from train.loop import train

        return train
    if name == "load":
        from train.trained import load

        return load
    if name == "recalibrate_batch_norm":
        from train.hooks.recalibrate import recalibrate_batch_norm

        return recalibrate_batch_norm
    raise AttributeError(f"module 'train' has no attribute '{name}'")
