"""Initialization of kernels: by name, and from data (LSUV, whitening).

Kernels are [kh, kw, C / groups, D] for convolutions and [C, D] for dense layers, so fan-in is kh kw C / groups, the
number of inputs of one output. Fan-out is kh kw D, as PyTorch counts it: groups are not divided out.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models import plugins as own
from models.errors import UserError, choice_error

_scaled = nn.initializers.variance_scaling
# Standard deviation of a standard normal cut at -2 and 2.
_STD_CUT_AT_2 = 0.87962566103423978


def _truncated_normal(std: float) -> Callable:
    """Normal, cut at two standard deviations and widened so that `std` is the deviation of what is drawn."""
    return nn.initializers.truncated_normal(std / _STD_CUT_AT_2)


def _dirac(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Of a convolution [kh, kw, C, D]: feature d < C is channel d itself, what is left is uniform of variance
    1 / (3 fan-in), PyTorch's default; of a dense layer, all is.
    """
    kernel = _scaled(1 / 3, "fan_in", "uniform")(key, shape, dtype)
    if len(shape) != 4:
        return kernel
    same = min(shape[2:])
    identity = jnp.zeros((*shape[:3], same), dtype).at[shape[0] // 2, shape[1] // 2, :same].set(jnp.eye(same))
    return kernel.at[..., :same].set(identity)


INITS = {
    # He et al. 2015, arXiv 1502.01852, eq. 10 and 14: zero-mean Gaussian of variance 2 / fan; not truncated.
    "msra": _scaled(2.0, "fan_in", "normal"),
    "msra_fan_in": _scaled(2.0, "fan_in", "normal"),
    "msra_fan_out": _scaled(2.0, "fan_out", "normal"),
    # Glorot & Bengio 2010, eq. 16: variance 2 / (fan_in + fan_out).
    "xavier_uniform": _scaled(1.0, "fan_avg", "uniform"),
    "xavier_normal": _scaled(1.0, "fan_avg", "normal"),
    # LeCun et al. 1998, Efficient BackProp, eq. 16: variance 1 / fan_in.
    "lecun": _scaled(1.0, "fan_in", "normal"),
    # Saxe et al. 2014, arXiv 1312.6120: columns of the [kh kw C, D] matrix orthonormal (rows, where D is larger).
    "orthogonal": nn.initializers.orthogonal(),
    # Jordan 2024, arXiv 2404.00498, section 3.2, after Zagoruyko & Komodakis 2017: features that are there stay.
    "dirac": _dirac,
}
# With a standard deviation, as in "normal:0.01", and the one that is taken without.
_WITH_STD = {"normal": (nn.initializers.normal, 0.01), "truncated_normal": (_truncated_normal, 0.02)}


def init(spec: str | Callable) -> Callable[..., jax.Array]:
    """Resolves `spec` to an initializer (key, shape, dtype) -> array.

    Args:
      spec: a name in INITS, "normal:STD", "truncated_normal:STD" (STD is the deviation of the values drawn, which are
        cut at about 2.27 STD), FILE.py:NAME, or an initializer.

    Raises:
      UserError: neither a name nor an initializer, or STD is no positive number.
    """
    spec = own.load(spec)
    if callable(spec):
        return spec
    if spec in INITS:
        return INITS[spec]
    kind, colon, number = str(spec).partition(":")
    if kind not in _WITH_STD:
        raise choice_error("init", spec, (*INITS, "normal:STD", "truncated_normal:STD"))
    make, std = _WITH_STD[kind]
    if colon:
        try:
            std = float(number)
        except ValueError:
            std = 0.0
        if not 0 < std < float("inf"):
            raise UserError(f"init '{spec}': '{number}' is no positive standard deviation; write e.g. '{kind}:0.01'")
    return make(std)


def jit_once(function: Callable) -> Callable:
    """`jax.jit` for what runs once. On a CPU, LLVM's optimization of the random draws takes 5 times as long as the rest
    of the compilation, and much longer than it saves in one run.
    """
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=options)


