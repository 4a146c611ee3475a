"""A written network against the one that it was made of, on real images."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models import runtime
from train import evaluate
from train.export import formats, graph
from train.export.formats import Failed
from train.export.network import Network

# What two programs that compute the same in another order may differ by, as a share of the largest logit; the parity of
# imported networks is held to as much (tests/test_parity.py).
TOLERANCE = 1e-4
OUTSIDE = 64  # images that another process gets


def verify(run: Any, network: Network, folder: Any, card: formats.Card, count: int, python: str) -> dict[str, Any]:
    """Opens what was written and runs it on test images, evenly spaced over the set, on the host.

    Args:
      run: whose data they are.
      network: what was written.
      folder: where.
      card: of it.
      count: images; 0 for all.
      python: of formats that another Python opens.

    Returns:
      {"images", "largest_logit", "largest_difference" (of logits, absolute), "by", "metrics": {"network", "file"}}.

    Raises:
      Failed: logits or probabilities differ by more than TOLERANCE; where the format is exact, at all.
    """
    with runtime.on_host():
        return _verified(run, network, folder, card, count, python)


def _verified(run, network, folder, card, count, python):
    how, test = formats.FORMATS[card["format"]], run.feed.test
    opened, here = how.open(folder, card), formats.of_variables(network.create(), network.variables, card)
    index = np.linspace(0, len(test) - 1, min(count, len(test)) if count else len(test)).astype(int)
    size = run.config["eval_batch_size"]
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
            raise Failed(f"logits differ{what} by {difference:.3g}, of at most {largest:.3g}"
                         + (", where they should be equal to the bit" if how.exact else ""))

    for start in range(0, len(index), size):
        batch = test.read(index[start:start + size])
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
        for name, logits in (("network", wanted), ("file", found)):
            scored = run.task.measured(jnp.asarray(logits), jax.tree.map(jnp.asarray, {
                "label": batch["label"], "mask": batch["mask"]}))
            metrics[name] = evaluate.add(metrics[name], scored)
    return {"images": len(index), "largest_logit": largest, "largest_difference": difference, "by": by,
            "metrics": {name: evaluate.ratios(total) for name, total in metrics.items()}}
