"""Checks of the sizes of images that a network takes, besides the size that it was built for."""

from collections.abc import Sequence
from typing import Any

import jax

from train.tasks.base import Task
from train.tasks.views import SCALES


def of_views(views: str, side: int) -> tuple[int, ...]:
    """Returns the sizes besides `side` at which `train.tasks.views` shows images."""
    return tuple(round(scale * side) for scale in SCALES) if views == "multi_scale" else ()


def refusal(task: Task, variables: Any, inputs: Sequence[int], sizes: Sequence[int]) -> str:
    """Returns why a network does not take images of one of some sizes, e.g. "images of 160: …"; "" if it takes all.

    Args:
      task: has the network.
      variables: shapes of the network's variables.
      inputs: shape of the images that it was built for, [1, H, W, C].
      sizes: heights and widths.
    """
    for size in sizes:
        images = (1, size, size, inputs[-1])
        if images != tuple(inputs) and (reason := _reason(task, variables, images)):
            return f"images of {size}: {reason}"
    return ""


def _reason(task: Task, variables: Any, images: tuple[int, ...]) -> str:
    try:
        others = jax.eval_shape(lambda key: task.init(key, images), jax.random.key(0))[0]
    except Exception as error:  # whatever a network raises whose map becomes too small, or that checks the size
        return str(error).split("\n", maxsplit=1)[0]
    own, theirs = jax.tree.leaves_with_path(variables), jax.tree.leaves_with_path(others)
    for (path, before), (_, after) in zip(own, theirs, strict=True):
        if before.shape != after.shape:
            return f"its parameter {jax.tree_util.keystr(path, simple=True, separator='/')} depends on the size"
    return ""
