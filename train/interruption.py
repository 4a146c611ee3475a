"""SIGTERM and ctrl-C: a run saves at the end of the call that computes, and ends."""

import os
import signal
import threading
import time

import jax
from jax.experimental import multihost_utils

SAME = 1.0  # seconds within which several signals are one: terminals and wrappers both pass a ctrl-C on


class Interruption:
    """Within it, a SIGTERM (preemption) or a SIGINT (ctrl-C) is only noted, so that the loop can save and end. A SIGINT
    more than `SAME` seconds later goes to whoever had it before: to the command, which ends at once.

    Of several processes one alone may be told; then JAX, which took the SIGTERM, has all of them stop at the same call.
    """

    signal: str | None = None

    def __enter__(self):
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            noted = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else (signal.SIGINT,)
            self._before = {number: signal.signal(number, self._note) for number in noted}
        return self

    def noted(self, number: int) -> str | None:
        """Tells whether to stop after call `number` of the run, counted from where it started: the signal's name."""
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
