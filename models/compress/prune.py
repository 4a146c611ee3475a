"""Which weights stay: scores, how many stay where, and exact masks.

  Han et al. 2015         Learning both weights and connections, arXiv 1506.02626      magnitude, one threshold a layer
  Lee et al. 2019         SNIP, arXiv 1810.02340                                       snip
  Sanh et al. 2020        Movement pruning, arXiv 2005.07683                           movement
  Zhu & Gupta 2018        To prune, or not to prune, arXiv 1710.01878                  the cubic schedule
  Li et al. 2017          Pruning filters for efficient ConvNets, arXiv 1608.08710     filters, by the sum of magnitudes
  Mishra et al. 2021      Accelerating sparse deep neural networks, arXiv 2104.08378   2:4 blocks

Everything is a function of arrays, under jit as well; shares may be traced.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from models.errors import UserError, choice_error

SCORES = ("magnitude", "movement", "snip", "random")
BY = ("global", "layer")
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
        return {name: jax.random.uniform(jax.random.key(zlib.crc32(name.encode())), weight.shape)
                for name, weight in weights.items()}
    raise choice_error("pruning score", kind, SCORES)


def keep(found: Arrays, sparsity: float | jax.Array, by: str = "global", structure: str = "weights",
         before: Arrays | None = None) -> dict[str, jax.Array]:
    """Masks, bool in the shape of the scores: of each group exactly round((1 - sparsity) N) stay, those of the highest
    scores; among equal ones those that come first.

    Args:
      found: scores by name.
      sparsity: share of what goes, in [0, 1]; 2:4 is a half by its nature, and takes none.
      by: the group: all arrays together, or each on its own.
      structure: what goes: weights; filters, all weights into one output (the last axis), by the sum of their scores;
        2:4: of 4 neighbours along the inputs (the last axis but one) 2 go.
      before: masks that were; what they have lost stays lost.

    Raises:
      UserError: an unknown `by` or structure; inputs that cannot be dealt out in fours.
    """
    if by not in BY:
        raise choice_error("pruning by", by, BY)
    if structure not in STRUCTURES:
        raise choice_error("pruning structure", structure, STRUCTURES)
    if before is not None:
        found = {name: jnp.where(before[name], score, -jnp.inf) for name, score in found.items()}
    if structure == "2:4":
        return {name: _two_of_four(name, score) for name, score in found.items()}
    units = found
    if structure == "filters":
        units = {name: score.sum(tuple(range(score.ndim - 1))) for name, score in found.items()}
    if by == "layer":
        masks = {name: _highest(unit.ravel(), sparsity).reshape(unit.shape) for name, unit in units.items()}
    else:
        flat = _highest(jnp.concatenate([unit.ravel() for unit in units.values()]), sparsity)
        masks, start = {}, 0
        for name, unit in units.items():
            masks[name] = flat[start:start + unit.size].reshape(unit.shape)
            start += unit.size
    return {name: jnp.broadcast_to(mask, found[name].shape) for name, mask in masks.items()}


def _highest(score: jax.Array, sparsity: float | jax.Array) -> jax.Array:
    """Of score [N] the round((1 - sparsity) N) highest, the first among equals: bool [N]."""
    count = jnp.round((1 - sparsity) * score.size).astype(jnp.int32)
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


def sparsity(masks: Mapping[str, Any]) -> dict[str, float]:
    """Share of zeros by name, and of all together under "all"."""
    counts = {name: (mask.size, int(jnp.sum(jnp.asarray(mask) == 0))) for name, mask in masks.items()}
    total, zeros = (sum(count) for count in zip(*counts.values(), strict=True))
    return {**{name: lost / size for name, (size, lost) in counts.items()}, "all": zeros / total}
