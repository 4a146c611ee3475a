"""Every optimizer on the digits: what it learns, whether it resumes, its state and its time. See --help."""

import contextlib
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

For each, it compares a training that goes on from a checkpoint of its middle with a whole one, bit by bit; trains on
four devices; compares eleven steps there with sharded (parallel=fsdp) and replicated parameters; and times the update
of a ResNet-20. Rows of optimizers that are not named stay. optimizers.json and optimizers.md go to --out.
"""
DEVICES, PER_CALL = 4, 11
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
        if learned:
            learned["commit"] = environment["commit"]
        rows[name] = {**rows.get(name, {"name": name}), **learned, **times}
        console.print(", ".join(filter(None, cells(rows[name]))), soft_wrap=True, highlight=False)
        ordered = [rows[name] for name in known if name in rows]
        write_json(path, {"rows": ordered, **environment})
        write_atomically(out / "optimizers.md", markdown(ordered, environment))
    console.print(terminal_table(list(COLUMNS.values()), list(map(cells, ordered)), texts=1))


def config(name: str, epochs: int) -> Any:
    """Returns the config of a row: configs/digits.py with LeNet-300-100 and the optimizer."""
    c: Any = cli.read_config([f"--config={ROOT}/configs/digits.py:lenet_300_100,norm=none,epochs={epochs}"])
    del c.model.width
    c.hooks, c.steps_per_call, c.optimizer.learning_rate = "", PER_CALL, 0.0
    if name in WRAPPED:
        c.optimizer.sam = WRAPPED[name]
    else:
        c.optimizer.name = name
    if name.startswith("schedule_free"):
        c.optimizer.schedule = "constant"
    return c


class Training:
    """The training of a config, step by step.

    Args:
      c: the config.
      devices: number of devices.
      kind: the value of `parallel`.
    """

    def __init__(self, c: Any, devices: int, kind: str):
        from train import run as builders
        from train.setup.config import Reader
        from train.state import initial_state

        c.devices, c.parallel = devices, kind
        reader = Reader.of(c)
        self.network, variables = _network(c.duration, devices, kind)
        plans = builders.build_plans(reader, self.network)
        optimizer = builders.build_optimizer(reader, self.network, plans, variables)
        self._call = builders.build_programs(reader, self.network, plans, optimizer)[1]
        self.state = initial_state(variables, {}, optimizer.transformation, 0, optimizer.averaged is not None)

    def advance(self, state: Any, start: int, end: int) -> Any:
        """Returns the state, as numpy arrays, after the steps from `start` to `end`."""
        feed, parallel = self.network.feed, self.network.parallel
        state = parallel.place(state)
        for _, items in feed.calls(start, end):
            state, _ = self._call(state, feed.data, items)
        return parallel.fetch(state)

    def accuracy(self, state: Any) -> float:
        """Returns the accuracy of the weights to evaluate on the test set."""
        variables = state.evaluation_variables()
        params = variables.pop("params")
        alone = state.replace(params=params, model_state=variables, opt_state={}, ema={})  # one program for all
        return self.network.evaluate(self.network.parallel.place(alone))["accuracy"]


@functools.cache
def _network(duration: str, devices: int, kind: str) -> tuple[Any, Any]:
    """Returns the network of all rows on a number of devices, and its first variables."""
    import jax

    from train.run import build_network

    c = config("sgd", 1)
    c.duration, c.devices, c.parallel = duration, devices, kind
    network = build_network(c)
    return network, network.task.init(jax.random.key(0), network.feed.inputs)[0]


def trained(name: str, epochs: int, folder: Path) -> dict[str, Any]:
    """Returns the row of an optimizer without the time of its update; `folder` is for a checkpoint."""
    import jax
    import numpy as np

    from models.errors import UserError
    from train.optim import catalogue
    from train.storage.checkpoint import Checkpoints, unflatten

    c = config(name, epochs)
    entry = catalogue.ENTRIES[c.optimizer.name.partition("(")[0]]
    one = Training(c, 1, "pmap")
    total = one.network.total
    half = total // 2 // PER_CALL * PER_CALL
    middle = one.advance(one.state, 0, half)
    whole = one.advance(middle, half, total)
    with contextlib.closing(Checkpoints(folder)) as saved:
        saved.save(half, middle, {}, {})
        saved.wait()
        leaves, _ = saved.restore(half)
    again = Training(c, 1, "pmap")
    resumed = again.advance(unflatten(again.state, leaves, name), half, total)
    same = all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (whole, resumed)), strict=True))
    four = Training(c, DEVICES, "pmap")
    try:
        sharded = Training(c, DEVICES, "fsdp")
    except UserError:
        sharded = None
    stored = [*jax.tree.leaves(whole.opt_state), *jax.tree.leaves(whole.ema)]
    return {
        "name": name,
        "rate": entry.usual,
        "source": entry.source,
        "decay": entry.decay,
        "one": one.accuracy(whole),
        "four": four.accuracy(four.advance(four.state, 0, total)),
        "resumes": same,
        "fsdp": sharded and _difference(four, sharded),
        "bytes": round(sum(leaf.nbytes for leaf in stored) / sum(w.size for w in jax.tree.leaves(whole.params)), 2),
        "epochs": epochs,
    }


def _difference(a: Training, b: Training) -> float:
    """Returns the largest difference between the parameters of two trainings after a call, over the largest weight."""
    import jax
    import numpy as np

    params = [jax.tree.leaves(one.advance(one.state, 0, PER_CALL).params) for one in (a, b)]
    largest = max(float(np.abs(leaf).max()) for leaf in params[0])
    return max(float(np.abs(x - y).max()) for x, y in zip(*params, strict=True)) / largest


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
