"""Dropout and stochastic depth, which draw from the rng stream "dropout"."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

Dropout = nn.Dropout  # Srivastava et al. 2014: Dropout(rate, deterministic=not train)


class StochasticDepth(nn.Module):
    """Stochastic depth: drops the input of an example with probability `rate`, and scales others by 1 / (1 - rate).

    It ends a residual branch. Huang et al. 2016 (arXiv 1603.09382) drop the branch for a whole batch and scale in
    testing. Later networks drop it per example and scale in training, as here; the expectation is the same.
    """

    rate: float
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [N, ...] to the same shape; the identity if `deterministic`."""
        if self.deterministic or self.rate == 0:
            return x
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        mask = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, shape)
        return jnp.where(mask, x / (1 - self.rate), jnp.zeros_like(x))


def drop_rates(last: float, stage_sizes: Sequence[int]) -> list[list[float]]:
    """Returns the rates of the blocks of each stage, which grow linearly from 0 to `last`."""
    steps = max(sum(stage_sizes) - 1, 1)
    starts = [sum(stage_sizes[:stage]) for stage in range(len(stage_sizes))]
    return [[last * (start + i) / steps for i in range(size)] for start, size in zip(starts, stage_sizes, strict=True)]
