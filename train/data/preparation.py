"""Preparation of a batch of images in the compiled step: size, augmentation, normalization."""

from collections.abc import Mapping
from typing import Any

import jax

from models.errors import UserError
from train.data import resolutions
from train.data.augment import chain
from train.data.normalize import normalize


class Preparation:
    """Augmentation and normalization of batches, as `Feed.prepare` and `Feed.prepare_evaluation`.

    Attributes:
      mirrors: whether batches have the entry "mirrored".
    """

    def __init__(
        self, config: Any, num_classes: int, label_shape: tuple[int, ...], shapes: Mapping[int, tuple[int, int, int]]
    ):
        """Parses data.augment for images of each size.

        Args:
          config: the section `data`.
          num_classes: number of classes.
          label_shape: `Feed.label_shape`.
          shapes: (H, W, C) of training images by size; without sizes, of all of them by 0.

        Raises:
          UserError: an operation is unknown or does not fit the images, or mixes images with several classes.
        """
        self._chains = {
            size: chain.build(config.augment, num_classes, shape, config.mean) for size, shape in shapes.items()
        }
        one = next(iter(self._chains.values()))
        if label_shape and one.mix:
            raise UserError(
                f"data.augment='{config.augment}': mixup and cutmix require one class per image, but images of "
                f"data.source={config.source} have several"
            )
        self.mirrors = "mirrored" in one.entries
        self._mean, self._std = config.mean, config.std

    def __call__(self, key: jax.Array, batch: Mapping[str, Any], first: jax.Array | int) -> dict[str, jax.Array]:
        """Returns a training batch, resized, augmented and normalized."""
        batch = dict(batch)
        size = batch.pop("size", None)
        if size:
            batch["image"] = resolutions.resized(batch["image"], size.pixels)
        return self.evaluation(self._chains[size.pixels if size else 0](key, batch, first))

    def evaluation(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Returns a batch, normalized."""
        return {**batch, "image": normalize(batch["image"], self._mean, self._std)}
