"""Exports trained networks as files for other programs. See --help."""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.table
from absl import flags

from models import command
from models.errors import UserError
from train import cli

USAGE = """Exports a trained network into a folder: one file, and card.json, which describes it.

    python -m train.export --workdir=runs/x --format=safetensors --out=exported/x
    python -m train.export --workdir=runs/x --format=onnx --out=exported/x_onnx
    python -m train.export --workdir=runs/x --format=stablehlo --fold= --out=exported/x_hlo
    python -m train.export --workdir=runs/x --format=torch --torch_python=venv-torch/bin/python --out=x_torch
    python -m train.export --workdir=runs/x --format=compressed --share="linear(conv=8, dense=5)" --out=exported/x_small

    python -m train.export --workdir=runs/x --format=onnx --quantize=int8 --lose=0.5 --out=exported/x_int8

    python -m train.export --workdir=runs/x --to=hf:me/digits --license=CC-BY-4.0

safetensors  our names and shapes, for --config.init_from and `python -m models.weights`
torch        names and shapes of torchvision or timm, whichever has the network, for load_state_dict(strict=True)
onnx         by jax2onnx, for batches of any size (pip install -e '.[export]'; pip install --no-deps jax2onnx)
stablehlo    by jax.export, for batches of any size, on cpu, cuda and tpu; needs only jax
compressed   omits zeros, and stores few values as Huffman-coded indices and signs as bits; exact to the bit. --share
             first lets the weights of a layer share values, without training (config.optimizer.share trains them)
semi_structured  kernels with two zeros in each four inputs as values (float16) and 2-bit positions, as sparse tensor
             cores take them (CUTLASS, torch.sparse); of runs with config.optimizer.prune="magnitude(structure='2:4')"

onnx and stablehlo are programs. --fold=normalization makes them take pixels (uint8) and return probabilities and
logits. --fold=batch_norm makes batch normalization a part of the convolutions. The default is both; with --fold= they
take normalized images and return logits.

--quantize=int8 makes convolutions and dense layers of onnx compute with weights and activations of 8 bits. Their scales
are calibrated on training images. The layers that would lose more than --lose points of accuracy, on training images
held out of the calibration, stay in float32. --quantize=dynamic quantizes only matrix products, whose inputs get their
scales when they are computed. The difference of the logits of a quantized network is printed and has no limit.

--exits=0.5 is for networks with exits, in safetensors and compressed: each image leaves at the first exit that is sure
enough, so that the average image takes half of the mult-adds. The thresholds are fitted on the images that the run's
data.train_split leaves out, and are part of the card.

The written file is opened again and run on test images (--images), and compared with the run's network. The formats
torch and stablehlo also run in a Python without this project. The largest difference of the logits and both accuracies
are printed. If the difference is too large, nothing is written, and the exit code is 1.

Files hold float32 numbers; a run in bfloat16 rounds its results, and an exported network does not. Of low-bit layers,
the weights are written as the network computes with them. Of a network with pruned filters, the smaller dense network
is written.

--to=hf:USER/NAME also writes config.json and a card in Markdown, and uploads the folder to a repository of the Hugging
Face hub, which is created if needed. models.load, --config.init_from and train.predict take it as hf:USER/NAME. The
token comes from huggingface_hub (hf auth login, or HF_TOKEN). Without --out, the folder is removed afterwards."""


def main() -> int:
    """Loads the run, exports its network, and prints the results; returns the exit code."""
    if not WORKDIR.value or not (OUT.value or TO.value):
        raise UserError(f"--{'out' if WORKDIR.value else 'workdir'} is missing, e.g. --workdir=runs/x --out=exported/x")
    if TO.value and not OUT.value:
        with tempfile.TemporaryDirectory() as folder:
            return export(str(Path(folder) / "exported"))
    return export(OUT.value)


def export(out: str) -> int:
    """Exports into the folder `out`, uploads it where --to says so, and returns the exit code."""
    from models.compress import file
    from train import restore  # imports Orbax, which --help does not need
    from train.export import push, quantize, verify, write

    console = command.console()
    folds = list(filter(None, FOLD.value)) if FOLD.present else list(write.named_format(FORMAT.value).folds)
    for_torch = {flag.name: str(flag.value) for flag in (LAYOUT, TORCH_PYTHON) if flag.present}
    write.check(FORMAT.value, out, folds, for_torch)
    quantize.check(QUANTIZE.value, FORMAT.value, LOSE.value if LOSE.present or QUANTIZE.value else None)
    if EXITS.present:
        write.check_exits(FORMAT.value, EXITS.value)
    repository = push.repository(TO.value, FORMAT.value, EXITS.value) if TO.value else ""
    run, state = restore.load_network(WORKDIR.value, CHECKPOINT.value)
    try:
        card = write.of_run(
            run,
            state,
            FORMAT.value,
            out,
            folds=folds,
            share=SHARE.value,
            images=IMAGES.value,
            license=LICENSE.value,
            layout=LAYOUT.value,
            python=TORCH_PYTHON.value,
            quantize=QUANTIZE.value,
            lose=LOSE.value,
            exits=EXITS.value,
        )
    except verify.Failed as error:
        console.print(f"error: the export failed, and nothing was written: {error}", soft_wrap=True, markup=False)
        return 1
    if FORMAT.value == "compressed":
        data = file.read(Path(out) / card["file"])
        console.print(table(file.rows(file.table(data, file.load(data)[1]))))
    for line in filter(None, lines(card, Path(out), card["metrics"], run.task.headline)):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    if repository:
        push.write(Path(out), card, repository)
        commit = push.push(Path(out), repository)
        console.print(f"uploaded to hf:{repository}, commit {commit[:12]}", soft_wrap=True, highlight=False)
    return 0


