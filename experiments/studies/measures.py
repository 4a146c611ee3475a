"""Measures that several studies take on trained networks: functions (run, state) -> JSON values.

A study imports the measures of its trials. `state` holds numpy arrays. The functions import JAX themselves, so that
importing a study does not import JAX.
"""

import base64
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:  # measures import training code only when they run
    from train.run import Run
    from train.state import TrainState


STEPS = (0.5, 1.0, 2.0, 4.0)  # step lengths along the gradient, in learning rates
DELETED = 2000  # test images on which networks without a block are evaluated


def gap(run: "Run", state: "TrainState") -> dict[str, float]:
    """Measures accuracy in training mode and in evaluation mode.

    Returns:
      Accuracy on training images in training mode, with batches as large as in training ("batch"), and in evaluation
      mode ("train"); on the test set in evaluation mode ("test"); and, with batch norm, on the test set with
      recomputed statistics ("recalibrated").
    """
    import jax

    from train.hooks.recalibrate import Recalibrate

    part = run.config["batch_size"] // len(run.parallel.devices) // run.config["accumulate"]
    batch = run.images.examples(2048, multiple=part)
    parts = jax.tree.map(lambda x: x.reshape(-1, part, *x.shape[1:]), batch)

    @jax.jit
    def accuracies(state, parts):
        def both(batch):
            _, (training, *_) = run.task.loss(
                state.params, state.model_state, state.task_state, batch, jax.random.key(0), state.step
            )
            evaluation = run.task.evaluate(state.variables(), state.task_state, batch)
            return training["accuracy"][0], evaluation["accuracy"][0]

        return jax.tree.map(lambda x: x.sum() / batch["label"].size, jax.lax.map(both, parts))

    in_training, in_evaluation = accuracies(state, parts)
    accuracy = {"batch": float(in_training), "train": float(in_evaluation)}
    state = run.parallel.place(state)
    accuracy["test"] = run.evaluate(state)["accuracy"]
    if "batch_stats" in run.state.model_state:
        batches = max(1, min(200, len(run.images.train) // run.config["batch_size"]))
        accuracy["recalibrated"] = run.evaluate(Recalibrate(batches).at_end(run, state))["accuracy"]
    return accuracy


def along_gradient(
    loss: Callable, params: Any, arguments: Sequence[Any], steps: Sequence[float]
) -> dict[str, list[float]]:
    """Measures the loss and its gradient along the gradient of loss(params, *arguments), as in Santurkar 2018, fig. 4.

    Returns:
      {"loss": before any step, and after each; "change": norm of the change of the gradient after each step;
      "smoothness": that norm divided by the length of the step}.
    """
    import jax
    import optax

    @jax.jit
    def at(params, gradient, step, *arguments):
        there, new = jax.value_and_grad(loss)(jax.tree.map(lambda x, g: x - step * g, params, gradient), *arguments)
        change = optax.tree.norm(optax.tree.sub(new, gradient))
        return there, change, change / (step * optax.tree.norm(gradient))

    before, gradient = jax.jit(jax.value_and_grad(loss))(params, *arguments)
    values = [tuple(map(float, at(params, gradient, step, *arguments))) for step in steps]
    return {
        "loss": [float(before), *(there for there, _, _ in values)],
        "change": [change for _, change, _ in values],
        "smoothness": [smoothness for _, _, smoothness in values],
    }


def smoothness(run: "Run", state: "TrainState") -> dict[str, list[float]]:
    """Measures the training loss on one batch by `along_gradient`, with steps of STEPS learning rates."""
    import jax

    def loss(params, state, batch):
        return run.task.loss(params, state.model_state, state.task_state, batch, jax.random.key(0), state.step)[0]

    rate = run.config["optimizer"]["learning_rate"]
    return along_gradient(loss, state.params, (state, run.images.examples(128)), [rate * step for step in STEPS])


def layers(run: "Run", state: "TrainState", images: Any) -> list[str]:
    """Returns the paths of the layers with a kernel, in the order in which they are computed, without shortcuts."""
    from models.layers.endpoint import order

    kernels = {"/".join(path) for path in _kernels(state.params)}
    return [
        name
        for name in order(run.task.model, state.variables(), images)
        if name in kernels and "downsample" not in name
    ]


def _kernels(params: Any) -> dict[tuple[str, ...], Any]:
    """Returns the kernels by the path of their layer."""
    import flax.traverse_util

    return {path[:-1]: x for path, x in flax.traverse_util.flatten_dict(params).items() if path[-1] == "kernel"}


def gradients(run: "Run", state: "TrainState") -> dict[str, list]:
    """Measures the norm of the training loss's gradient with respect to each layer's kernel, on 128 images."""
    import jax
    import jax.numpy as jnp

    batch = run.images.examples(128)

    @jax.jit
    def norms(state, batch):
        def loss(params):
            return run.task.loss(params, state.model_state, state.task_state, batch, jax.random.key(0), state.step)[0]

        return {
            "/".join(path): jnp.linalg.norm(g.ravel()) for path, g in _kernels(jax.grad(loss)(state.params)).items()
        }

    by_layer, names = norms(state, batch), layers(run, state, batch["image"])
    return {"layers": names, "norms": [float(by_layer[name]) for name in names]}


def deletions(run: "Run", state: "TrainState") -> dict[str, Any]:
    """Measures test accuracy after each block is replaced by its shortcut, as in Veit 2016, section 4.1.

    The accuracies are those on the first DELETED test images, in whole batches.

    A plain network has no shortcuts, so there the identity replaces those blocks whose input and output have the same
    shape.

    Returns:
      {"blocks": names in order, "halving": whether each halves the resolution, "accuracy": without each, "whole":
      accuracy of the whole network, "chance": accuracy of guessing}.
    """
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from models.layers.regularize import StochasticDepth
    from models.resnet import Block

    model = run.task.model
    plain = model.shortcut == "none"
    halves = {f"stage{stage}/block0" for stage in range(2, len(model.stage_sizes) + 1)}
    blocks = [block for block in model.blocks if not (plain and block in halves)]

    @jax.jit
    def correct(variables, deleted, batch):
        def delete(call, args, kwargs, context):
            y, module = call(*args, **kwargs), context.module
            if context.method_name != "__call__" or not isinstance(module, Block if plain else StochasticDepth):
                return y
            path = "/".join(module.path if plain else module.path[:-1])  # StochasticDepth ends a residual branch
            if path not in blocks:
                return y
            return jnp.where(deleted == blocks.index(path), args[0] if plain else 0, y)

        with nn.intercept_methods(delete):
            metrics = run.task.evaluate(variables, state.task_state, run.feed.prepare_evaluation(batch))
        return jnp.stack(metrics["accuracy"])

    variables = jax.device_put(state.variables())
    sums = np.zeros((len(blocks) + 1, 2))
    for batch in run.feed.test_batches():
        if sums[0, 1] >= DELETED:
            break
        for deleted in range(-1, len(blocks)):  # -1: no block
            sums[deleted + 1] += np.asarray(correct(variables, deleted, batch))
    whole, *accuracy = (sums[:, 0] / sums[:, 1]).tolist()
    return {
        "blocks": blocks,
        "halving": [block in halves for block in blocks],
        "accuracy": accuracy,
        "whole": whole,
        "chance": 1 / len(run.feed.classes),
    }


def png(values: Any) -> str:
    """Encodes an image as a PNG in base64: uint8 [H, W, C], or numbers in [0, 1] of shape [H, W] or [H, W, 3]."""
    values, file = np.asarray(values), io.BytesIO()
    pixels = values if values.dtype == np.uint8 else np.round(255 * values).astype(np.uint8)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 and pixels.ndim == 3 else pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def from_png(text: str) -> np.ndarray:
    """Decodes an image that `png` encoded: uint8 [H, W] or [H, W, 3]."""
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        return np.array(image)
