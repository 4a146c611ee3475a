"""Noise in training: dropout and stochastic depth. Both draw from the rng stream "dropout"."""

import flax.linen as nn
import jax
import jax.numpy as jnp

Dropout = nn.Dropout  # Srivastava et al. 2014: Dropout(rate, deterministic=not train)


class StochasticDepth(nn.Module):
    """Drops the whole input of some examples, each with probability `rate`, and scales the others by 1 / (1 - rate).

    Put at the end of a residual branch. Huang et al. 2016 (arXiv 1603.09382) drop it for a whole batch and scale in
    testing; by example and scaled in training, as here, is what later networks do, and the expectation is the same.
    """

    rate: float
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [N, ...] -> [N, ...]; the identity where `deterministic`."""
        if self.deterministic or self.rate == 0:
            return x
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, shape)
        return jnp.where(kept, x / (1 - self.rate), jnp.zeros_like(x))
