"""Weights that share few values, and the training of those values: trained quantization (Han 2016, arXiv 1510.00149,
section 3).

config.optimizer.share = "linear(conv=8, dense=5)"

The text names how the centroids of k-means start (models/compress/codebook.py): linear, density, random. Its arguments:

    conv, dense      bits of an index, for kernels of convolutions and of dense layers: 2^bits values a layer
    what             regular expression of the parameters that share

Before the first step every weight takes the nearest value of its layer's codebook. Then those that share a value have
one gradient, the sum of theirs (section 3.3), and move together: a layer never has more values than it started with.
A weight that is 0 was pruned, and stays 0. Usually a pruned run comes before (config.init_from, init_new="").
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from models.compress import codebook
from models.errors import UserError
from train import spec
from train.parameters import KERNELS, named, parameter_names, pattern, put


class ShareState(NamedTuple):
    """index: {name: int32}, which of its layer's values a weight has; inner: of the optimizer."""

    index: dict[str, jax.Array]
    inner: Any


class Plan(NamedTuple):
    """What a text asks for."""

    init: str
    conv: int
    dense: int
    what: re.Pattern

    def bits(self, weights: Any) -> int:
        """Of an index into the codebook of these weights."""
        return self.dense if weights.ndim <= 2 else self.conv

    def snap(self, params: Any) -> Any:
        """The parameters, those that share at the nearest of their layer's values; UserError where none does."""
        chosen = named(params, self.what)
        if not chosen:
            raise UserError(
                f"optimizer.share: what='{self.what.pattern}' matches no parameter, e.g. {parameter_names(params)[0]}"
            )
        shared = {
            name: codebook.share(np.asarray(weights), self.bits(weights), self.init).weights()
            for name, weights in chosen.items()
        }
        return put(params, shared)


def plan(text: str) -> Plan | None:
    """Reads `config.optimizer.share`, None where it is ""; UserError where it cannot be read."""

    def made(init: str) -> Callable[..., Plan]:
        def share(conv: int = 8, dense: int = 5, what: str = KERNELS) -> Plan:
            if not (1 <= conv <= codebook.MOST_BITS and 1 <= dense <= codebook.MOST_BITS):
                raise ValueError(f"conv={conv}, dense={dense}: bits are 1 to {codebook.MOST_BITS}")
            return Plan(init, conv, dense, pattern(what, "optimizer.share: what"))

        return share

    return spec.resolve_one("optimizer.share", text, {init: made(init) for init in codebook.INITS}) if text else None


def wrap(inner: optax.GradientTransformation, plan: Plan) -> optax.GradientTransformation:
    """The optimizer of a network whose weights share values already: `plan.snap` made them.

    Args:
      inner: the optimizer.
      plan: which share how many.
    """

    def init(params):
        index = {}
        for name, weights in named(params, plan.what).items():
            _, found = jnp.unique(weights, size=2 ** plan.bits(weights) + 1, fill_value=0, return_inverse=True)  # and 0
            index[name] = found.reshape(weights.shape).astype(jnp.int32)
        return ShareState(index, inner.init(params))

    def update(gradients, state, params):
        weights, slopes = named(params, plan.what), named(gradients, plan.what)
        sums = {}
        for name, slope in slopes.items():
            index = state.index[name]
            total = jnp.zeros(2 ** plan.bits(slope) + 1, slope.dtype).at[index].add(slope)
            sums[name] = jnp.where(weights[name] == 0, 0, total[index])
        updates, after = inner.update(put(gradients, sums), state.inner, params)
        moves = {}
        for name, move in named(updates, plan.what).items():
            index = state.index[name]
            # One number a value, whatever the compiler made of equal sums: what is equal stays so to the bit
            one = jnp.full(2 ** plan.bits(move) + 1, -jnp.inf, move.dtype).at[index].max(move)
            moves[name] = jnp.where(weights[name] == 0, 0, one[index])
        return put(updates, moves), ShareState(state.index, after)

    return optax.GradientTransformation(init, update)
