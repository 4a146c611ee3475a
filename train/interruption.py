"""SIGTERM, SIGUSR1, SIGUSR2 and ctrl-C: a run finishes the current dispatch, saves a checkpoint, and stops."""

import os
import signal
import time

import jax
from jax.experimental import multihost_utils

from models import command

PREEMPTIONS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # schedulers send the last two if they are asked to
SAME = 1.0  # seconds within which signals count as one: a terminal and a wrapper may both forward the same ctrl-C


class Interruption:
    """A context in which PREEMPTIONS and SIGINT (ctrl-C) are recorded, so that the loop can save and stop.

    A SIGINT more than `SAME` seconds after the first signal goes to the previous handler, which ends the command at
    once. If only one of several processes receives a signal, JAX, which handles SIGTERM, makes all of them stop after
    the same dispatch.
    """

    signal: str | None = None

    def __enter__(self):
        numbers = (*PREEMPTIONS, signal.SIGINT)
        if jax.process_count() > 1:
            numbers = numbers[1:]
        self._handling = command.handling(numbers, self._note)
        self._before = self._handling.__enter__()
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
        self._handling.__exit__(*error)
