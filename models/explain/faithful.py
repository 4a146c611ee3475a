"""Whether to believe an explanation: what the network loses without what is marked, whether the mark is where the
object is, and whether it depends on what the network has learned.

  Petsiuk et al. 2018    RISE, arXiv 1806.07421              deletion, insertion
  Zhang et al. 2016      Top-down neural attention by excitation backprop, arXiv 1608.00507      pointing game
  Zhou et al. 2016       Learning deep features for discriminative localization, arXiv 1512.04150, section 3.2     boxes
  Adebayo et al. 2018    Sanity checks for saliency maps, arXiv 1810.03292, section 3       randomized weights

Maps are [N, H, W] of the images' size, the higher the more important; boxes are (top, left, bottom, right): the pixels
[top:bottom, left:right].
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import ndimage, stats

import models
from models.errors import UserError
from models.explain.method import checked_target, outline, resolved
from models.explain.receptive import Box
from models.layers.endpoint import Endpoint

BLUR = 5 / 224  # deviation, as a share of the longer side; Petsiuk 2018: 11 x 11 of deviation 5, of 224 pixels


class Curve(NamedTuple):
    """Probability of the class, float32 [N, steps + 1], when 0, 1 / steps, ..., all pixels are changed; `area` [N]: the
    mean under it (trapezoids).
    """

    probability: jax.Array
    area: jax.Array


def deletion(
    model: nn.Module,
    variables: Any,
    images: Any,
    maps: Any,
    target: Any = None,
    *,
    steps: int = 32,
    color: float | tuple[float, ...] = 0.0,
) -> Curve:
    """The probability as the most important pixels are painted over: the sooner it falls, the better the map.

    Args:
      model, variables, images: as of all methods.
      maps: [N, H, W]; ties go by place.
      target: see method.py; the most probable class of the whole images.
      steps: in which the pixels go.
      color: a number, or one for each channel, in the units of the images.

    Raises:
      UserError: maps of another size than the images.
    """
    images = jnp.asarray(images)
    return _change(
        model,
        variables,
        images,
        images,
        jnp.broadcast_to(jnp.asarray(color, images.dtype), images.shape),
        maps,
        target,
        steps,
    )


def insertion(
    model: nn.Module, variables: Any, images: Any, maps: Any, target: Any = None, *, steps: int = 32, blur: float = BLUR
) -> Curve:
    """The probability as the most important pixels come back to a blurred image: the sooner it rises, the better.

    Args and errors as of `deletion`, and `blur`, see `blurred`: small images need a stronger one than the paper's to
    hide what is on them.
    """
    images = jnp.asarray(images)
    return _change(model, variables, images, blurred(images, blur), images, maps, target, steps)


def _change(model, variables, whole, before, after, maps, target, steps) -> Curve:
    about = outline(model, variables, before)
    if np.shape(maps) != before.shape[:3]:
        raise UserError(f"maps of shape {list(np.shape(maps))}: want {list(before.shape[:3])}, of the images")
    if steps < 1:
        raise UserError(f"steps={steps} must be at least 1")
    target = checked_target(target, about, len(before))
    return _curve(model, variables, whole, before, after, jnp.asarray(maps), target, steps)


@jax.jit(static_argnames=("model", "steps"))
def _curve(model, variables, whole, before, after, maps, target, steps) -> Curve:
    count, height, width, _ = before.shape
    order = jnp.argsort(-maps.reshape(count, -1), -1, stable=True)
    rank = jnp.argsort(order, -1).reshape(count, height, width, 1)
    classes = resolved(target, model.apply(variables, whole))

    def probability(step):
        changed = jnp.where(rank < jnp.round(step * height * width / steps), after, before)
        return jnp.take_along_axis(jax.nn.softmax(model.apply(variables, changed)), classes[:, None], 1)[:, 0]

    found = lax.map(probability, jnp.arange(steps + 1)).T  # [N, steps + 1]
    return Curve(found, jnp.trapezoid(found, dx=1 / steps, axis=1))


def blurred(images: jax.Array, blur: float = BLUR) -> jax.Array:
    """Images [N, H, W, C] by a Gaussian whose deviation is that share of the longer side, and which is cut there;
    borders are repeated.
    """
    deviation = blur * max(images.shape[1:3])
    reach = max(1, round(deviation))
    taps = jnp.exp(-0.5 * (jnp.arange(-reach, reach + 1) / deviation) ** 2)
    taps /= taps.sum()
    for axis in (1, 2):
        pad = [(reach, reach) if a == axis else (0, 0) for a in range(4)]
        padded = jnp.pad(images, pad, mode="edge")
        images = sum(tap * lax.slice_in_dim(padded, i, i + images.shape[axis], axis=axis) for i, tap in enumerate(taps))
    return images


# -- where the object is -------------------------------------------------------------------------------------------


def pointing(maps: np.ndarray, boxes: Sequence[Box], tolerance: int = 0) -> np.ndarray:
    """Whether the highest place of each map (the first of several) is in its box, or within `tolerance` pixels of it:
    bool [N]. (Zhang 2016: 15 pixels, of images as they are.)
    """
    maps = np.asarray(maps)
    rows, columns = np.unravel_index(maps.reshape(len(maps), -1).argmax(1), maps.shape[1:])
    top, left, bottom, right = np.asarray(boxes).reshape(len(maps), 4).T
    return (
        (rows >= top - tolerance)
        & (rows < bottom + tolerance)
        & (columns >= left - tolerance)
        & (columns < right + tolerance)
    )


def box_of(saliency_map: np.ndarray, threshold: float = 0.2) -> Box:
    """The box around the largest connected part of a map [H, W] that is above `threshold` of its maximum (Zhou 2016:
    0.2; Selvaraju 2017: 0.15); the whole image where nothing is above 0.
    """
    peak = saliency_map.max()
    if peak <= 0:
        return (0, 0, *saliency_map.shape)
    parts, count = ndimage.label(saliency_map > threshold * peak)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    rows, columns = ndimage.find_objects(parts)[int(sizes.argmax())]
    return rows.start, columns.start, rows.stop, columns.stop


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    height, width = (max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return height * width / (sum(areas) - height * width)


def localized(maps: np.ndarray, boxes: Sequence[Box], threshold: float = 0.2, least: float = 0.5) -> np.ndarray:
    """Whether the box of each map overlaps the true one by IoU `least`: bool [N]; of ILSVRC's localization error an
    image counts where its class is right, too.
    """
    return np.array([iou(box_of(m, threshold), box) >= least for m, box in zip(np.asarray(maps), boxes, strict=True)])


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's, of two maps each: [N, ...] and [N, ...] -> [N]; NaN where one of them is constant."""
    found = np.full(len(a), np.nan)
    for i, (x, y) in enumerate(zip(np.asarray(a), np.asarray(b), strict=True)):
        if np.ptp(x) > 0 and np.ptp(y) > 0:
            found[i] = stats.spearmanr(x.ravel(), y.ravel()).statistic
    return found


