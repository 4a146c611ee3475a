"""Occlusion: the effect of covering parts of an image on a network's output.

  Zeiler & Fergus 2014    Visualizing and understanding convolutional networks, arXiv 1311.2901, section 4.2, figure 7

A square of one color moves over the image. At each position it yields the score of the class (figure 7d), the most
probable class (7e), and the total activation of the feature map that responds most to the whole image (7b).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models.errors import UserError
from models.explain.method import as_maps, explains, logits_and_activation, map_endpoint, outline, picked, resolved

Pair = tuple[int, int]


class Occlusion(NamedTuple):
    """The result of `occlusion` for N images and R x S positions of the square.

    Attributes:
      score: float32 [N, R, S], the logit of the class.
      probability: float32 [N, R, S], the probability of the class.
      top: int32 [N, R, S], the most probable class.
      strongest: float32 [N, R, S], the sum over the map of one channel of the endpoint.
      channel: int32 [N], the channel with the largest sum for the unchanged image.
      whole: float32 [N], the same sum for the unchanged image.
      rows: int32 [R], top rows of the square.
      columns: int32 [S], left columns of the square.
      logits, target: See `Explanation`; for the unchanged image.
    """

    score: jax.Array
    probability: jax.Array
    top: jax.Array
    strongest: jax.Array
    channel: jax.Array
    whole: jax.Array
    rows: jax.Array
    columns: jax.Array
    logits: jax.Array
    target: jax.Array


def positions(length: int, size: int, stride: int) -> np.ndarray:
    """Returns positions of a window of `size` along `length` pixels: 0, stride, 2 stride, ..., and the last one."""
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
      model: The network.
      variables: Its variables.
      images: [N, H, W, C].
      target: Class for `score` and `probability`, see `checked_target`; None is the most probable class of the
        unchanged image.
      size: Side of the square in pixels, or (height, width).
      stride: Stride of its positions, or (vertical, horizontal); at most `size` to cover every pixel.
      color: Color of the square in the images' units, or one per channel. 0 is gray for images of mean 0.
      endpoint: Map for `strongest`; None chooses the last one, see `map_endpoint`.
      batch: Maximum number of covered images at once. They are split evenly into as few batches as possible.

    Raises:
      UserError: The square is empty or larger than the image, the color has the wrong number of channels, the endpoint
        is unknown, or the class is out of range.
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
    colors = np.asarray(color, np.float32)
    if colors.shape not in ((), (1,), images.shape[3:]):
        raise UserError(f"color={colors.tolist()} must be a number, or one for each of {images.shape[3]} channels")
    return _sweep(
        model,
        variables,
        images,
        target,
        size=size,
        stride=stride,
        color=tuple(colors.ravel().tolist()),
        endpoint=endpoint,
        batch=batch,
    )


def _pair(name: str, value: Any) -> Pair:
    pair = np.asarray(value)
    if not np.issubdtype(pair.dtype, np.integer) or pair.shape not in ((), (2,)) or (pair < 1).any():
        raise UserError(f"{name}={value} must be one or two numbers of pixels, at least 1")
    vertical, horizontal = np.broadcast_to(pair, 2).tolist()
    return vertical, horizontal


@explains
def _sweep(model, variables, images, target, *, size, stride, color, endpoint, batch):
    count, height, width, _ = images.shape
    rows, columns = (positions(*axis) for axis in zip((height, width), size, stride, strict=True))
    windows = len(rows) * len(columns)

    def forward(images):
        logits, x = logits_and_activation(model, variables, images, endpoint)
        return logits.astype(jnp.float32), as_maps(x).sum((1, 2))

    logits, totals = forward(images)
    target, channel = resolved(target, logits), totals.argmax(-1).astype(jnp.int32)

    def covered(i):  # returns the image with window i covered; the windows of the first image come first
        image, window = i // windows, i % windows
        down = jnp.arange(height) - jnp.asarray(rows)[window // len(columns)]
        right = jnp.arange(width) - jnp.asarray(columns)[window % len(columns)]
        inside = ((down >= 0) & (down < size[0]))[:, None] & ((right >= 0) & (right < size[1]))
        return jnp.where(inside[..., None], jnp.asarray(color, images.dtype), images[image])

    def scores(numbers):
        image = numbers // windows
        logits, totals = forward(jax.vmap(covered)(numbers))
        return (
            picked(logits, target[image]),
            picked(jax.nn.softmax(logits), target[image]),
            logits.argmax(-1).astype(jnp.int32),
            picked(totals, channel[image]),
        )

    batches = -(-count * windows // batch)
    each = -(-count * windows // batches)
    numbers = jnp.minimum(jnp.arange(batches * each), count * windows - 1).reshape(batches, each)
    score, probability, top, strongest = (
        x.reshape(-1)[: count * windows].reshape(count, len(rows), len(columns)) for x in jax.lax.map(scores, numbers)
    )
    corners = (jnp.asarray(rows, jnp.int32), jnp.asarray(columns, jnp.int32))
    return Occlusion(score, probability, top, strongest, channel, totals.max(-1), *corners, logits, target)
