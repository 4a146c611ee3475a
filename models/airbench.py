"""The network of airbench94, which is designed to train on CIFAR-10 in seconds.

  Jordan 2024    94% on CIFAR-10 in 3.29 seconds on a single GPU, arXiv 2404.00498, section 3 and listing 4
                 (code: github.com/KellerJordan/cifar10-airbench, airbench94.py)

A 2x2 convolution whitens patches: its kernel is set from data (`data_init=whiten`) and stays fixed. Three stages of two
3x3 convolutions follow, with pooling between the first convolution and its normalization. The head sees the maximum
over the map, and the logits are divided by 9. There are no shortcuts: convolutions start as the identity
(`init=dirac`).

Batch norms have a scale here, as in all networks, while those of the published network have none. The scale starts at
one, and `optimizer.groups=((".*norm./scale", 0.0), …)` keeps it at one.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.layers.endpoint import Endpoint
from models.layers.ingredients import Classifier, Ingredients
from models.layers.pooling import max_pool
from models.weights.layouts import Layout

EPSILON = 1e-12  # of the batch norms


class Stage(nn.Module):
    """Two 3x3 convolutions with pooling: maps x [N, H, W, C] to [N, H // 2, W // 2, features]."""

    layers: Ingredients
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, _, norm, act = self.layers
        x = max_pool(conv(self.features, 3, name="conv1")(x), 2, 2)
        x = act(norm(epsilon=EPSILON, name="norm1")(x))
        x = conv(self.features, 3, name="conv2")(x)
        return act(norm(epsilon=EPSILON, name="norm2")(x))


class Airbench(Classifier):
    """The network of airbench94, with the fields of `Classifier` and those below.

    Endpoints: "stem", "stage1" to "stage3", "pre_logits".

    Attributes:
      patch_size: Size k of the stem's k x k kernel, which has 2 k k C features: whitened patches and their negatives.
      width: Channels of the first stage; the others have 4 times as many.
      scale: Factor on the logits.
    """

    norm: str | Callable = "batch:0.6"
    act: str | Callable = "gelu"
    kernel_init: str | Callable = "dirac"
    num_classes: int = 10
    image_size: int = 32
    patch_size: int = 2
    width: int = 64
    scale: float = 1 / 9

    def check(self) -> None:
        self._need_at_least(1, "patch_size", "width")

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [N, H, W, C] to logits [N, num_classes], float32."""
        layers = self.ingredients(train)
        features = 2 * self.patch_size**2 * images.shape[-1]
        x = layers.conv(features, self.patch_size, padding=0, use_bias=True, name="stem_conv")(images)
        x = Endpoint("stem")(layers.act(x))
        for stage, factor in enumerate((1, 4, 4), 1):
            x = Endpoint(f"stage{stage}")(Stage(layers, factor * self.width, name=f"stage{stage}")(x))
        x = Endpoint("pre_logits")(x.max((1, 2)))  # [N, H, W, C] -> [N, C]
        x = layers.dense(self.num_classes, use_bias=self.norm == "none", name="head")(x)
        return self.scale * x.astype(jnp.float32)


VARIANTS = {"airbench94": functools.partial(Airbench)}


def layouts(model: Airbench) -> dict[str, Layout]:
    """Returns the layout of airbench94.py, which is one torch.nn.Sequential."""

    def name(match):
        return f"{int(match[1]) + 1}.{match[2]}"

    return {"airbench": Layout(rules=[("stem_conv", "0"), (r"stage(\d)/(\w+)", name), ("head", "7")])}
