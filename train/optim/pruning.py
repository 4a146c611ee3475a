"""Pruning during training: a wrapper of the optimizer whose state holds the masks.

config.optimizer.prune = "magnitude(0.9, start='20%', end='60%', every='5%')"

The name is that of a score (models/compress/prune.py): magnitude, movement, snip or random. Its arguments:

    sparsity         share of the weights to prune
    start            duration before the first pruning event
    end              duration before the last one; "" prunes everything at `start`
    every            duration between events, in which the remaining weights are retrained
    schedule         growth of the sparsity: "cubic", fast at first, or "linear"
    by               "global": scores of all layers are compared; "layer": each layer reaches the sparsity; "std":
                     global, in proportion to each layer's standard deviation; "runs/x/sensitivity.json": a file of the
                     hook `sensitivity`, by which pruning costs each layer the same accuracy
    structure        "weights", "filters" (whole outputs), "blocks" (16 outputs of one input and tap, which inference
                     skips on a CPU) or "2:4" (two of four neighbors; takes no sparsity)
    what             regular expression of the parameters that may be pruned. By default, kernels that do not fit the
                     structure stay dense. With "blocks", these have fewer than 16 inputs, as the first, or a number of
                     outputs that is not divisible by 16. With "2:4", their number of inputs is not divisible by 4

With a filter, its bias and the scale and bias of its normalization are pruned, so that at any step the network equals
the one without the filter (models/compress/shrink.py). Filters that cannot be removed exactly are an error.

Pruned weights stay 0: their gradients are 0, and the optimizer's own state of them decays. Binary layers, where 0
counts as 1, are an error. Masks survive restarts, because they are part of the state that a checkpoint holds.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from models.compress import prune, shrink
from models.errors import UserError, choice_error
from train.optim import sensitivity
from train.optim.parameters import KERNELS, named, parameter_names, pattern, put
from train.setup import spec

LEAST_INPUTS = 16  # of a kernel that structure "blocks" prunes by default: smaller ones take little time


class PruneState(NamedTuple):
    """The state of the wrapped optimizer.

    Attributes:
      count: int32 [], number of updates so far.
      masks: bool arrays by name of the parameter; False where a weight is pruned.
      moved: float32 arrays by name, the scores of movement so far; {} for other scores.
      inner: the state of the inner optimizer.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  # checkpoints hold "opt_state/count"
    masks: dict[str, jax.Array]
    moved: dict[str, jax.Array]
    inner: Any


