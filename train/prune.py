"""Pruning while a network is trained: a wrapper of its optimizer, whose state holds the masks.

config.optimizer.prune = "magnitude(0.9, start='20%', end='60%', every='5%')"

The text names a score (models/compress/prune.py): magnitude, movement, snip, random. Its arguments:

    sparsity         share of the weights that go
    start            when the first go, a duration
    end              when the last go; "": all at once, at `start`
    every            between them, each time more by the cubic schedule, and the rest retrains
    by               "global": all layers together; "layer": each on its own
    structure        "weights", "filters" (whole outputs) or "2:4" (two of four neighbours; no sparsity)
    what             regular expression of the parameters that may go

What went stays 0: it has no gradient, and the optimizer's own state of it no more than fades. After a restart masks are
what they were, since they are part of the state that a checkpoint holds.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from models.compress import prune
from models.errors import UserError
from train import calls

KERNELS = ".*/kernel"


class PruneState(NamedTuple):
    """count: int32 [], updates so far. masks: {name: bool}; moved: {name: float32} for movement, else {}. inner: of the
    optimizer."""

    count: jax.Array
    masks: dict[str, jax.Array]
    moved: dict[str, jax.Array]
    inner: Any


class Plan(NamedTuple):
    """What a text asks for, in steps: pruned at start, start + every, …, up to end."""

    score: str
    sparsity: float
    start: int
    end: int
    every: int
    by: str
    structure: str
    what: re.Pattern

    def due(self, step: jax.Array) -> jax.Array:
        """Whether masks are made anew at this step."""
        return (step >= self.start) & (step <= self.end) & ((step - self.start) % self.every == 0)

    def share(self, step: jax.Array) -> jax.Array:
        """Sparsity that a step brings: of the first event already some, of the last all."""
        events = (self.end - self.start) // self.every + 1
        return prune.cubic(((step - self.start) // self.every + 1) / events, 0.0, self.sparsity)


def plan(text: str, to_steps: Callable[[str], int], total: int) -> Plan:
    """Reads `config.optimizer.prune`.

    Raises:
      UserError: it cannot be read, or does not fit the training.
    """
    def made(name: str) -> Callable[..., Plan]:
        def pruner(sparsity: float = 0.5, start: str = "0 steps", end: str = "", every: str = "1 steps",
                   by: str = "global", structure: str = "weights", what: str = KERNELS) -> Plan:
            if not 0 <= sparsity < 1:
                raise ValueError(f"sparsity={sparsity} must be in [0, 1)")
            first = to_steps(start)
            last = to_steps(end) if end else first
            if not first <= last < total:
                raise ValueError(f"it goes from step {first} to step {last}; that has to be within {total} steps")
            step = max(1, to_steps(every))
            try:
                pattern = re.compile(what)
            except re.error as error:
                raise ValueError(f"what='{what}' is no regular expression: {error}") from None
            return Plan(name, sparsity, first, first + (last - first) // step * step, step, by, structure, pattern)

        return pruner

    return calls.resolve_one("pruning", text, {name: made(name) for name in prune.SCORES})


def wrap(inner: optax.GradientTransformation, plan: Plan, names: Callable[[Any], list[str]]
         ) -> optax.GradientTransformation:
    """The optimizer with pruning.

    Args:
      inner: the optimizer.
      plan: what goes when.
      names: of the leaves of a tree, in its order.

    Raises:
      UserError: on its first use, where the plan fits no parameter, or its structure none of their shapes.
    """
    def chosen(tree: Any) -> dict[str, jax.Array]:
        return {name: leaf for name, leaf in zip(names(tree), jax.tree.leaves(tree), strict=True)
                if plan.what.fullmatch(name)}

    def put(tree: Any, values: dict[str, jax.Array]) -> Any:
        leaves = [values.get(name, leaf) for name, leaf in zip(names(tree), jax.tree.leaves(tree), strict=True)]
        return jax.tree.unflatten(jax.tree.structure(tree), leaves)

    def init(params):
        weights = chosen(params)
        if not weights:
            raise UserError(f"optimizer.prune: what='{plan.what.pattern}' matches no parameter, e.g. {names(params)[0]}"
                            )
        jax.eval_shape(lambda: prune.keep(weights, plan.sparsity, plan.by, plan.structure))  # says what does not fit
        moved = {name: jnp.zeros_like(weight) for name, weight in weights.items()} if plan.score == "movement" else {}
        masks = {name: jnp.ones(weight.shape, bool) for name, weight in weights.items()}
        return PruneState(jnp.zeros((), jnp.int32), masks, moved, inner.init(params))

    def update(gradients, state, params):
        weights, slopes = chosen(params), chosen(gradients)
        moved = {name: total - weights[name] * slopes[name] for name, total in state.moved.items()}

        def again():
            found = prune.scores(plan.score, weights, slopes, moved)
            return prune.keep(found, plan.share(state.count), plan.by, plan.structure, before=state.masks)

        masks = jax.lax.cond(plan.due(state.count), again, lambda: state.masks)
        gradients = put(gradients, {name: jnp.where(masks[name], slope, 0) for name, slope in slopes.items()})
        updates, after = inner.update(gradients, state.inner, params)
        updates = put(updates, {name: jnp.where(masks[name], step, -weights[name])
                                for name, step in chosen(updates).items()})
        return updates, PruneState(state.count + 1, masks, moved, after)

    return optax.GradientTransformation(init, update)


def masks_of(opt_state: Any) -> dict[str, jax.Array]:
    """The masks within an optimizer's state; {} where nothing is pruned."""
    found = [leaf for leaf in jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, PruneState))
             if isinstance(leaf, PruneState)]
    return found[0].masks if found else {}
