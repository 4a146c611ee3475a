"""Trained quantization: weights that share few values, which are trained (Han 2016, arXiv 1510.00149, section 3).

config.optimizer.share = "linear(conv=8, dense=5)"

The name is the initialization of k-means (models/compress/codebook.py): linear, density or random. Its arguments:

    conv, dense      bits per index for kernels of convolutions and of dense layers, which give 2^bits values per layer
    what             regular expression of the parameters that share values

Before the first step, each weight takes the nearest value of its layer's codebook. From then on, weights that share a
value have one gradient, the sum of theirs (section 3.3), and move together. So a layer never has more values than it
started with. Weights of 0 were pruned and stay 0. A run usually starts from a pruned run (config.init_from,
init_new="").
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
from train.optim.parameters import KERNELS, named, parameter_names, pattern, put
from train.setup import spec


class ShareState(NamedTuple):
    """The state of the wrapped optimizer.

    Attributes:
      index: int32 arrays by name of the parameter: which of its layer's values each weight has.
      inner: the state of the inner optimizer.
    """

    index: dict[str, jax.Array]  # pyright: ignore[reportIncompatibleMethodOverride]  # checkpoints: "opt_state/index"
    inner: Any


class Plan(NamedTuple):
    """The value of optimizer.share."""

    init: str
    conv: int
    dense: int
    what: re.Pattern

    def bits(self, weights: Any) -> int:
        """Returns the number of bits of an index into the codebook of these weights."""
        return self.dense if weights.ndim <= 2 else self.conv

    def snap(self, params: Any) -> Any:
        """Returns the parameters with shared weights at the nearest value of their layer's codebook.

        Raises:
          UserError: no parameter shares values.
        """
        matching = named(params, self.what)
        if not matching:
            raise UserError(
                f"optimizer.share: what='{self.what.pattern}' matches no parameter; one is named "
                f"{parameter_names(params)[0]}"
            )
        shared = {
            name: codebook.share(np.asarray(weights), self.bits(weights), self.init).weights()
            for name, weights in matching.items()
        }
        return put(params, shared)


def plan(text: str) -> Plan | None:
    """Reads the config's value of `optimizer.share`; returns None for "" and raises UserError if it is invalid."""

    def sharer(init: str) -> Callable[..., Plan]:
        def share(conv: int = 8, dense: int = 5, what: str = KERNELS) -> Plan:
            if not (1 <= conv <= codebook.MOST_BITS and 1 <= dense <= codebook.MOST_BITS):
                raise ValueError(f"conv={conv}, dense={dense}: bits must be in [1, {codebook.MOST_BITS}]")
            return Plan(init, conv, dense, pattern(what, "optimizer.share: what"))

        return share

    return spec.resolve_one("optimizer.share", text, {init: sharer(init) for init in codebook.INITS}) if text else None


def wrap(inner: optax.GradientTransformation, plan: Plan) -> optax.GradientTransformation:
    """Wraps the optimizer of a network whose weights share values, as `plan.snap` returns them.

    Args:
      inner: the optimizer.
      plan: which parameters share how many values.
    """

    def init(params):
        index = {}
        for name, weights in named(params, plan.what).items():
            size = 2 ** plan.bits(weights) + 1  # one more value, for the 0 of pruned weights
            _, inverse = jnp.unique(weights, size=size, fill_value=0, return_inverse=True)
            index[name] = inverse.reshape(weights.shape).astype(jnp.int32)
        return ShareState(index, inner.init(params))

    def update(updates, state, params=None, **extra):
        weights, slopes = named(params, plan.what), named(updates, plan.what)
        sums = {}
        for name, slope in slopes.items():
            index = state.index[name]
            total = jnp.zeros(2 ** plan.bits(slope) + 1, slope.dtype).at[index].add(slope)
            sums[name] = jnp.where(weights[name] == 0, 0, total[index])
        moves, after = optax.with_extra_args_support(inner).update(put(updates, sums), state.inner, params, **extra)
        shared = {}
        for name, move in named(moves, plan.what).items():
            index = state.index[name]
            # Weights that share a value must get the same update, but the compiler may round their equal sums
            # differently. So all of them get the largest of their updates.
            one = jnp.full(2 ** plan.bits(move) + 1, -jnp.inf, move.dtype).at[index].max(move)
            shared[name] = jnp.where(weights[name] == 0, 0, one[index])
        return put(moves, shared), ShareState(state.index, after)

    return optax.GradientTransformationExtraArgs(init, update)
