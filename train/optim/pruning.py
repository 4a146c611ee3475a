"""Pruning while a network is trained: a wrapper of its optimizer, whose state holds the masks.

config.optimizer.prune = "magnitude(0.9, start='20%', end='60%', every='5%')"

The text names a score (models/compress/prune.py): magnitude, movement, snip, random. Its arguments:

    sparsity         share of the weights that go
    start            when the first go, a duration
    end              when the last go; "": all at once, at `start`
    every            between them, each time more, and the rest retrains
    schedule         how much more: "cubic", fast at first, or "linear"
    by               "global": all layers together; "layer": each on its own; "std": together, in proportion to each
                     layer's standard deviation; "runs/x/sensitivity.json": as much of each layer as costs all of them
                     the same accuracy, by that file of the hook `sensitivity`
    structure        "weights", "filters" (whole outputs) or "2:4" (two of four neighbours; no sparsity)
    what             regular expression of the parameters that may go

A filter takes its bias and the scale and bias of its normalization with it, so that the network equals the one without
it (models/compress/shrink.py) at any step. Filters that cannot be removed like that are refused.

What went stays 0: it has no gradient, and the optimizer's own state of it no more than fades. Binary layers, where 0
counts as 1, are refused. After a restart masks are what they were: they are part of the state that a checkpoint holds.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from models.compress import prune, shrink
from models.errors import UserError, choice_error
from train import spec
from train.optim import sensitivity
from train.parameters import KERNELS, named, parameter_names, pattern, put


class PruneState(NamedTuple):
    """count: int32 [], updates so far. masks: {name: bool}; moved: {name: float32} for movement, else {}. inner: of the
    optimizer.
    """

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
    schedule: str
    sensitivity: Mapping[str, Any] | None  # what the file `by` holds: "layers", "whole"

    @property
    def file(self) -> str:
        """The file of the hook `sensitivity` that it goes by, "" where it goes by none."""
        return self.by if self.sensitivity else ""

    def due(self, step: jax.Array) -> jax.Array:
        """Whether masks are made anew at this step."""
        return (step >= self.start) & (step <= self.end) & ((step - self.start) % self.every == 0)

    def share(self, step: jax.Array, sparsity: float) -> jax.Array:
        """Sparsity that a step brings of the last one's: of the first event already some, of the last all."""
        events = (self.end - self.start) // self.every + 1
        return prune.SCHEDULES[self.schedule](((step - self.start) // self.every + 1) / events, 0.0, sparsity)

    def keep(self, found: prune.Arrays, step: jax.Array, **known: Any) -> dict[str, jax.Array]:
        """Masks that a step brings, by scores; `known` is what else `prune.keep` takes."""
        if self.sensitivity is None:
            return prune.keep(found, self.share(step, self.sparsity), self.by, self.structure, **known)
        shares = {name: self.share(step, share) for name, share in self.allocated(found).items()}
        return prune.keep(found, shares, "layer", self.structure, **known)

    def allocated(self, arrays: prune.Arrays) -> dict[str, float]:
        """Sparsities in the end by layer, where a file decides; of weights or of filters, whichever go."""
        sizes = {name: array.shape[-1] if self.structure == "filters" else array.size for name, array in arrays.items()}
        try:
            return prune.allocate(self.sensitivity["layers"], self.sensitivity["whole"], sizes, self.sparsity)
        except UserError as error:
            raise UserError(f"optimizer.prune: by='{self.by}': {error}") from None


def plan(text: str, to_steps: Callable[[str], int], total: int) -> Plan | None:
    """Reads `config.optimizer.prune`; None where it is "".

    Raises:
      UserError: it cannot be read, or does not fit the training.
    """

    def made(name: str) -> Callable[..., Plan]:
        def pruner(
            sparsity: float = 0.5,
            start: str = "0 steps",
            end: str = "",
            every: str = "1 steps",
            by: str = "global",
            structure: str = "weights",
            what: str = KERNELS,
            schedule: str = "cubic",
        ) -> Plan:
            if not 0 <= sparsity < 1:
                raise ValueError(f"sparsity={sparsity} must be in [0, 1)")
            first = to_steps(start)
            last = to_steps(end) if end else first
            if not first <= last < total:
                raise ValueError(f"it goes from step {first} to step {last}; that has to be within {total} steps")
            if schedule not in prune.SCHEDULES:
                raise choice_error("schedule", schedule, prune.SCHEDULES)
            if by.endswith(".json") and structure == "2:4":
                raise ValueError(f"by='{by}': structure 2:4 takes no sparsity")
            step = max(1, to_steps(every))
            return Plan(
                name,
                sparsity,
                first,
                first + (last - first) // step * step,
                step,
                by,
                structure,
                pattern(what, "optimizer.prune: what"),
                schedule,
                sensitivity.read(by) if by.endswith(".json") else None,
            )

        return pruner

    return spec.resolve_one("optimizer.prune", text, {name: made(name) for name in prune.SCORES}) if text else None


def without_file(text: str) -> str:
    """`config.optimizer.prune` by no file, for a network that is pruned already: its file may be gone."""
    return re.sub(r"""(['"])[^'"]*\.json\1""", "'layer'", text)


def vectors(model: Any, variables: Any, inputs: Any, kernels: Sequence[str]) -> dict[str, list[str]]:
    """Names, for each kernel, the parameters with one entry a filter, which go to 0 with it.

    Args:
      model: from `models.create`.
      variables: of the model.
      inputs: as for `models.initialize`.
      kernels: names of parameters.

    Raises:
      UserError: filters of some of them cannot be removed exactly; says which `what` can be pruned.
    """
    found, refused = shrink.removable(model, variables, inputs, kernels)
    if refused:
        others = [name for name in named(variables["params"], pattern(KERNELS)) if name not in kernels]
        more_found, more_refused = shrink.removable(model, variables, inputs, others)
        good, bad = {**found, **more_found}, {**refused, **more_refused}
        more = f" (nor can those of {len(refused) - 1} more layers)" if len(refused) > 1 else ""
        hint = f"; what='{shrink.expression(good, bad)}' can be pruned" if good else "; nor can those of any layer"
        raise UserError(f"optimizer.prune: {next(iter(refused.values()))}{more}{hint}")
    return {
        kernel: [coupling.array.removeprefix("params/") for coupling in couplings[1:] if coupling.own]
        for kernel, couplings in found.items()
    }


def wrap(
    inner: optax.GradientTransformation, plan: Plan, vectors: Mapping[str, Sequence[str]] = {}
) -> optax.GradientTransformation:
    """The optimizer with pruning.

    Args:
      inner: the optimizer.
      plan: what goes when.
      vectors: for structure "filters", what goes with the filters of a kernel, as the function `vectors` gives it.

    Raises:
      UserError: on its first use, where the plan fits no parameter, or its structure none of their shapes.
    """

    def with_vectors(masks: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Masks of kernels, and of the vectors that go with their filters."""
        found = dict(masks)
        for kernel, owned in vectors.items():
            found |= dict.fromkeys(owned, masks[kernel].reshape(-1, masks[kernel].shape[-1])[0])
        return found

    def init(params):
        weights = named(params, plan.what)
        if not weights:
            raise UserError(
                f"optimizer.prune: what='{plan.what.pattern}' matches no parameter, e.g. {parameter_names(params)[0]}"
            )
        jax.eval_shape(lambda: plan.keep(weights, plan.end, weights=weights))  # says what does not fit
        moved = {name: jnp.zeros_like(weight) for name, weight in weights.items()} if plan.score == "movement" else {}
        masks = {name: jnp.ones(weight.shape, bool) for name, weight in weights.items()}
        return PruneState(jnp.zeros((), jnp.int32), masks, moved, inner.init(params))

    def update(gradients, state, params):
        weights, slopes = named(params, plan.what), named(gradients, plan.what)
        moved = {name: total - weights[name] * slopes[name] for name, total in state.moved.items()}

        def again():
            found = prune.scores(plan.score, weights, slopes, moved)
            return plan.keep(found, state.count, before=state.masks, weights=weights)

        masks = jax.lax.cond(plan.due(state.count), again, lambda: state.masks)
        cut, slopes, before = with_vectors(masks), named(gradients), named(params)
        gradients = put(gradients, {name: jnp.where(mask, slopes[name], 0) for name, mask in cut.items()})
        updates, after = inner.update(gradients, state.inner, params)
        steps = named(updates)
        updates = put(updates, {name: jnp.where(mask, steps[name], -before[name]) for name, mask in cut.items()})
        return updates, PruneState(state.count + 1, masks, moved, after)

    return optax.GradientTransformation(init, update)


def saved_masks(leaves: Mapping[str, Any]) -> PruneState | None:
    """Returns the masks among the leaves of a checkpoint, as `masks_of` finds them; None where nothing is pruned."""
    prefix = "opt_state/masks/"
    masks = {name.removeprefix(prefix): leaf for name, leaf in leaves.items() if name.startswith(prefix)}
    return PruneState(leaves["opt_state/count"], masks, {}, ()) if masks else None


def masks_of(opt_state: Any) -> dict[str, jax.Array]:
    """The masks within an optimizer's state; {} where nothing is pruned."""
    found = [
        leaf
        for leaf in jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, PruneState))
        if isinstance(leaf, PruneState)
    ]
    return found[0].masks if found else {}
