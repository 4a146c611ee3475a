"""Receptive fields: which pixels a unit can see, and which of them matter to it.

Araujo, Norris & Sim 2019    Computing receptive fields of convolutional neural networks, Distill,
                             doi 10.23915/distill.00021                                                theoretical
Luo et al. 2016              Understanding the effective receptive field in deep convolutional neural
                             networks, arXiv 1701.04128                                                effective
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import models
from models.analysis import jaxpr
from models.errors import choice_error
from models.explain.method import as_maps, check_range, grid, map_endpoint, outline, read
from models.kernels.tracing import lowering
from models.layers.endpoint import capture

INSIDE = 0.9545  # of a normal distribution, within two standard deviations; Luo 2016, section 4

Pair = tuple[int, int]
Box = tuple[int, int, int, int]  # top, left, bottom, right: pixels [top:bottom, left:right]


class Field(NamedTuple):
    """Which pixels the units of a map see: unit (i, j) the rows from start[0] + i stride[0] on, size[0] of them, and
    the columns likewise.

    Attributes:
      size, stride, start: (vertical, horizontal), pixels.
    """

    size: Pair
    stride: Pair
    start: Pair

    def box(self, row: int, column: int) -> Box:
        """Of the unit at (row, column): (top, left, bottom, right), of which bottom and right are the first pixels
        outside. Where padding is seen, it reaches out of the image.
        """
        first = [start + i * step for start, i, step in zip(self.start, (row, column), self.stride, strict=True)]
        last = [at + size - 1 for at, size in zip(first, self.size, strict=True)]
        top, left = (int(np.ceil(at)) for at in first)  # a stride below 1 has parts of pixels
        bottom, right = (int(np.floor(at)) + 1 for at in last)
        return top, left, bottom, right

    def clipped(self, row: int, column: int, shape: Sequence[int]) -> Box:
        """The part of `box` inside of an image of `shape` (H, W, …). A unit at the border of its map may see less than
        this where strides leave out the last pixels of the image.
        """
        (height, width), (top, left, bottom, right) = shape[:2], self.box(row, column)
        return max(top, 0), max(left, 0), min(bottom, height), min(right, width)


def fields(
    model: nn.Module, inputs: Sequence[int] | Sequence[jax.ShapeDtypeStruct], *, layers: bool = False
) -> dict[str, Field | None]:
    """The theoretical receptive field of each endpoint, read from the traced program; see models/analysis/jaxpr.py.

    Args:
      model: from `create`, or any module that takes images.
      inputs: [N, H, W, C] of float32 images, or as `model.example()` gives it.
      layers: whether layers with a kernel are included, by path: "stage1/block0/conv1".

    Returns:
      {name: Field} in the order of the computation; None where units see the whole image, or have no place.
    """
    inputs = models.abstract(inputs)
    names: list[str] = []

    def forward(variables, *inputs):
        found = capture(model, variables, *inputs, layers=layers)[1]
        names.extend(found)
        return list(found.values())

    with lowering("plain"):
        variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
        program = jax.make_jaxpr(forward)(variables, *inputs)
    seen = [jaxpr.View(axes=(1, 2)), *[jaxpr.WHOLE] * (len(inputs) - 1)]
    views = jaxpr.Walk(()).run(program, [None] * len(jax.tree.leaves(variables)) + seen)
    return {
        name: None if view is None or view.axes is None else Field(view.field, view.stride, view.start)
        for name, view in zip(names, views, strict=True)
    }


def theoretical(
    model: nn.Module, inputs: Sequence[int] | Sequence[jax.ShapeDtypeStruct], endpoint: str | None = None
) -> Field | None:
    """Of one endpoint, or layer by its path; None for that which methods explain by default (`map_endpoint`).

    Args and Returns: as of `fields`.

    Raises:
      UserError: there is no such endpoint or layer.
    """
    found = fields(model, inputs, layers=True)
    if endpoint is None:
        images = models.abstract(inputs)[0]
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        endpoint = map_endpoint(outline(model, variables, images))
    if endpoint not in found:
        raise choice_error("endpoint", endpoint, found)
    return found[endpoint]


def effective(
    model: nn.Module,
    variables: Any,
    images: Any,
    *,
    endpoint: str | None = None,
    channel: int | None = None,
    place: Pair | None = None,
) -> jax.Array:
    """How much each pixel changes a unit: |the gradient of the unit by the image|, averaged over images and colors.

    Luo 2016, sections 2 and 4: a gradient of 1 at the unit, 0 at all others of the endpoint, is propagated back.

    Args:
      model, variables: of a network.
      images: [N, H, W, C].
      endpoint: a map; None for the last one, see `map_endpoint`.
      channel: of the unit; None for all of them, each with a gradient of 1.
      place: row and column of the unit; None for the middle.

    Returns:
      float32 [H, W].

    Raises:
      UserError: unknown endpoint; place or channel out of range.
    """
    images = jnp.asarray(images, jnp.float32)
    about = outline(model, variables, images)
    endpoint = map_endpoint(about, endpoint)
    shape = about.shape(endpoint)
    height, width, _ = grid(shape)
    row, column = (height // 2, width // 2) if place is None else place
    for name, unit, limit in (("row", row, height), ("column", column, width), ("channel", channel, shape[-1])):
        if unit is not None:
            check_range(name, [unit], endpoint, limit)
    return _gradient(model, variables, images, row, column, channel, endpoint=endpoint)


@functools.partial(jax.jit, static_argnames=("model", "endpoint"))
def _gradient(model, variables, images, row, column, channel, *, endpoint):
    def unit(images):
        units = as_maps(read(model, variables, images, endpoint)[1])[:, row, column]  # [N, C]
        return units.sum() if channel is None else units[:, channel].sum()

    return jnp.abs(jax.grad(unit)(images)).mean((0, 3))


def effective_size(values: Any) -> float:
    """The side of a square of as many pixels as `effective`'s [H, W] has that are above 1 - 95.45 % of its largest
    (Luo 2016, section 4).
    """
    values = np.asarray(values)
    return float(np.sqrt((values > (1 - INSIDE) * values.max()).sum()))
