"""The time that devices wait for data: from the end of one dispatch to the arrival of the next batch."""

import contextlib
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import jax

T = TypeVar("T")


class Waiting:
    """A clock of the time in which devices have nothing to compute because the next batch is not ready.

    The loop fetches a batch while the devices still compute the previous one, so the time of fetching alone would say
    nothing. A thread notes when each dispatch ends.
    """

    def __init__(self):
        self._dispatches: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._dispatched, self._ended = 0, (0, 0.0)  # number of dispatches; the last that ended, and when
        self._seconds = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while (outputs := self._dispatches.get()) is not None:
            with contextlib.suppress(Exception):  # the loop meets it, too
                jax.block_until_ready(outputs)
            self._ended = (self._ended[0] + 1, time.perf_counter())
            del outputs

    def dispatched(self, outputs: Any) -> None:
        """Notes that a program was dispatched, which has ended when `outputs` are ready."""
        self._dispatched += 1
        self._dispatches.put(outputs)

    def fetching(self, batches: Iterable[T]) -> Iterator[T]:
        """Yields `batches`, and counts the time that the devices wait for each; not for the first one."""
        iterator = iter(batches)
        while True:
            began = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            number, ended = self._ended
            if number == self._dispatched > 0:
                self._seconds += time.perf_counter() - max(began, ended)
            yield batch

    def take(self) -> float:
        """Returns the seconds of waiting since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def close(self) -> None:
        """Ends the thread."""
        self._dispatches.put(None)
