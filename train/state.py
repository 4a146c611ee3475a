"""The training state: everything that training changes, in one tree."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


class TrainState(flax.struct.PyTreeNode):
    """The state that each training step updates and that a checkpoint holds.

    Attributes:
      step: int32 [], number of optimizer steps done.
      params: parameters that the optimizer trains, float32.
      model_state: other variables of the model, e.g. {"batch_stats": …}.
      task_state: what the task trains or counts besides the model; {} for most tasks.
      opt_state: state of the optimizer, which includes the masks of pruning.
      ema: {"params", "model_state"} averaged over steps, or {} without averaging.
      rng: uint32 [2], the base key; step t uses fold_in(rng, t), so that no random state is carried between steps.
    """

    step: jax.Array
    params: Any
    model_state: Any
    task_state: Any
    opt_state: Any
    ema: Any
    rng: jax.Array

    def variables(self) -> dict[str, Any]:
        """Returns the model's variables as trained."""
        return {"params": self.params, **self.model_state}

    def evaluation_variables(self) -> dict[str, Any]:
        """Returns the variables to evaluate and export: the averaged ones if there are any, else those trained."""
        return {"params": self.ema["params"], **self.ema["model_state"]} if self.ema else self.variables()


def initial_state(
    variables: Any, task_state: Any, optimizer: optax.GradientTransformation, seed: int, with_ema: bool
) -> TrainState:
    """Creates the state before the first step, on the devices of the variables; may return before it is computed."""
    model_state = dict(variables)
    params = model_state.pop("params")
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        task_state=task_state,
        opt_state=jax.jit(optimizer.init)(params),  # one program instead of one per shape
        ema={"params": params, "model_state": model_state} if with_ema else {},
        rng=jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 1)),  # key(seed) itself drew the parameters
    )
