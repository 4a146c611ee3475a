"""Everything that training changes, in one tree."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


class TrainState(flax.struct.PyTreeNode):
    """What one training step maps to the next, and what a checkpoint holds.

    Attributes:
      step: int32 [], optimizer steps done.
      params: trained by the optimizer, float32.
      model_state: other variables of the model, e.g. {"batch_stats": …}.
      task_state: what a task trains or counts besides the model; {} for most.
      opt_state: of the optimizer; pruning masks and the like ride here.
      ema: {"params", "model_state"} averaged over steps, or {} where it is off.
      rng: uint32 [2], the base key; step t uses fold_in(rng, t), so nothing about randomness has to be carried.
    """

    step: jax.Array
    params: Any
    model_state: Any
    task_state: Any
    opt_state: Any
    ema: Any
    rng: jax.Array

    def variables(self) -> dict[str, Any]:
        """The model's variables as trained."""
        return {"params": self.params, **self.model_state}

    def evaluation_variables(self) -> dict[str, Any]:
        """The model's variables to evaluate and to export: the averaged ones where averaging is on."""
        return {"params": self.ema["params"], **self.ema["model_state"]} if self.ema else self.variables()


def create(
    variables: Any, task_state: Any, optimizer: optax.GradientTransformation, seed: int, with_ema: bool
) -> TrainState:
    """The state before the first step, where the variables are; dispatched, perhaps not computed yet."""
    model_state = dict(variables)
    params = model_state.pop("params")
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        task_state=task_state,
        opt_state=optimizer.init(params),
        ema={"params": params, "model_state": model_state} if with_ema else {},
        rng=jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 1)),  # the key itself drew the parameters
    )