# -- randomized weights --------------------------------------------------------------------------------------------


def randomized(
    model: nn.Module, variables: Mapping[str, Any], inputs: Any, seed: int = 0
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Layers drawn anew one after the other, from the logits to the image ("cascading randomization").

    A layer with a kernel goes together with what follows it up to the next one (its normalization, say).

    Args:
      model, variables: of a trained network.
      inputs: shape of the images, as `models.initialize` takes it.
      seed: of the new draw.

    Yields:
      (path of the layer, the variables in which it and all later ones are new).
    """
    new, now = models.initialize(model, jax.random.key(seed), inputs), dict(variables)
    for group in layers(model, variables, inputs)[::-1]:
        for path in group:
            now = {name: _replaced(tree, new[name], path) if name in new else tree for name, tree in now.items()}
        yield "/".join(group[0]), now


def layers(model: nn.Module, variables: Any, inputs: Any) -> list[list[tuple[str, ...]]]:
    """Paths of the modules with parameters of their own in the order of the computation, each with a kernel together
    with those after it that have none, and the first one with those before it.
    """
    found: dict[tuple[str, ...], bool] = {}

    def record(call, args, kwargs, context):
        module = context.module
        if context.method_name == "__call__" and not isinstance(module, Endpoint):
            own = [name for name, value in module.variables.get("params", {}).items() if not isinstance(value, Mapping)]
            if own and module.path not in found:
                found[module.path] = "kernel" in own
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(lambda variables, *x: model.apply(variables, *x), variables, *models.abstract(inputs))
    groups: list[list[tuple[str, ...]]] = []
    early = []  # before the first kernel: a network's own class token and positions
    for path, has_kernel in found.items():
        if has_kernel:
            groups.append([path])
        else:
            (groups[-1] if groups else early).append(path)
    groups[0] += early
    return groups


def _replaced(tree: Mapping[str, Any], new: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any]:
    """The tree with what `new` has at `path` itself, not below."""
    if not path:
        return {name: value if isinstance(value, Mapping) else new[name] for name, value in tree.items()}
    if path[0] not in tree:
        return tree
    return {**tree, path[0]: _replaced(tree[path[0]], new[path[0]], path[1:])}
