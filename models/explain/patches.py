"""Patches of a data set that activate a channel most, and the pixels in them that are responsible.

  Zeiler & Fergus 2014       Visualizing and understanding convolutional networks, arXiv 1311.2901, section 4, figure 2
  Springenberg et al. 2015   Striving for simplicity: the all convolutional net, arXiv 1412.6806, section 4

Only the position with the highest value of each image counts, as in the papers. The search stores only the k best
patches of each channel, for any number of images.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models.errors import UserError, choice_error
from models.explain.method import as_maps, check_range, grid, logits_and_activation, map_endpoint, outline
from models.explain.receptive import Box
from models.explain.rules import RULES, with_rule

SHOWN = 16  # default number of channels


class Best(NamedTuple):
    """The k highest values of C channels so far, in decreasing order.

    Attributes:
      values: float32 [C, k]; -inf if there were fewer images.
      index: int32 [C, k], index of the image in the data set; -1 if there is none.
      row, column: int32 [C, k], the position in the endpoint's map.
    """

    values: jax.Array
    index: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] (replaces tuple.index, which nothing calls)
    row: jax.Array
    column: jax.Array


def start(channels: int, k: int) -> Best:
    """Returns the state before the first image."""
    none = jnp.full((channels, k), -1, jnp.int32)
    return Best(jnp.full((channels, k), -jnp.inf, jnp.float32), none, none, none)


@functools.partial(jax.jit, static_argnames=("model", "endpoint", "channels"))
def update(
    model: nn.Module,
    variables: Any,
    best: Best,
    images: jax.Array,
    index: jax.Array,
    mask: jax.Array,
    *,
    endpoint: str,
    channels: tuple[int, ...],
) -> Best:
    """Merges a batch into the k best patches of all images so far, with the same result for any split into batches.

    Among equal values, the earlier image comes first, and within an image the earlier position, row by row. NaN does
    not count.

    Args:
      model: The network.
      variables: Its variables.
      best: State so far.
      images: [N, H, W, C].
      index: int32 [N], indices in the data set.
      mask: [N], 0 for padding.
      endpoint: Name of a map.
      channels: Channels of the map, as many as in `best`.
    """
    maps = as_maps(logits_and_activation(model, variables, images, endpoint)[1])[..., jnp.asarray(channels)]
    count, _, width, _ = maps.shape
    flat = maps.reshape(count, -1, len(channels))
    position = flat.argmax(1).astype(jnp.int32)  # [N, C]
    values = jnp.where(jnp.asarray(mask, bool)[:, None], flat.max(1), -jnp.inf)
    index = jnp.where(values > -jnp.inf, jnp.asarray(index, jnp.int32)[:, None], -1)
    batch = Best(values, index, position // width, position % width)
    columns = [jnp.concatenate([old, new.T], 1) for old, new in zip(best, batch, strict=True)]  # [C, k + N]
    ordered = jax.lax.sort((-columns[0], *columns[1:]), dimension=1, num_keys=2)
    negative, *rest = (x[:, : best.values.shape[1]] for x in ordered)
    return Best(-negative, *rest)


def top_patches(
    model: nn.Module,
    variables: Any,
    batches: Iterable[tuple[Any, Any, Any]],
    *,
    endpoint: str | None = None,
    channels: Sequence[int] | None = None,
    k: int = 9,
) -> Best:
    """Finds the k images with the highest value of each channel, and the position of the value.

    Args:
      model: The network.
      variables: Its variables.
      batches: (images [N, H, W, C], index [N] in the data set, mask [N]), see `update`. Batches of one size, with the
        last one padded, are compiled once.
      endpoint: Name of a map; None chooses the last one, see `map_endpoint`.
      channels: Channels of the map; None chooses the first 16.
      k: Number of patches per channel; 9 in the paper's figure.

    Returns:
      The best patches, with rows in the order of `channels`.

    Raises:
      UserError: The endpoint or a channel does not exist, `k` is below 1, or there are no batches.
    """
    if k < 1:
        raise UserError(f"k={k} must be at least 1")
    best = None
    for images, index, mask in batches:
        images = jnp.asarray(images)
        shapes = outline(model, variables, images)
        endpoint = map_endpoint(shapes, endpoint)
        if best is None:
            features = shapes.shape(endpoint)[-1]
            channels = tuple(range(min(features, SHOWN))) if channels is None else tuple(channels)
            check_range("channel", channels, endpoint, features)
            best = start(len(channels), k)
        best = update(
            model, variables, best, images, jnp.asarray(index), jnp.asarray(mask), endpoint=endpoint, channels=channels
        )
    if best is None:
        raise UserError("there are no images to find patches in: the data set has no batches")
    return best


def projections(
    model: nn.Module,
    variables: Any,
    images: Any,
    *,
    endpoint: str,
    channels: Any,
    rows: Any,
    columns: Any,
    rule: str = "deconvnet",
) -> jax.Array:
    """Projects one unit of each image to the pixels, as its gradient with respect to the image.

    Args:
      model: The network.
      variables: Its variables.
      images: [N, H, W, C].
      endpoint: Name of a map.
      channels: [N], the channel of the unit of each image, as from `top_patches`.
      rows: [N], the rows of the units.
      columns: [N], the columns of the units.
      rule: "gradient", or a rule for activations, "guided" or "deconvnet", see `rules.with_rule`.

    Returns:
      float32 [N, H, W, C].

    Raises:
      UserError: The rule, the endpoint or a unit does not exist.
    """
    if rule not in ("gradient", *RULES):
        raise choice_error("rule", rule, ("gradient", *RULES))
    images = jnp.asarray(images, jnp.float32)
    shapes = outline(model, variables, images)
    shape = shapes.shape(map_endpoint(shapes, endpoint))
    height, width, _ = cast(tuple[int, int, int], grid(shape))
    units = [np.asarray(unit) for unit in (rows, columns, channels)]
    for name, unit, limit in zip(("row", "column", "channel"), units, (height, width, shape[-1]), strict=True):
        if unit.shape != (len(images),):
            raise UserError(f"{name}s must have one entry for each of the {len(images)} images, not {list(unit.shape)}")
        check_range(name, unit, endpoint, limit)
    ruled = model if rule == "gradient" else with_rule(model, rule)
    return _projections(ruled, variables, images, *units, endpoint=endpoint)


@functools.partial(jax.jit, static_argnames=("model", "endpoint"))
def _projections(model, variables, images, rows, columns, channels, *, endpoint):
    def units(images):
        maps = as_maps(logits_and_activation(model, variables, images, endpoint)[1])
        return maps[jnp.arange(len(images)), rows, columns, channels].sum()

    return jax.grad(units)(images)


def crop(images: Any, boxes: Sequence[Box], color: float | Sequence[float] | None = None) -> np.ndarray:
    """Crops box i from image i, for boxes of one size.

    Args:
      images: [N, H, W, C].
      boxes: N boxes (top, left, bottom, right), as from `receptive.Field.box`; bottom and right are exclusive.
      color: Color outside an image, or one per channel; None is gray: 0.5, or 128 for integers.

    Returns:
      [N, bottom - top, right - left, C], of the images' type.

    Raises:
      UserError: The boxes differ in size, or their number is wrong.
    """
    images = np.asarray(images)
    sizes = {(bottom - top, right - left) for top, left, bottom, right in boxes}
    if len(sizes) != 1 or len(boxes) != len(images):
        raise UserError(
            f"each of the {len(images)} images needs one box, and all boxes need one size, not {sorted(sizes)}"
        )
    patches = np.empty((len(boxes), *sizes.pop(), images.shape[3]), images.dtype)
    patches[:] = (128 if np.issubdtype(images.dtype, np.integer) else 0.5) if color is None else color
    height, width = images.shape[1:3]
    for patch, image, (top, left, bottom, right) in zip(patches, images, boxes, strict=True):
        rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
        inside = image[rows, columns]
        patch[rows.start - top :, columns.start - left :][: inside.shape[0], : inside.shape[1]] = inside
    return patches
