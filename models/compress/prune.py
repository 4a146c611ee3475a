"""Which weights stay: scores, how many stay where, and exact masks.

  Han et al. 2015         Learning both weights and connections, arXiv 1506.02626      magnitude, one threshold a layer;
                          in proportion to the layer's standard deviation (section 3); by sensitivity (figure 6)
  Lee et al. 2019         SNIP, arXiv 1810.02340                                       snip
  Sanh et al. 2020        Movement pruning, arXiv 2005.07683                           movement
  Zhu & Gupta 2018        To prune, or not to prune, arXiv 1710.01878                  the cubic schedule
  Li et al. 2017          Pruning filters for efficient ConvNets, arXiv 1608.08710     filters, by the sum of magnitudes
  Mishra et al. 2021      Accelerating sparse deep neural networks, arXiv 2104.08378   2:4 blocks

Everything but `allocate` is a function of arrays, under jit as well; shares may be traced.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.errors import UserError, choice_error

SCORES = ("magnitude", "movement", "snip", "random")
BY = ("global", "layer", "std")
STRUCTURES = ("weights", "filters", "2:4")
_BLOCK, _OF_BLOCK = 4, 2  # of 2:4

Arrays = Mapping[str, jax.Array]


def scores(kind: str, weights: Arrays, gradients: Arrays, moved: Arrays) -> dict[str, jax.Array]:
    """What decides, by name of the array, in its shape; the higher the later a weight goes.

    Args:
      kind: magnitude: |w|. snip: |w g|, how much the loss would change. movement: how far training has moved a weight
        away from 0, the sum of -w g over the steps so far. random: drawn for the place of the weight.
      weights, gradients, moved: by name; what the kind does not need may be empty.
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
    found: Arrays,
    sparsity: float | jax.Array | Mapping[str, float | jax.Array],
    by: str = "global",
    structure: str = "weights",
    before: Arrays | None = None,
    weights: Arrays | None = None,
) -> dict[str, jax.Array]:
    """Masks, bool in the shape of the scores: of each group exactly round((1 - sparsity) N) stay, those of the highest
    scores; among equal ones those that come first.

    Args:
      found: scores by name.
      sparsity: share of what goes, in [0, 1]; by "layer" also one for each name. 2:4 is a half by its nature, and
        takes none.
      by: the group: "global": all arrays together; "layer": each on its own; "std": together, scores divided by the
        standard deviation of their array's weights, those that were lost apart: of magnitudes a threshold for each
        array in proportion to it (Han 2015, section 3), of the factor that makes the sparsity.
      structure: what goes: weights; filters, all weights into one output (the last axis), by the sum of their scores;
        2:4: of 4 neighbours along the inputs (the last axis but one) 2 go. Of each array at least one filter stays, its
        best, for which a worse one of another array goes, so that the count is exact; but where it is less than there
        are arrays, one of each stays.
      before: masks that were; what they have lost stays lost.
      weights: by name, for "std".

    Raises:
      UserError: an unknown `by` or structure; inputs that cannot be dealt out in fours.
    """
    if by not in BY:
        raise choice_error("pruning by", by, BY)
    if structure not in STRUCTURES:
        raise choice_error("pruning structure", structure, STRUCTURES)
    if by == "std":
        found = {
            name: score / _deviation(weights[name], None if before is None else before[name])
            for name, score in found.items()
        }
    if before is not None:
        found = {name: jnp.where(before[name], score, -jnp.inf) for name, score in found.items()}
    if structure == "2:4":
        return {name: _two_of_four(name, score) for name, score in found.items()}
    units, least = found, 0
    if structure == "filters":
        sums = {name: score.sum(tuple(range(score.ndim - 1))) for name, score in found.items()}
        units, least = {name: _best_first(unit) for name, unit in sums.items()}, 1
    if by == "layer":
        shares = sparsity if isinstance(sparsity, Mapping) else dict.fromkeys(units, sparsity)
        masks = {name: _highest(unit.ravel(), shares[name], least).reshape(unit.shape) for name, unit in units.items()}
    else:
        flat = _highest(jnp.concatenate([unit.ravel() for unit in units.values()]), sparsity, least * len(units))
        masks, start = {}, 0
        for name, unit in units.items():
            masks[name] = flat[start : start + unit.size].reshape(unit.shape)
            start += unit.size
    return {name: jnp.broadcast_to(mask, found[name].shape) for name, mask in masks.items()}


