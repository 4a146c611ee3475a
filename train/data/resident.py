"""The resident pipeline: a small data set is decoded once and stays in the memory of the device.

The order of examples comes from `shuffle.Order`, as in streaming. The compiled step gathers the batch from the device's
own memory, so that a step moves B indices to the device instead of B images.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.errors import UserError, choice_error
from train.data.source import Source

PIPELINES = ("auto", "resident", "stream")
LIMIT_BYTES = 2 << 30


class Resident:
    """A source, decoded once.

    Attributes:
      arrays: {"image": uint8 [N, H * W * C], "label": int32 [N, *label_shape]}, for the caller to put on the device. An
        image is one row, because a TPU copies the whole data set in each step to gather from [N, H, W, C], whose last
        axes it pads (for CIFAR-10, XLA estimates 7.7 million cycles, and 15 thousand for rows).
      skipped: int64 [S], indices of images that could not be decoded (data.on_error=skip). The next readable example
        replaces each of them.
    """

    def __init__(self, source: Source):
        if source.random_crop:
            raise UserError(
                f"data.pipeline=resident decodes each image once, which data.crop={source.decoder.crop} does not "
                "allow; use data.pipeline=stream"
            )
        arrays = source.arrays(replace=True)
        self.arrays = {"image": arrays["image"].reshape(len(arrays["image"]), -1), "label": arrays["label"]}
        self.skipped = arrays["skipped"]

    @staticmethod
    def gather(arrays: dict[str, jax.Array], indices: jax.Array, shape: tuple[int, ...]) -> dict[str, jax.Array]:
        """Returns the examples at `indices`, int [B], as a batch of images of `shape`; for use in the compiled step."""
        # All indices come from Order and are valid, so the gather need not check them
        batch = {key: jnp.take(value, indices, axis=0, mode="clip") for key, value in arrays.items()}
        return {**batch, "image": batch["image"].reshape(-1, *shape)}


def fits(source: Source) -> bool:
    """Returns True if the source can stay on the device: one image size, no random crop, at most LIMIT_BYTES."""
    return (
        source.fixed_size and not source.random_crop and len(source) * int(np.prod(source.image_shape)) <= LIMIT_BYTES
    )


def choose(pipeline: Any, source: Callable[[], Source]) -> str:
    """Resolves `data.pipeline`: "auto" becomes "resident" where the source fits, which is opened for that."""
    if pipeline not in PIPELINES:
        raise choice_error("data.pipeline", pipeline, PIPELINES)
    if pipeline == "auto":
        return "resident" if fits(source()) else "stream"
    return pipeline
