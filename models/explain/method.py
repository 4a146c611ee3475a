"""Common parts of the methods: choice of class and endpoint, checks of arguments, and compilation."""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import ScopeParamShapeError
from jax.core import Tracer

from models.errors import UserError, choice_error
from models.layers.endpoint import capture

TOP1 = -1  # stands for the most probable class


class Explanation(NamedTuple):
    """The result of a method.

    Attributes:
      values: float32 [N, h, w], a map of the size of an endpoint; or [N, H, W, C], a value per pixel and channel.
      logits: float32 [N, classes].
      target: int32 [N], the explained classes.
    """

    values: jax.Array
    logits: jax.Array
    target: jax.Array


class Outline(NamedTuple):
    """Shapes in a network for images of one shape.

    Attributes:
      classes: Number of classes.
      endpoints: {name: shape} of the endpoints, in the order of the computation.
      layers: {path: shape} of the outputs of layers with a kernel, without those that have the name of an endpoint.
    """

    classes: int
    endpoints: dict[str, tuple[int, ...]]
    layers: dict[str, tuple[int, ...]]

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of an endpoint or a layer."""
        return {**self.layers, **self.endpoints}[name]


def outline(model: nn.Module, variables: Any, images: jax.Array | jax.ShapeDtypeStruct) -> Outline:
    """Traces a network without computing, once for each shape of images.

    Raises:
      UserError: The images are not [N, H, W, C], the network's parameters are for images of another shape, or the
        network does not return logits [N, classes].
    """
    if images.ndim != 4:
        raise UserError(f"images must be a batch [N, H, W, C], not of shape {list(images.shape)}")
    key = (model, images.shape, images.dtype)
    if key not in _OUTLINES:
        endpoints: dict[str, tuple[int, ...]] = {}
        layers: dict[str, tuple[int, ...]] = {}

        def forward(variables, images):
            # JAX sorts returned dictionaries by name, so the shapes are stored here
            _, activations = capture(model, variables, images)
            endpoints.update((name, x.shape) for name, x in activations.items())
            logits, activations = capture(model, variables, images, layers=True)
            layers.update((name, x.shape) for name, x in activations.items())
            return logits

        try:
            logits = jax.eval_shape(forward, variables, images)
        except ScopeParamShapeError:
            raise UserError(
                f"images of shape {list(images.shape)} do not fit the parameters of this {type(model).__name__}"
            ) from None
        if getattr(logits, "ndim", 0) != 2:
            raise UserError(f"{type(model).__name__} does not return logits [N, classes] for images")
        _OUTLINES[key] = Outline(logits.shape[1], endpoints, {k: v for k, v in layers.items() if k not in endpoints})
    return _OUTLINES[key]


_OUTLINES: dict[Any, Outline] = {}


def grid(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Returns height, width, and the number of extra tokens of an activation, or None if it has no positions.

    Maps are [N, H, W, C]. Tokens are [N, T, C] of a square grid, after a class token if T is not a square.
    """
    if len(shape) == 4:
        return shape[1], shape[2], 0
    if len(shape) != 3:
        return None
    side = math.isqrt(shape[1])
    before = shape[1] - side**2
    return (side, side, before) if before in (0, 1) else None


def as_maps(x: jax.Array) -> jax.Array:
    """Converts an activation [N, H, W, C] or [N, T, C] to float32 [N, H, W, C] without the class token; see `grid`."""
    height, width, before = cast(tuple[int, int, int], grid(x.shape))  # callers choose endpoints with positions
    return (
        x.astype(jnp.float32)
        if x.ndim == 4
        else x[:, before:].reshape(x.shape[0], height, width, x.shape[2]).astype(jnp.float32)
    )


