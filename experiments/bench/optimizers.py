"""Every optimizer on the digits: what it learns, whether it resumes, its state and its time. See --help."""

import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.bench.workers import ROOT
from models import command
from models.analysis.tables import markdown_table, terminal_table
from models.errors import choice_error
from models.kernels import runtime
from train import cli

USAGE = """Trains LeNet-300-100 on the digits with each optimizer of optimizer.name, at its usual learning rate.

    python -m experiments.bench.optimizers
    python -m experiments.bench.optimizers --names=lion,muon,sgd+sam --epochs=5

For each, it compares a run that pauses in the middle with a whole one, bit by bit; trains on four devices; compares six
steps on four devices with sharded (parallel=fsdp) and replicated parameters; and times the update of a ResNet-20. Rows
of optimizers that are not named stay. optimizers.json and optimizers.md go to --out.
"""
DEVICES = 4
WRAPPED = {"sgd+sam": "sam(rho=0.05)", "sgd+asam": "asam(rho=0.5)"}  # names of rows besides those of optimizers
COLUMNS = {
    "name": "optimizer",
    "rate": "learning rate",
    "one": "accuracy, 1 device",
    "four": "4 devices",
    "resumes": "resumes to the bit",
    "fsdp": "fsdp differs by",
    "bytes": "state, bytes per parameter",
    "ms": "update, ms",
    "decay": "decay",
}


def main() -> None:
    """Trains, times, prints and writes."""
    import jax

    jax.config.update("jax_num_cpu_devices", DEVICES)
    from train.optim import catalogue
    from train.recording import summary
    from train.storage.files import read_json, write_atomically, write_json

    console, out = command.console(), Path(OUT.value)
    ordered, known = [], [*catalogue.ENTRIES, *WRAPPED]
    for name in NAMES.value:
        if name not in known:
            raise choice_error("--names", name, known)
    path = out / "optimizers.json"
    rows = {row["name"]: row for row in read_json(path)["rows"]} if path.exists() else {}
    environment = {"cores": runtime.cores(), **summary.environment(jax.devices()[:1])}
    out.mkdir(parents=True, exist_ok=True)
    for name in NAMES.value or known:
        with console.status(name), tempfile.TemporaryDirectory() as folder:
            learned = trained(name, EPOCHS.value, Path(folder)) if "train" in PARTS.value else {}
            times = {"ms": milliseconds(config(name, 1).optimizer)} if "time" in PARTS.value else {}
        rows[name] = {**rows.get(name, {"name": name}), **learned, **times, "commit": environment["commit"]}
        console.print(", ".join(filter(None, cells(rows[name]))), soft_wrap=True, highlight=False)
        ordered = [rows[name] for name in known if name in rows]
        write_json(path, {"rows": ordered, **environment})
        write_atomically(out / "optimizers.md", markdown(ordered, environment))
    console.print(terminal_table(list(COLUMNS.values()), list(map(cells, ordered)), texts=1))


def config(name: str, epochs: int) -> Any:
    """Returns the config of a row: configs/digits.py with LeNet-300-100 and the optimizer."""
    c: Any = cli.read_config([f"--config={ROOT}/configs/digits.py:lenet_300_100,epochs={epochs}"])
    del c.model.width
    c.devices, c.hooks, c.steps_per_call, c.optimizer.learning_rate = 1, "", 11, 0.0
    c.evaluate_every = c.checkpoint_every = "0 steps"
    if name in WRAPPED:
        c.optimizer.sam = WRAPPED[name]
    else:
        c.optimizer.name = name
    if name.startswith("schedule_free"):
        c.optimizer.schedule = "constant"
    return c


