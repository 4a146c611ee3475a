"""What activates a channel: the patches of a data set with its highest values, and what in them is responsible.

  Zeiler & Fergus 2014       Visualizing and understanding convolutional networks, arXiv 1311.2901, section 4, figure 2
  Springenberg et al. 2015   Striving for simplicity: the all convolutional net, arXiv 1412.6806, section 4

Of each image only the place with its highest value counts, as in the papers. The search keeps nothing but the k best
of each channel, whatever the number of images.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models.errors import UserError, choice_error
from models.explain.method import as_maps, check_range, grid, map_endpoint, outline, read
from models.explain.receptive import Box
from models.explain.rules import RULES, with_rule

SHOWN = 16  # channels where nobody says which


class Best(NamedTuple):
    """The k highest values of C channels so far, in falling order.

    Attributes:
      values: float32 [C, k]; -inf where there were fewer images.
      index: int32 [C, k], of the image in the data set; -1 where there is none.
      row, column: int32 [C, k], the place in the endpoint's map.
    """

    values: jax.Array
    index: jax.Array
    row: jax.Array
    column: jax.Array


def start(channels: int, k: int) -> Best:
    """Of no images."""
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
    """Merges a batch: exactly the k best of all images so far, whatever the batches. Of equal values the earlier image
    comes first, and of an image's the earlier place, by rows. NaN does not count.

    Args:
      model, variables: of a network.
      best: so far, of as many channels.
      images: [N, H, W, C].
      index: int32 [N], in the data set.
      mask: [N], 0 for rows that are no images.
      endpoint: a map.
      channels: of it.
    """
    maps = as_maps(read(model, variables, images, endpoint)[1])[..., jnp.asarray(channels)]
    count, _, width, _ = maps.shape
    flat = maps.reshape(count, -1, len(channels))
    place = flat.argmax(1).astype(jnp.int32)  # [N, C]
    values = jnp.where(jnp.asarray(mask, bool)[:, None], flat.max(1), -jnp.inf)
    index = jnp.where(values > -jnp.inf, jnp.asarray(index, jnp.int32)[:, None], -1)
    found = Best(values, index, place // width, place % width)
    columns = [jnp.concatenate([old, new.T], 1) for old, new in zip(best, found, strict=True)]  # [C, k + N]
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
    """The k images with the highest value of each channel, and where in them it is.

    Args:
      model, variables: of a network.
      batches: of (images [N, H, W, C], index [N] in the data set, mask [N]), as for `update`. One size of batch, the
        last one padded, is compiled once.
      endpoint: a map; None for the last one, see `map_endpoint`.
      channels: of it; None for its first 16.
      k: patches of each channel; 9 in the paper's figure.

    Returns:
      Rows in the order of `channels`.

    Raises:
      UserError: unknown endpoint, a channel that it does not have, k < 1, no batches.
    """
    if k < 1:
        raise UserError(f"k={k} must be at least 1")
    best = None
    for images, index, mask in batches:
        images = jnp.asarray(images)
        about = outline(model, variables, images)
        endpoint = map_endpoint(about, endpoint)
        if best is None:
            features = about.shape(endpoint)[-1]
            channels = tuple(range(min(features, SHOWN))) if channels is None else tuple(channels)
            check_range("channel", channels, endpoint, features)
            best = start(len(channels), k)
        best = update(
            model, variables, best, images, jnp.asarray(index), jnp.asarray(mask), endpoint=endpoint, channels=channels
        )
    if best is None:
        raise UserError("no images to find patches in: the data set gives no batches")
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
    """Of one unit of each image, projected down to the pixels: its gradient by the image, by one of the rules.

    Args:
      model, variables: of a network.
      images: [N, H, W, C].
      endpoint: a map.
      channels, rows, columns: [N], the unit of each image, as `top_patches` finds it.
      rule: "gradient", or what activations make of it: "guided" or "deconvnet", see `rules.with_rule`.

    Returns:
      float32 [N, H, W, C].

    Raises:
      UserError: unknown rule or endpoint, or a unit that it does not have.
    """
    if rule not in ("gradient", *RULES):
        raise choice_error("rule", rule, ("gradient", *RULES))
    images = jnp.asarray(images, jnp.float32)
    about = outline(model, variables, images)
    shape = about.shape(map_endpoint(about, endpoint))
    height, width, _ = grid(shape)
    units = [np.asarray(unit) for unit in (rows, columns, channels)]
    for name, unit, limit in zip(("row", "column", "channel"), units, (height, width, shape[-1]), strict=True):
        if unit.shape != (len(images),):
            raise UserError(f"{name}s of shape {list(unit.shape)}: want one for each of the {len(images)} images")
        check_range(name, unit, endpoint, limit)
    ruled = model if rule == "gradient" else with_rule(model, rule)
    return _projections(ruled, variables, images, *units, endpoint=endpoint)


@functools.partial(jax.jit, static_argnames=("model", "endpoint"))
def _projections(model, variables, images, rows, columns, channels, *, endpoint):
    def units(images):
        maps = as_maps(read(model, variables, images, endpoint)[1])
        return maps[jnp.arange(len(images)), rows, columns, channels].sum()

    return jax.grad(units)(images)


def crop(images: Any, boxes: Sequence[Box], color: float | Sequence[float] | None = None) -> np.ndarray:
    """Patches of one size, of image i that in box i.

    Args:
      images: [N, H, W, C].
      boxes: N of (top, left, bottom, right), of `receptive.Field.box`: bottom and right are the first pixels outside.
      color: of what is outside of an image, or one for each channel; None for gray: 0.5, or 128 of whole numbers.

    Returns:
      [N, bottom - top, right - left, C] of the images' type.

    Raises:
      UserError: the boxes differ in size, or there is not one for each image.
    """
    images = np.asarray(images)
    sizes = {(bottom - top, right - left) for top, left, bottom, right in boxes}
    if len(sizes) != 1 or len(boxes) != len(images):
        raise UserError(f"boxes of sizes {sorted(sizes)}: want one for each of the {len(images)} images, of one size")
    patches = np.empty((len(boxes), *sizes.pop(), images.shape[3]), images.dtype)
    patches[:] = (128 if np.issubdtype(images.dtype, np.integer) else 0.5) if color is None else color
    height, width = images.shape[1:3]
    for patch, image, (top, left, bottom, right) in zip(patches, images, boxes, strict=True):
        rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
        inside = image[rows, columns]
        patch[rows.start - top :, columns.start - left :][: inside.shape[0], : inside.shape[1]] = inside
    return patches
