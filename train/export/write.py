"""Writes a network with its card into a folder, which appears only after the network in it is verified."""

import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax

from models.analysis.cost import analyze
from models.errors import UserError, choice_error
from models.weights import torch_names
from train import adaptive
from train.data import imagenet
from train.export import cards, formats, graph, network, push, trained_int8, verify
from train.export import quantize as quantization
from train.export.network import PortableNetwork
from train.recording import summary
from train.run import Network
from train.state import TrainState

INGREDIENTS = {"norm": "norm", "act": "act", "init": "kernel_init", "conv": "conv", "dense": "dense"}


def preprocessing(run: Network) -> dict[str, Any]:
    """Describes how a file becomes an input of a run's network.

    See `train.data.decode.Decoder` and `train.data.normalize.normalize`.
    """
    decoder, data = run.images.decoder, run.config["data"]
    return {
        "crop": decoder.crop,
        "size": decoder.size,
        "channels": decoder.channels,
        "eval_crop": decoder.eval_crop,
        "exif": decoder.exif,
        "interpolation": decoder.interpolation,
        "exact": decoder.exact,
        "shape": list(run.images.image_shape),
        "background": run.images.background,
        "mean": list(data["mean"]),
        "std": list(data["std"]),
        "pixels": "uint8, [N, H, W, C]" + ", RGB" * (decoder.channels == 3),
        "normalized": "(pixels / 255 - mean) / std",
    }