def map_endpoint(shapes: Outline, name: str | None = None) -> str:
    """Returns the name of an endpoint or layer with positions.

    With None, it is the last endpoint with more than one position whose positions reach the logits. The last tokens do
    not reach them if the head reads a class token.

    Raises:
      UserError: The name is unknown or has no positions; the error lists the endpoints that have.
    """
    maps = {endpoint: size for endpoint, shape in shapes.endpoints.items() if (size := grid(shape))}
    if name is not None:
        shape_of = {**shapes.layers, **shapes.endpoints}
        if name not in shape_of or not grid(shape_of[name]):
            raise choice_error("endpoint with positions" if name in shape_of else "endpoint", name, maps)
        return name
    names = [endpoint for endpoint, (height, width, _) in maps.items() if height * width > 1]
    if names and maps[names[-1]][2]:
        names.pop()
    if not names:
        raise UserError("for images of this size, no endpoint of this network has more than one position")
    return names[-1]


def check_range(name: str, numbers: Sequence[int] | np.ndarray, endpoint: str, limit: int) -> None:
    """Raises UserError unless there are rows, columns or channels (`name`), all of them from 0 to limit - 1."""
    if not len(numbers):
        raise UserError(f"no {name}s are given: {endpoint} has {name}s 0 to {limit - 1}")
    wrong = [number for number in numbers if number != int(number) or not 0 <= number < limit]
    if wrong:
        raise UserError(f"{name}={wrong[0]} is out of range: {endpoint} has {name}s 0 to {limit - 1}")


def logits_and_activation(
    model: nn.Module, variables: Any, images: jax.Array, name: str, add: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns logits and the activation of the endpoint or layer `name`, to which `add` is added, see `capture`."""
    layers = name not in outline(model, variables, images).endpoints
    logits, activations = capture(
        model, variables, images, names=[name], add=None if add is None else {name: add}, layers=layers
    )
    return logits, activations[name]


def checked_target(target: Any, shapes: Outline, count: int) -> jax.Array:
    """Converts one class for all images, a class per image, or None for `TOP1`, to int32 [count].

    Raises:
      UserError: A class is out of range, or their number is wrong. Traced values are not checked.
    """
    target = TOP1 if target is None else target
    if not isinstance(target, Tracer):
        classes = np.asarray(target)
        if not np.issubdtype(classes.dtype, np.integer) or classes.shape not in ((), (count,)):
            raise UserError(f"target={target} must be a class, or one for each of the {count} images")
        wrong = classes[(classes < TOP1) | (classes >= shapes.classes)]
        if wrong.size:
            raise UserError(
                f"target={wrong.flat[0]} is out of range: this network has classes 0 to {shapes.classes - 1}"
            )
    return jnp.broadcast_to(jnp.asarray(target, jnp.int32), (count,))


def resolved(target: jax.Array, logits: jax.Array) -> jax.Array:
    """Replaces `TOP1` in target [N] by the most probable class."""
    return jnp.where(target == TOP1, logits.argmax(-1).astype(jnp.int32), target)


def picked(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the logit of each image's class, [N]."""
    return jnp.take_along_axis(logits, target[:, None], 1)[:, 0]


def resized(maps: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes maps [N, h, w] bilinearly to [N, *size], as the papers do to overlay maps on images."""
    return jax.image.resize(maps, (maps.shape[0], *size), "linear")


def explains(method: Callable) -> Callable:
    """Decorates method(model, variables, images, target, *, ...) with argument checks and compilation.

    It is compiled once for each model, shape, and value of the keyword-only arguments. The result takes `target` like
    `checked_target`; the decorated function gets int32 [N], which may hold `TOP1`. Contexts that take effect while
    tracing (`lowering`, `skipping`) affect only the first call, as for any compiled function.
    """
    parameters = inspect.signature(method).parameters.values()
    options = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    compiled = jax.jit(method, static_argnames=("model", *options))

    @functools.wraps(method)
    def checked(model: nn.Module, variables: Any, images: Any, target: Any = None, **kwargs: Any) -> Any:
        images = jnp.asarray(images)
        shapes = outline(model, variables, images)
        kwargs = {name: tuple(value) if isinstance(value, list) else value for name, value in kwargs.items()}
        return compiled(model, variables, images, checked_target(target, shapes, len(images)), **kwargs)

    return checked
