"""Trained networks as files for others. See --help."""

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rich.console
import rich.table
from absl import flags

import models
from models import weights
from models.compress import file, lowbit, shrink
from models.errors import UserError, choice_error
from train import checkpoint, cli, finished, prune, share, step
from train import evaluate as scoring

USAGE = """Exports a trained network.

    python -m train.export --workdir=runs/x --format=compressed --out=net.ablate
    python -m train.export --workdir=runs/x --format=compressed --share="linear(conv=8, dense=5)" --out=net.ablate
    python -m train.export --workdir=runs/x --format=safetensors --out=net.safetensors

compressed    one file with a checksum: what is 0 is not stored, few values as Huffman-coded indices, signs as bits; it
              is read again (also by --config.init_from) to the bit. --share lets the weights of a layer share values
              first, without training (config.optimizer.share trains them)
safetensors   our names and shapes, for `python -m models.weights` and --config.init_from

Files hold float32 numbers; a run in bfloat16 rounds what it computes, and what is read does not.
Of a network with low-bit layers the weights are those that it computes with; of one whose filters were pruned, what is
written is the smaller dense network. The file is read back, evaluated on the test set, and its logits compared.
"""
FORMATS = {"compressed": file.SUFFIX, "safetensors": ".safetensors"}


class Network(NamedTuple):
    """What a file holds: `models.create(name, **fields)`, called with `inputs` (shape of one example), `variables`."""

    name: str
    fields: dict[str, Any]
    inputs: tuple[int, ...]
    variables: dict[str, Any]

    def create(self) -> Any:
        """The flax module."""
        return models.create(self.name, **self.fields)


def network(run: Any, state: Any) -> Network:
    """The network that a run has trained, as it computes: low-bit weights as they are used, pruned filters gone.

    Raises:
      UserError: filters that cannot be taken out; a network of sentences.
    """
    if run.feed.unit != "images":
        raise UserError(f"export is for networks that take images, not {run.feed.unit}")
    config, model = run.config["model"], run.task.model
    fields = {**run.feed.fields, **{name: value for name, value in config.items() if name != "name"}}
    variables = lowbit.stored(model, state.evaluation_variables(), *models.abstract(run.feed.inputs))
    if prune.structure(run.config["optimizer"]["prune"]) == "filters":
        model, variables = shrink.shrink(model, variables, prune.masks_of(state.opt_state), run.feed.inputs)
        fields["widths"] = model.widths
    return Network(config["name"], fields, run.feed.inputs, variables)


def shared(network: Network, text: str) -> Network:
    """The network with the weights of each layer at the values of a codebook, see train/share.py."""
    params = share.plan(text).snap(network.variables["params"])
    return network._replace(variables={**network.variables, "params": params})


def evaluate(run: Any, state: Any, network: Network) -> dict[str, Any]:
    """Metrics of a network on the test set of a run, as the run's own evaluation has them."""
    variables, call = dict(network.variables), run.evaluation_call
    if network.create() != run.task.model:
        call = run.parallel.lift(functools.partial(
            step.evaluation_call, prepare=run.feed.prepare_evaluation, task=_task(run, network)))
    state = state.replace(params=variables.pop("params"), model_state=variables, ema={}, opt_state={})
    return scoring.evaluate(call, run.parallel.place(state), run.feed.evaluation_calls(), run.feed.test_weight)


def outputs(run: Any, network: Network) -> np.ndarray:
    """What a network says of each test image of a run: logits [N, num_classes]."""
    return scoring.predictions(_task(run, network), network.variables, run.feed.prepare_evaluation,
                               run.feed.test_batches())[0]


def _task(run: Any, network: Network) -> Any:
    """The run's task, on that network."""
    task = copy.copy(run.task)
    task.model = network.create()
    return task


