"""Trains, resumes or describes what a config says. See `python -m train --help`."""

from absl import flags

from train import cli

USAGE = """Trains the network that a config describes, or goes on where an interrupted run stopped, and evaluates it.

    python -m train --config=configs/digits.py --workdir=runs/digits
    python -m train --config=configs/cifar10.py:resnet20,norm=group --workdir=runs/x --config.optimizer.clip_norm=1
    python -m train --config=configs/cifar10.py:resnet56 --dry_run

configs/base.py says what every key means. The same command again goes on with an interrupted run.
Exit code: 0 done (or SIGTERM: saved), 2 a mistake in what was asked for, 1 a fault, 130 ctrl-C (saved).
"""

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run: config, metrics, checkpoints, pictures, summary.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the network's table and the resolved config; train nothing.")
CONFIG = cli.define_config()

def main() -> int:
    """One run."""
    import psutil
    import rich.console

    from models.errors import UserError

    started = psutil.Process().create_time()
    config = CONFIG()
    if not WORKDIR.value and not DRY_RUN.value:
        raise UserError("--workdir is missing, e.g. --workdir=runs/digits")
    console = rich.console.Console()
    from train import loop, summary  # JAX is imported only when the flags are known to be right

    if DRY_RUN.value:
        summary.describe(config, loop.setup, console)
        return 0
    result = loop.train(config, WORKDIR.value, console, started)
    if "interrupted" in result:
        return 130 if result["interrupted"] == "SIGINT" else 0
    console.print(summary.table(result, WORKDIR.value))
    return 0

if __name__ == "__main__":
    cli.run(main, USAGE)
