"""Batches of concurrent requests: images that arrive together are computed together."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

Run = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Computed(NamedTuple):
    """The result of one image: its probabilities, float32 [num_classes], and the number of images in its batch."""

    probabilities: np.ndarray
    batch: int


class _Waiting(NamedTuple):
    pixels: np.ndarray
    result: asyncio.Future[Computed]


def sizes(most: int) -> list[int]:
    """Returns the batch sizes to which batches are padded: the powers of two below `most`, and `most`."""
    return [*(size for size in (2**power for power in range(most.bit_length())) if size < most), most]


class Batcher:
    """Computes images of concurrent requests in batches, one batch at a time, in a thread of its own.

    A batch begins with the first image that waits. It is complete with `most` images, after `wait` seconds, or when no
    other image is on its way (`expecting`), so that a lone request never waits. While a batch is computed, the next one
    gathers. Batches are padded with zeros to the next of `sizes`, because each size of a batch is compiled once.

    Args:
      run: maps pixels, uint8 [N, H, W, C], to probabilities and logits, float32 [N, num_classes].
      shape: (H, W, C) of the images.
      most: largest number of images per batch.
      wait: seconds.
    """

    def __init__(self, run: Run, shape: Sequence[int], most: int, wait: float):
        self._run, self._shape, self._most, self._wait = run, tuple(shape), most, wait
        self._sizes = sizes(most)
        self._waiting: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._coming = 0
        self._thread = ThreadPoolExecutor(1, "network")

    def warm_up(self) -> None:
        """Computes a batch of each size, which compiles it."""
        for size in self._sizes:
            self._run(np.zeros((size, *self._shape), np.uint8))

    @contextlib.contextmanager
    def expecting(self) -> Iterator[None]:
        """Announces, within a context, an image that is on its way to `submit`."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1

    async def submit(self, pixels: np.ndarray) -> Computed:
        """Returns the result of an image, uint8 [H, W, C]; raises what the network raised."""
        result: asyncio.Future[Computed] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait(_Waiting(pixels, result))
        return await result

    async def alone(self, function: Callable[[], Any]) -> Any:
        """Returns the result of another computation, which takes its turn between batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def work(self) -> None:
        """Computes batches until it is cancelled."""
        while True:
            batch = await self._gathered()
            try:
                probabilities = await self.alone(lambda batch=batch: self._compute([one.pixels for one in batch]))
            except Exception as error:  # the requests of this batch fail, and the server goes on
                for one in batch:
                    if not one.result.done():
                        one.result.set_exception(error)
                continue
            for one, row in zip(batch, probabilities, strict=True):
                if not one.result.done():  # its request may have been cancelled
                    one.result.set_result(Computed(row, len(batch)))

    async def _gathered(self) -> list[_Waiting]:
        batch = [await self._waiting.get()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._wait):
                while len(batch) < self._most and (self._coming or not self._waiting.empty()):
                    batch.append(await self._waiting.get())
        return batch

    def _compute(self, images: Sequence[np.ndarray]) -> np.ndarray:
        size = next(size for size in self._sizes if size >= len(images))
        pixels = np.zeros((size, *self._shape), np.uint8)
        pixels[: len(images)] = images
        return self._run(pixels)[0][: len(images)]
