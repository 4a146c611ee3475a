"""The streaming pipeline: batches decoded ahead of the training step, in threads or in worker processes (grain).

Grain distributes whole batches by number: one thread or process makes batch t, from (seed, t) alone. So neither the
number of workers or processes nor a restart changes any batch, and there is no state to save.
"""

import functools
import gc
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import jax
import numpy as np
from absl import flags

from models.errors import UserError
from models.kernels import runtime
from train.data.shuffle import Order, philox, process_rows
from train.data.source import Batch, Source

if TYPE_CHECKING:
    import grain

_CROPS = 1  # stream of philox that draws crops (0 is the order of examples)
_AHEAD = 2  # batches that each worker keeps ready


class _Batches(Protocol):
    """Batches by number, as grain reads them: the rows `rows` of each, for one process."""

    source: Source
    rows: range

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch: ...


class _TrainingBatches:
    """Training batches; item `index` is batch start_step + index."""

    def __init__(
        self, source: Source, order: Order, batch_size: int, start_step: int, num_steps: int, rows: range, seed: int
    ):
        self.source, self.order, self.batch_size, self.seed = source, order, batch_size, seed
        self.start_step, self.num_steps, self.rows = start_step, num_steps, rows

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, index: int) -> Batch:
        position = (self.start_step + int(index)) * self.batch_size + self.rows.start
        indices = self.order.indices(position, len(self.rows))
        rng = (lambda row: philox(self.seed, position + row, _CROPS)) if self.source.random_crop else None
        return self.source.read(indices, rng, replace=True)


class _EvaluationBatches:
    """Batches of the source in order, padded with zeros whose mask is 0."""

    def __init__(self, source: Source, batch_size: int, rows: range):
        self.source, self.batch_size, self.rows = source, batch_size, rows

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        start = int(index) * self.batch_size + self.rows.start
        indices = np.arange(start, max(start, min(start + len(self.rows), len(self.source))))
        batch = self.source.read(indices)
        missing = len(self.rows) - len(indices)
        for key in ("image", "label", "mask") if missing else ():
            batch[key] = np.concatenate([batch[key], np.zeros((missing, *batch[key].shape[1:]), batch[key].dtype)])
        return batch


def stream(
    source: Source,
    order: Order,
    batch_size: int,
    start_step: int,
    num_steps: int,
    workers: int = 0,
    shard: tuple[int, int] = (0, 1),
    seed: int = 0,
) -> Iterator[Batch]:
    """Returns an iterator over training batches, as NumPy arrays; its `close()` stops the workers.

    A script that starts workers needs the guard `if __name__ == "__main__"`, since they import its module (as "spawn"
    does); without it, the first batch raises UserError.

    Args:
      source: the training set.
      order: the order of examples, with its own seed.
      batch_size: B, of the whole job.
      start_step: number of the first batch.
      num_steps: number of batches.
      workers: processes that decode; 0 means threads of this process.
      shard: (r, P) gives process r of P the rows r*B/P … (r+1)*B/P - 1 of each batch.
      seed: seed of the random crops.

    Returns:
      Batches {"image": uint8 [B/P, H, W, C], "label": int32 [B/P, *label_shape], "mask": float32 [B/P], "skipped":
      int64 [S]}. All masks are 1. "skipped" has the indices of images that could not be decoded and were replaced
      (data.on_error=skip).
    """
    batches = _TrainingBatches(source, order, batch_size, start_step, num_steps, process_rows(batch_size, shard), seed)
    return _iterate(batches, workers)


def evaluation_batches(
    source: Source, batch_size: int, workers: int = 0, shard: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
    """Returns an iterator over all examples, each once, in order, with the evaluation crop; see `stream`.

    The last batch is padded with zeros. The mask is 0 for padding and for images that could not be decoded. Each
    process gets the same number of batches.
    """
    return _iterate(_EvaluationBatches(source, batch_size, process_rows(batch_size, shard)), workers)


def _iterate(batches: _Batches, workers: int) -> Iterator[Batch]:
    if workers < 0:
        raise UserError(f"data.workers={workers}: must be 0 (threads) or a number of processes")
    import grain  # imports Orbax, which takes time that a resident data set need not cost before its first step

    dataset = grain.MapDataset.source(batches)
    # Decoding releases the interpreter's lock; more than 8 threads would wait for it in Python's share of the work
    threads = min(runtime.cores(), 8) if workers == 0 else 1
    dataset = dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(_AHEAD, threads)), allow_nones=False
    )
    if workers:
        _check_script()
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads its flags, which tests and notebooks do not parse
        # Labels and masks are faster through a pipe than as files of shared memory
        options = grain.experimental.DatasetOptions(
            min_shm_size=2**16 if _fits_shared_memory(batches, workers) else 2**62
        )
        dataset = grain.experimental.WithOptionsIterDataset(dataset, options)
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=min(workers, max(1, len(batches))), per_worker_buffer_size=_AHEAD),
            worker_init_fn=_start_worker,
        )
    return _until_closed(dataset, shared=workers > 0)


@functools.cache
def _check_script() -> None:
    """Checks that workers can import the script that starts them, by a process that does nothing else.

    Raises:
      UserError: the script trains when it is imported; grain would wait forever for workers that never start.
    """
    script = sys.modules["__main__"]
    if getattr(script, "__spec__", None) is not None or not hasattr(script, "__file__"):
        return  # run by `python -m`, as our commands are, or a notebook
    probe = multiprocessing.get_context("spawn").Process(target=_nothing)
    probe.start()
    probe.join()
    if probe.exitcode:
        raise UserError(
            f"data.workers: worker processes import {script.__file__} and fail (see above); put what it runs under "
            "if __name__ == '__main__':"
        )


def _nothing() -> None:
    """Does nothing, in a process that only has to start."""


def _until_closed(dataset: "grain.IterDataset", shared: bool) -> Iterator[Batch]:
    iterator = iter(dataset)
    try:
        for batch in iterator:
            # A worker's arrays are in shared memory that is freed with them; copies may outlive the stream
            copied = [key for key, value in batch.items() if shared and isinstance(value, np.ndarray)]
            yield {**batch, **{key: np.array(batch[key]) for key in copied}}
            del batch
    finally:
        iterator.close()
        # Grain's iterators are in reference cycles, which hold the last batches' shared memory and 25 semaphores
        del iterator
        gc.collect()


def _fits_shared_memory(batches: _Batches, workers: int) -> bool:
    """Returns True if /dev/shm can hold all batches in flight.

    Containers often have 64 MB there, and writing more raises SIGBUS. Pipes are slower but always work.
    """
    rows = len(batches.rows)
    row = int(np.prod(batches.source.image_shape)) + 4 * int(np.prod(batches.source.label_shape)) + 4
    needed = workers * (_AHEAD + 2) * (rows * row + 3 * 4096)
    try:
        return shutil.disk_usage("/dev/shm").free > 2 * needed
    except OSError:
        return True  # not Linux, where shared memory is not a file system


def _start_worker(index: int, count: int) -> None:
    """Prepares a worker process, which must neither take an accelerator nor outlive its parent."""
    jax.config.update("jax_platforms", "cpu")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent stops its workers
    # A preemption's SIGTERM also reaches the whole group. The worker exits 10 s later, because the parent needs batches
    # until it has saved its checkpoint. Grain takes only a worker that exits with an error for one that is gone.
    signal.signal(signal.SIGTERM, lambda *_: threading.Timer(10, os._exit, (1,)).start())
    for name in ("SIGUSR1", "SIGUSR2"):  # the parent takes them for SIGTERM (train/interruption.py); Windows has none
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
