"""Writes a network with its card into a folder, which is there only once the network in it is verified."""

import shutil
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax

from models.analysis.cost import analyze
from models.errors import UserError, choice_error
from models.weights import torch_names
from train import summary
from train.export import card as cards
from train.export import formats, graph, verify
from train.export.network import Network

INGREDIENTS = {"norm": "norm", "act": "act", "init": "kernel_init", "conv": "conv", "dense": "dense"}


def preprocessing(run: Any) -> dict[str, Any]:
    """From a file to what a run's network takes: see `train.data.decode.Decoder` and `train.data.augment.normalize`."""
    decoder, data = run.feed.decoder, run.config["data"]
    return {
        "crop": decoder.crop,
        "size": decoder.size,
        "channels": decoder.channels,
        "eval_crop": decoder.eval_crop,
        "exif": decoder.exif,
        "shape": list(run.feed.image_shape),
        "mean": list(data["mean"]),
        "std": list(data["std"]),
        "pixels": "uint8, [N, H, W, C]" + ", RGB" * (decoder.channels == 3),
        "normalized": "(pixels / 255 - mean) / std",
    }


def card_of(run: Any, network: Network, metrics: Any, folds: Collection[str] = (), license: str = "") -> dict[str, Any]:
    """What is to be said of a run's network, whatever the format; see `train.export.card.read`."""
    model = network.create()
    cost = analyze(model, network.inputs)
    made = {name: getattr(model, field) for name, field in INGREDIENTS.items() if hasattr(model, field)}
    return {
        "architecture": network.name,
        "fields": network.fields,
        "inputs": list(network.inputs),
        "ingredients": {
            name: value if isinstance(value, str) else getattr(value, "__name__", str(value))
            for name, value in made.items()
        },
        "parameters": cost.params,
        "mult_adds": cost.mult_adds,
        "preprocessing": preprocessing(run),
        "views": getattr(run.task, "views", "one"),
        "labels": list(run.feed.classes),
        "probabilities": "sigmoid" if run.feed.label_shape else "softmax",
        "folded": [fold for fold in graph.FOLDS if fold in folds],
        "metrics": dict(metrics),
        "data": run.config["data"]["source"],
        "license": license or None,
        "config": run.config,
        "made": {**summary.environment(jax.devices()), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
    }


def export(
    run: Any,
    network: Network,
    format: str,
    out: str | Path,
    metrics: Any,
    *,
    folds: Collection[str] = (),
    images: int = 2000,
    license: str = "",
    layout: str = "",
    python: str = sys.executable,
) -> dict[str, Any]:
    """Writes a run's network in one of `formats.FORMATS`, opens it again and compares it on test images.

    Args:
      run: whose network it is.
      network: from `train.export.network`.
      format: its name.
      out: folder; an exported network that is there already is replaced once this one is verified.
      metrics: of the run on its test set, for the card.
      folds: of `graph.FOLDS`, what is made part of a program.
      images: of the test set, to verify with; 0: all.
      license: of the weights, by its SPDX identifier.
      layout: of the format torch, "torchvision" or "timm"; "": the first that the network has.
      python: of the format torch, the Python that has that library.

    Returns:
      The card, as it is in the folder.

    Raises:
      UserError: unknown format, a fold that it cannot have, a network that it is not for, a library that is missing.
      verify.Failed: what was written is not the network; nothing is left of it.
    """
    check(format, out, folds)
    out, how = Path(out), formats.FORMATS[format]
    card = {"format": format, "file": how.file, **card_of(run, network, metrics, folds, license)}
    if format == "torch":
        found = torch_names.constructor(network.name, network.create(), layout)
        card["torch"] = dict(zip(("library", "name", "arguments"), found, strict=True))
    partial = out.absolute().with_name(f".{out.absolute().name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        card |= how.write(network, card, partial / how.file)
        card["verified"] = verify.verify(run, network, partial, card, images, python)
        card = cards.write(partial, card)
        if out.exists():
            shutil.rmtree(out)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return card


def known(format: str) -> formats.Format:
    """The format of that name; UserError where there is none."""
    if format not in formats.FORMATS:
        raise choice_error("--format", format, formats.FORMATS)
    return formats.FORMATS[format]


def _ours(path: Path) -> bool:
    """Whether an export has written the file; whatever else is in a folder is not deleted with it."""
    return path.name == cards.NAME or path.name.removesuffix(".data") in {how.file for how in formats.FORMATS.values()}


def check(format: str, out: str | Path, folds: Collection[str]) -> None:
    """Raises UserError for what can be told without the run."""
    out, allowed = Path(out), known(format).folds
    for fold in folds:
        if fold not in graph.FOLDS:
            raise choice_error("--fold", fold, graph.FOLDS)
        if fold not in allowed:
            raise UserError(
                f"--fold={fold}: the format {format} holds weights, in which nothing is folded; onnx and "
                "stablehlo hold programs"
            )
    if out.exists() and (not out.is_dir() or not all(map(_ours, out.iterdir()))):
        raise UserError(f"--out={out} has something else in it than an exported network: choose another folder")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"--out={out}: {above} is no folder")
