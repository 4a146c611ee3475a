"""Trains, resumes or describes what a config says. See `python -m train --help`."""

from absl import flags

from models import command
from train import cli

USAGE = """Trains the network that a config describes, or goes on where an interrupted run stopped, and evaluates it.

    python -m train --config=configs/digits.py --workdir=runs/digits
    python -m train --config=configs/cifar10.py:resnet20,norm=group --workdir=runs/x --config.optimizer.clip_norm=1
    python -m train --config=configs/cifar10.py:resnet56 --dry_run

configs/base.py says what every key means. The same command again goes on with an interrupted run. On a cluster, the
same command on every host, with --distributed; --process=I differs where the three flags beside it are given by hand.
Exit code: 0 done (or SIGTERM: saved), 2 a mistake in what was asked for, 1 a fault, 130 ctrl-C (saved).
"""

WORKDIR = command.define_path("workdir", None, "Folder of this run: config, metrics, checkpoints, pictures, summary.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the network's table and the resolved config; train nothing.")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of many processes; JAX finds the others: Slurm, Open MPI, Kubernetes, TPU pods."
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "Elsewhere: HOST:PORT of process 0, any free port.")
PROCESSES = flags.DEFINE_integer("processes", None, "With --coordinator: how many processes there are.")
PROCESS = flags.DEFINE_integer("process", None, "With --coordinator: which of them this is, from 0.")
JOIN_SECONDS = flags.DEFINE_integer("join_seconds", 300, "How long a process waits for the others at the start.")
CONFIG = cli.define_config()


def main() -> int:
    """One run."""
    import psutil

    from models.errors import UserError

    started = psutil.Process().create_time()
    config = CONFIG()
    if not WORKDIR.value and not DRY_RUN.value:
        raise UserError("--workdir is missing, e.g. --workdir=runs/digits")
    from train.devices import multihost  # JAX is imported only when the flags are known to be right

    multihost.join(DISTRIBUTED.value, COORDINATOR.value, PROCESSES.value, PROCESS.value, JOIN_SECONDS.value)
    with multihost.together():
        import jax

        from train import loop, summary  # JAX has been told of the other processes
        from train.describe import describe

        console = command.console(quiet=jax.process_index() > 0)
        if DRY_RUN.value:
            describe(config, console)
            return 0
        result = loop.train(config, WORKDIR.value, console, started)
        if "interrupted" in result:
            return 130 if result["interrupted"] == "SIGINT" else 0
        console.print(summary.table(result, WORKDIR.value))
    return 0


if __name__ == "__main__":
    cli.run(main, USAGE)