def lsuv(
    model: nn.Module, variables: Any, images: jax.Array, rng: jax.Array, tolerance: float = 0.1, max_trials: int = 10
) -> dict[str, Any]:
    """Layer-sequential unit-variance initialization (Mishkin & Matas 2016, arXiv 1511.06422, algorithm 1).

    In the order of the computation, every layer with a kernel gets an orthonormal one, divided by the standard
    deviation of the layer's output on `images` until its variance is within `tolerance` of 1; layers after it see the
    result. Works for any model, one jitted pass; the model runs in training mode, and its other variables stay.

    Args:
      model: a module with `__call__(images, train)`.
      variables: as `models.initialize` gives them; kernels are replaced, nothing else.
      images: [N, H, W, C], a batch of training images.
      rng: key for the orthonormal matrices (and for dropout, if the model has it).
      tolerance, max_trials: of the paper.

    Returns:
      New variables.
    """
    orthonormal = nn.initializers.orthogonal()
    inside = False  # a layer that `rescale` itself calls is not to be rescaled again

    def rescale(call, args, kwargs, context):
        layer = context.module
        own = {} if inside or context.method_name != "__call__" else layer.variables.get("params", {})
        kernel = own.get("kernel")
        if not isinstance(kernel, jax.Array) or kernel.ndim < 2:
            return call(*args, **kwargs)
        free = layer.clone(parent=None, name=None)

        def output(kernel):
            nonlocal inside
            inside = True
            try:
                return free.apply({"params": {**own, "kernel": kernel}}, *args, **kwargs)
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

        if layer.has_variable("lsuv", "kernel"):  # a layer that is used a second time
            return output(layer.get_variable("lsuv", "kernel"))
        kernel = orthonormal(layer.make_rng("lsuv"), kernel.shape, kernel.dtype)
        _, kernel, _ = jax.lax.while_loop(unsettled, divide, (0, kernel, variance(kernel)))
        layer.put_variable("lsuv", "kernel", kernel)
        return output(kernel)

    @jit_once
    def kernels(variables, images, rng):
        keys = dict(zip(("lsuv", "dropout"), jax.random.split(rng), strict=True))
        with nn.intercept_methods(rescale):
            _, changed = model.apply(variables, images, train=True, rngs=keys, mutable=["batch_stats", "lsuv"])
        return changed["lsuv"]

    return {**variables, "params": _merge(variables["params"], kernels(variables, images, rng))}


def _merge(params: Any, changed: Any) -> Any:
    if not isinstance(changed, dict):
        return changed
    return {name: _merge(old, changed[name]) if name in changed else old for name, old in params.items()}


def whiten(model: nn.Module, variables: Any, images: jax.Array, epsilon: float = 5e-4) -> dict[str, Any]:
    """The first convolution's kernel whitens its patches (Jordan 2024, arXiv 2404.00498, section 3.1; Page 2019).

    Features are the eigenvectors of the patches' second moments, each divided by sqrt(eigenvalue + epsilon), the
    largest eigenvalue first, and then their negatives.

    Args:
      model: a module with `__call__(images)`.
      variables: as `models.initialize` gives them; that kernel is replaced.
      images: [N, H, W, C] of training.
      epsilon: added to eigenvalues.

    Returns:
      New variables.

    Raises:
      UserError: there is no convolution, or its features are not pairs, or more than patches have directions.
    """
    found = []

    def note(call, args, kwargs, context):
        layer = context.module
        if not found and context.method_name == "__call__" and layer.has_variable("params", "kernel"):
            kernel = layer.get_variable("params", "kernel")
            found.extend([(layer.path, kernel.shape)] * (kernel.ndim == 4))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(model.apply, variables, images[:1])
    if not found:
        raise UserError("data_init=whiten is for networks with a convolution")
    path, (height, width, channels, features) = found[0]
    size = height * width * channels
    if channels != images.shape[-1] or features % 2 or features > 2 * size:
        raise UserError(
            f"data_init=whiten: {'/'.join(path)} has {features} features of {channels} channels; want an "
            f"even number of at most {2 * height * width * images.shape[-1]}"
        )

    @jit_once
    def second_moments(images):  # of patches [kh kw C], of all images and places
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
