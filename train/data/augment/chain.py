"""Parses data.augment into a chain of operations on single images, and at most one that mixes pairs."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from models import plugins
from models.errors import UserError, choice_error
from models.kernels.tracing import platform
from train.data.augment import color, geometry, policies
from train.data.augment.mixers import MIXERS
from train.data.augment.operation import Op, Site
from train.data.normalize import check_color
from train.setup import spec

OPS: dict[str, Callable[..., Op]] = {
    "crop": geometry.crop,
    "flip": geometry.flip,
    "alternate_flip": geometry.alternate_flip,
    "cutout": geometry.cutout,
    "erase": geometry.erase,
    "randaugment": policies.randaugment,
    "randaugment_timm": policies.randaugment_timm,
    "autoaugment": policies.autoaugment,
    "trivialaugment": policies.trivialaugment,
    "augmix": policies.augmix,
    "jitter": color.jitter,
    "grayscale": color.grayscale,
}


@dataclasses.dataclass(frozen=True)
class Augment:
    """A parsed specification: operations on single images, and at most one that mixes pairs."""

    text: str
    num_classes: int
    ops: tuple[Op, ...]
    mix: Callable | None

    @property
    def entries(self) -> set[str]:
        """Returns the entries of the batch that operations take in place of keys; they are not passed on."""
        return {op.entry for op in self.ops} - {""}

    def __call__(self, key: jax.Array, batch: dict[str, jax.Array], first: jax.Array | int = 0) -> dict[str, jax.Array]:
        """Augments a batch.

        Args:
          key: key of the step.
          batch: {"image": uint8 [B, H, W, C], "label": int32 [B], …}.
          first: position of the batch's first example in the global batch.

        Returns:
          The batch with new images, uint8. With mixup or cutmix they are float32 on the scale 0..255, and "target",
          float32 [B, num_classes], is added.
        """
        images = batch["image"]
        positions = first + jnp.arange(images.shape[0])
        keys = jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)
        for number, op in enumerate(self.ops):
            op_keys = jax.vmap(lambda example_key, n=number: jax.random.fold_in(example_key, n))(keys)
            images = _each(op, batch[op.entry] if op.entry else op_keys, images)
        batch = {name: array for name, array in batch.items() if name not in self.entries} | {"image": images}
        return batch | self._mixed(self.mix, keys, images, batch["label"]) if self.mix else batch

    def _mixed(self, mix: Callable, keys: jax.Array, images: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        if len(images) % 2:
            raise UserError(f"data.augment='{self.text}' mixes pairs: a device's batch must be even, not {len(images)}")
        pair_keys = jax.vmap(lambda pair_key: jax.random.fold_in(pair_key, len(self.ops)))(keys[::2])
        images = images.astype(jnp.float32).reshape(-1, 2, *images.shape[1:])  # [B, …] -> [B/2, 2, …]
        targets = jax.nn.one_hot(labels, self.num_classes).reshape(-1, 2, self.num_classes)
        images, targets = jax.vmap(mix)(pair_keys, images, targets)
        return {"image": images.reshape(-1, *images.shape[2:]), "target": targets.reshape(-1, self.num_classes)}


def build(
    text: str, num_classes: int, image_shape: tuple[int, int, int], mean: Sequence[float] | None = None
) -> Augment:
    """Parses a specification of augmentations.

    Args:
      text: operations as in the docstring of `train.data.augment`; "" for none.
      num_classes: length of a target that mixup and cutmix make.
      image_shape: (H, W, C) of the images, uint8.
      mean: color that cutout and randaugment_timm fill with, on the scale 0..1; None for black. (DeVries 2017 cuts
        normalized images, where the mean is 0.)

    Raises:
      UserError: an operation is unknown or does not accept its arguments; it names the operation and its signature.
    """
    height, width, channels = image_shape
    if mean is not None:
        check_color("mean", mean, channels)
    fill = np.broadcast_to(np.round(255 * np.array(0.0 if mean is None else mean)).astype(np.uint8), (channels,))
    ops, mixer = [], None
    for call in spec.parse("data.augment", text):
        if mixer:
            raise UserError(
                f"data.augment {call.name}: it follows mixup or cutmix in '{text}', which come once, at the end"
            )
        if call.name in MIXERS:
            mixer = spec.resolve("data.augment", call, MIXERS)
        elif call.name in OPS or plugins.split(call.name):
            ops.append(spec.resolve("data.augment", call, OPS, Site(height, width, channels, fill)))
        else:
            raise choice_error("data.augment", call.name, [*OPS, *MIXERS], own=True)
    return Augment(text, num_classes, tuple(ops), mixer)


def _each(op: Op, keys: jax.Array, images: jax.Array) -> jax.Array:
    """Applies an operation to each example.

    On a CPU, an operation that branches runs on one example after another, so that only the branch taken costs time.
    Under vmap all branches are computed, which is faster on accelerators.
    """
    if op.branches and platform() == "cpu":
        return jax.lax.map(lambda example: op.apply(*example), (keys, images))
    return jax.vmap(op.apply)(keys, images)
