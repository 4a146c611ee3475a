"""The resident pipeline: a data set that is small enough lives on the device, decoded once.

Which examples make batch t comes from the same `order.Order` as in streaming; the batch is gathered from the device's
own memory inside the compiled step, so a step moves B indices to the device instead of B images.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.errors import UserError, choice_error
from train.data.source import Source

PIPELINES = ("auto", "resident", "stream")
LIMIT_BYTES = 2 << 30


class Resident:
    """A source decoded once. arrays: {"image": uint8 [N, H, W, C], "label": int32 [N, *label_shape]}, for the caller to
    put on the device. skipped: int64 [S], the indices of images that could not be decoded (data.on_error=skip); for
    each the next readable example stands in.
    """

    def __init__(self, source: Source):
        if source.random_crop:
            raise UserError(
                f"data.pipeline=resident decodes once, so it cannot do data.crop={source.decoder.crop}: use stream"
            )
        arrays = source.arrays(replace=True)
        self.arrays = {key: arrays[key] for key in ("image", "label")}
        self.skipped = arrays["skipped"]

    @staticmethod
    def gather(arrays: dict[str, jax.Array], indices: jax.Array) -> dict[str, jax.Array]:
        """The examples at `indices` [B], as a batch; pure, for use inside the compiled step."""
        # Order gives valid indices only, so the gather need not check them.
        return {key: jnp.take(value, indices, axis=0, mode="clip") for key, value in arrays.items()}


def fits(source: Source) -> bool:
    """Whether to keep the source on the device: images of one size, no random crop, at most LIMIT_BYTES of pixels."""
    return (
        source.fixed_size and not source.random_crop and len(source) * int(np.prod(source.image_shape)) <= LIMIT_BYTES
    )


def choose(pipeline: Any, source: Source) -> str:
    """ "resident" or "stream", for config.data.pipeline "auto", "resident" or "stream"."""
    if pipeline not in PIPELINES:
        raise choice_error("data.pipeline", pipeline, PIPELINES)
    if pipeline == "auto":
        return "resident" if fits(source) else "stream"
    return pipeline