class Plan(NamedTuple):
    """The value of optimizer.prune, in steps: weights are pruned at start, start + every, …, end."""

    score: str
    sparsity: float
    start: int
    end: int
    every: int
    by: str
    structure: str
    what: re.Pattern
    schedule: str
    sensitivity: Mapping[str, Any] | None  # content of the file `by`: "layers", "whole"

    @property
    def file(self) -> str:
        """The file of the hook `sensitivity` that it uses; "" if it uses none."""
        return self.by if self.sensitivity else ""

    def weights(self, params: Any) -> dict[str, jax.Array]:
        """Returns the parameters that are pruned, by name.

        Raises:
          UserError: `what` matches no parameter, or one that does not fit the structure.
        """
        weights = named(params, self.what)
        if not weights:
            raise UserError(
                f"optimizer.prune: what='{self.what.pattern}' matches no parameter; one is named "
                f"{parameter_names(params)[0]}"
            )
        by_default = self.what.pattern == KERNELS
        reasons = {name: prune.misfit(name, leaf.shape, self.structure) for name, leaf in named(params).items()}
        small = {
            name
            for name, leaf in weights.items()
            if self.structure == "blocks" and (1, 1, *leaf.shape)[-2] < LEAST_INPUTS
        }
        fit = {name: leaf for name, leaf in weights.items() if not reasons[name] and not (by_default and name in small)}
        if len(fit) == len(weights) or (by_default and fit):
            return fit
        reason = next((reasons[name] for name in weights if reasons[name]), "its layers have too few inputs")
        kernels = [name for name in named(params, pattern(KERNELS)) if not reasons[name]]
        others = [name for name in weights if reasons[name]]
        hint = f"; what='{shrink.expression(kernels, others)}' can be pruned" if kernels else ""
        raise UserError(f"optimizer.prune: structure {self.structure}: {reason}{hint}; dense: {', '.join(others)}")

    def due(self, step: jax.Array) -> jax.Array:
        """Returns whether weights are pruned at this step."""
        return (step >= self.start) & (step <= self.end) & ((step - self.start) % self.every == 0)

    def share(self, step: jax.Array | int, sparsity: float) -> jax.Array:
        """Returns the sparsity to reach at a step, between 0 and `sparsity`; the first event already prunes weights."""
        events = (self.end - self.start) // self.every + 1
        progress = cast(jax.Array, ((step - self.start) // self.every + 1) / events)  # or a float, which works as well
        return prune.SCHEDULES[self.schedule](progress, 0.0, sparsity)

    def keep(self, scores: prune.Arrays, step: jax.Array | int, **options: Any) -> dict[str, jax.Array]:
        """Returns the masks of a step.

        Args:
          scores: a score per weight, by name.
          step: the step.
          **options: further arguments of `models.compress.prune.keep`.
        """
        if self.sensitivity is None:
            return prune.keep(scores, self.share(step, self.sparsity), self.by, self.structure, **options)
        shares = {name: self.share(step, share) for name, share in self.allocated(scores, self.sensitivity).items()}
        return prune.keep(scores, shares, "layer", self.structure, **options)

    def allocated(self, arrays: prune.Arrays, sensitivity: Mapping[str, Any]) -> dict[str, float]:
        """Returns the final sparsity of each layer, in weights or filters, by the content of a sensitivity file."""
        sizes = {name: array.shape[-1] if self.structure == "filters" else array.size for name, array in arrays.items()}
        try:
            return prune.allocate(sensitivity["layers"], sensitivity["whole"], sizes, self.sparsity)
        except UserError as error:
            raise UserError(f"optimizer.prune: by='{self.by}': {error}") from None


def plan(text: str, to_steps: Callable[[str], int], total: int) -> Plan | None:
    """Reads the config's value of `optimizer.prune`; returns None for "".

    Raises:
      UserError: it cannot be read, or does not fit the training.
    """
    pruners = {name: _pruner(name, to_steps, total) for name in prune.SCORES}
    return spec.resolve_one("optimizer.prune", text, pruners) if text else None


def _pruner(score: str, to_steps: Callable[[str], int], total: int) -> Callable[..., Plan]:
    """Returns the function that makes a plan of the arguments of a score."""

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
            raise ValueError(f"it starts at step {first} and ends at step {last}; both must be within {total} steps")
        if schedule not in prune.SCHEDULES:
            raise choice_error("schedule", schedule, prune.SCHEDULES)
        if by.endswith(".json") and structure == "2:4":
            raise ValueError(f"by='{by}': structure 2:4 takes no sparsity")
        step = max(1, to_steps(every))
        return Plan(
            score,
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


def without_file(text: str) -> str:
    """Replaces the sensitivity file in a value of `optimizer.prune`, because a finished run's file may be gone."""
    return re.sub(r"""(['"])[^'"]*\.json\1""", "'layer'", text)


def vectors(model: Any, variables: Any, inputs: Any, kernels: Sequence[str]) -> dict[str, list[str]]:
    """Returns, for each kernel, the names of the parameters with one entry per filter that are pruned with it.

    Args:
      model: from `models.create`.
      variables: variables of the model.
      inputs: as for `models.initialize`.
      kernels: names of parameters.

    Raises:
      UserError: filters of some kernels cannot be removed exactly. The message suggests a `what` that can be pruned.
    """
    removable, refused = shrink.removable(model, variables, inputs, kernels)
    if refused:
        others = [name for name in named(variables["params"], pattern(KERNELS)) if name not in kernels]
        more_removable, more_refused = shrink.removable(model, variables, inputs, others)
        good, bad = {**removable, **more_removable}, {**refused, **more_refused}
        more = f" (nor can those of {len(refused) - 1} more layers)" if len(refused) > 1 else ""
        hint = f"; what='{shrink.expression(good, bad)}' can be pruned" if good else "; nor can those of any layer"
        raise UserError(f"optimizer.prune: {next(iter(refused.values()))}{more}{hint}")
    return {
        kernel: [coupling.array.removeprefix("params/") for coupling in couplings[1:] if coupling.own]
        for kernel, couplings in removable.items()
    }


def wrap(
    inner: optax.GradientTransformation, plan: Plan, vectors: Mapping[str, Sequence[str]] = {}
) -> optax.GradientTransformation:
    """Wraps an optimizer so that it prunes.

    Args:
      inner: the optimizer.
      plan: which weights are pruned when.
      vectors: for structure "filters", the result of the function `vectors`.

    Raises:
      UserError: by its `init`, if the plan matches no parameter, or its structure does not fit their shapes.
    """

    def with_vectors(masks: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the masks of kernels and of the vectors that are pruned with their filters."""
        extended = dict(masks)
        for kernel, owned in vectors.items():
            extended |= dict.fromkeys(owned, masks[kernel].reshape(-1, masks[kernel].shape[-1])[0])
        return extended

    def init(params):
        weights = plan.weights(params)
        jax.eval_shape(lambda: plan.keep(weights, plan.end, weights=weights))  # raises if shapes do not fit
        moved = {name: jnp.zeros_like(weight) for name, weight in weights.items()} if plan.score == "movement" else {}
        masks = {name: jnp.ones(weight.shape, bool) for name, weight in weights.items()}
        return PruneState(jnp.zeros((), jnp.int32), masks, moved, inner.init(params))

    def update(updates, state, params=None, **extra):
        weights = plan.weights(params)
        slopes = {name: slope for name, slope in named(updates).items() if name in weights}
        moved = {name: total - weights[name] * slopes[name] for name, total in state.moved.items()}

        def pruned_masks():
            scores = prune.scores(plan.score, weights, slopes, moved)
            return plan.keep(scores, state.count, before=state.masks, weights=weights)

        masks = jax.lax.cond(plan.due(state.count), pruned_masks, lambda: state.masks)
        extended, slopes, before = with_vectors(masks), named(updates), named(params)
        gradients = put(updates, {name: jnp.where(mask, slopes[name], 0) for name, mask in extended.items()})
        moves, after = optax.with_extra_args_support(inner).update(gradients, state.inner, params, **extra)
        steps = named(moves)
        moves = put(moves, {name: jnp.where(mask, steps[name], -before[name]) for name, mask in extended.items()})
        return moves, PruneState(state.count + 1, masks, moved, after)

    return optax.GradientTransformationExtraArgs(init, update)


def saved_masks(leaves: Mapping[str, Any]) -> PruneState | None:
    """Returns the masks among the leaves of a checkpoint, in a form for `masks_of`; None if nothing is pruned."""
    prefix = "opt_state/masks/"
    masks = {name.removeprefix(prefix): leaf for name, leaf in leaves.items() if name.startswith(prefix)}
    return PruneState(leaves["opt_state/count"], masks, {}, ()) if masks else None


def masks_of(opt_state: Any) -> dict[str, jax.Array]:
    """Returns the masks in an optimizer's state; {} if nothing is pruned."""
    states = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, PruneState))
    return next((state.masks for state in states if isinstance(state, PruneState)), {})