def lines(card: Mapping[str, Any], out: Path, before: Mapping[str, Any], headline: str) -> list[str]:
    """Returns the lines that describe a finished export.

    Args:
      card: the card of the export.
      out: its folder.
      before: metrics of the run on its test set; {} if the test set is no longer there.
      headline: name of the metric to show.
    """
    from train.export import formats, quantize

    verified = card["verified"]
    size = sum(path.stat().st_size for path in out.iterdir() if path.name.startswith(card["file"]))
    exact = formats.FORMATS[card["format"]].exact
    difference = (
        "equal to the bit"
        if exact
        else f"differ by at most {verified['largest_difference']:.2g} (the largest is {verified['largest_logit']:.3g})"
    )
    views = "" if card["views"] == "one" else f" (views={card['views']}; the file is the network alone)"
    after = {name: metrics[headline] for name, metrics in verified["metrics"].items()}
    return [
        f"{out / card['file']}: {size:,} bytes, {4 * card['parameters'] / size:.1f} times smaller than "
        f"{4 * card['parameters']:,}"
        if card["format"] == "compressed"
        else f"{out / card['file']}: {size:,} bytes",
        f"read back by {verified['by']}: logits of {verified['images']:,} {verified['of']} {difference}",
        f"test {headline} of the run {before[headline]:.2%}{views}; on these images, of the network "
        f"{after['network']:.2%}, of the file {after['file']:.2%}"
        if before
        else f"the test set of the run is not there ({card['data']}), so no {headline} was measured",
        *(quantize.lines(card["quantized"], headline) if "quantized" in card else ()),
        _of_exits(card["exits"], card["mult_adds"]) if "exits" in card else "",
        f"folded in: {', '.join(card['folded']) or 'nothing'}" if formats.FORMATS[card["format"]].folds else "",
        f"use: {card['usage']}",
        "" if card["license"] else "the card names no license of the weights: --license=IDENTIFIER",
    ]


def _of_exits(exits: Mapping[str, Any], whole: int) -> str:
    """Returns the line that describes where images leave a network with `whole` mult-adds."""
    left = " ".join(f"{share:.0%}" for share in exits["left"])
    return (
        f"exits: {left} of the images to which the thresholds are fitted leave at exits 1 to {len(exits['left'])}, "
        f"with {exits['mult_adds'] / whole:.1%} of the mult-adds on average"
    )


def table(rows: Sequence[Sequence[str]]) -> rich.table.Table:
    """Lays out `models.compress.file.rows` for the terminal."""
    layers = rich.table.Table(title_justify="left", title="bits per index and per jump: fixed / Huffman-coded")
    for i, column in enumerate(("layer", "weights", "kept", "index bits", "jump bits", "bytes", "of float32")):
        layers.add_column(column, justify="right" if i else "left", no_wrap=not i)
    for row in rows:
        layers.add_row(*row)
    return layers


if __name__ == "__main__":  # flags are defined only here, since absl has one table of flags per process
    WORKDIR = command.define_path("workdir", None, "Folder of the run.", remote=True)
    CHECKPOINT = flags.DEFINE_string("checkpoint", "last", "Checkpoint of the run: last, or best (on its test set).")
    FORMAT = flags.DEFINE_string("format", "safetensors", "One of the formats above.")
    OUT = command.define_path("out", None, "Folder to write.")
    TO = flags.DEFINE_string("to", "", "Repository of the hub to upload to, hf:USER/NAME.")
    FOLD = flags.DEFINE_list(
        "fold", ["normalization", "batch_norm"], "onnx, stablehlo: operations to make part of the program."
    )
    IMAGES = flags.DEFINE_integer("images", 2000, "Test images to verify with; 0: all.", lower_bound=0)
    LICENSE = flags.DEFINE_string("license", "", "License of the weights, for the card, e.g. CC-BY-4.0.")
    SHARE = flags.DEFINE_string("share", "", "Codebooks to use, as config.optimizer.share, e.g. linear(conv=8).")
    QUANTIZE = flags.DEFINE_string("quantize", "", "onnx: int8 or dynamic.")
    LOSE = flags.DEFINE_float("lose", 0.5, "Points of accuracy that --quantize may lose on training images.")
    EXITS = flags.DEFINE_float("exits", 0.0, "Share of the mult-adds that exits allow for the average image.")
    LAYOUT = flags.DEFINE_string("layout", "", "torch: torchvision or timm; default: the first that has the network.")
    TORCH_PYTHON = command.define_path("torch_python", sys.executable, "torch: a Python with PyTorch and that library.")
    cli.run(main, USAGE)
