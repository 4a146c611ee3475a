"""Trained networks as files for others. See --help."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.table
from absl import flags

from models import command
from models.errors import UserError
from train import cli

USAGE = """Exports a trained network into a folder: one file, and card.json, which says everything about it.

    python -m train.export --workdir=runs/x --format=safetensors --out=exported/x
    python -m train.export --workdir=runs/x --format=onnx --out=exported/x_onnx
    python -m train.export --workdir=runs/x --format=stablehlo --fold= --out=exported/x_hlo
    python -m train.export --workdir=runs/x --format=torch --torch_python=venv-torch/bin/python --out=x_torch
    python -m train.export --workdir=runs/x --format=compressed --share="linear(conv=8, dense=5)" --out=exported/x_small

safetensors  our names and shapes: for --config.init_from, and for `python -m models.weights`
torch        names and shapes of torchvision or timm, whichever has the network: load_state_dict(strict=True) takes them
onnx         by jax2onnx, any number of images at once (pip install -e '.[export]'; pip install --no-deps jax2onnx)
stablehlo    by jax.export, any number of images at once, on cpu, cuda and tpu; needs jax alone
compressed   what is 0 is not stored, few values as Huffman-coded indices, signs as bits; exact to the bit. --share lets
             the weights of a layer share values first, without training (config.optimizer.share trains them)

onnx and stablehlo are programs. With --fold=normalization they take pixels (uint8) and give probabilities and logits,
with batch_norm what that does is part of the convolutions; the default is both, --fold= neither: normalized images to
logits.

What was written is opened again and run on test images (--images) beside the network that it was made of: the formats
torch and stablehlo also in a Python that has nothing of this project. The largest difference of the logits and the
accuracy on both sides are printed; where it is too large, nothing is written, and the exit code is 1.

Files hold float32 numbers; a run in bfloat16 rounds what it computes, and what is exported does not. Of a network with
low-bit layers the weights are those that it computes with; of one whose filters were pruned, what is written is the
smaller dense network."""


def main() -> int:
    """Loads the run, exports, verifies, prints."""
    if not WORKDIR.value or not OUT.value:
        raise UserError(f"--{'out' if WORKDIR.value else 'workdir'} is missing, e.g. --workdir=runs/x --out=exported/x")
    from models.compress import file
    from train import restore  # not for --help: with it comes Orbax
    from train.export import network as networks
    from train.export import verify, write

    console = command.console()
    folds = list(filter(None, FOLD.value)) if FOLD.present else list(write.known(FORMAT.value).folds)
    write.check(FORMAT.value, OUT.value, folds)
    run, state = restore.load_network(WORKDIR.value, CHECKPOINT.value)
    before = run.evaluate(run.parallel.place(state)) if verify.test_set(run) is not None else {}
    network = networks.network(run, state)
    if SHARE.value:
        network = networks.shared(network, SHARE.value)
    try:
        card = write.export(
            run,
            network,
            FORMAT.value,
            OUT.value,
            before,
            folds=folds,
            images=IMAGES.value,
            license=LICENSE.value,
            layout=LAYOUT.value,
            python=TORCH_PYTHON.value,
        )
    except verify.Failed as error:
        console.print(f"error: the export failed, and nothing was written: {error}", soft_wrap=True, markup=False)
        return 1
    if FORMAT.value == "compressed":
        data = file.read(Path(OUT.value) / card["file"])
        console.print(table(file.rows(file.table(data, network.variables))))
    for line in filter(None, lines(card, Path(OUT.value), before, run.task.headline)):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    return 0


def lines(card: Mapping[str, Any], out: Path, before: Mapping[str, Any], headline: str) -> list[str]:
    """Returns the lines that describe a finished export.

    Args:
      card: of the export.
      out: its folder.
      before: metrics of the run on its test set; {} where that is no longer there.
      headline: name of the metric to show.
    """
    from train.export import formats

    found = card["verified"]
    size = sum(path.stat().st_size for path in out.iterdir() if path.name.startswith(card["file"]))
    exact = formats.FORMATS[card["format"]].exact
    difference = (
        "equal to the bit"
        if exact
        else f"differ by at most {found['largest_difference']:.2g} (the largest is {found['largest_logit']:.3g})"
    )
    views = "" if card["views"] == "one" else f" (views={card['views']}; the file is the network alone)"
    after = {name: metrics[headline] for name, metrics in found["metrics"].items()}
    return [
        f"{out / card['file']}: {size:,} bytes, {4 * card['parameters'] / size:.1f} times smaller than "
        f"{4 * card['parameters']:,}"
        if card["format"] == "compressed"
        else f"{out / card['file']}: {size:,} bytes",
        f"read back by {found['by']}: logits of {found['images']:,} {found['of']} {difference}",
        f"test {headline} of the run {before[headline]:.2%}{views}; on these images, of the network "
        f"{after['network']:.2%}, of the file {after['file']:.2%}"
        if before
        else f"the test set of the run is not there ({card['data']}), so no {headline} was measured",
        f"folded in: {', '.join(card['folded']) or 'nothing'}" if formats.FORMATS[card["format"]].folds else "",
        f"use: {card['usage']}",
        "" if card["license"] else "the card names no license of the weights: --license=IDENTIFIER",
    ]


def table(rows: Sequence[Sequence[str]]) -> rich.table.Table:
    """`models.compress.file.rows` for the terminal."""
    made = rich.table.Table(title_justify="left", title="bits: of an index and a jump as such / after Huffman coding")
    for i, column in enumerate(("layer", "weights", "kept", "index bits", "jump bits", "bytes", "of float32")):
        made.add_column(column, justify="right" if i else "left", no_wrap=not i)
    for row in rows:
        made.add_row(*row)
    return made


if __name__ == "__main__":  # only here: absl has one table of flags for the process
    WORKDIR = command.define_path("workdir", None, "Folder of the run.")
    CHECKPOINT = flags.DEFINE_string("checkpoint", "last", "Of the run: last, or best (on its test set).")
    FORMAT = flags.DEFINE_string("format", "safetensors", "One of those above.")
    OUT = command.define_path("out", None, "Folder to write.")
    FOLD = flags.DEFINE_list(
        "fold", ["normalization", "batch_norm"], "onnx, stablehlo: what is made part of the program."
    )
    IMAGES = flags.DEFINE_integer("images", 2000, "Test images to verify with; 0: all.", lower_bound=0)
    LICENSE = flags.DEFINE_string("license", "", "Of the weights, for the card, e.g. CC-BY-4.0.")
    SHARE = flags.DEFINE_string("share", "", "Codebooks before export, as config.optimizer.share, e.g. linear(conv=8).")
    LAYOUT = flags.DEFINE_string("layout", "", "torch: torchvision or timm; by default the first that has the network.")
    TORCH_PYTHON = command.define_path("torch_python", sys.executable, "torch: a Python that has PyTorch and it.")
    cli.run(main, USAGE)