def card_of(
    run: Network, network: PortableNetwork, metrics: Any, folds: Collection[str] = (), license: str = ""
) -> dict[str, Any]:
    """Returns the entries of a card that do not depend on the format; see `train.export.cards.read`."""
    model = network.create()
    cost = analyze(model, network.inputs)
    ingredients = {name: getattr(model, field) for name, field in INGREDIENTS.items() if hasattr(model, field)}
    return {
        "architecture": network.name,
        "fields": network.fields,
        "inputs": list(network.inputs),
        "ingredients": {
            name: value if isinstance(value, str) else getattr(value, "__name__", str(value))
            for name, value in ingredients.items()
        },
        "parameters": cost.params,
        "mult_adds": cost.mult_adds,
        "preprocessing": preprocessing(run),
        "views": getattr(run.task, "views", "one"),
        "labels": list(imagenet.shown(run.feed.classes)),
        "probabilities": "sigmoid" if run.feed.label_shape else "softmax",
        "folded": [fold for fold in graph.FOLDS if fold in folds],
        "metrics": dict(metrics),
        "data": run.config["data"]["source"],
        "license": license or run.config.get("weights", {}).get("license") or None,
        "config": run.config,
        "made": {**summary.environment(jax.devices()), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
    }


def of_run(
    run: Network,
    state: TrainState,
    format: str,
    out: str | Path,
    *,
    folds: Collection[str] | None = None,
    share: str = "",
    exits: float = 0.0,
    **options: Any,
) -> dict[str, Any]:
    """Exports the network of a run with its metrics on the test set, where that is still there.

    Args:
      run: the run, from `train.restore.load_network`.
      state: its state.
      format: see `export`.
      out: see `export`.
      folds: see `export`; None means all that the format supports.
      share: codebooks to round the weights to, as in config.optimizer.share.
      exits: mult-adds that exits allow for the average image, as a share of the whole network's; 0 leaves at the last
        exit.
      **options: images, license, layout, python, quantize and lose; see `export`.

    Returns:
      The card, as it is in the folder.

    Raises:
      As `export`.
    """
    folds = named_format(format).folds if folds is None else folds
    check(format, out, folds)
    if exits:
        check_exits(format, exits)
    portable = network.network(run, state)
    check_libraries(format, portable, options.get("layout", ""), options.get("python", sys.executable))
    if share:
        portable = network.shared(portable, share)
    if format == "semi_structured":
        portable = network.halved(portable)
    # The thresholds are those of the network that is written
    leaving = adaptive.entry(*network.replaced(run, state, portable), exits) if exits else None
    metrics = run.evaluate(run.parallel.place(state)) if verify.test_set(run) is not None else {}
    return export(run, portable, format, out, metrics, folds=folds, exits=leaving, **options)


def export(
    run: Network,
    network: PortableNetwork,
    format: str,
    out: str | Path,
    metrics: Any,
    *,
    folds: Collection[str] = (),
    images: int = 2000,
    license: str = "",
    layout: str = "",
    python: str = sys.executable,
    quantize: str = "",
    lose: float = quantization.LOSE,
    exits: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a run's network in one of `formats.FORMATS`, opens it again and compares it on test images.

    Args:
      run: the run.
      network: its network, from `train.export.network`.
      format: name of the format.
      out: folder to write; an exported network in it is replaced after the new one is verified.
      metrics: metrics of the run on its test set, for the card.
      folds: operations of `graph.FOLDS` to make part of a program.
      images: number of test images to verify with; 0 means all.
      license: SPDX identifier of the license of the weights.
      layout: for the format torch, "torchvision" or "timm"; "" means the first that has the network.
      python: for the format torch, a Python that has that library.
      quantize: for the format onnx, one of `quantize.METHODS`; "" keeps float32.
      lose: points of accuracy that a quantized network may lose on training images.
      exits: from `train.adaptive.entry`; None leaves at the last exit.

    Returns:
      The card, as it is in the folder.

    Raises:
      UserError: the format is unknown, or does not support a fold or the network, or a library is missing.
      verify.Failed: the written network differs from the run's; nothing is left in the folder.
    """
    check(format, out, folds)
    out, how = Path(out), formats.FORMATS[format]
    quantization.check(quantize, format, lose if quantize else None)
    outside = check_libraries(format, network, layout, python)
    trained, written = None, network
    if quantize == "int8" and trained_int8.is_trained(network):
        written, trained = trained_int8.plain(network)
    calibration = quantization.training_images(run, quantize == "int8" and not trained) if quantize else None
    card = {"format": format, "file": how.file, **card_of(run, network, metrics, folds, license), **outside}
    if exits:
        card["exits"] = dict(exits)
    partial = out.absolute().with_name(f".{out.absolute().name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        card |= how.write(written, {**card, "fields": written.fields}, partial / how.file)
        if quantize:
            card["quantized"] = quantization.quantize(
                run, written, partial / how.file, card, quantize, lose, calibration, trained
            )
        card["verified"] = verify.verify(run, network, partial, card, images, python)
        card = cards.write(partial, card)
        _put(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return card


def check_libraries(format: str, network: PortableNetwork, layout: str, python: str) -> dict[str, Any]:
    """Checks that another library has the network and is there, and returns the entries of the card about it.

    Raises:
      UserError: it has no such network, or it is missing; see `export` for the arguments.
    """
    entries = {}
    if format == "torch":
        if trained_int8.is_trained(network):
            raise UserError("--format=torch has no int8 layers; export --format=onnx --quantize=int8, or safetensors")
        constructor = torch_names.constructor(network.name, network.create(), layout)
        entries["torch"] = dict(zip(("library", "name", "arguments"), constructor, strict=True))
    formats.FORMATS[format].check(entries, python)
    return entries


def named_format(format: str) -> formats.Format:
    """Returns the format of a name; raises UserError if there is none."""
    if format not in formats.FORMATS:
        raise choice_error("--format", format, formats.FORMATS)
    return formats.FORMATS[format]


def _put(partial: Path, out: Path) -> None:
    """Puts a finished export in the place of an earlier one; a kill leaves at least one of the two."""
    _check_replaceable(out)  # again: the export took its time
    if not out.exists():
        partial.replace(out)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{out.absolute().name}.old-", dir=out.absolute().parent))
    out.rename(aside / "old")
    partial.replace(out)
    shutil.rmtree(aside)


def _check_replaceable(out: Path) -> None:
    """Raises UserError unless a folder is missing, empty, or an exported network without any other file."""
    if out.is_symlink():
        raise UserError(f"--out={out} is a link, which an export does not replace: name its target")
    if not out.exists():
        return
    files = list(out.iterdir()) if out.is_dir() else [out]
    if files and not (cards.is_in(out) and all(map(_ours, files))):
        raise UserError(f"--out={out} has files that are not part of an exported network: choose another folder")


def _ours(path: Path) -> bool:
    """Returns True for a file that an export writes; a folder with any other file is never deleted."""
    names = {cards.NAME, push.CONFIG, push.README, *(how.file for how in formats.FORMATS.values())}
    return path.name.removesuffix(".data") in names and path.is_file() and not path.is_symlink()


def check_exits(format: str, share: float) -> None:
    """Checks the mult-adds that exits may take, as a share of all, without the run; raises UserError."""
    if not 0 < share <= 1:
        raise UserError(f"--exits={share:g}: must be a share of the whole network's mult-adds, above 0 and at most 1")
    if format not in (with_exits := ("safetensors", "compressed")):
        raise UserError(f"--exits={share:g} is for --format={' and '.join(with_exits)}, not --format={format}")


def check(format: str, out: str | Path, folds: Collection[str], for_torch: Mapping[str, str] | None = None) -> None:
    """Checks the options of an export without the run; raises UserError.

    Args:
      format: name of the format.
      out: the folder to write.
      folds: operations to make part of a program.
      for_torch: the flags that only the format torch has, with their values, where they are set.
    """
    out, allowed = Path(out), named_format(format).folds
    if for_torch and format != "torch":
        flag, value = next(iter(for_torch.items()))
        raise UserError(f"--{flag}={value} is for --format=torch, not --format={format}; leave it out")
    for fold in folds:
        if fold not in graph.FOLDS:
            raise choice_error("--fold", fold, graph.FOLDS)
        if fold not in allowed:
            raise UserError(
                f"--fold={fold}: the format {format} holds weights, in which nothing is folded; onnx and "
                "stablehlo hold programs"
            )
    _check_replaceable(out)
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"--out={out}: {above} is not a folder")
