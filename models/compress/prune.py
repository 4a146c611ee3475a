"""Pruning: scores of weights, sparsities of layers, and exact masks.

  Han et al. 2015         Learning both weights and connections, arXiv 1506.02626      magnitude, a threshold per layer,
                          proportional to its standard deviation (section 3), or by sensitivity (figure 6)
  Lee et al. 2019         SNIP, arXiv 1810.02340                                       snip
  Sanh et al. 2020        Movement pruning, arXiv 2005.07683                           movement
  Zhu & Gupta 2018        To prune, or not to prune, arXiv 1710.01878                  the cubic schedule
  Li et al. 2017          Pruning filters for efficient ConvNets, arXiv 1608.08710     filters, by the sum of magnitudes
  Mishra et al. 2021      Accelerating sparse deep neural networks, arXiv 2104.08378   2:4 blocks

Everything except `allocate` is a function of arrays that also works under jit; sparsities may be traced.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.errors import UserError, choice_error
from models.kernels.blocks import SIZE

SCORES = ("magnitude", "movement", "snip", "random")
BY = ("global", "layer", "std")
STRUCTURES = ("weights", "filters", "blocks", "2:4")
_FOUR, _OF_FOUR = 4, 2  # neighbors of structure 2:4, and how many of them it keeps

Arrays = Mapping[str, jax.Array]


def scores(kind: str, weights: Arrays, gradients: Arrays, moved: Arrays) -> dict[str, jax.Array]:
    """Returns per-weight scores, keyed by array name. Weights with the lowest scores are pruned first.

    Args:
      kind: "magnitude": |w|. "snip": |w g|, the change of the loss. "movement": how far training has moved a weight
        away from 0, the sum of -w g over the steps. "random": drawn per weight.
      weights: Weights by name.
      gradients: Gradients by name; may be empty unless `kind` is "snip".
      moved: Sums of -w g by name; may be empty unless `kind` is "movement".
    """
    if kind == "magnitude":
        return {name: jnp.abs(weight) for name, weight in weights.items()}
    if kind == "snip":
        return {name: jnp.abs(weight * gradients[name]) for name, weight in weights.items()}
    if kind == "movement":
        return {name: moved[name] for name in weights}
    if kind == "random":
        return {
            name: jax.random.uniform(jax.random.key(zlib.crc32(name.encode())), weight.shape)
            for name, weight in weights.items()
        }
    raise choice_error("pruning score", kind, SCORES)


def keep(
    scores: Arrays,
    sparsity: float | jax.Array | Mapping[str, float | jax.Array],
    by: str = "global",
    structure: str = "weights",
    before: Arrays | None = None,
    weights: Arrays | None = None,
) -> dict[str, jax.Array]:
    """Returns masks, bool in the shape of the scores, which keep exactly round((1 - sparsity) N) weights of each group.

    The weights with the highest scores are kept; among equal scores, the first.

    Args:
      scores: Scores by name.
      sparsity: Fraction to prune, in [0, 1]; with by="layer" it may also be {name: fraction}. 2:4 always prunes half
        and ignores it.
      by: The group. "global": all arrays together; "layer": each array; "std": all arrays together, with scores divided
        by the standard deviation of the array's unpruned weights. For magnitudes, "std" is a threshold per array that
        is proportional to the deviation (Han 2015, section 3), with the factor that gives the sparsity.
      structure: "weights"; "filters", all weights of one output (the last axis), by the sum of their scores; "blocks",
        16 neighboring outputs of one input and tap (models/kernels/blocks.py), by the sum of their scores; or "2:4", 2
        of 4 neighbors along the inputs (the second-to-last axis). The best filter or block of each array is always
        kept. To keep the count exact, the lowest-scoring one that would otherwise be kept is pruned in its place. If
        the count is less than the number of arrays, one of each is kept.
      before: Earlier masks; pruned weights stay pruned.
      weights: Weights by name, for "std".

    Raises:
      UserError: `by` or `structure` is unknown, or an array is a `misfit`.
    """
    if by not in BY:
        raise choice_error("value of by", by, BY)
    if structure not in STRUCTURES:
        raise choice_error("pruning structure", structure, STRUCTURES)
    if reasons := [reason for name, score in scores.items() if (reason := misfit(name, score.shape, structure))]:
        raise UserError(f"pruning structure {structure}: {reasons[0]}")
    if by == "std":
        assert weights is not None
        scores = {
            name: score / _deviation(weights[name], None if before is None else before[name])
            for name, score in scores.items()
        }
    if before is not None:
        scores = {name: jnp.where(before[name], score, -jnp.inf) for name, score in scores.items()}
    if structure == "2:4":
        return {name: _two_of_four(score) for name, score in scores.items()}
    units, least = scores, 0
    if structure == "filters":
        sums = {name: score.sum(tuple(range(score.ndim - 1))) for name, score in scores.items()}
        units, least = {name: _best_first(unit) for name, unit in sums.items()}, 1
    if structure == "blocks":
        sums = {name: score.reshape(*score.shape[:-1], -1, SIZE).sum(-1) for name, score in scores.items()}
        units, least = {name: _best_first(unit) for name, unit in sums.items()}, 1
    if by == "layer":
        rates = sparsity if isinstance(sparsity, Mapping) else dict.fromkeys(units, sparsity)
        masks = {name: _highest(unit.ravel(), rates[name], least).reshape(unit.shape) for name, unit in units.items()}
    else:
        assert not isinstance(sparsity, Mapping)
        flat = _highest(jnp.concatenate([unit.ravel() for unit in units.values()]), sparsity, least * len(units))
        masks, start = {}, 0
        for name, unit in units.items():
            masks[name] = flat[start : start + unit.size].reshape(unit.shape)
            start += unit.size
    if structure == "blocks":
        return {name: jnp.repeat(mask, SIZE, -1) for name, mask in masks.items()}
    return {name: jnp.broadcast_to(mask, scores[name].shape) for name, mask in masks.items()}


def misfit(name: str, shape: Sequence[int], structure: str) -> str:
    """Returns why an array [..., inputs, outputs] of this name cannot be pruned in a structure; "" if it can."""
    *_, inputs, outputs = (1, 1, *shape)
    if structure == "2:4" and inputs % _FOUR:
        return f"the {inputs} inputs of {name} are not divisible by {_FOUR}"
    if structure == "blocks" and outputs % SIZE:
        return f"the {outputs} outputs of {name} are not divisible by {SIZE}"
    return ""


def _deviation(weights: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Returns the standard deviation of the weights in a mask; never 0."""
    return jnp.maximum(jnp.std(weights, where=mask), jnp.finfo(weights.dtype).tiny)


