"""Pyramids of features (Lin 2017, arXiv 1612.03144): the maps of a network that detectors and segmenters read."""

import functools
import math
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax

from models.errors import UserError
from models.kernels.tracing import lowering
from models.layers.endpoint import capture

_WIDENED = "last_map"  # after the last stage; some networks widen it for their head


class Level(NamedTuple):
    """A map of a network.

    Attributes:
      name: its endpoint.
      stride: pixels of the image between neighboring positions.
      channels: number of its channels.
    """

    name: str
    stride: int
    channels: int


class Pyramid(NamedTuple):
    """Maps of a network from fine to coarse, one for each stride.

    Attributes:
      model: the network.
      levels: the maps.
    """

    model: nn.Module
    levels: tuple[Level, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Endpoints of the maps."""
        return tuple(level.name for level in self.levels)

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the maps."""
        return tuple(level.stride for level in self.levels)

    @property
    def channels(self) -> tuple[int, ...]:
        """Numbers of channels of the maps."""
        return tuple(level.channels for level in self.levels)

    def features(self, variables: Any, images: jax.Array, **kwargs: Any) -> dict[str, jax.Array]:
        """Returns the maps of images, [N, h, w, C] by name; for use under jit and grad, too.

        Args:
          variables: variables of the network.
          images: normalized images [N, H, W, C], of any size that the network takes.
          **kwargs: keyword arguments of `model.apply` that do not change its result, e.g. `train=False`.
        """
        _, activations = capture(self.model, variables, images, names=self.names, **kwargs)
        return {name: _map(activations[name], images.shape[1], images.shape[2]) for name in self.names}


@functools.lru_cache(256)
def of(model: nn.Module) -> Pyramid:
    """Returns the pyramid of a network; see `models.pyramid`."""
    example = cast(Any, model).example()
    if len(example) != 1 or len(example[0].shape) != 4:
        raise UserError(f"{type(model).__name__} has no pyramid: it does not take images")
    size = example[0].shape[1:3]
    shapes = _shapes(model, example[0].shape)
    try:
        larger = _shapes(model, (1, 2 * size[0], 2 * size[1], example[0].shape[3]))
    except (UserError, TypeError, ValueError):  # a network of one size, such as one with a window of the whole map
        larger = {}
    levels: dict[int, Level] = {}
    for name, shape in shapes.items():
        if grid := _grid(shape, size):
            # Differences of sizes, because a map without padding is smaller than its stride says
            bigger = _grid(larger.get(name, ()), (2 * size[0], 2 * size[1]))
            stride = size[0] // (bigger[0] - grid[0]) if bigger and bigger[0] > grid[0] else size[0] // grid[0]
            if name != _WIDENED or stride not in levels or levels[stride].channels == shape[-1]:
                levels[stride] = Level(name, stride, shape[-1])
    if not levels:
        raise UserError(f"{type(model).__name__} has no pyramid: none of its endpoints has positions")
    return Pyramid(model, tuple(levels[stride] for stride in sorted(levels)))


def _shapes(model: nn.Module, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a network's endpoints for an image, in the order of the computation."""
    shapes: dict[str, tuple[int, ...]] = {}

    def forward(key, images):
        # JAX sorts returned dictionaries by name, so the shapes are stored here
        activations = capture(model, model.init(key, images), images)[1]
        shapes.update((name, x.shape) for name, x in activations.items())

    with lowering("plain"):
        jax.eval_shape(forward, jax.random.key(0), jax.ShapeDtypeStruct(shape, "float32"))
    return shapes


def _grid(shape: tuple[int, ...], size: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Returns height, width and the number of extra tokens of an activation, or None if it has no positions.

    Args:
      shape: [N, h, w, C], or [N, tokens, C] of the same aspect as the image, perhaps after a class token.
      size: height and width of the image.
    """
    if len(shape) == 4:
        return (shape[1], shape[2], 0) if shape[1] * shape[2] > 1 else None
    if len(shape) != 3:
        return None
    for before in (0, 1):
        height = math.isqrt((shape[1] - before) * size[0] // size[1])
        if height and (shape[1] - before) % height == 0 and height * size[1] == (shape[1] - before) // height * size[0]:
            return height, (shape[1] - before) // height, before
    return None


def _map(x: jax.Array, *size: int) -> jax.Array:
    """Returns an activation as a map [N, h, w, C], without its class token."""
    if x.ndim == 4:
        return x
    height, width, before = cast(tuple[int, int, int], _grid(x.shape, size))
    return x[:, before:].reshape(x.shape[0], height, width, x.shape[2])
