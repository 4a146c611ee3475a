"""Receptive fields: the pixels that a unit can see, and their effect on it.

Araujo, Norris & Sim 2019    Computing receptive fields of convolutional neural networks, Distill,
                             doi 10.23915/distill.00021                                                theoretical
Luo et al. 2016              Understanding the effective receptive field in deep convolutional neural
                             networks, arXiv 1701.04128                                                effective
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import models
from models.analysis import jaxpr
from models.errors import choice_error
from models.explain.method import as_maps, check_range, grid, logits_and_activation, map_endpoint, outline
from models.kernels.tracing import lowering
from models.layers.endpoint import capture

INSIDE = 0.9545  # probability within two standard deviations of a normal distribution; Luo 2016, section 4

Pair = tuple[int, int]
Box = tuple[int, int, int, int]  # top, left, bottom, right: pixels [top:bottom, left:right]


class Field(NamedTuple):
    """The pixels that the units of a map see.

    Unit (i, j) sees size[0] rows from start[0] + i stride[0] on, and size[1] columns from start[1] + j stride[1] on.

    Attributes:
      size, stride, start: (vertical, horizontal), in pixels.
    """

    size: Pair
    stride: Pair
    start: Pair

    def box(self, row: int, column: int) -> Box:
        """Returns (top, left, bottom, right) for the unit at (row, column); bottom and right are exclusive.

        The box extends beyond the image if the unit sees padding.
        """
        first = [start + i * step for start, i, step in zip(self.start, (row, column), self.stride, strict=True)]
        last = [at + size - 1 for at, size in zip(first, self.size, strict=True)]
        top, left = (int(np.ceil(at)) for at in first)  # strides below 1 give fractions of pixels
        bottom, right = (int(np.floor(at)) + 1 for at in last)
        return top, left, bottom, right

    def clipped(self, row: int, column: int, shape: Sequence[int]) -> Box:
        """Returns the part of `box` inside an image of `shape` (H, W, ...).

        A unit at the border of its map may see less, if strides skip the last pixels of the image.
        """
        (height, width), (top, left, bottom, right) = shape[:2], self.box(row, column)
        return max(top, 0), max(left, 0), min(bottom, height), min(right, width)


def fields(
    model: nn.Module, inputs: Sequence[int] | Sequence[jax.ShapeDtypeStruct], *, layers: bool = False
) -> dict[str, Field | None]:
    """Computes the theoretical receptive field of each endpoint from the traced program (models/analysis/jaxpr.py).

    Args:
      model: A network from `create`, or any module that takes images.
      inputs: [N, H, W, C], the shape of float32 images; or shapes and types as from `model.example()`.
      layers: Whether to include layers with a kernel by path, "stage1/block0/conv1".

    Returns:
      {name: Field} in the order of the computation; None if units see the whole image or have no position.
    """
    inputs = models.abstract(inputs)
    names: list[str] = []

    def forward(variables, *inputs):
        activations = capture(model, variables, *inputs, layers=layers)[1]
        names.extend(activations)
        return list(activations.values())

    with lowering("plain"):
        variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
        program = jax.make_jaxpr(forward)(variables, *inputs)
    input_views = [jaxpr.View(axes=(1, 2)), *[jaxpr.WHOLE] * (len(inputs) - 1)]
    views = jaxpr.Walk(()).run(program, [None] * len(jax.tree.leaves(variables)) + input_views)
    return {
        name: None if view is None or view.axes is None else Field(view.field, view.stride, view.start)
        for name, view in zip(names, views, strict=True)
    }


def theoretical(
    model: nn.Module, inputs: Sequence[int] | Sequence[jax.ShapeDtypeStruct], endpoint: str | None = None
) -> Field | None:
    """Returns the theoretical receptive field of one endpoint, or of a layer by its path; see `fields`.

    With None, it is the endpoint that methods explain by default (`map_endpoint`).

    Raises:
      UserError: There is no such endpoint or layer.
    """
    by_name = fields(model, inputs, layers=True)
    if endpoint is None:
        images = models.abstract(inputs)[0]
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        endpoint = map_endpoint(outline(model, variables, cast(jax.Array, images)))  # shapes are enough
    if endpoint not in by_name:
        raise choice_error("endpoint", endpoint, by_name)
    return by_name[endpoint]


def effective(
    model: nn.Module,
    variables: Any,
    images: Any,
    *,
    endpoint: str | None = None,
    channel: int | None = None,
    place: Pair | None = None,
) -> jax.Array:
    """Computes the effective receptive field: |gradient of a unit|, averaged over images and colors.

    A gradient of 1 at the unit, and 0 at all others of the endpoint, is propagated back (Luo 2016, sections 2 and 4).

    Args:
      model: The network.
      variables: Its variables.
      images: [N, H, W, C].
      endpoint: Name of a map; None chooses the last one, see `map_endpoint`.
      channel: Channel of the unit; None takes all channels, each with a gradient of 1.
      place: Row and column of the unit; None is the center.

    Returns:
      float32 [H, W].

    Raises:
      UserError: The endpoint is unknown, or `place` or `channel` is out of range.
    """
    images = jnp.asarray(images, jnp.float32)
    shapes = outline(model, variables, images)
    endpoint = map_endpoint(shapes, endpoint)
    shape = shapes.shape(endpoint)
    height, width, _ = cast(tuple[int, int, int], grid(shape))
    row, column = (height // 2, width // 2) if place is None else place
    for name, unit, limit in (("row", row, height), ("column", column, width), ("channel", channel, shape[-1])):
        if unit is not None:
            check_range(name, [unit], endpoint, limit)
    return _gradient(model, variables, images, row, column, channel, endpoint=endpoint)


@functools.partial(jax.jit, static_argnames=("model", "endpoint"))
def _gradient(model, variables, images, row, column, channel, *, endpoint):
    def unit(images):
        units = as_maps(logits_and_activation(model, variables, images, endpoint)[1])[:, row, column]  # [N, C]
        return units.sum() if channel is None else units[:, channel].sum()

    return jnp.abs(jax.grad(unit)(images)).mean((0, 3))


def effective_size(values: Any) -> float:
    """Returns the side of a square with as many pixels as an effective field [H, W] has above a threshold.

    The threshold is 1 - 95.45% of the largest value (Luo 2016, section 4).
    """
    values = np.asarray(values)
    return float(np.sqrt((values > (1 - INSIDE) * values.max()).sum()))
