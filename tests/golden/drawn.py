"""Weights and images drawn by name: the same in the script that records a reference and in the test that reads it.

Arrays are in our layouts, under our paths; only outputs have to be stored.
"""

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np


def images(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns standard normal float32 images of `shape`, seeded by `name`."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)


def weight(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a float32 array for `path` ("stage1/block0/conv1/kernel"): never zero or one; variances are positive."""
    drawn = images(path, shape)
    kind = path.rsplit("/", 1)[-1]
    if kind == "kernel":
        return drawn * np.float32(np.sqrt(2 / np.prod(shape[:-1])))
    if kind in ("scale", "var"):
        return np.float32(0.5) + np.float32(0.5) * np.square(drawn)
    return np.float32(0.2) * drawn  # biases, means, positions, ...


def torch_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns an array for a name of PyTorch ("layer1.0.conv1.weight") and its shape there, all with some effect.

    Activations keep their size in deep networks, so that differences of rounding do not grow.
    """
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    drawn = images(name, shape)
    if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
        return np.float32(1) + np.float32(0.1) * np.square(drawn)
    if name.endswith("weight"):
        return drawn * np.float32(np.sqrt(1 / np.prod(shape[1:])))
    return np.float32(0.1) * drawn


def abstract(model: Any) -> Any:
    """Returns the shapes of a model's variables, for its own example."""
    import jax

    from models.kernels.tracing import lowering

    with lowering("plain"):
        return jax.eval_shape(model.init, jax.random.key(0), *model.example())


def variables(model: Any) -> Any:
    """Returns a model's variables, each array drawn by `weight`."""
    return filled(abstract(model), weight)


def zeros(model: Any) -> Any:
    """Returns a model's variables as zeros that take no memory."""
    return filled(abstract(model), lambda path, shape: np.broadcast_to(np.float32(0), shape))


def filled(shapes: Any, array: Callable[[str, tuple[int, ...]], np.ndarray]) -> Any:
    """Returns variables of these shapes, each from `array(path, shape)`."""
    import jax

    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: array("/".join(key.key for key in path[1:]), leaf.shape), dict(shapes)
    )
