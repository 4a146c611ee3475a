"""The streaming pipeline: batches decoded ahead of the training step, in threads or in worker processes (grain).

What grain distributes is whole batches by number: batch t is made by one thread or process, from (seed, t) alone. So
neither the number of workers, nor of processes, nor a restart changes any batch, and there is no state to save.
"""

import gc
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from models.errors import UserError
from models.kernels import runtime
from train.data.shuffle import Order, philox, rows
from train.data.source import Source

# "image" uint8 [B, H, W, C], "label" int32 [B, *label_shape], "mask" float32 [B], "skipped" int64 [S]
Batch = dict[str, Any]

_CROPS = 1  # the use of philox that draws crops (0 is the order of examples)
_AHEAD = 2  # batches that each worker has ready


class _TrainingBatches(Sequence):
    """Batch start_step + i at index i: the rows of one process's shard."""

    def __init__(
        self, source: Source, order: Order, batch_size: int, start_step: int, num_steps: int, rows: range, seed: int
    ):
        self.source, self.order, self.batch_size, self.seed = source, order, batch_size, seed
        self.start_step, self.num_steps, self.rows = start_step, num_steps, rows

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, i: int) -> Batch:
        position = (self.start_step + int(i)) * self.batch_size + self.rows.start
        indices = self.order.indices(position, len(self.rows))
        rng = (lambda row: philox(self.seed, position + row, _CROPS)) if self.source.random_crop else None
        return self.source.read(indices, rng, replace=True)


class _EvaluationBatches(Sequence):
    """Batch i of the source in order: the rows of one process's shard, padded with zeros and mask 0."""

    def __init__(self, source: Source, batch_size: int, rows: range):
        self.source, self.batch_size, self.rows = source, batch_size, rows

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def __getitem__(self, i: int) -> Batch:
        start = int(i) * self.batch_size + self.rows.start
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
    """Training batches start_step … start_step + num_steps - 1, as numpy arrays.

    batch_size: of the whole job; `shard` = (r, P) gives process r of P the rows r*B/P … (r+1)*B/P - 1 of every batch.
    workers: processes that decode (0: threads of this one). seed: of the random crops; that of the order is its own.
    Every batch has "image" uint8 [B/P, H, W, C], "label" int32 [B/P, *label_shape], "mask" float32 [B/P] of ones, and
    "skipped" int64 [S], the indices of images that could not be decoded and were replaced (data.on_error=skip).
    `close()` stops workers. A script that starts workers needs the guard `if __name__ == "__main__"`: they import its
    module (as "spawn" does).
    """
    batches = _TrainingBatches(source, order, batch_size, start_step, num_steps, rows(batch_size, shard), seed)
    return _iterate(batches, workers)


def evaluation_batches(
    source: Source, batch_size: int, workers: int = 0, shard: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
    """Every example of the source once, in order, with the evaluation crop: batches as of `stream`.

    The last batch is padded with zeros, whose mask is 0, as is that of an image that could not be decoded. Every
    process gets the same number of batches.
    """
    return _iterate(_EvaluationBatches(source, batch_size, rows(batch_size, shard)), workers)


def _iterate(batches: Sequence, workers: int) -> Iterator[Batch]:
    if workers < 0:
        raise UserError(f"data.workers={workers}: want 0 (threads) or a number of processes")
    dataset = grain.MapDataset.source(batches)
    # Decoding releases the interpreter's lock, so threads share the cores until Python's own part of the work binds.
    threads = min(runtime.cores(), 8) if workers == 0 else 1
    dataset = dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(_AHEAD, threads)), allow_nones=False
    )
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads its flags, which nobody parsed in a test or a notebook
        # Labels and masks are quicker through a pipe than as files of shared memory.
        options = grain.experimental.DatasetOptions(
            min_shm_size=2**16 if _fits_shared_memory(batches, workers) else 2**62
        )
        dataset = grain.experimental.WithOptionsIterDataset(dataset, options)
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=min(workers, max(1, len(batches))), per_worker_buffer_size=_AHEAD),
            worker_init_fn=_start_worker,
        )
    return _until_closed(dataset)


def _until_closed(dataset: grain.IterDataset) -> Iterator[Batch]:
    iterator = iter(dataset)
    try:
        for batch in iterator:
            # A worker's arrays lie in shared memory that goes with them; copies may outlive the stream.
            yield {key: np.array(value) if isinstance(value, np.ndarray) else value for key, value in batch.items()}
            del batch
    finally:
        iterator.close()
        # grain's iterators are in reference cycles, which hold the last batches' shared memory and 25 semaphores.
        del iterator
        gc.collect()


def _fits_shared_memory(batches: Sequence, workers: int) -> bool:
    """Whether /dev/shm holds all batches in flight. Containers often have 64 MB there, and writing more is a SIGBUS;
    batches then travel through pipes, which is slower and always works.
    """
    rows = len(batches.rows)
    row = int(np.prod(batches.source.image_shape)) + 4 * int(np.prod(batches.source.label_shape)) + 4
    needed = workers * (_AHEAD + 2) * (rows * row + 3 * 4096)
    try:
        return shutil.disk_usage("/dev/shm").free > 2 * needed
    except OSError:
        return True  # not Linux: shared memory is no file system there


def _start_worker(index: int, count: int) -> None:
    """Runs first in each worker process, which must neither take an accelerator nor outlive its parent."""
    jax.config.update("jax_platforms", "cpu")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent stops its workers
    # So does the SIGTERM of a preemption, and the parent still wants batches until it has saved its checkpoint.
    signal.signal(signal.SIGTERM, lambda *_: threading.Timer(10, os._exit, (0,)).start())
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
