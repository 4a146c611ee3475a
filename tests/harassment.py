"""Harasses a study on a real Slurm, and checks that nothing is lost: python -m tests.harassment --kills=200.

A study of 40 trials runs on two virtual nodes. Workers get SIGKILL at random instants, a partition of higher priority
preempts jobs, node daemons stop and start, and the launcher is killed and started again. At the end the results must be
those of one undisturbed process, to the bit but for times, with one line per trial in the ledger.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

from tests import cluster
from tests.experiments import test_launch_slurm as launching
from tests.tiny import ROOT
from train.recording import summary

SECONDS = 12  # that each trial sleeps after its training, so that kills meet trials in all of their stages
SEEDS = 20  # of a pair of trials, the second of which starts from the first
SLOW = f"""
def slow(run, state):
    import time
    time.sleep({SECONDS})
    return float(abs(state.params["head"]["kernel"]).sum())
"""


class Harassment:
    """A running study and the events that harass it.

    Args:
      running: The Slurm.
      study: File of the study.
      kills: Number of workers to kill.
    """

    def __init__(self, running: cluster.Slurm, study: Path, kills: int):
        self.running, self.study, self.left = running, study, kills
        self.counts = dict.fromkeys(("workers", "launchers", "preemptions", "daemons"), 0)
        self.random = random.Random(0)
        self.launcher = self.start()

    def start(self):
        """Starts the launcher."""
        return launching.start(self.running, self.study, "--on=slurm", "--workers=2", f"--seeds={SEEDS}")

    def goes_on(self) -> bool:
        """Returns whether the study is not finished; starts a launcher that has ended too early."""
        if self.launcher.poll() is None:
            return True
        if self.launcher.returncode == 0:
            return False
        print(f"launcher: exit code {self.launcher.returncode}: {self.launcher.communicate()[1]}", flush=True)
        self.launcher = self.start()
        return True

    def once(self) -> None:
        """Waits for a random time, kills a worker, and sometimes does something else."""
        time.sleep(self.random.uniform(0.5, 8))
        workers = launching.workers(self.study.parent)
        if self.left and workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.random.choice(workers), signal.SIGKILL)
                self.left -= 1
                self.counts["workers"] += 1
        event = self.random.random()
        if event < 0.02:
            self.launcher.kill()
            self.launcher.communicate()
            self.counts["launchers"] += 1
            self.launcher = self.start()
        elif event < 0.05:
            self.running.call("sbatch", "--partition=urgent", "--output=/dev/null", "--wrap=sleep 3")
            self.counts["preemptions"] += 1
        elif event < 0.07:
            self._restart(self.random.randrange(2))
        self._release()

    def _restart(self, node: int) -> None:
        """Stops the daemon of a node, and starts it again."""
        file = self.running.folder / f"slurmd.n{node}.pid"
        with contextlib.suppress(OSError, ValueError):  # it is just starting
            os.kill(int(file.read_text()), signal.SIGTERM)
            time.sleep(2)
            self.running.call("slurmd", "-N", f"n{node}")
            self.counts["daemons"] += 1

    def _release(self) -> None:
        """Starts requeued jobs at once, which Slurm delays for two minutes."""
        for line in self.running.call("squeue", "--noheader", "--array", "--format=%i %r").splitlines():
            job, reason = line.split(maxsplit=1)
            if reason == "BeginTime":
                with contextlib.suppress(AssertionError):  # it has ended in the meantime
                    self.running.call("scontrol", "update", f"JobId={job}", "StartTime=now")


def main() -> int:
    """Runs the harassment, and writes its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "results" / "harassment.json")
    options = parser.parse_args()
    if reason := cluster.missing():
        print(f"error: {reason}", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="harassment-"))
    study = folder / "pairs.py"
    text = launching.STUDY.replace("STEPS", "120")
    text = text.replace("start=first)", "start=first, measures=(slow,))").replace(
        "config(seed))", "config(seed), measures=(slow,))"
    )
    study.write_text(SLOW + text)
    with cluster.slurm(folder / "slurm", nodes=2, cpus=1) as running:
        began, harassment = time.time(), Harassment(running, study, options.kills)
        while harassment.goes_on():
            harassment.once()
        seconds, lines = time.time() - began, launching.lines(study)
        disturbed = launching.results(study)
        shutil.rmtree(study.parent / "out")
        quiet = subprocess.run(
            launching.command(study, "--jobs=1", f"--seeds={SEEDS}"),
            cwd=ROOT,
            env=launching.environment(running),
            check=False,
        )
        result = {
            **{f"{name} harassed": count for name, count in harassment.counts.items()},
            "seconds": round(seconds, 1),
            "trials": 2 * SEEDS,
            "lines": len(lines),
            "trials in the ledger": len(set(lines)),
            "equal to one process": quiet.returncode == 0 and launching.results(study) == disturbed,
            **summary.environment(jax.local_devices()),
        }
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 0 if result["equal to one process"] and len(lines) == len(set(lines)) == 2 * SEEDS else 1


if __name__ == "__main__":
    sys.exit(main())