def _best_first(score: jax.Array) -> jax.Array:
    """Returns scores with the highest (the first among equals) replaced by infinity."""
    return jnp.ravel(score).at[jnp.argmax(score)].set(jnp.inf).reshape(score.shape)


def _highest(score: jax.Array, sparsity: float | jax.Array, least: int = 0) -> jax.Array:
    """Returns a mask, bool [N], of the round((1 - sparsity) N) highest scores, but at least `least` of them."""
    count = jnp.maximum(jnp.round((1 - sparsity) * score.size).astype(jnp.int32), least)
    order = jnp.argsort(-score, stable=True)
    rank = jnp.zeros(score.size, jnp.int32).at[order].set(jnp.arange(score.size, dtype=jnp.int32))
    return (rank < count) & (score > -jnp.inf)


def _two_of_four(score: jax.Array) -> jax.Array:
    blocks = jnp.moveaxis(score, -2, -1)  # [..., inputs, outputs] -> [..., outputs, inputs]
    blocks = blocks.reshape(*blocks.shape[:-1], -1, _FOUR)
    order = jnp.argsort(-blocks, -1, stable=True)
    rank = jnp.argsort(order, -1)
    mask = (rank < _OF_FOUR) & (blocks > -jnp.inf)
    return jnp.moveaxis(mask.reshape(*mask.shape[:-2], -1), -1, -2)


def cubic(progress: jax.Array, first: float, last: float) -> jax.Array:
    """Returns a sparsity that grows from `first` to `last`, fast at first (Zhu & Gupta 2018, eq. 1).

    `progress` is the fraction of the schedule, from 0 to 1.
    """
    return last + (first - last) * (1 - jnp.clip(progress, 0, 1)) ** 3


def linear(progress: jax.Array, first: float, last: float) -> jax.Array:
    """Returns a sparsity that grows linearly from `first` to `last` (Han 2015: prune, retrain, repeat)."""
    return last + (first - last) * (1 - jnp.clip(progress, 0, 1))


