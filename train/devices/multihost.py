"""Training one run with several processes, on one machine or many.

Every process runs the same command. Only process 0, the primary, reads and writes the workdir and prints progress. It
sends what it reads to the others over the network, so that they only need access to the data. Checkpoints
of a state that is sharded over processes are the exception (train/storage/sharded.py).
"""

import contextlib
import ctypes
import json
import os
import re
import secrets
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils

from models.errors import UserError
from train.setup.config import differences

HEARTBEAT = 30  # seconds of silence after which a process counts as dead
GRACE = 5  # seconds until this process exits, which ends the others; failed ones can print their errors until then
GONE = (
    "another process of this run has ended (its output says why): start the run again on all hosts; the same command "
    "resumes from the last checkpoint"
)
# XLA's messages when a collective fails because a peer has ended: Gloo on CPUs, NCCL on GPUs, the coordination service
_LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|socket closed|coordination|heartbeat", re.IGNORECASE)


def join(automatic: bool, coordinator: str | None, processes: int | None, process: int | None, seconds: int) -> None:
    """Joins this process to the other processes of a run, before JAX initializes its devices.

    Does nothing if no argument asks for it.

    Args:
      automatic: whether JAX detects the cluster: Slurm, Open MPI, Kubernetes or a TPU pod.
      coordinator: HOST:PORT of process 0; this and the next two are given together, without `automatic`.
      processes: number of processes.
      process: number of this process.
      seconds: how long to wait for the others.

    Raises:
      UserError: the arguments are invalid, there is no cluster, or not all processes joined in time.
    """
    if not automatic and coordinator is None and processes is None and process is None:
        return
    _check_flags(automatic, coordinator, processes, process)
    absent = (
        f"not all processes of this run connected to {coordinator or 'the address that the cluster gives'} within "
        f"{seconds} s: start all of them on hosts that can reach that address"
    )
    _say_on_abort(f"error: {absent}\n", 2)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            cluster_detection_method=None if automatic else "deactivate",
            initialization_timeout=seconds,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except ValueError as error:  # JAX detects no cluster
        raise UserError(
            f"--distributed: JAX finds no cluster here ({error}): it knows Slurm, Open MPI, Kubernetes and "
            "TPU pods; elsewhere give --coordinator=HOST:PORT --processes=N --process=I"
        ) from error
    except RuntimeError as error:
        raise UserError(f"{absent} ({str(error).splitlines()[0]})") from error
    signal.signal(signal.SIGABRT, signal.SIG_DFL)


def _check_flags(automatic: bool, coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Raises UserError if the arguments of `join` are not either `automatic` or the three others, or are invalid."""
    by_hand = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [name for name, value in by_hand.items() if value is None]
    if automatic:
        if len(missing) < 3:
            raise UserError(
                "--distributed finds the cluster by itself; leave out --coordinator, --processes, --process"
            )
        return
    if coordinator is None or processes is None or process is None:
        raise UserError(
            f"--{missing[0]} is missing: --coordinator=HOST:PORT, --processes=N and --process=I go together"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator={coordinator} must be HOST:PORT of process 0, e.g. 10.0.0.1:8476")
    if processes < 1:
        raise UserError(f"--processes={processes} must be at least 1")
    if not 0 <= process < processes:
        raise UserError(f"--process={process} must be in [0, {processes})")


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends all processes of a run when one of them fails in this context, each with one line that says why.

    Exit codes are those of `train.cli`: 2 for user errors, 130 for ctrl-C, otherwise 1.
    """
    if jax.process_count() == 1:
        yield
        return
    name = f"error (process {jax.process_index()} of {jax.process_count()}):"
    _say_on_abort(f"{name} {GONE}\n", 1)
    try:
        # Gloo gives a group of devices 30 s to connect. They connect here, because compiling can take longer than that.
        jax.block_until_ready(jax.pmap(lambda x: lax.psum(x, "all"), "all")(np.ones(jax.local_device_count())))
        yield
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        code, reason = 1, GONE
        if isinstance(error, KeyboardInterrupt):
            code, reason = 130, "interrupted"
        elif isinstance(error, UserError):
            code, reason = 2, " ".join(str(error).split())
        elif isinstance(error, jax.errors.JaxRuntimeError) and _LOST.search(str(error)):
            print(error, file=sys.stderr)
        else:
            reason = f"{type(error).__name__}: {error}"
            traceback.print_exception(error)
        print(name, reason, file=sys.stderr, flush=True)
        sys.stdout.flush()
        # JAX's own shutdown waits for all processes, some of which may be waiting for this one.
        time.sleep(GRACE)
        os._exit(code)


_handlers: list[Any] = []  # C callbacks must stay alive while they are installed


def _say_on_abort(message: str, code: int) -> None:
    """Installs a handler that prints a message and exits when XLA aborts the process.

    XLA aborts when the coordinator is lost, or when the coordinator reports that another process is lost. It accepts no
    Python callback for this case, and Python's own signal handlers would run too late.
    """

    def end(number):
        del number
        os.write(2, message.encode())
        os._exit(code)

    _handlers.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(end))
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _handlers[-1])


def gather(value: Any) -> list[Any]:
    """Returns the JSON values of all processes, in order of the processes; all processes must call it."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(text.size, np.int32))
    texts = multihost_utils.process_allgather(np.pad(text, (0, int(sizes.max()) - text.size)))
    return [json.loads(row[:size].tobytes()) for row, size in zip(texts, sizes, strict=True)]


def check_same(what: str, values: Mapping[str, Any]) -> None:
    """Raises UserError on all processes if one has JSON values that differ from those of process 0.

    Args:
      what: names the values in the error, e.g. "config".
      values: the values of this process.
    """
    first, *others = gather(values)
    for process, other in enumerate(others, 1):
        if changes := differences(other, first):
            listed = "; ".join(f"{key} is {here}, not {there}" for key, here, there in changes)
            raise UserError(
                f"process {process}'s {what} differs from process 0's: {listed}; give all processes the same command "
                "and the same files"
            )


def on_primary(action: Callable[[], None]) -> None:
    """Calls a function on process 0, and raises its UserError on every process."""

    def act():
        action()
        return None, ()

    from_primary(act, ())


def all_see(folder: Path) -> bool:
    """Returns whether all processes see the same folder, which exists on process 0, at this path."""
    probe = folder / f".seen-{gather(secrets.token_hex(8))[0]}.tmp"
    on_primary(probe.touch)
    seen = gather(os.path.exists(probe))
    if jax.process_index() == 0:
        probe.unlink()
    return all(seen)


def from_primary(function: Callable[[], tuple[Any, Any]], like: Any) -> tuple[Any, Any]:
    """Calls a function on process 0, and returns its result, or raises its UserError, on every process.

    Args:
      function: returns a JSON value, and numpy arrays in the structure of `like`.
      like: arrays or shapes.
    """
    if jax.process_count() == 1:
        return function()
    value, arrays, problem = None, like, None
    if jax.process_index() == 0:
        try:
            value, arrays = function()
        except UserError as error:
            problem = str(error)
    value, problem = gather((value, problem))[0]
    if problem is not None:
        raise UserError(problem)

    def broadcast(leaf):  # as bytes, because JAX broadcasts by a sum with zeros, which turns -0.0 into 0.0
        received = multihost_utils.broadcast_one_to_all(np.ravel(leaf).view(np.uint8))
        return np.asarray(received).view(leaf.dtype).reshape(leaf.shape)

    return value, jax.tree.map(broadcast, arrays)