def compressed(run: Any, network: Network, path: Path) -> dict[str, Any]:
    """Writes the compressed file of a network, reads it back, and compares.

    Returns:
      {"bytes" (of the file), "float32" (4 for each number of the network), "ratio", "identical" (whether the logits of
      all test images are the network's to the bit), "layers": `models.compress.file.table`, "network": what was read}.
    """
    checkpoint.write_atomically(path, file.dump(network.name, network.fields, network.variables, network.inputs))
    data = file.read(path)
    _, variables = file.load(data, path)
    loaded, layers = network._replace(variables=variables), file.table(data, variables)
    whole = sum(row["float32"] for row in layers)
    return {"bytes": path.stat().st_size, "float32": whole, "ratio": whole / path.stat().st_size,
            "identical": outputs(run, loaded).tobytes() == outputs(run, network).tobytes(),
            "layers": layers, "network": loaded}


def main() -> None:
    """Loads the run, exports, reads back, evaluates, prints."""
    if not WORKDIR.value or not OUT.value:
        raise UserError(f"--{'out' if WORKDIR.value else 'workdir'} is missing, e.g. --workdir=runs/x --out=net.ablate")
    out, console = Path(OUT.value), rich.console.Console()
    if FORMAT.value not in FORMATS:
        raise choice_error("--format", FORMAT.value, FORMATS)
    if out.suffix != FORMATS[FORMAT.value]:
        raise UserError(f"--out={out}: a file of --format={FORMAT.value} ends in {FORMATS[FORMAT.value]}")
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: there is no folder {out.parent}")
    run, state = finished.load(WORKDIR.value)
    exported = network(run, state)
    before = run.evaluate(run.parallel.place(state))
    if SHARE.value:
        exported = shared(exported, SHARE.value)
    if FORMAT.value == "safetensors":
        weights.save(out, exported.create(), exported.variables, {"model": exported.name, "fields": exported.fields})
        console.print(f"{out}: {out.stat().st_size:,} bytes", soft_wrap=True, highlight=False)
    else:
        found = compressed(run, exported, out)
        exported = found["network"]
        console.print(table(found))
        console.print(f"{out}: {found['bytes']:,} bytes, {found['ratio']:.1f} times smaller than {found['float32']:,}; "
                      f"logits {'equal to the bit' if found['identical'] else 'DIFFER'} when read back", soft_wrap=True,
                      highlight=False)
        if not found["identical"]:
            raise RuntimeError("the file does not give back the network")
    after, headline = evaluate(run, state, exported), run.task.headline
    console.print(f"test {headline} of the run {before[headline]:.2%}, of the file {after[headline]:.2%}",
                  highlight=False)


def table(found: Mapping[str, Any]) -> rich.table.Table:
    """Of what `compressed` returns, a row a layer as in Han 2016, tables 2 to 5, for the terminal."""
    made = rich.table.Table(title_justify="left", title="bits: of an index and a jump as such / after Huffman coding")
    for i, column in enumerate(("layer", "weights", "kept", "index bits", "jump bits", "bytes", "of float32")):
        made.add_column(column, justify="right" if i else "left", no_wrap=not i)

    def bits(row, name):
        before, after = row[f"{name}_bits"], row[f"{name}_coded"]
        return "" if before is None else f"{before} / {after:.1f}"

    total = {key: sum(row[key] for row in found["layers"]) for key in ("weights", "kept", "bytes", "float32")}
    for row in (*found["layers"], {"name": "total", **total}):
        kept = f"{row['kept'] / row['weights']:.1%}" if row["weights"] else ""
        share = f"{row['bytes'] / row['float32']:.2%}" if row["float32"] else ""
        made.add_row(row["name"].removesuffix("/kernel"), f"{row['weights']:,}", kept, *(
            bits(row, name) if f"{name}_bits" in row else "" for name in ("index", "jump")), f"{row['bytes']:,}", share)
    return made


if __name__ == "__main__":  # only here: absl has one table of flags for the process
    WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
    FORMAT = flags.DEFINE_string("format", "compressed", f"One of {', '.join(FORMATS)}.")
    OUT = flags.DEFINE_string("out", None, "File to write.")
    SHARE = flags.DEFINE_string("share", "", "Codebooks before export, as config.optimizer.share, e.g. linear(conv=8).")
    cli.run(main, USAGE)
