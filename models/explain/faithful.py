"""Tests of the faithfulness of explanations.

They measure what the network loses without the marked pixels, whether the marked pixels are on the object, and whether
an explanation depends on the network's weights.

  Petsiuk et al. 2018    RISE, arXiv 1806.07421              deletion, insertion
  Zhang et al. 2016      Top-down neural attention by excitation backprop, arXiv 1608.00507      pointing game
  Zhou et al. 2016       Learning deep features for discriminative localization, arXiv 1512.04150, section 3.2     boxes
  Adebayo et al. 2018    Sanity checks for saliency maps, arXiv 1810.03292, section 3       randomized weights

Maps are [N, H, W], of the size of the images, with higher values for more important pixels. Boxes are (top, left,
bottom, right), the pixels [top:bottom, left:right].
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

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

# Standard deviation as a fraction of the longer side; Petsiuk 2018: an 11 x 11 kernel of deviation 5 for 224 pixels
BLUR = 5 / 224


class Curve(NamedTuple):
    """The probability of a class as more and more pixels are changed.

    Attributes:
      probability: float32 [N, steps + 1], after changes to 0, 1 / steps, ..., all pixels.
      area: [N], the area under this curve (trapezoidal rule).
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
    """Measures the probability of a class as the most important pixels are painted over first.

    The faster it falls, the better is the map.

    Args:
      model: The network.
      variables: Its variables.
      images: [N, H, W, C].
      maps: [N, H, W]; ties are ordered by position.
      target: See method.py; None is the most probable class of the unchanged images.
      steps: Number of steps.
      color: A number, or one per channel, in the units of the images.

    Raises:
      UserError: The maps differ in size from the images.
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
    """Measures the probability of a class as the most important pixels of a blurred image are restored first.

    The faster it rises, the better is the map. Arguments and errors are those of `deletion`, and `blur`, see `blurred`.
    Small images need a stronger blur than the paper's to hide the object.
    """
    images = jnp.asarray(images)
    return _change(model, variables, images, blurred(images, blur), images, maps, target, steps)


def _change(model, variables, whole, before, after, maps, target, steps) -> Curve:
    shapes = outline(model, variables, before)
    if np.shape(maps) != before.shape[:3]:
        raise UserError(f"maps have the shape {list(np.shape(maps))}, but the images need {list(before.shape[:3])}")
    if steps < 1:
        raise UserError(f"steps={steps} must be at least 1")
    target = checked_target(target, shapes, len(before))
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

    curve = lax.map(probability, jnp.arange(steps + 1)).T  # [N, steps + 1]
    return Curve(curve, jnp.trapezoid(curve, dx=1 / steps, axis=1))


def blurred(images: jax.Array, blur: float = BLUR) -> jax.Array:
    """Blurs images [N, H, W, C] with a Gaussian kernel and repeated borders.

    The kernel's standard deviation is `blur` times the longer side of the images. The kernel is cut off at about one
    standard deviation on each side.
    """
    deviation = blur * max(images.shape[1:3])
    reach = max(1, round(deviation))
    taps = jnp.exp(-0.5 * (jnp.arange(-reach, reach + 1) / deviation) ** 2)
    taps /= taps.sum()
    for axis in (1, 2):
        pad = [(reach, reach) if a == axis else (0, 0) for a in range(4)]
        padded = jnp.pad(images, pad, mode="edge")
        length = images.shape[axis]
        shifted = [lax.slice_in_dim(padded, i, i + length, axis=axis) for i in range(len(taps))]
        images = jnp.asarray(sum(tap * part for tap, part in zip(taps, shifted, strict=True)))
    return images


# -- where the object is -------------------------------------------------------------------------------------------


def pointing(maps: np.ndarray, boxes: Sequence[Box], tolerance: int = 0) -> np.ndarray:
    """Returns whether the maximum of each map (the first of several) is within `tolerance` pixels of its box, bool [N].

    Zhang 2016 uses 15 pixels for images of original size.
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
    """Returns the box around the largest connected part of a map [H, W] that exceeds `threshold` times its maximum.

    If nothing is above 0, it is the whole image. Thresholds are 0.2 in Zhou 2016 and 0.15 in Selvaraju 2017.
    """
    peak = saliency_map.max()
    if peak <= 0:
        height, width = saliency_map.shape
        return 0, 0, height, width
    parts, count = cast(tuple[np.ndarray, int], ndimage.label(saliency_map > threshold * peak))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    rows, columns = ndimage.find_objects(parts)[int(sizes.argmax())]
    return rows.start, columns.start, rows.stop, columns.stop


