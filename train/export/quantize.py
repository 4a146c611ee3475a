"""int8 versions of ONNX exports: calibration on training images, and the layers that have to stay in float32.

Jacob et al. 2018           Quantization and training of neural networks for efficient integer-arithmetic-only
                            inference, arXiv 1712.05877
Krishnamoorthi 2018         Quantizing deep convolutional networks for efficient inference, arXiv 1806.08342
"""

import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np

from models.analysis import timing
from models.errors import UserError, choice_error
from train import evaluate
from train.data.feed import Changed
from train.export import formats, onnx_int8
from train.export.formats import Card, Failed
from train.export.network import PortableNetwork
from train.export.onnx_int8 import Int8
from train.export.trained_int8 import Trained, tensor_ranges
from train.run import Network
from train.tasks.base import ImageTask

METHODS = ("int8", "dynamic")
LOSE = 0.5  # points of accuracy
CALIBRATION, HELD_OUT, SENSITIVITY = 256, 1000, 32  # numbers of training images
BATCH = 32
ORIGINS = {
    "int8": "calibrated, by the means of the lowest and highest values of batches",
    "trained": "the running ranges of the trained int8 layers",
    "dynamic": "of each input, when it is computed",
}
Logits = Callable[[np.ndarray], np.ndarray]


class Images(NamedTuple):
    """Training images with the run's evaluation preprocessing.

    Attributes:
      calibration: batches of pixels, uint8 [B, H, W, C].
      held_out: batches {"image", "label", "mask"} of other images.
    """

    calibration: list[np.ndarray]
    held_out: list[dict[str, np.ndarray]]


def check(method: str, format: str, lose: float | None) -> None:
    """Checks the options of a quantized export without the run.

    Args:
      method: one of METHODS, or "".
      format: the format of the export.
      lose: points of accuracy that may be lost; None if not given.

    Raises:
      UserError: an option is wrong.
    """
    if lose is not None and not method:
        raise UserError(f"--lose={lose:g} says how much accuracy --quantize may lose; add --quantize=int8")
    if lose is not None and not 0 <= lose <= 100:
        raise UserError(f"--lose={lose:g}: must be points of accuracy, from 0 to 100")
    if method and method not in METHODS:
        raise choice_error("--quantize", method, METHODS)
    if method and format != "onnx":
        raise UserError(f"--quantize={method} is for --format=onnx, not --format={format}")