def trained(name: str, epochs: int, folder: Path) -> dict[str, Any]:
    """Returns the row of an optimizer without the time of its update; `folder` is for its runs."""
    import numpy as np

    from train import loop
    from train.optim import catalogue
    from train.storage import checkpoint

    c = config(name, epochs)
    entry = catalogue.ENTRIES[c.optimizer.name.partition("(")[0]]
    whole = loop.train(c, folder / "whole")
    loop.train(c, folder / "paused", until=whole["steps"] // 2)
    loop.train(c, folder / "paused")
    leaves, again = (checkpoint.read(folder / run)[0] for run in ("whole", "paused"))
    same = leaves.keys() == again.keys() and all(np.array_equal(leaves[one], again[one]) for one in leaves)
    state = sum(leaf.nbytes for one, leaf in leaves.items() if one.startswith(("opt_state/", "ema/params/")))
    c.devices = DEVICES
    four = loop.train(c, folder / "four")
    return {
        "name": name,
        "rate": entry.usual,
        "source": entry.source,
        "decay": entry.decay,
        "one": whole["accuracy"],
        "four": four["accuracy"],
        "resumes": bool(same),
        "fsdp": _sharded(c),
        "bytes": round(state / whole["parameters"], 2),
        "epochs": epochs,
    }


def _sharded(c: Any) -> float | None:
    """Returns the largest difference of sharded from replicated parameters after six steps, over the largest weight.

    It is None where parallel=fsdp is refused.
    """
    import jax
    import numpy as np

    from models.errors import UserError
    from train.run import build_run

    params = []
    for kind in ("pmap", "fsdp"):
        c.parallel = kind
        try:
            run = build_run(c)
        except UserError:
            return None
        state = run.parallel.place(run.state)
        for _, items in run.feed.calls(0, 6):
            state, _ = run.train_call(state, run.feed.data, items)
        params.append(jax.tree.leaves(run.parallel.fetch(state).params))
    largest = max(float(np.abs(leaf).max()) for leaf in params[0])
    return max(float(np.abs(a - b).max()) for a, b in zip(*params, strict=True)) / largest


def milliseconds(section: Any) -> float:
    """Returns the median time of an update of a ResNet-20, without its gradients."""
    import jax
    import jax.numpy as jnp
    import optax

    import models
    from experiments.bench.timing import Timed, timed
    from train.optim import build
    from train.setup.config import Reader, steps

    model = models.create("resnet20")
    params = models.initialize(model, jax.random.key(0), model.example())["params"]
    to_steps = functools.partial(steps, batch_size=128, examples=1280, total=1000)
    optimizer, _ = build.create(Reader(section), params, to_steps, 1000)
    grads = jax.tree.map(lambda w: 0.01 * jnp.sign(w), params)
    product = functools.partial(jax.tree.map, lambda v: v)  # sophia's products cost as much as two more gradients
    extra = {"value": jnp.float32(1), "hessian_product": product}
    update = jax.jit(
        lambda state, params: optax.with_extra_args_support(optimizer).update(grads, state, params, **extra)
    )
    state = optimizer.init(params)
    [row] = timed([Timed("update", lambda: jax.block_until_ready(update(state, params)), None)], 15)
    return row["milliseconds"]


def cells(row: Mapping[str, Any]) -> list[str]:
    """Returns a row as strings, empty where it was not measured."""
    forms = {
        "rate": "{:g}".format,
        "one": "{:.1%}".format,
        "four": "{:.1%}".format,
        "resumes": lambda same: "yes" if same else "no",
        "fsdp": lambda difference: "refused" if difference is None else f"{difference:.0e}",
        "bytes": "{:.1f}".format,
        "ms": "{:.2f}".format,
    }
    return [forms.get(key, str)(row[key]) if key in row else "" for key in COLUMNS]


def markdown(rows: Sequence[Mapping[str, Any]], environment: Mapping[str, Any]) -> str:
    """Returns the results as a page."""
    return f"""# Optimizers

LeNet-300-100 on the digits at each optimizer's usual learning rate, with a warm-up of 5%, a cosine (none for
schedule-free optimizers) and a decay of 5e-4 of kernels. The state includes the average that is evaluated. The time is
that of an update of a ResNet-20 without its gradients. {environment["device"]}.

{markdown_table(list(COLUMNS.values()), list(map(cells, rows)))}
"""


if __name__ == "__main__":  # only here: absl has one table of flags for the process, and tests import this module
    NAMES = flags.DEFINE_list("names", [], "Optimizers to measure, and sgd+sam and sgd+asam; all by default.")
    EPOCHS = flags.DEFINE_integer("epochs", 15, "Epochs of each run.", lower_bound=1)
    PARTS = flags.DEFINE_list("parts", ["train", "time"], "What to measure: train, time, or both.")
    OUT = command.define_path("out", "experiments/results/bench/optimizers", "Folder of the results.")
    cli.run(main, USAGE)
