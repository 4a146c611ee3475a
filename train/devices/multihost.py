"""Several processes, on one machine or many, that train one run together.

Every process runs the same command. Process 0 alone reads and writes the workdir and speaks for all; what it finds
there goes to the others over the network. So only the data have to be within reach of all of them.
"""

import contextlib
import ctypes
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils

from models.errors import UserError
from train import config as config_lib

HEARTBEAT = 30  # seconds of silence after which a process counts as dead
GRACE = 5  # seconds in which the others may say that they failed, too, before this one's end takes them along
GONE = (
    "another process of this run is gone (what it printed says why): start the run again on all of them; the same "
    "command goes on from the last checkpoint"
)
# How XLA words it where a collective fails since a peer is gone: Gloo on a CPU, NCCL on GPUs, the coordination service
_LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|socket closed|coordination|heartbeat", re.IGNORECASE)


def join(automatic: bool, coordinator: str | None, processes: int | None, process: int | None, seconds: int) -> None:
    """Makes this process one of a run's, before JAX looks for devices. Does nothing where no argument asks for it.

    Args:
      automatic: JAX finds the cluster: Slurm, Open MPI, Kubernetes, a TPU pod.
      coordinator, processes, process: HOST:PORT of process 0, how many there are, and which this is; all or none.
      seconds: how long to wait for the others.

    Raises:
      UserError: the arguments do not fit, there is no cluster, or not all the others came.
    """
    by_hand = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [name for name, value in by_hand.items() if value is None]
    if automatic and len(missing) < 3:
        raise UserError("--distributed finds the cluster by itself; leave out --coordinator, --processes, --process")
    if not automatic and len(missing) == 3:
        return
    if not automatic:
        if missing:
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
    met = (
        f"the processes of this run did not all meet at {coordinator or 'the address that the cluster gives'} "
        f"within {seconds} s: start all of them, where that address can be reached"
    )
    _say_on_abort(f"error: {met}\n", 2)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            cluster_detection_method=None if automatic else "deactivate",
            initialization_timeout=seconds,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except ValueError as error:  # nothing that JAX knows is there to be asked
        raise UserError(
            f"--distributed: JAX finds no cluster here ({error}): it knows Slurm, Open MPI, Kubernetes and "
            "TPU pods; elsewhere give --coordinator=HOST:PORT --processes=N --process=I"
        ) from error
    except RuntimeError as error:
        raise UserError(f"{met} ({str(error).splitlines()[0]})") from error
    signal.signal(signal.SIGABRT, signal.SIG_DFL)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Within it, this process's failure ends the others, and theirs this one, each with one line that says so.

    A failure is said at once. Exit codes are those of `train.cli`: 2 for a user's mistake, 130 for ctrl-C, else 1.
    """
    if jax.process_count() == 1:
        yield
        return
    name = f"error (process {jax.process_index()} of {jax.process_count()}):"
    _say_on_abort(f"{name} {GONE}\n", 1)
    try:
        # Gloo gives a group of devices 30 s to connect: now that all are here, not when some compile for longer
        jax.block_until_ready(jax.pmap(lambda x: lax.psum(x, "all"), "all")(np.ones(jax.local_device_count())))
        yield
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        code, said = 1, GONE
        if isinstance(error, KeyboardInterrupt):
            code, said = 130, "interrupted"
        elif isinstance(error, UserError):
            code, said = 2, " ".join(str(error).split())
        elif isinstance(error, jax.errors.JaxRuntimeError) and _LOST.search(str(error)):
            print(error, file=sys.stderr)
        else:
            said = f"{type(error).__name__}: {error}"
            traceback.print_exception(error)
        print(name, said, file=sys.stderr, flush=True)
        sys.stdout.flush()
        # The way out through JAX waits for all processes, some of which may wait for this one
        time.sleep(GRACE)
        os._exit(code)


def _say_on_abort(message: str, code: int) -> None:
    """Ends the process with a message where XLA aborts it: so it does where the coordinator is lost, or says that
    another process is. (XLA takes no callback of Python's for that, and Python's own signal handlers run too late.)
    """

    def end(number):
        del number
        os.write(2, message.encode())
        os._exit(code)

    _say_on_abort.handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(end)  # must live on
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _say_on_abort.handler)


def gather(value: Any) -> list[Any]:
    """The JSON values of all processes, by process; all call it."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(text.size, np.int32))
    texts = multihost_utils.process_allgather(np.pad(text, (0, int(sizes.max()) - text.size)))
    return [json.loads(row[:size].tobytes()) for row, size in zip(texts, sizes, strict=True)]


def check_same(what: str, values: Mapping[str, Any]) -> None:
    """Raises UserError, on all processes, where one has other (JSON) values than process 0."""
    first, *others = gather(values)
    for process, other in enumerate(others, 1):
        if lines := config_lib.difference(first, other):
            raise UserError(
                f"process {process} has another {what} than process 0 ({'; '.join(lines)}): give all "
                "processes the same command and the same files"
            )


def on_primary(action: Callable[[], None]) -> None:
    """Calls `action` on process 0; a UserError that it raises there is raised on every process."""

    def act():
        action()
        return None, ()

    from_primary(act, ())


def from_primary(function: Callable[[], tuple[Any, Any]], like: Any) -> tuple[Any, Any]:
    """What `function` returns on process 0, or the UserError that it raises there, on every process.

    Args:
      function: returns a JSON value, and numpy arrays in the structure of `like`.
      like: arrays or shapes.
    """
    if jax.process_count() == 1:
        return function()
    told, arrays, problem = None, like, None
    if jax.process_index() == 0:
        try:
            told, arrays = function()
        except UserError as error:
            problem = str(error)
    told, problem = gather((told, problem))[0]
    if problem is not None:
        raise UserError(problem)

    def broadcast(leaf):  # as bytes: a sum with the zeros of the others would turn -0.0 into 0.0
        sent = multihost_utils.broadcast_one_to_all(np.ravel(leaf).view(np.uint8))
        return np.asarray(sent).view(leaf.dtype).reshape(leaf.shape)

    return told, jax.tree.map(broadcast, arrays)
