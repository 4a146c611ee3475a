"""Trains, resumes or describes the run of a config. See `python -m train --help`."""

import shlex

from absl import flags
from ml_collections import ConfigDict

from models import command
from train import cli

USAGE = """Trains and evaluates the network that a config describes, or resumes an interrupted run.

    python -m train --config=configs/digits.py --workdir=runs/digits
    python -m train --config=configs/cifar10.py:resnet20,norm=group --workdir=runs/x --config.optimizer.clip_norm=1
    python -m train --config=configs/cifar10.py:resnet56 --dry_run
    python -m train --config=configs/imagenet.py:resnet50 --dry_run --topology=v5e:4x4
    python -m train --config=configs/digits.py --config.duration="40 epochs" --workdir=runs/digits --extend
    python -m train --workdir=runs/digits --evaluate=folder:/data/other_digits

configs/base.py documents every key. The same command resumes an interrupted run. On a cluster, run the same command on
every host with --distributed. Elsewhere, use --coordinator, --processes and --process; only --process differs by host.
Exit codes: 0 success, 1 internal error, 2 user error, 130 ctrl-C (after saving), 75 SIGTERM, SIGUSR1 or SIGUSR2 (after
saving; the run is not finished). Under Slurm with --requeue, such a job is requeued.
"""

WORKDIR = command.define_path(
    "workdir", None, "Folder of this run: config, metrics, checkpoints, pictures, summary.", remote=True
)
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print data, steps, cost, memory, time and the resolved config; train nothing."
)
LAYERS = flags.DEFINE_bool("layers", False, "With --dry_run: print the table of the network's layers, too.")
TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "With --dry_run: compile the training step for accelerators that are not here, such as v5e:4x4 or h100:8, and "
    "print whether it fits into their memory and what they exchange.",
)
EXTEND = flags.DEFINE_bool(
    "extend", False, "Train the run in --workdir on to a longer --config.duration; its optimizer's state is kept."
)
EVALUATE = flags.DEFINE_string(
    "evaluate",
    None,
    "Evaluate the finished run in --workdir on another set with its classes: a source as in data.source, or "
    "imagenet-v2, imagenet-a, imagenet-r, imagenet-sketch, imagenet-real or imagenet-c/CORRUPTION/SEVERITY.",
)
SPLIT = flags.DEFINE_string("split", None, "With --evaluate: the split; default: test.")
CLASS_MAP = command.define_path(
    "class_map", None, "With --evaluate: CSV file with rows NAME IN THE SET,NAME IN THE RUN; the latter may be empty."
)
VIEWS = flags.DEFINE_string(
    "views",
    None,
    "With --evaluate: average predictions over other views than the run's: one, mirror, mirror_shift, five_crops, "
    "ten_crops or multi_scale.",
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Train with several processes that JAX finds by Slurm, Open MPI, Kubernetes or TPU pods."
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0 on other clusters; any free port.")
PROCESSES = flags.DEFINE_integer("processes", None, "With --coordinator: the number of processes.")
PROCESS = flags.DEFINE_integer("process", None, "With --coordinator: the number of this process, from 0.")
JOIN_SECONDS = flags.DEFINE_integer("join_seconds", 300, "Seconds that a process waits for the others at the start.")
EXIT_CODE = flags.DEFINE_integer(
    "exit_code_interrupted",
    command.PREEMPTED,
    "Exit code of a run that a scheduler has interrupted: saved, not finished.",
    lower_bound=0,
    upper_bound=255,
)
CONFIG = cli.define_config()


def forecast_run(config: ConfigDict) -> int:
    """Prints a forecast of the run of a config on the accelerators of --topology; returns the exit code."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # libtpu would look for TPUs
    from train.devices import topology
    from train.recording import forecast

    forecast.show(config, topology.read(TOPOLOGY.value or ""), command.console())
    return 0


def evaluate_run(folder: str | None) -> int:
    """Evaluates the run of --workdir on the set of --evaluate, and prints the metrics; returns the exit code."""
    from models.errors import UserError

    if not folder:
        raise UserError("--evaluate needs the folder of a finished run, --workdir")
    from train import elsewhere

    results = elsewhere.evaluate(
        folder, EVALUATE.value or "", SPLIT.value or "", CLASS_MAP.value or "", VIEWS.value or ""
    )
    command.console().print(elsewhere.table(results, folder))
    return 0


def main() -> int:
    """Trains, evaluates or describes one run; returns the exit code."""
    import psutil

    from models.errors import UserError

    if EVALUATE.value:
        return evaluate_run(WORKDIR.value)
    if SPLIT.value or CLASS_MAP.value or VIEWS.value:
        raise UserError("--split, --class_map and --views belong to --evaluate; add it")
    started = psutil.Process().create_time()
    config = CONFIG()
    if LAYERS.value and not DRY_RUN.value:
        raise UserError("--layers prints a table with --dry_run; add it")
    if TOPOLOGY.value and not DRY_RUN.value:
        raise UserError("--topology compiles with --dry_run, and trains nothing; add it")
    if TOPOLOGY.value and LAYERS.value:
        raise UserError("--layers prints a table without --topology: leave one of them out")
    if EXTEND.value and DRY_RUN.value:
        raise UserError("--extend trains, and --dry_run does not: leave one of them out")
    if not WORKDIR.value and not DRY_RUN.value:
        raise UserError("--workdir is missing, e.g. --workdir=runs/digits")
    from train.devices import multihost  # imports JAX, which takes time that errors in flags should not cost

    if TOPOLOGY.value:
        return forecast_run(config)
    multihost.join(DISTRIBUTED.value, COORDINATOR.value, PROCESSES.value, PROCESS.value, JOIN_SECONDS.value)
    with multihost.together():
        import jax

        from train import loop
        from train.recording import summary  # imported after JAX has joined the other processes

        console = command.console(quiet=jax.process_index() > 0)
        if DRY_RUN.value:
            from train.recording.describe import describe

            describe(config, console, LAYERS.value)
            return 0
        result = loop.train(config, WORKDIR.value, console, started, EXTEND.value)
        if "interrupted" in result:
            if result["interrupted"] == "SIGINT":
                return command.INTERRUPTED
            from train.devices import slurm

            if jax.process_index() == 0 and (line := slurm.requeue()):
                console.print(line, soft_wrap=True, markup=False, highlight=False)
            return EXIT_CODE.value
        console.print(summary.table(result, WORKDIR.value))
        console.print(f"tensorboard --logdir={shlex.quote(str(WORKDIR.value))}", soft_wrap=True, highlight=False)
    return 0


if __name__ == "__main__":
    cli.run(main, USAGE)