SCHEDULES = {"cubic": cubic, "linear": linear}


def allocate(
    curves: Mapping[str, Mapping[str, Sequence[float]]], whole: float, sizes: Mapping[str, int], sparsity: float
) -> dict[str, float]:
    """Chooses the sparsity of each layer so that the largest drop of accuracy of a single layer is minimal.

    Each layer gets the largest sparsity whose drop of accuracy is at most eps, with the smallest eps that gives the
    total `sparsity`. A drop is `whole` minus the accuracy. It is interpolated linearly between measured sparsities, is
    0 at sparsity 0, and never decreases. Where a curve is flat, a tiny change of eps makes the sparsity of the layer
    jump. Every layer then takes the same fraction of its jump, so that the total is exact.

    Args:
      curves: {layer: {"sparsity": ascending values in [0, 1], "accuracy": accuracies with only that layer pruned}}.
      whole: Accuracy of the unpruned network.
      sizes: Number of weights of each layer; each layer needs a curve.
      sparsity: Total fraction to prune.

    Raises:
      UserError: A layer has no valid curve, or `sparsity` exceeds the measured range.
    """
    if missing := sorted(sizes.keys() - curves.keys()):
        raise UserError(f"the measured sensitivity lacks {', '.join(missing[:3])}{' and others' * (len(missing) > 3)}")
    lines = {name: _drops(name, curves[name], whole) for name in sizes}
    weights = np.array([sizes[name] for name in sizes], float) / sum(sizes.values())

    def shares(eps: float) -> np.ndarray:
        return np.array([_share(*line, eps) for line in lines.values()])

    low, high = 0.0, max(drops[-1] for _, drops in lines.values())
    below, above = np.zeros(len(lines)), shares(high)
    if weights @ above < sparsity - 1e-9:
        raise UserError(
            f"sparsity {sparsity} cannot be reached: sensitivity was measured only up to {weights @ above:.4g}"
        )
    if weights @ shares(0.0) >= sparsity:
        above = shares(0.0)
    else:
        below = shares(0.0)
        for _ in range(100):  # exhausts the precision of floats
            middle = (low + high) / 2
            between = shares(middle)
            if weights @ between < sparsity:
                low, below = middle, between
            else:
                high, above = middle, between
    span = weights @ (above - below)
    part = (sparsity - weights @ below) / span if span > 0 else 1.0
    return dict(zip(sizes, (below + min(part, 1.0) * (above - below)).tolist(), strict=True))


def _drops(name: str, curve: Mapping[str, Sequence[float]], whole: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns sparsities from 0 on and the drops there, which never decrease."""
    try:
        x, accuracy = (np.asarray(curve[key], float) for key in ("sparsity", "accuracy"))
    except (KeyError, TypeError, ValueError):
        x = accuracy = np.zeros(0)
    if (
        x.ndim != 1
        or x.shape != accuracy.shape
        or not x.size
        or (np.diff(x) <= 0).any()
        or x[0] < 0
        or x[-1] > 1
        or not np.isfinite(accuracy).all()
    ):
        raise UserError(
            f"sensitivity of {name}: must have one accuracy for each sparsity, and increasing sparsities in [0, 1]"
        )
    drops = np.maximum.accumulate(np.maximum(whole - accuracy, 0))
    return (np.r_[0, x], np.r_[0, drops]) if x[0] > 0 else (x, np.r_[0, drops[1:]])


def _share(x: np.ndarray, drops: np.ndarray, eps: float) -> float:
    """Returns the largest sparsity whose drop is at most eps."""
    i = np.searchsorted(drops, eps, side="right") - 1
    if i == len(x) - 1:
        return x[-1]
    return x[i] + (x[i + 1] - x[i]) * (eps - drops[i]) / (drops[i + 1] - drops[i])


def sparsity(masks: Mapping[str, Any]) -> dict[str, float]:
    """Returns the fraction of zeros by name, and of all masks under "all"."""
    counts = {name: (mask.size, int(jnp.sum(jnp.asarray(mask) == 0))) for name, mask in masks.items()}
    total, zeros = (sum(count) for count in zip(*counts.values(), strict=True))
    return {**{name: lost / size for name, (size, lost) in counts.items()}, "all": zeros / total}
