"""Measures of the study of initialization on a network at step 0: functions (run, state) -> JSON values."""

import functools
from typing import TYPE_CHECKING, Any

from experiments.studies.measures import layers

if TYPE_CHECKING:  # measures import training code only when they run
    from train.run import Run
    from train.state import TrainState


def signal(run: "Run", state: "TrainState") -> dict[str, Any]:
    """Measures the signal in each layer with a kernel, in order, on one batch of training images.

    Returns:
      "layers" (without the classifier); "forward", the standard deviation of the output of each; and "backward", that
      of the loss's gradient with respect to the output of each.
    """
    import jax
    import jax.numpy as jnp
    import optax

    from models.layers.endpoint import capture

    batch = run.images.examples(128)
    order = [name for name in layers(run, state, batch["image"]) if name != "head"]

    @jax.jit
    def measured(variables, images, labels):
        read = functools.partial(
            capture,
            run.task.model,
            variables,
            images,
            train=True,
            layers=True,
            rngs={"dropout": jax.random.key(0)},
            mutable=list(state.model_state),
        )
        _, shapes = jax.eval_shape(read)

        def loss(add):
            (logits, _), outputs = read(add=add)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), {name: jnp.std(outputs[name]) for name in order}

        gradients, forward = jax.grad(loss, has_aux=True)(
            {name: jnp.zeros(shapes[name].shape, shapes[name].dtype) for name in order}
        )
        return forward, {name: jnp.std(g) for name, g in gradients.items()}

    forward, backward = measured(state.variables(), batch["image"], batch["label"])
    return {
        "layers": order,
        "forward": [float(forward[name]) for name in order],
        "backward": [float(backward[name]) for name in order],
    }
