"""Conditional computation: layers that compute only the examples of a batch that need them.

A network that decides per example what to compute (gated.py, early_exit.py, msdnet.py) calls `compacted` for optional
parts. By default everything is computed and unneeded results are masked, so the program has no branches. Within
`skipping()` the needed examples are gathered, and the device chooses one of a few programs for batches of fixed sizes.
Nothing is recompiled, and the host does not wait.
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
    """Makes networks that are traced within the context skip computations per example; for inference only.

    It takes effect while tracing, like `models.kernels.tracing.lowering`.

    Args:
      parts: A batch of N is computed in sizes that are multiples of N / parts, so at most N / parts examples are
        computed unnecessarily. Each size is a program that has to be compiled. A single image has two sizes, 0 and 1.

    Raises:
      UserError: `parts` is below 1.
    """
    if parts < 1:
        raise UserError(f"skipping: parts={parts} must be at least 1")
    token = _parts.set(parts)
    try:
        yield
    finally:
        _parts.reset(token)


def sizes(count: int, parts: int) -> list[int]:
    """Returns the sizes in which a batch of `count` is computed: 0, ..., count, rounded up."""
    return sorted({-(-count * i // parts) for i in range(parts + 1)})


def compacted(function: Callable, module: nn.Module, keep: jax.Array, x: Any, otherwise: Any = None) -> Any:
    """Returns function(module, x) for the examples to keep, and `otherwise` for the others.

    Args:
      function: Function of a module and a tree of arrays [N, ...]; the result of an example depends only on it.
      module: Module whose submodules `function` calls.
      keep: bool [N].
      x: Argument of `function`.
      otherwise: A tree of arrays like the result of `function`; None stands for zeros.

    Returns:
      A tree of arrays [N, ...].
    """
    parts, count = _parts.get(), keep.shape[0]  # not len(): an exported program has a symbolic batch size

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
    rows = jnp.argsort(~keep, stable=True)  # examples to keep come first
    rank = jnp.cumsum(keep) - 1  # index of each kept example among them

    def of_size(size):
        def compute(module, x, otherwise):
            first = rows[:size]  # may include examples that only fill the size
            new = function(module, jax.tree.map(lambda leaf: leaf[first], x))
            source = jnp.minimum(rank, size - 1)  # for a gather, because XLA's scatter is slow on a CPU
            return jax.tree.map(
                lambda new, old: jnp.where(_column(keep, new), new[source], old), new, rest(new, otherwise)
            )

        def nothing(module, x, otherwise):
            # Only the shapes of this result are used, so the compiler removes it
            new = None if otherwise is not None else function(module, jax.tree.map(lambda leaf: leaf[:1], x))
            return rest(new, otherwise)

        return {0: nothing, count: masked}.get(size, compute)

    branch = jnp.searchsorted(jnp.asarray(allowed), jnp.sum(keep))
    return nn.switch(branch, [of_size(size) for size in allowed], module, x, otherwise)


def _column(keep: jax.Array, like: jax.Array) -> jax.Array:
    """Reshapes [N] to [N, 1, ...] with as many axes as `like`."""
    return keep.reshape(-1, *[1] * (like.ndim - 1))
