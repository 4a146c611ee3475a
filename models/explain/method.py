"""What the methods share: which class is explained, at which endpoint, and how they are checked and compiled."""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models.errors import UserError, choice_error
from models.layers.endpoint import capture

TOP1 = -1  # as a class: that which the network finds the most probable


class Explanation(NamedTuple):
    """What a method finds.

    Attributes:
      values: float32 [N, h, w], a map of the size of an endpoint, or [N, H, W, C], a number for each number of the
        images.
      logits: float32 [N, classes] of the images.
      target: int32 [N], the class that is explained.
    """

    values: jax.Array
    logits: jax.Array
    target: jax.Array


class Outline(NamedTuple):
    """Of a network on images of one shape: how many classes its logits have, and {name: shape} of its endpoints and of
    the layers with a kernel, by path, in the order of the computation. A layer of an endpoint's name is left out.
    """

    classes: int
    endpoints: dict[str, tuple[int, ...]]
    layers: dict[str, tuple[int, ...]]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an endpoint or a layer."""
        return {**self.layers, **self.endpoints}[name]


def outline(model: nn.Module, variables: Any, images: jax.Array) -> Outline:
    """Traces a network, without computing; once for each shape of images.

    Raises:
      UserError: the images are not [N, H, W, C], or not such as the network's parameters are for, or it gives no logits
        [N, classes] of them.
    """
    if images.ndim != 4:
        raise UserError(f"images of shape {list(images.shape)}: want a batch [N, H, W, C]")
    key = (model, images.shape, images.dtype)
    if key not in _OUTLINES:
        found = {}, {}

        def forward(variables, images):
            for shapes, layers in zip(found, (False, True), strict=True):
                logits, activations = capture(model, variables, images, layers=layers)
                shapes.update((name, x.shape) for name, x in activations.items())  # what JAX returns is sorted by name
            return logits

        try:
            logits = jax.eval_shape(forward, variables, images)
        except flax.errors.ScopeParamShapeError:
            raise UserError(
                f"images of shape {list(images.shape)}: the parameters of this {type(model).__name__} are for others"
            ) from None
        if getattr(logits, "ndim", 0) != 2:
            raise UserError(f"{type(model).__name__} gives no logits [N, classes] of images")
        endpoints, layers = found
        _OUTLINES[key] = Outline(logits.shape[1], endpoints, {k: v for k, v in layers.items() if k not in endpoints})
    return _OUTLINES[key]


_OUTLINES: dict[Any, Outline] = {}


def grid(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Of an activation: height, width, and tokens before those of places; None where it has no places.

    Maps are [N, H, W, C], tokens [N, T, C] of a square grid, after a class token where T is no square.
    """
    if len(shape) == 4:
        return shape[1], shape[2], 0
    if len(shape) != 3:
        return None
    side = math.isqrt(shape[1])
    before = shape[1] - side**2
    return (side, side, before) if before in (0, 1) else None


def as_maps(x: jax.Array) -> jax.Array:
    """An activation [N, H, W, C] or [N, T, C] as float32 [N, H, W, C], without the class token; see `grid`."""
    height, width, before = grid(x.shape)
    return (
        x.astype(jnp.float32)
        if x.ndim == 4
        else x[:, before:].reshape(x.shape[0], height, width, x.shape[2]).astype(jnp.float32)
    )


def map_endpoint(about: Outline, name: str | None = None) -> str:
    """The endpoint `name`, or the layer of that path; None: the last endpoint with more than one place whose places
    reach the logits (those of the last tokens do not where a class token is read).

    Raises:
      UserError: unknown, or it is no map; the endpoints that are are listed.
    """
    maps = {endpoint: found for endpoint, shape in about.endpoints.items() if (found := grid(shape))}
    if name is not None:
        known = {**about.layers, **about.endpoints}
        if name not in known or not grid(known[name]):
            raise choice_error("endpoint with places" if name in known else "endpoint", name, maps)
        return name
    names = [endpoint for endpoint, (height, width, _) in maps.items() if height * width > 1]
    if names and maps[names[-1]][2]:
        names.pop()
    if not names:
        raise UserError("no endpoint of this network has more than one place, for images of this size")
    return names[-1]


def check_range(name: str, numbers: Sequence[int], endpoint: str, limit: int) -> None:
    """Raises UserError where numbers of rows, columns or channels (`name`) are none, or not all of 0 to limit - 1."""
    if not len(numbers):
        raise UserError(f"no {name}s are named: {endpoint} has {name}s 0 to {limit - 1}")
    wrong = [number for number in numbers if number != int(number) or not 0 <= number < limit]
    if wrong:
        raise UserError(f"{name}={wrong[0]} is out of range: {endpoint} has {name}s 0 to {limit - 1}")


def read(
    model: nn.Module, variables: Any, images: jax.Array, name: str, add: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Logits, and what is at the endpoint or layer `name`; `add` is added there first, see `capture`."""
    layers = name not in outline(model, variables, images).endpoints
    logits, found = capture(
        model, variables, images, names=[name], add=None if add is None else {name: add}, layers=layers
    )
    return logits, found[name]


def checked_target(target: Any, about: Outline, count: int) -> jax.Array:
    """Classes as int32 [count]: of one for all images, one for each, or None for `TOP1`.

    Raises:
      UserError: out of range, or not as many as images; what is traced is not checked.
    """
    target = TOP1 if target is None else target
    if not isinstance(target, jax.core.Tracer):
        classes = np.asarray(target)
        if not np.issubdtype(classes.dtype, np.integer) or classes.shape not in ((), (count,)):
            raise UserError(f"target={target}: want a class, or one for each of the {count} images")
        wrong = classes[(classes < TOP1) | (classes >= about.classes)]
        if wrong.size:
            raise UserError(
                f"target={wrong.flat[0]} is out of range: this network has classes 0 to {about.classes - 1}"
            )
    return jnp.broadcast_to(jnp.asarray(target, jnp.int32), (count,))


def resolved(target: jax.Array, logits: jax.Array) -> jax.Array:
    """int32 [N] with the most probable class in the place of `TOP1`."""
    return jnp.where(target == TOP1, logits.argmax(-1).astype(jnp.int32), target)


def picked(logits: jax.Array, target: jax.Array) -> jax.Array:
    """The logit of each image's class, [N]: its score."""
    return jnp.take_along_axis(logits, target[:, None], 1)[:, 0]


def resized(maps: jax.Array, size: tuple[int, int]) -> jax.Array:
    """[N, h, w] -> [N, *size], bilinear, as the maps of the papers are laid over their images."""
    return jax.image.resize(maps, (maps.shape[0], *size), "linear")


def explains(method: Callable) -> Callable:
    """Makes a method of method(model, variables, images, target, *, …): checked, and compiled once for each model,
    shape and value of what follows the star.

    The result takes `target` as `checked_target` does. What is decorated gets int32 [N], some `TOP1`. Contexts that act
    while tracing (`lowering`, `skipping`) act on the first call alone, as for any compiled function.
    """
    parameters = inspect.signature(method).parameters.values()
    options = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    compiled = jax.jit(method, static_argnames=("model", *options))

    @functools.wraps(method)
    def checked(model: nn.Module, variables: Any, images: Any, target: Any = None, **kwargs: Any) -> Any:
        images = jnp.asarray(images)
        about = outline(model, variables, images)
        kwargs = {name: tuple(value) if isinstance(value, list) else value for name, value in kwargs.items()}
        return compiled(model, variables, images, checked_target(target, about, len(images)), **kwargs)

    return checked
