"""Really skipping: examples of a batch that a layer is not needed for are not computed.

A network that decides by example what to compute (gated.py, early_exit.py, msdnet.py) calls `compacted` for what may
be skipped. By default everything is computed, and what is not wanted is masked: the program has no branches. Within
`skipping()` the wanted examples are put next to each other, and one of a few programs for batches of fixed sizes runs
on them, chosen on the device: nothing is compiled again, and the host waits for nothing.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.errors import UserError

_parts = contextvars.ContextVar("parts", default=0)


@contextlib.contextmanager
def skipping(parts: int = 8) -> Iterator[None]:
    """Within the context, networks that are traced skip what their examples do not need; inference only.

    It acts while tracing, as `models.kernels.tracing.lowering`.

    Args:
      parts: a batch of N is computed in sizes of multiples of N / parts, so at most N / parts examples too many; each
        size is a program of its own to compile. Of a single image there are two: all, and nothing.

    Raises:
      UserError: parts below 1.
    """
    if parts < 1:
        raise UserError(f"skipping: parts={parts} must be at least 1")
    token = _parts.set(parts)
    try:
        yield
    finally:
        _parts.reset(token)


def sizes(count: int, parts: int) -> list[int]:
    """The sizes in which a batch of `count` is computed: 0, …, count, rounded up."""
    return sorted({-(-count * i // parts) for i in range(parts + 1)})


def compacted(function: Callable, module: nn.Module, keep: jax.Array, x: Any, otherwise: Any = None) -> Any:
    """function(module, x) for the examples to keep, `otherwise` for the rest.

    Args:
      function: of a module and a tree of arrays [N, ...]; each example's result depends on that example alone.
      module: whose submodules `function` calls.
      keep: bool [N].
      x: what it is called with.
      otherwise: a tree of arrays as `function` returns; None for zeros.

    Returns:
      A tree of arrays [N, ...].
    """
    parts, count = _parts.get(), keep.shape[0]  # not len(): the count may be a symbol, in a program for any

    def rest(new, otherwise):
        if otherwise is None:
            return jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape[1:]), leaf.dtype), new)
        return otherwise

    def masked(module, x, otherwise):
        new = function(module, x)
        return jax.tree.map(lambda new, old: jnp.where(_column(keep, new), new, old), new, rest(new, otherwise))

    if not parts or module.is_initializing():
        return masked(module, x, otherwise)
    allowed = sizes(count, parts)
    rows = jnp.argsort(~keep, stable=True)  # those to keep first
    place = jnp.cumsum(keep) - 1  # of each that is kept, among these

    def of_size(size):
        def compute(module, x, otherwise):
            first = rows[:size]  # some may be there to fill the size
            new = function(module, jax.tree.map(lambda leaf: leaf[first], x))
            found = jnp.minimum(place, size - 1)  # gathered, not scattered: XLA's scatter is slow on a CPU
            return jax.tree.map(
                lambda new, old: jnp.where(_column(keep, new), new[found], old), new, rest(new, otherwise)
            )

        def nothing(module, x, otherwise):
            # shapes are all that is used of this, and the compiler drops it
            new = None if otherwise is not None else function(module, jax.tree.map(lambda leaf: leaf[:1], x))
            return rest(new, otherwise)

        return {0: nothing, count: masked}.get(size, compute)

    chosen = jnp.searchsorted(jnp.asarray(allowed), jnp.sum(keep))
    return nn.switch(chosen, [of_size(size) for size in allowed], module, x, otherwise)


def _column(keep: jax.Array, like: jax.Array) -> jax.Array:
    """[N] -> [N, 1, ...], of as many axes as `like`."""
    return keep.reshape(-1, *[1] * (like.ndim - 1))
