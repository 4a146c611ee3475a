"""Trained networks in Python: `train.load("runs/digits")`."""

import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models.errors import UserError
from models.layers.endpoint import capture
from train.export import graph, loaded


class Trained:
    """A trained network and the preprocessing that it expects.

    Images are given as files (str or Path), as uint8 pixels [H, W, C] of any size, or as uint8 pixels [N, H, W, C] of
    the network's own size. Files on the wrong background are inverted, with a warning; pixels never are (see
    `train.data.background`). Everything is float32 on the default device.

    Attributes:
      card: the description of the network; see docs/export.md.
      classes: names of the classes, in the order of the outputs.
    """

    def __init__(self, opened: loaded.Loaded, where: str | Path, which: str | None):
        self._opened, self._where, self._which = opened, where, which
        self.card = opened.card
        self.classes: tuple[str, ...] = tuple(opened.card["labels"])

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.card["preprocessing"]["shape"]))
        return f"Trained({self.card['architecture']}, {len(self.classes)} classes, images {shape})"

    @property
    def model(self) -> nn.Module:
        """The flax module; raises UserError where the export holds a program."""
        return self._network[0]

    @property
    def variables(self) -> dict[str, Any]:
        """The variables of the module, {"params": …, "batch_stats": … with batch norm}; raises as `model` does."""
        return self._network[1]

    @functools.cached_property
    def _network(self) -> tuple[nn.Module, dict[str, Any]]:
        return self._opened.network()

    def preprocess(self, images: Any) -> jax.Array:
        """Decodes, crops and normalizes images as the evaluation of the run did: float32 [N, H, W, C].

        Raises:
          UserError: a file is not an image, or an array is not uint8 pixels.
        """
        return graph.normalized(jnp.asarray(self._pixels(images)), self.card["preprocessing"])

    def predict(self, images: Any) -> np.ndarray:
        """Returns the probabilities of the classes, float32 [N, num_classes]."""
        return self._opened.run(self._pixels(images))[0]

    def logits(self, images: Any) -> np.ndarray:
        """Returns the logits, float32 [N, num_classes]."""
        return self._opened.run(self._pixels(images))[1]

    def features(self, images: Any, endpoint: str = "pre_logits") -> np.ndarray:
        """Returns the activations at a named endpoint, e.g. [N, H, W, C] or [N, C].

        Raises:
          UserError: the network has no such endpoint; the error lists those that it has.
        """
        _, activations = self._capture(endpoint)(self.variables, self.preprocess(images))
        return np.asarray(activations[endpoint])

    def gradient(self, images: Any, target: int | str | Sequence[int] | None = None) -> np.ndarray:
        """Returns the gradient of a class's logit with respect to the normalized images, float32 [N, H, W, C].

        Args:
          images: see the class.
          target: the class by name or index, one index per image, or None for the class with the highest logit.
        """
        inputs = self.preprocess(images)
        if isinstance(target, str):
            if target not in self.classes:
                raise UserError(f"unknown class '{target}'; allowed: {', '.join(self.classes)}")
            target = self.classes.index(target)
        chosen = None if target is None else jnp.broadcast_to(jnp.asarray(target, jnp.int32), (len(inputs),))

        def score(inputs):
            logits: Any = self.model.apply(self.variables, inputs, train=False)
            index = jnp.argmax(logits, -1) if chosen is None else chosen
            return jnp.take_along_axis(logits, index[:, None], -1).sum()

        return np.asarray(jax.jit(jax.grad(score))(inputs))

    def data(self, split: str = "test") -> tuple[np.ndarray, np.ndarray]:
        """Returns the images and labels of a split of a run's data: uint8 [N, H, W, C] and int32 [N, ...].

        Images have the evaluation crop; all of them are read into memory.

        Raises:
          UserError: there is no such split, it is not what the run was trained on, or the network is an export.
        """
        arrays = self._opened.split(split).arrays()
        readable = arrays["mask"] > 0
        return arrays["image"][readable], arrays["label"][readable]

    def export(self, out: str | Path, format: str = "safetensors", **options: Any) -> dict[str, Any]:
        """Exports the network of a run as `python -m train.export` does, and returns the card of the export.

        Args:
          out: folder to write.
          format: safetensors, torch, onnx, stablehlo, semi_structured or compressed.
          **options: folds, share, images, license, layout and python; see `train.export.write.of_run`.

        Raises:
          UserError: this is an export already, or see `train.export.write.export`.
        """
        from train import restore  # imports the loop, which exported networks do not need
        from train.export import write

        run, state = restore.load_network(self._where, self._which or "last")
        return write.of_run(run, state, format, out, **options)

    def _capture(self, endpoint: str) -> Callable[..., Any]:
        return jax.jit(lambda variables, x: capture(self.model, variables, x, names=[endpoint], train=False))

    def _pixels(self, images: Any) -> np.ndarray:
        """Returns uint8 pixels [N, H, W, C] of the network's size."""
        shape = tuple(self.card["preprocessing"]["shape"])
        if isinstance(images, (str, Path)):
            images = [images]
        if isinstance(images, np.ndarray):
            if images.dtype == np.uint8 and images.shape[1:] == shape:
                return images
            images = images if images.ndim == 4 else images[None]
        return np.stack([self._opened.pixels(x) if isinstance(x, np.ndarray) else self._file(x) for x in images])

    def _file(self, file: str | Path) -> np.ndarray:
        """Returns the pixels of a file, and warns if it was inverted."""
        pixels, inverted = self._opened.prepared(file)
        if inverted:
            background = self.card["preprocessing"]["background"]
            warnings.warn(f"{file} is inverted: the training images have a {background} background", stacklevel=4)
        return pixels


def load(where: str | Path, which: str | None = None) -> Trained:
    """Opens the folder of a run or of an exported network, or published weights such as "hf:timm/resnet50.a1_in1k".

    Args:
      where: the folder, or weights as `models.load` takes them.
      which: the checkpoint of a run, "last" (also for None) or "best" (on its test set).

    Raises:
      UserError: there is no such folder, it is damaged, or a library that the format needs is missing.
    """
    return Trained(loaded.load(where, which), where, which)
