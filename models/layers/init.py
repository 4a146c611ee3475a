"""Initialization of kernels, by name and from data (LSUV, whitening).

Kernels are [kh, kw, C / groups, D] for convolutions and [C, D] for dense layers, so the fan-in is kh kw C / groups, the
number of inputs of one output. The fan-out is kh kw D, as in PyTorch, which does not divide it by the groups.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models import plugins
from models.errors import UserError, choice_error
from models.kernels.tracing import platform

_scaled = nn.initializers.variance_scaling
# Standard deviation of a standard normal distribution truncated at -2 and 2.
_STD_CUT_AT_2 = 0.87962566103423978


def _truncated_normal(std: float) -> Callable:
    """Returns an initializer from a truncated normal distribution, whose values have the standard deviation `std`."""
    return nn.initializers.truncated_normal(std / _STD_CUT_AT_2)


def _dirac(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Initializes a convolution [kh, kw, C, D] so that output d < C is channel d of the input.

    Other outputs, and all of a dense layer, are drawn from PyTorch's default: uniform, of variance 1 / (3 fan-in).
    """
    kernel = _scaled(1 / 3, "fan_in", "uniform")(key, shape, dtype)
    if len(shape) != 4:
        return kernel
    same = min(shape[2:])
    identity = jnp.zeros((*shape[:3], same), dtype).at[shape[0] // 2, shape[1] // 2, :same].set(jnp.eye(same))
    return kernel.at[..., :same].set(identity)


INITS = {
    # He et al. 2015, arXiv 1502.01852, eq. 10 and 14: zero-mean Gaussian of variance 2 / fan, not truncated.
    "msra": _scaled(2.0, "fan_in", "normal"),
    "msra_fan_in": _scaled(2.0, "fan_in", "normal"),
    "msra_fan_out": _scaled(2.0, "fan_out", "normal"),
    # Glorot & Bengio 2010, eq. 16: variance 2 / (fan_in + fan_out).
    "xavier_uniform": _scaled(1.0, "fan_avg", "uniform"),
    "xavier_normal": _scaled(1.0, "fan_avg", "normal"),
    # LeCun et al. 1998, Efficient BackProp, eq. 16: variance 1 / fan_in.
    "lecun": _scaled(1.0, "fan_in", "normal"),
    # Saxe et al. 2014, arXiv 1312.6120: columns of the [kh kw C, D] matrix orthonormal (rows, if D is larger).
    "orthogonal": nn.initializers.orthogonal(),
    # Jordan 2024, arXiv 2404.00498, section 3.2, after Zagoruyko & Komodakis 2017: input channels pass through.
    "dirac": _dirac,
}
# Initializers with a standard deviation, as in "normal:0.01", and its default.
_WITH_STD = {"normal": (nn.initializers.normal, 0.01), "truncated_normal": (_truncated_normal, 0.02)}


def init(spec: str | Callable) -> Callable[..., jax.Array]:
    """Resolves `spec` to an initializer (key, shape, dtype) -> array.

    Args:
      spec: A name in INITS, "normal:STD", "truncated_normal:STD" (STD is the deviation of the drawn values, which are
        cut at about 2.27 STD), FILE.py:NAME, or an initializer.

    Raises:
      UserError: `spec` is neither a name nor an initializer, or STD is not a positive number.
    """
    spec = plugins.load(spec)
    if callable(spec):
        return spec
    if spec in INITS:
        return INITS[spec]
    kind, colon, number = str(spec).partition(":")
    if kind not in _WITH_STD:
        raise choice_error("init", spec, (*INITS, "normal:STD", "truncated_normal:STD"), own=True)
    make, std = _WITH_STD[kind]
    if colon:
        try:
            std = float(number)
        except ValueError:
            std = 0.0
        if not 0 < std < float("inf"):
            raise UserError(f"init '{spec}': '{number}' is not a positive standard deviation; write e.g. '{kind}:0.01'")
    return make(std)


def jit_once(function: Callable) -> Callable:
    """Returns `jax.jit(function)` for a function that runs once.

    On a CPU, LLVM's optimization of random draws takes 5 times as long as the rest of the compilation, and much longer
    than it saves in one run.
    """
    options = {"xla_backend_optimization_level": 0} if platform() == "cpu" else None
    return jax.jit(function, compiler_options=options)


def lsuv(
    model: nn.Module, variables: Any, images: jax.Array, rng: jax.Array, tolerance: float = 0.1, max_trials: int = 10
) -> dict[str, Any]:
    """Layer-sequential unit-variance initialization (Mishkin & Matas 2016, arXiv 1511.06422, algorithm 1).

    In the order of the computation, every layer with a kernel gets an orthonormal kernel. It is divided by the standard
    deviation of the layer's output on `images` until the variance is within `tolerance` of 1; later layers see the
    result. It works for any model, in one jitted pass. The model runs in training mode, and other variables stay.

    Args:
      model: A module with `__call__(images, train)`.
      variables: Variables from `models.initialize`, of which only kernels are replaced.
      images: [N, H, W, C], a batch of training images.
      rng: Key for the orthonormal matrices (and for dropout, if the model has it).
      tolerance: The paper's Tol_var.
      max_trials: The paper's T_max.

    Returns:
      New variables.
    """
    orthonormal = nn.initializers.orthogonal()
    inside = False  # whether `rescale` itself calls the layer, which it then must not rescale again

    def rescale(call, args, kwargs, context):
        layer = context.module
        params = {} if inside or context.method_name != "__call__" else layer.variables.get("params", {})
        kernel = params.get("kernel")
        if not isinstance(kernel, jax.Array) or kernel.ndim < 2:
            return call(*args, **kwargs)
        free = layer.clone(parent=None, name=None)

        def output(kernel):
            nonlocal inside
            inside = True
            try:
                return free.apply({"params": {**params, "kernel": kernel}}, *args, **kwargs)
            finally:
                inside = False

        def variance(kernel):
            return jnp.var(output(kernel).astype(jnp.float32))

        def unsettled(state):
            trial, _, var = state
            return (trial < max_trials) & (jnp.abs(var - 1) > tolerance) & (var > 0)

        def divide(state):
            trial, kernel, var = state
            kernel = kernel / jnp.sqrt(var).astype(kernel.dtype)
            return trial + 1, kernel, variance(kernel)

        if layer.has_variable("lsuv", "kernel"):  # the layer is used a second time
            return output(layer.get_variable("lsuv", "kernel"))
        kernel = orthonormal(layer.make_rng("lsuv"), kernel.shape, kernel.dtype)
        _, kernel, _ = jax.lax.while_loop(unsettled, divide, (0, kernel, variance(kernel)))
        layer.put_variable("lsuv", "kernel", kernel)
        return output(kernel)

    @jit_once
    def kernels(variables, images, rng):
        keys: dict[str, jax.Array] = dict(zip(("lsuv", "dropout"), jax.random.split(rng), strict=True))
        with nn.intercept_methods(rescale):
            _, changed = model.apply(variables, images, train=True, rngs=keys, mutable=["batch_stats", "lsuv"])
        return changed["lsuv"]

    return {**variables, "params": _merge(variables["params"], kernels(variables, images, rng))}


def _merge(params: Any, changed: Any) -> Any:
    if not isinstance(changed, dict):
        return changed
    return {name: _merge(old, changed[name]) if name in changed else old for name, old in params.items()}


def whiten(model: nn.Module, variables: Any, images: jax.Array, epsilon: float = 5e-4) -> dict[str, Any]:
    """Makes the kernel of the first convolution whiten patches (Jordan 2024, arXiv 2404.00498, section 3.1; Page 2019).

    Its features are the eigenvectors of the patches' second moments, each divided by sqrt(eigenvalue + epsilon), sorted
    by decreasing eigenvalue, and then their negatives.

    Args:
      model: A module with `__call__(images)`.
      variables: Variables from `models.initialize`, of which this kernel is replaced.
      images: Training images [N, H, W, C].
      epsilon: Added to eigenvalues.

    Returns:
      New variables.

    Raises:
      UserError: There is no convolution, or its number of features is odd or exceeds twice the size of a patch.
    """
    path, (height, width, channels, features) = _first_convolution(model, variables, images)
    size = height * width * channels
    if channels != images.shape[-1] or features % 2 or features > 2 * size:
        raise UserError(
            f"data_init=whiten: {'/'.join(path)} has {features} output features and sees {channels} of "
            f"{images.shape[-1]} channels; it must see all, and have an even number of at most "
            f"{2 * height * width * images.shape[-1]}"
        )

    @jit_once
    def second_moments(images):  # of patches [kh kw C], over all images and positions
        rows, columns = images.shape[1] - height + 1, images.shape[2] - width + 1
        patches = jnp.concatenate(
            [images[:, i : i + rows, j : j + columns] for i in range(height) for j in range(width)], -1
        ).reshape(-1, size)
        return jnp.matmul(patches.T, patches, precision="highest") / len(patches)

    values, vectors = np.linalg.eigh(np.asarray(second_moments(images), np.float64))
    whitening = (vectors / np.sqrt(np.maximum(values, 0) + epsilon))[:, ::-1][:, : features // 2]  # [kh kw C, D / 2]
    kernel = jnp.asarray(
        np.concatenate([whitening, -whitening], 1).reshape(height, width, channels, features), jnp.float32
    )
    changed: Any = {"kernel": kernel}
    for name in reversed(path):
        changed = {name: changed}
    return {**variables, "params": _merge(variables["params"], changed)}


def _first_convolution(model: nn.Module, variables: Any, images: jax.Array) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Returns the path and the kernel shape of the first convolution; raises UserError if there is none."""
    convolutions = []

    def record(call, args, kwargs, context):
        layer = context.module
        if not convolutions and context.method_name == "__call__" and layer.has_variable("params", "kernel"):
            kernel = layer.get_variable("params", "kernel")
            convolutions.extend([(layer.path, kernel.shape)] * (kernel.ndim == 4))
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(model.apply, variables, images[:1])
    if not convolutions:
        raise UserError("data_init=whiten needs a network with a convolution")
    return convolutions[0]
