"""A written network against the one that it was made of, on real images."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.errors import UserError
from models.kernels import runtime
from train import evaluate
from train.data.feed import Changed
from train.data.source import Source
from train.export import formats, graph
from train.export.formats import Failed
from train.export.network import Network

# What two programs that compute the same in another order may differ by, as a share of the largest logit; the parity of
# imported networks is held to as much (tests/models/test_parity.py).
TOLERANCE = 1e-4
OUTSIDE = 64  # images that another process gets
RANDOM = 64  # images of random pixels that stand in for a test set that is no longer there


def verify(run: Any, network: Network, folder: Any, card: formats.Card, count: int, python: str) -> dict[str, Any]:
    """Opens what was written and runs it on test images, evenly spaced over the set, on the host.

    Where the test set is no longer there, images of random pixels stand in for it.

    Args:
      run: whose data they are.
      network: what was written.
      folder: where.
      card: of it.
      count: images; 0 for all.
      python: of formats that another Python opens.

    Returns:
      {"images", "of" ("test images" or "random pixels"), "largest_logit", "largest_difference" (of logits, absolute),
      "by", "metrics": {"network", "file"} of test images}.

    Raises:
      Failed: logits or probabilities differ by more than TOLERANCE; where the format is exact, at all.
    """
    with runtime.on_host():
        return _verified(run, network, folder, card, count, python)


def _verified(run, network, folder, card, count, python):
    how, size = formats.FORMATS[card["format"]], run.config["eval_batch_size"]
    opened, here = how.open(folder, card), formats.of_variables(network.create(), network.variables, card)
    test = test_set(run)
    images = RANDOM if test is None else min(count, len(test)) if count else len(test)
    largest = difference = 0.0
    metrics: dict[str, Any] = {"network": None, "file": None}
    by = how.by()

    def compare(found, wanted, what):
        nonlocal largest, difference
        if not np.isfinite(found).all():
            raise Failed(f"the file gives logits that are not finite{what}")
        largest = max(largest, float(np.abs(wanted).max()))
        difference = max(difference, float(np.abs(found - wanted).max()))
        if difference > TOLERANCE * largest or (how.exact and found.tobytes() != wanted.tobytes()):
            raise Failed(
                f"logits differ{what} by {difference:.3g}, of at most {largest:.3g}"
                + (", where they should be equal to the bit" if how.exact else "")
            )

    for start, batch in enumerate(_batches(test, images, size, run.feed.image_shape)):
        pixels = batch["image"]
        wanted, (probabilities, found) = here(pixels)[1], opened(pixels)
        compare(found, wanted, "")
        says = np.asarray(graph.to_probabilities(jnp.asarray(found), card["probabilities"]))
        if np.abs(probabilities - says).max() > TOLERANCE:
            raise Failed("its probabilities are not those of its logits")
        if not start:
            # An image alone: the batch of a program is dynamic, and no image's result depends on the others.
            compare(opened(pixels[:1])[1], here(pixels[:1])[1], " (one image)")
            if how.outside:
                by, elsewhere = how.outside(folder, card, pixels[:OUTSIDE], python)
                compare(elsewhere, wanted[:OUTSIDE], f" in {by}")
        for name, logits in (("network", wanted), ("file", found)) if test is not None else ():
            scored = run.task.measured(
                jnp.asarray(logits), jax.tree.map(jnp.asarray, {"label": batch["label"], "mask": batch["mask"]})
            )
            metrics[name] = evaluate.add(metrics[name], scored)
    return {
        "images": images,
        "of": "random pixels" if test is None else "test images",
        "largest_logit": largest,
        "largest_difference": difference,
        "by": by,
        "metrics": {name: evaluate.ratios(total) for name, total in metrics.items() if total},
    }


def test_set(run: Any) -> Source | None:
    """Returns the test set of a run, or None where it is no longer there.

    Raises:
      Changed: it is there, but is not the one that the run has recorded.
    """
    try:
        return run.feed.test
    except Changed:
        raise
    except UserError:
        return None


def _batches(test: Source | None, count: int, size: int, shape: tuple[int, ...]) -> Iterator[dict[str, np.ndarray]]:
    """Yields `count` images, uint8 [N, *shape] with N <= size: evenly spaced over a test set, else random pixels."""
    if test is None:
        rng = np.random.default_rng(0)
        yield from (
            {"image": rng.integers(0, 256, (min(size, count - start), *shape), np.uint8)}
            for start in range(0, count, size)
        )
    else:
        index = np.linspace(0, len(test) - 1, count).astype(int)
        yield from (test.read(index[start : start + size]) for start in range(0, count, size))
