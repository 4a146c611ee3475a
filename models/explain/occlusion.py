"""Occlusion: what a network finds less of once a part of the image is covered.

  Zeiler & Fergus 2014    Visualizing and understanding convolutional networks, arXiv 1311.2901, section 4.2, figure 7

A square of one color is moved over the image. At each of its positions: the score of the class (figure 7d), the most
probable class (7e), and the total activation of the feature map that responds most to the whole image (7b).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models.errors import UserError
from models.explain.method import as_maps, explains, map_endpoint, outline, picked, read, resolved

Pair = tuple[int, int]


class Occlusion(NamedTuple):
    """What `occlusion` finds for N images and the square's R x S positions.

    Attributes:
      score: float32 [N, R, S], the logit of the class.
      probability: float32 [N, R, S], of the class.
      top: int32 [N, R, S], the most probable class.
      strongest: float32 [N, R, S], the sum over the places of one channel of the endpoint.
      channel: int32 [N], that channel: of the largest sum for the image as it is.
      rows, columns: int32 [R] and [S], of the square's upper left corner.
      logits, target: as of `Explanation`, of the image as it is.
    """

    score: jax.Array
    probability: jax.Array
    top: jax.Array
    strongest: jax.Array
    channel: jax.Array
    rows: jax.Array
    columns: jax.Array
    logits: jax.Array
    target: jax.Array


def positions(length: int, size: int, stride: int) -> np.ndarray:
    """Of a window of `size` along `length` pixels: 0, stride, 2 stride, … and, where pixels are left, the last one."""
    last = length - size
    return np.unique([*range(0, last + 1, stride), last])


def occlusion(
    model: nn.Module,
    variables: Any,
    images: Any,
    target: Any = None,
    *,
    size: int | Pair,
    stride: int | Pair,
    color: float | Sequence[float] = 0.0,
    endpoint: str | None = None,
    batch: int = 64,
) -> Occlusion:
    """Scores each image with each part of it covered, in one compiled program.

    Args:
      model, variables: of a network.
      images: [N, H, W, C].
      target: the class of `score` and `probability`, as `checked_target` takes it; None for the most probable one of
        the image as it is.
      size: of the square, pixels; or height and width.
      stride: of its positions, at most `size` where every pixel is to be covered; or vertical and horizontal.
      color: of the square, in the images' units; or one for each channel. 0 is gray for images of mean 0.
      endpoint: of `strongest`, a map; None for the last one, see `map_endpoint`.
      batch: the most covered images at once. They are dealt evenly to as few batches as that allows.

    Raises:
      UserError: a square that is larger than the image or empty, a color of other channels, an unknown endpoint, a
        class that is out of range.
    """
    images = jnp.asarray(images)
    endpoint = map_endpoint(outline(model, variables, images), endpoint)
    size, stride = _pair("size", size), _pair("stride", stride)
    if any(window > length for window, length in zip(size, images.shape[1:3], strict=True)):
        raise UserError(
            f"size={size[0]} x {size[1]} is larger than the images of {images.shape[1]} x {images.shape[2]} pixels"
        )
    if batch < 1:
        raise UserError(f"batch={batch} must be at least 1")
    color = np.asarray(color, np.float32)
    if color.shape not in ((), (1,), images.shape[3:]):
        raise UserError(f"color={color.tolist()} must be a number, or one for each of {images.shape[3]} channels")
    return _sweep(
        model,
        variables,
        images,
        target,
        size=size,
        stride=stride,
        color=tuple(color.ravel().tolist()),
        endpoint=endpoint,
        batch=batch,
    )


def _pair(name: str, value: Any) -> Pair:
    pair = np.asarray(value)
    if not np.issubdtype(pair.dtype, np.integer) or pair.shape not in ((), (2,)) or (pair < 1).any():
        raise UserError(f"{name}={value} must be a number of pixels, or two, of at least 1")
    return tuple(np.broadcast_to(pair, 2).tolist())


@explains
def _sweep(model, variables, images, target, *, size, stride, color, endpoint, batch):
    count, height, width, _ = images.shape
    rows, columns = (positions(*axis) for axis in zip((height, width), size, stride, strict=True))
    windows = len(rows) * len(columns)

    def forward(images):
        logits, x = read(model, variables, images, endpoint)
        return logits.astype(jnp.float32), as_maps(x).sum((1, 2))

    logits, totals = forward(images)
    target, channel = resolved(target, logits), totals.argmax(-1).astype(jnp.int32)

    def covered(i):  # the number of a window, those of the first image first, and the image in which it is covered
        image, window = i // windows, i % windows
        down = jnp.arange(height) - jnp.asarray(rows)[window // len(columns)]
        right = jnp.arange(width) - jnp.asarray(columns)[window % len(columns)]
        inside = ((down >= 0) & (down < size[0]))[:, None] & ((right >= 0) & (right < size[1]))
        return jnp.where(inside[..., None], jnp.asarray(color, images.dtype), images[image])

    def scores(numbers):
        of = numbers // windows
        logits, totals = forward(jax.vmap(covered)(numbers))
        return (
            picked(logits, target[of]),
            picked(jax.nn.softmax(logits), target[of]),
            logits.argmax(-1).astype(jnp.int32),
            picked(totals, channel[of]),
        )

    batches = -(-count * windows // batch)
    each = -(-count * windows // batches)
    numbers = jnp.minimum(jnp.arange(batches * each), count * windows - 1).reshape(batches, each)
    swept = (
        x.reshape(-1)[: count * windows].reshape(count, len(rows), len(columns)) for x in jax.lax.map(scores, numbers)
    )
    return Occlusion(*swept, channel, jnp.asarray(rows, jnp.int32), jnp.asarray(columns, jnp.int32), logits, target)