def _deviation(weights: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Standard deviation of what stays of an array; never 0."""
    return jnp.maximum(jnp.std(weights, where=mask), jnp.finfo(weights.dtype).tiny)


def _best_first(score: jax.Array) -> jax.Array:
    """Score [D] with infinity for the highest, the first among equals."""
    return jnp.asarray(score).at[jnp.argmax(score)].set(jnp.inf)


def _highest(score: jax.Array, sparsity: float | jax.Array, least: int = 0) -> jax.Array:
    """Of score [N] the round((1 - sparsity) N) highest, but at least so many; the first among equals: bool [N]."""
    count = jnp.maximum(jnp.round((1 - sparsity) * score.size).astype(jnp.int32), least)
    order = jnp.argsort(-score, stable=True)
    rank = jnp.zeros(score.size, jnp.int32).at[order].set(jnp.arange(score.size, dtype=jnp.int32))
    return (rank < count) & (score > -jnp.inf)


def _two_of_four(name: str, score: jax.Array) -> jax.Array:
    if score.ndim < 2 or score.shape[-2] % _BLOCK:
        inputs = score.shape[-2] if score.ndim > 1 else 1
        raise UserError(f"pruning structure 2:4: the {inputs} inputs of {name} cannot be dealt out in fours")
    blocks = jnp.moveaxis(score, -2, -1)  # [..., inputs, outputs] -> [..., outputs, inputs]
    blocks = blocks.reshape(*blocks.shape[:-1], -1, _BLOCK)
    order = jnp.argsort(-blocks, -1, stable=True)
    rank = jnp.argsort(order, -1)
    mask = (rank < _OF_BLOCK) & (blocks > -jnp.inf)
    return jnp.moveaxis(mask.reshape(*mask.shape[:-2], -1), -1, -2)


def cubic(progress: jax.Array, first: float, last: float) -> jax.Array:
    """Sparsity between `first` and `last` at a progress of 0 to 1, fast at first (Zhu & Gupta 2018, equation 1)."""
    return last + (first - last) * (1 - jnp.clip(progress, 0, 1)) ** 3


def linear(progress: jax.Array, first: float, last: float) -> jax.Array:
    """As `cubic`, by equal steps (Han 2015: prune, retrain, repeat)."""
    return last + (first - last) * (1 - jnp.clip(progress, 0, 1))


SCHEDULES = {"cubic": cubic, "linear": linear}


def allocate(
    curves: Mapping[str, Mapping[str, Sequence[float]]], whole: float, sizes: Mapping[str, int], sparsity: float
) -> dict[str, float]:
    """Sparsity of each layer, so that no layer on its own costs more accuracy than it has to.

    Of each layer goes the largest share whose drop of accuracy is at most eps, with the smallest eps for which
    `sparsity` of all goes. A drop is `whole` minus the accuracy: linear between the sparsities measured, 0 at 0, and
    nowhere less than at a smaller sparsity. Where a curve is flat, shares jump with eps; there all layers go the same
    part of the way, so that the total is met exactly.

    Args:
      curves: {layer: {"sparsity": ascending, in [0, 1], "accuracy": with so much of that layer alone pruned}}.
      whole: accuracy of the network as it is.
      sizes: by layer; each has a curve.
      sparsity: share of all.

    Raises:
      UserError: a layer has no curve, or one that cannot be read; more is asked for than was measured.
    """
    if missing := sorted(sizes.keys() - curves.keys()):
        raise UserError(f"no sensitivity of {', '.join(missing[:3])}{' and others' * (len(missing) > 3)}")
    lines = {name: _drops(name, curves[name], whole) for name in sizes}
    weights = np.array([sizes[name] for name in sizes], float) / sum(sizes.values())

    def shares(eps: float) -> np.ndarray:
        return np.array([_share(*line, eps) for line in lines.values()])

    low, high = 0.0, max(drops[-1] for _, drops in lines.values())
    below, above = np.zeros(len(lines)), shares(high)
    if weights @ above < sparsity - 1e-9:
        raise UserError(f"sparsity {sparsity} cannot be reached: sensitivity was measured up to {weights @ above:.4g}")
    if weights @ shares(0.0) >= sparsity:
        above = shares(0.0)
    else:
        below = shares(0.0)
        for _ in range(100):  # until floats are exhausted
            middle = (low + high) / 2
            found = shares(middle)
            if weights @ found < sparsity:
                low, below = middle, found
            else:
                high, above = middle, found
    span = weights @ (above - below)
    part = (sparsity - weights @ below) / span if span > 0 else 1.0
    return dict(zip(sizes, (below + min(part, 1.0) * (above - below)).tolist(), strict=True))


def _drops(name: str, curve: Mapping[str, Sequence[float]], whole: float) -> tuple[np.ndarray, np.ndarray]:
    """Sparsities from 0 on and the drops there, which never fall."""
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
        raise UserError(f"sensitivity of {name}: want as many accuracies as sparsities, and these ascending in [0, 1]")
    drops = np.maximum.accumulate(np.maximum(whole - accuracy, 0))
    return (np.r_[0, x], np.r_[0, drops]) if x[0] > 0 else (x, np.r_[0, drops[1:]])


def _share(x: np.ndarray, drops: np.ndarray, eps: float) -> float:
    """The largest sparsity whose drop is at most eps."""
    i = np.searchsorted(drops, eps, side="right") - 1
    if i == len(x) - 1:
        return x[-1]
    return x[i] + (x[i + 1] - x[i]) * (eps - drops[i]) / (drops[i + 1] - drops[i])


def sparsity(masks: Mapping[str, Any]) -> dict[str, float]:
    """Share of zeros by name, and of all together under "all"."""
    counts = {name: (mask.size, int(jnp.sum(jnp.asarray(mask) == 0))) for name, mask in masks.items()}
    total, zeros = (sum(count) for count in zip(*counts.values(), strict=True))
    return {**{name: lost / size for name, (size, lost) in counts.items()}, "all": zeros / total}