def iou(a: Box, b: Box) -> float:
    """Returns the intersection over union of two boxes."""
    height, width = (max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return height * width / (sum(areas) - height * width)


def localized(maps: np.ndarray, boxes: Sequence[Box], threshold: float = 0.2, least: float = 0.5) -> np.ndarray:
    """Returns whether the box of each map overlaps the true one by an IoU of at least `least`, bool [N].

    ILSVRC's localization error also requires the correct class.
    """
    return np.array([iou(box_of(m, threshold), box) >= least for m, box in zip(np.asarray(maps), boxes, strict=True)])


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns Spearman's rank correlations [N] of pairs of maps [N, ...]; NaN if one of them is constant."""
    correlations = np.full(len(a), np.nan)
    for i, (x, y) in enumerate(zip(np.asarray(a), np.asarray(b), strict=True)):
        if np.ptp(x) > 0 and np.ptp(y) > 0:
            correlations[i] = stats.spearmanr(x.ravel(), y.ravel())[0]
    return correlations


# -- randomized weights --------------------------------------------------------------------------------------------


def randomized(
    model: nn.Module, variables: Mapping[str, Any], inputs: Any, seed: int = 0
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reinitializes layers one after another, from the logits to the image ("cascading randomization").

    A layer with a kernel is reinitialized together with the modules up to the next one, such as its normalization.

    Args:
      model: A network.
      variables: Its trained variables.
      inputs: Shape of the images, as for `models.initialize`.
      seed: Seed of the new values.

    Yields:
      (path of the layer, variables with new values for it and all later layers).
    """
    new, current = models.initialize(model, jax.random.key(seed), inputs), dict(variables)
    for group in layers(model, variables, inputs)[::-1]:
        for path in group:
            current = {n: _replaced(tree, new[n], path) if n in new else tree for n, tree in current.items()}
        yield "/".join(group[0]), current


def layers(model: nn.Module, variables: Any, inputs: Any) -> list[list[tuple[str, ...]]]:
    """Groups the paths of modules with their own parameters, in the order of the computation.

    Each group starts with a module with a kernel, followed by the modules without one. The first group also has the
    modules before it.
    """
    has_kernels: dict[tuple[str, ...], bool] = {}

    def record(call, args, kwargs, context):
        module = context.module
        if context.method_name == "__call__" and not isinstance(module, Endpoint):
            params = module.variables.get("params", {})
            names = [name for name, value in params.items() if not isinstance(value, Mapping)]
            if names and module.path not in has_kernels:
                has_kernels[module.path] = "kernel" in names
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(lambda variables, *x: model.apply(variables, *x), variables, *models.abstract(inputs))
    groups: list[list[tuple[str, ...]]] = []
    early = []  # modules before the first kernel, such as the network's own class token and positions
    for path, has_kernel in has_kernels.items():
        if has_kernel:
            groups.append([path])
        else:
            (groups[-1] if groups else early).append(path)
    groups[0] += early
    return groups


def _replaced(tree: Mapping[str, Any], new: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any]:
    """Returns the tree with the arrays at `path` itself, not below, taken from `new`."""
    if not path:
        return {name: value if isinstance(value, Mapping) else new[name] for name, value in tree.items()}
    if path[0] not in tree:
        return tree
    return {**tree, path[0]: _replaced(tree[path[0]], new[path[0]], path[1:])}
