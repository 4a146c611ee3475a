"""SIGTERM and ctrl-C: a run finishes the current dispatch, saves a checkpoint, and stops."""

import os
import signal
import threading
import time

import jax
from jax.experimental import multihost_utils

SAME = 1.0  # seconds within which signals count as one: a terminal and a wrapper may both forward the same ctrl-C


class Interruption:
    """A context in which SIGTERM (preemption) and SIGINT (ctrl-C) are recorded, so that the loop can save and stop.

    A SIGINT more than `SAME` seconds after the first signal goes to the previous handler, which ends the command at
    once. If only one of several processes receives a signal, JAX, which handles SIGTERM, makes all of them stop after
    the same dispatch.
    """

    signal: str | None = None

    def __enter__(self):
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            handled = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else (signal.SIGINT,)
            self._before = {number: signal.signal(number, self._note) for number in handled}
        return self

    def noted(self, number: int) -> str | None:
        """Returns the name of the signal if the run must stop after dispatch `number` of this process, else None."""
        if jax.process_count() == 1:
            return self.signal
        return (self.signal or "SIGTERM") if multihost_utils.reached_preemption_sync_point(number) else None

    def _note(self, number, frame):
        if self.signal is None:
            self.signal, self._since = signal.Signals(number).name, time.monotonic()
            if jax.process_count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)
        elif number == signal.SIGINT and time.monotonic() > self._since + SAME:
            before = self._before[number]
            if callable(before):
                before(number, frame)

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)
