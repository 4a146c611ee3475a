"""Teachers: trained networks whose outputs a task learns from, opened with what their images must look like."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import models
from models import weights
from models.errors import UserError
from models.explain import method
from train.data import imagenet
from train.setup import pretrained

_TASKS = ("classify", "distill")  # whose networks return logits, one class per image
_SHOWN = 3  # mismatched arrays that an error lists


class Images(NamedTuple):
    """The images that a network takes.

    Attributes:
      shape: [H, W, C].
      mean: per channel or one for all, of pixels in [0, 1].
      std: standard deviation, likewise.
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Teacher(NamedTuple):
    """A trained network for one label per image.

    Attributes:
      where: the path or name that it was loaded from.
      name: the name of the network.
      model: the flax module.
      variables: its variables, numpy arrays.
      images: what it was trained on; None if that is not known.
      labels: names of its classes; None if they are not known.
    """

    where: str
    name: str
    model: nn.Module
    variables: dict[str, Any]
    images: Images | None
    labels: tuple[str, ...] | None

    def outline(self, shape: Sequence[int]) -> method.Outline:
        """Returns the shapes in the network for images of a shape [H, W, C].

        Raises:
          UserError: it does not take such images, or does not return logits.
        """
        trained = f"; it was trained on {_size(self.images.shape)}" if self.images else ""
        try:
            return method.outline(self.model, self.variables, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
        except (UserError, TypeError, ValueError) as error:  # of any layer that needs other sizes
            reason = str(error).splitlines()[0]
            raise UserError(
                f"teacher={self.where} does not take images of {_size(shape)} ({reason}){trained}"
            ) from None

    def check(self, shape: Sequence[int], classes: Sequence[str]) -> str:
        """Checks that the teacher fits data; returns a warning if it was trained on other sizes, or "".

        Args:
          shape: [H, W, C] of the images.
          classes: names of the classes.

        Raises:
          UserError: it has other classes, or does not take such images.
        """
        if self.images and self.images.shape[-1] != shape[-1]:
            raise UserError(
                f"teacher={self.where} takes images with {self.images.shape[-1]} channels, but the data have "
                f"{shape[-1]}: set data.channels"
            )
        count = self.outline(shape).classes
        if count != len(classes):
            raise UserError(f"teacher={self.where} has {count} classes, but the data have {len(classes)}")
        if difference := _difference(self.labels or (), classes):
            raise UserError(f"teacher={self.where} has other classes than the data: {difference}")
        if self.images is None:
            return (
                f"warning: teacher={self.where} does not say how its images are normalized; it sees those of the data"
            )
        if self.images.shape[:2] != tuple(shape[:2]):
            return f"warning: teacher={self.where} was trained on {_size(self.images.shape)} and sees {_size(shape)}"
        return ""

    def seen(self, images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
        """Returns images [N, H, W, C], normalized by `mean` and `std`, as the teacher's normalization has them."""
        if self.images is None or (tuple(self.images.mean), tuple(self.images.std)) == (tuple(mean), tuple(std)):
            return images
        theirs, ours = ([np.asarray(x, np.float32) for x in pair] for pair in (self.images[1:], (mean, std)))
        return images * (ours[1] / theirs[1]) + (ours[0] - theirs[0]) / theirs[1]


def load(where: str, dtype: Any = None) -> Teacher:
    """Opens a teacher.

    Args:
      where: anything that init_from takes; see `train.setup.pretrained.load`.
      dtype: the type in which it computes; None for float32.

    Raises:
      UserError: there is no such network, it is damaged, or it does not classify one label per image.
    """
    source = pretrained.load(where, "teacher")
    facts = source.facts
    task = facts.get("task", "classify")
    if task.partition("(")[0].strip() not in _TASKS and ".py:" not in task:
        raise UserError(f"teacher={where} was trained by task {task}; allowed: {', '.join(_TASKS)}")
    if facts.get("head") == "drawn":
        raise UserError(f"teacher={where} has no classes: it is an encoder without a head")
    if source.name is None:
        raise UserError(f"teacher={where} does not name its network; import it by python -m models.weights import")
    try:
        model = models.create(source.name, **{**facts.get("fields", {}), "dtype": dtype})
        images = _images(facts.get("images"))
        inputs = (1, *images.shape) if images else None
        variables = weights.from_arrays(model, source.arrays, "ablate", inputs=inputs)
    except weights.Mismatch as error:
        lines = "; ".join(error.lines[:_SHOWN])
        raise UserError(f"teacher={where}, a {source.name}, does not fit its own network: {lines}") from None
    except UserError as error:
        raise UserError(f"teacher={where}: {error}") from None
    return Teacher(
        str(where), source.name, model, jax.tree.map(np.asarray, variables), images, _labels(facts.get("labels"))
    )


def _images(facts: Any) -> Images | None:
    return Images(*(tuple(facts[name]) for name in Images._fields)) if facts else None


def _labels(names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Returns names of classes; None where they are only their numbers."""
    numbered = not names or all(name == str(number) for number, name in enumerate(names))
    return None if numbered else tuple(names or ())


def _difference(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """Returns the first class whose names differ, or ""; names that are only numbers do not count."""
    if not theirs or _labels(ours) is None:
        return ""
    both = [imagenet.shown(imagenet.ids(names)) for names in (theirs, ours)]
    for number, (a, b) in enumerate(zip(*both, strict=True)):
        if a.casefold() != b.casefold():
            return f"class {number} is '{a}' there and '{b}' here"
    return ""


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