def training_images(run: Network, needed: bool) -> Images | None:
    """Reads images for calibration and for measuring the accuracy, no image for both.

    Args:
      run: the run.
      needed: whether the ranges of the tensors are to be calibrated.

    Returns:
      The images; None where there are no training images, and none are needed.

    Raises:
      UserError: there are no training images, and they are needed.
    """
    try:
        train = run.images.train
    except Changed:
        raise
    except UserError as error:
        if not needed:
            return None
        raise UserError(
            f"--quantize=int8 calibrates on training images, which this run does not have: {error}"
        ) from None
    order = np.random.default_rng(0).permutation(len(train))[: CALIBRATION + HELD_OUT]
    if len(order) < 2:
        raise UserError(f"--quantize needs at least 2 training images, and the run has {len(order)}")
    count = min(CALIBRATION, len(order) // 2)
    parts = [
        [np.sort(part[start : start + BATCH]) for start in range(0, len(part), BATCH)]
        for part in (order[:count], order[count:])
    ]
    calibration, held_out = ([train.read(index, replace=True) for index in part] for part in parts)
    return Images([batch["image"] for batch in calibration], held_out)


def accuracy(run: Network, logits: Logits, batches: Sequence[Any]) -> float:
    """Returns the headline metric of the run's task on batches {"image", "label", "mask"}."""
    task, total = cast(ImageTask, run.task), None
    for batch in batches:
        labels = {name: jnp.asarray(batch[name]) for name in ("label", "mask")}
        total = evaluate.add(total, task.measured(jnp.asarray(logits(batch["image"])), labels))
    return evaluate.ratios(total or {})[run.task.headline]


class Choice(NamedTuple):
    """The layers that stay in float32.

    Attributes:
      floats: their names.
      before: accuracy in float32 on the held-out images; None without images.
      after: accuracy with the other layers in int8.
    """

    floats: tuple[str, ...]
    before: float | None
    after: float | None


def choose(
    network: Int8, run: Network, images: Images | None, lose: float, open: Callable[[Path], Logits], original: Logits
) -> Choice:
    """Finds the layers that have to stay in float32, the most sensitive ones first.

    The sensitivity of a layer is the mean squared difference of the logits if only that layer computes in int8. Numbers
    of layers are doubled until the accuracy is reached, and halved again.

    Args:
      network: the network.
      run: the run.
      images: training images.
      lose: points of accuracy on the held-out images that may be lost.
      open: opens a file as a function from pixels to logits.
      original: the float32 export as such a function.

    Raises:
      Failed: no layer can compute in int8.
    """
    if images is None:
        return Choice((), None, None)
    before = accuracy(run, original, images.held_out)
    results: dict[int, float] = {}

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"

        def is_near(ranking: Sequence[str], count: int) -> bool:
            if count not in results:
                onnx_int8.write(network, ranking[:count], path)
                results[count] = accuracy(run, open(path), images.held_out)
            return 100 * (before - results[count]) <= lose + 1e-9

        if is_near((), 0):
            return Choice((), before, results[0])
        ranking = _ranking(network, images.calibration[0][:SENSITIVITY], path, open, original)
        low, high = 0, 1  # too few, and enough
        while high < len(ranking) and not is_near(ranking, high):
            low, high = high, 2 * high
        if high >= len(ranking):
            high = len(ranking)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if is_near(ranking, middle) else (middle, high)
    if high == len(ranking):
        raise Failed(f"no layer can compute in int8 without losing more than {lose:g} points")
    return Choice(tuple(ranking[:high]), before, results[high])


def _ranking(network: Int8, pixels: np.ndarray, path: Path, open: Callable[[Path], Logits], original: Logits) -> list:
    """Returns the names of the layers, the most sensitive first."""
    expected, errors = original(pixels), {}
    for layer in network.layers:
        onnx_int8.write(network, [name for name in network.layers if name != layer], path)
        errors[layer] = float(np.square(open(path)(pixels) - expected).mean())
    return sorted(errors, key=lambda layer: -errors[layer])


def quantize(
    run: Network,
    network: PortableNetwork,
    path: Path,
    card: Card,
    method: str,
    lose: float,
    images: Images | None,
    trained: Trained | None = None,
) -> dict[str, Any]:
    """Replaces the file of a float32 export by its int8 version.

    Args:
      run: the run.
      network: its network, with ordinary layers.
      path: the file.
      card: its card.
      method: one of METHODS.
      lose: points of accuracy on the held-out images that may be lost.
      images: from `training_images`.
      trained: the ranges of a network that was trained with int8 layers, which needs no calibration.

    Returns:
      The entry "quantized" of the card.

    Raises:
      UserError: the network has nothing to quantize, or is too large.
      formats.Failed: no layer can compute in int8.
    """
    if path.with_name(f"{path.name}.data").exists():
        raise UserError(f"--quantize={method} is for networks of less than 2 GB")

    def logits(file: Path) -> Logits:
        opened = formats.fed(card, formats.onnx_call(file, card))
        return lambda pixels: opened(pixels)[1]

    blank = np.zeros(card["inputs"], np.uint8)
    pixels = images.calibration if images else [blank]
    known = functools.partial(tensor_ranges, network=network, trained=trained) if trained else None
    pixels = [blank] if trained else pixels
    prepared = onnx_int8.prepare(path, method, [formats.program_input(card, batch) for batch in pixels], known)
    original = logits(path)
    choice = choose(prepared, run, images, lose, logits, original)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / path.name
        onnx_int8.write(prepared, choice.floats, file)
        ours = formats.of_variables(network.create(), network.variables, card)
        programs = {"int8": logits(file), "float32": original, "ours": lambda pixels: ours(pixels)[1]}
        entry = {
            "method": method,
            "calibration": ORIGINS["dynamic" if method == "dynamic" else "trained" if trained else "int8"],
            "calibration_images": sum(map(len, pixels)) if method == "int8" and not trained else 0,
            "held_out_images": sum(len(batch["image"]) for batch in images.held_out) if images else 0,
            "accuracy": {"float32": choice.before, "int8": choice.after},
            "lose": lose,
            "float32_layers": [*choice.floats, *prepared.without],
            "int8_layers": len(prepared.layers) - len(choice.floats),
            "kernels": onnx_int8.kernels(file),
            "mult_adds": sum(count for name, count in prepared.layers.items() if name not in choice.floats)
            / card["mult_adds"],
            "bytes": {"int8": file.stat().st_size, "float32": path.stat().st_size},
            "milliseconds": milliseconds({name: lambda call=call: call(blank) for name, call in programs.items()}),
        }
        path.write_bytes(file.read_bytes())
    return entry


def milliseconds(programs: Mapping[str, Callable[[], Any]], rounds: int = 15) -> dict[str, float]:
    """Returns the median times of programs, one or more of which onnxruntime runs."""
    seconds = timing.medians(programs, rounds, warm_up=2, pause=timing.SPINNING)
    return {name: 1e3 * value for name, value in seconds.items()}


def lines(entry: Mapping[str, Any], headline: str) -> list[str]:
    """Returns the lines that describe a quantized export; `headline` is the name of the metric."""
    int8, floats, accuracy = entry["int8_layers"], entry["float32_layers"], entry["accuracy"]
    kernels, ms, size = sum(entry["kernels"].values()), entry["milliseconds"], entry["bytes"]
    names = f" ({', '.join(floats[:8])}{', …' * (len(floats) > 8)})" if floats else ""
    held_out = f"{entry['held_out_images']:,} training images held out of calibration"
    return [
        f"{entry['method']}: {int8} layers in int8, {entry['mult_adds']:.1%} of the multiply-adds; {len(floats)} in "
        f"float32{names}; onnxruntime computes {kernels} of {int8} with int8 kernels here",
        f"scales: {entry['calibration']}"
        + (f", {entry['calibration_images']} training images" if entry["calibration_images"] else ""),
        f"{headline} of {held_out}: {accuracy['float32']:.2%} in float32, {accuracy['int8']:.2%} in int8; lost "
        f"{100 * (accuracy['float32'] - accuracy['int8']):.2f} of at most {entry['lose']:g} points"
        if accuracy["int8"] is not None
        else f"the run has no training images, so the loss of {headline} was not measured",
        f"one image: int8 {ms['int8']:.2f} ms, float32 {ms['float32']:.2f} ms, both by onnxruntime; ours "
        f"{ms['ours']:.2f} ms; {ms['float32'] / ms['int8']:.2f} times faster, "
        f"{size['float32'] / size['int8']:.2f} times smaller than float32",
    ]
