"""Compares a written network with the run's network, on real images."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from models.errors import UserError
from models.kernels import runtime
from train import evaluate
from train.data.feed import Changed
from train.data.source import Source
from train.export import formats, graph, trained_int8
from train.export.formats import Failed
from train.export.network import PortableNetwork
from train.run import Network
from train.tasks.base import ImageTask

# Largest difference between programs that compute the same in another order, as a share of the largest logit. The
# parity tests of imported networks have the same tolerance (tests/models/test_parity.py).
TOLERANCE = 1e-4
ROUNDED = 0.1  # for networks with int8 layers: a sum in another order may round to the next of 256 values
OUTSIDE = 64  # images to run in another process
RANDOM = 64  # images of random pixels to use if the test set is no longer there


def verify(
    run: Network, network: PortableNetwork, folder: Path, card: formats.Card, count: int, python: str
) -> dict[str, Any]:
    """Opens a written network and runs it on test images, evenly spaced over the set, on the host.

    If the test set is no longer there, images of random pixels replace it.

    Args:
      run: the run, for its data.
      network: the run's network.
      folder: the folder of the written network.
      card: its card.
      count: number of images; 0 means all.
      python: a Python with PyTorch, for the format torch.

    Returns:
      {"images": their number, "of": "test images" or "random pixels", "largest_logit", "largest_difference": absolute,
      of logits, "by": the software that ran, "metrics": {"network", "file"} on test images}.

    Raises:
      Failed: logits or probabilities differ by more than TOLERANCE (ROUNDED for int8 layers) or, if the format is
        exact, at all. The logits of a quantized network may differ.
    """
    with runtime.on_host():
        return _verified(run, network, folder, card, count, python)


@dataclasses.dataclass
class _Comparison:
    """A comparison of logits over several batches, and the largest values so far."""

    is_exact: bool
    tolerance: float  # as a share of the largest logit
    largest: float = 0.0
    difference: float = 0.0

    def add(self, logits: np.ndarray, expected: np.ndarray, where: str = "") -> None:
        """Compares the logits of a batch; raises Failed if they differ too much."""
        if not np.isfinite(logits).all():
            raise Failed(f"the file's logits are not finite{where}")
        self.largest = max(self.largest, float(np.abs(expected).max()))
        self.difference = max(self.difference, float(np.abs(logits - expected).max()))
        if self.difference > self.tolerance * self.largest or (
            self.is_exact and logits.tobytes() != expected.tobytes()
        ):
            raise Failed(
                f"logits differ{where} by {self.difference:.3g}, of at most {self.largest:.3g}"
                + (", where they should be equal to the bit" if self.is_exact else "")
            )


def _verified(
    run: Network, network: PortableNetwork, folder: Path, card: formats.Card, count: int, python: str
) -> dict[str, Any]:
    how, size = formats.FORMATS[card["format"]], run.config["eval_batch_size"]
    opened, reference = how.open(folder, card), formats.of_variables(network.create(), network.variables, card)
    test = test_set(run)
    images = RANDOM if test is None else min(count, len(test)) if count else len(test)
    metrics: dict[str, Any] = {"network": None, "file": None}
    # The accuracy that an int8 network loses is measured, and limited, where it is quantized
    tolerance = np.inf if "quantized" in card else ROUNDED if trained_int8.is_trained(network) else TOLERANCE
    comparison, by = _Comparison(how.exact, tolerance), how.by()
    for number, batch in enumerate(_batches(test, images, size, run.images.image_shape)):
        pixels = batch["image"]
        (_, expected), (probabilities, logits) = reference(pixels), opened(pixels)
        comparison.add(logits, expected)
        of_logits = np.asarray(graph.to_probabilities(jnp.asarray(logits), card["probabilities"]))
        if np.abs(probabilities - of_logits).max() > TOLERANCE:
            raise Failed("its probabilities differ from those of its logits")
        if number == 0:
            # A program takes batches of any size, and no image's result depends on the other images
            comparison.add(opened(pixels[:1])[1], reference(pixels[:1])[1], " (one image)")
            if how.outside:
                by, outside = how.outside(folder, card, pixels[:OUTSIDE], python)
                comparison.add(outside, expected[:OUTSIDE], f" in {by}")
        if test is not None:
            labels = jax.tree.map(jnp.asarray, {"label": batch["label"], "mask": batch["mask"]})
            for name, values in (("network", expected), ("file", logits)):
                metrics[name] = evaluate.add(
                    metrics[name], cast(ImageTask, run.task).measured(jnp.asarray(values), labels)
                )
    return {
        "images": images,
        "of": "random pixels" if test is None else "test images",
        "largest_logit": comparison.largest,
        "largest_difference": comparison.difference,
        "by": by,
        "metrics": {name: evaluate.ratios(total) for name, total in metrics.items() if total},
    }


def test_set(run: Network) -> Source | None:
    """Returns the test set of a run, or None if it is no longer there.

    Raises:
      Changed: it is there, but differs from the one that the run has recorded.
    """
    try:
        return run.images.test
    except Changed:
        raise
    except UserError:
        return None


def _batches(test: Source | None, count: int, size: int, shape: tuple[int, ...]) -> Iterator[dict[str, np.ndarray]]:
    """Yields `count` images, uint8, in batches of at most `size`: evenly spaced test images, or random pixels."""
    if test is None:
        rng = np.random.default_rng(0)
        yield from (
            {"image": rng.integers(0, 256, (min(size, count - start), *shape), np.uint8)}
            for start in range(0, count, size)
        )
    else:
        index = np.linspace(0, len(test) - 1, count).astype(int)
        yield from (test.read(index[start : start + size]) for start in range(0, count, size))
