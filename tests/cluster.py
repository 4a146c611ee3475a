"""A real Slurm on this machine for tests: a controller and node daemons of its own, which end with the test.

Debian: apt-get install -y slurm-wlm munge. It needs root, as the daemons do.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin"  # Debian keeps daemons there
DAEMONS = ("slurmctld", "slurmd", "munged")
SECONDS = 60  # longest wait for nodes that are idle

CONFIG = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmUser=root
SlurmctldPort={port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool.%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=30
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
"""


def missing() -> str:
    """Returns the reason why no Slurm can start here; "" if one can."""
    if os.geteuid():
        return "the daemons of Slurm need root"
    absent = [name for name in DAEMONS if not shutil.which(name, path=SEARCH)]
    return f"{', '.join(absent)} missing: apt-get install -y slurm-wlm munge" if absent else ""


class NotStartedError(RuntimeError):
    """The daemons do not start on this machine."""


class Slurm:
    """A running Slurm; `environment` makes the commands of a process talk to it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {**os.environ, "PATH": SEARCH, "SLURM_CONF": str(folder / "slurm.conf")}

    def call(self, *arguments: str) -> str:
        """Runs a command of Slurm, and returns its output."""
        done = subprocess.run(arguments, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr}"
        return done.stdout.strip()

    def state(self, job: str) -> dict[str, str]:
        """Returns the fields of a job."""
        return dict(
            pair.split("=", 1) for pair in self.call("scontrol", "show", "job", "-o", job).split() if "=" in pair
        )

    def release(self, job: str) -> None:
        """Starts a requeued job at once: Slurm delays it, and first has to end what is left of it."""
        deadline = time.monotonic() + SECONDS
        while self.state(job)["Reason"] != "BeginTime":
            assert time.monotonic() < deadline, self.state(job)
            time.sleep(0.2)
        self.call("scontrol", "update", f"JobId={job}", "StartTime=now")

    def wait(self, job: str, states: tuple[str, ...], seconds: float = 120) -> dict[str, str]:
        """Waits until a job has one of some states, and returns its fields."""
        deadline = time.monotonic() + seconds
        while (fields := self.state(job))["JobState"] not in states:
            assert time.monotonic() < deadline, f"job {job} is {fields['JobState']}, not {states}"
            time.sleep(0.2)
        return fields


def _stop(folder: Path) -> None:
    """Ends the daemons, and waits for their end."""
    pids = []
    for file in (*folder.glob("slurmd.*.pid"), folder / "slurmctld.pid"):
        with contextlib.suppress(OSError, ValueError):
            pids.append(int(file.read_text()))
            os.kill(pids[-1], signal.SIGTERM)
    deadline = time.monotonic() + SECONDS
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _start_munge(environment: dict[str, str]) -> None:
    if subprocess.run("munge -n | unmunge", shell=True, env=environment, capture_output=True, check=False).returncode:
        key = Path("/etc/munge/munge.key")
        if not key.exists():
            key.write_bytes(os.urandom(1024))
            key.chmod(0o600)
        for folder in ("/etc/munge", "/run/munge", "/var/log/munge", "/var/lib/munge"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            subprocess.run(["chown", "-R", "munge", folder], check=True)
        subprocess.run(["runuser", "-u", "munge", "--", "munged"], env=environment, check=True)


def _start(cluster: Slurm, nodes: int) -> None:
    """Starts the daemons, and waits until the nodes are idle."""
    _start_munge(cluster.environment)
    cluster.call("slurmctld")
    for i in range(nodes):
        cluster.call("slurmd", "-N", f"n{i}")
    deadline = time.monotonic() + SECONDS
    while cluster.call("sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D") != str(nodes):
        assert time.monotonic() < deadline, (cluster.folder / "slurmctld.log").read_text()[-2000:]
        time.sleep(0.2)


@contextlib.contextmanager
def started(folder: Path, nodes: int = 2, cpus: int = 2) -> Iterator[Slurm]:
    """Starts a Slurm for tests as `slurm` does; skips them where its daemons do not start, as in some containers."""
    with contextlib.ExitStack() as stack:
        try:
            cluster = stack.enter_context(slurm(folder, nodes, cpus))
        except NotStartedError as error:
            pytest.skip(f"Slurm does not start here: {error}")
        yield cluster


@contextlib.contextmanager
def slurm(folder: Path, nodes: int = 2, cpus: int = 2) -> Iterator[Slurm]:
    """Starts a Slurm of virtual nodes, with a partition `urgent` that preempts `main`; ends it afterwards."""
    cluster, host = Slurm(folder), socket.gethostname().split(".")[0]
    controller, *ports = _free_ports(nodes + 1)
    lines = [
        f"NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} State=UNKNOWN"
        for i, port in enumerate(ports)
    ]
    (folder / "state").mkdir(parents=True)
    text = CONFIG.format(host=host, port=controller, folder=folder, nodes="\n".join(lines))
    (folder / "slurm.conf").write_text(text)
    try:
        try:
            _start(cluster, nodes)
        except (AssertionError, OSError, subprocess.CalledProcessError) as error:
            raise NotStartedError(str(error)) from error
        yield cluster
    finally:
        subprocess.run(["scancel", "--user=root"], env=cluster.environment, check=False, capture_output=True)
        _stop(folder)
