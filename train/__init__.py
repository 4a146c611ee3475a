"""How networks learn: one loop, and what plugs into it."""

import os
import signal
import sys
from typing import Any

if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Python is looking for the module of `python -m`. Until the command begins (train/cli.py), ctrl-C has nothing to
    # close; a KeyboardInterrupt in the middle of an import would be a traceback, a crash of native code, or lost.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))


def __getattr__(name: str) -> Any:
    """`train.train` and `train.recalibrate_batch_norm`, imported when they are used: --help needs no JAX."""
    if name == "train":
        from train.loop import train as found
    elif name == "recalibrate_batch_norm":
        from train.hooks.recalibrate import recalibrate_batch_norm as found
    else:
        raise AttributeError(f"module 'train' has no attribute '{name}'")
    return found
