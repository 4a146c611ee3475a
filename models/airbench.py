"""The network of airbench94, which is made for CIFAR-10 in seconds.

  Jordan 2024    94% on CIFAR-10 in 3.29 seconds on a single GPU, arXiv 2404.00498, section 3 and listing 4
                 (code: github.com/KellerJordan/cifar10-airbench, airbench94.py)

A 2x2 convolution whose kernel is to be the whitening of its patches (`data_init=whiten`) and to stay that, then three
stages of two 3x3 convolutions, of which the first one's map is pooled before it is normalized; a maximum over what is
left of the map; logits times 1/9. There are no shortcuts: convolutions start as the identity (`init=dirac`).

Batch norms have a scale here, as everywhere; the published network has none: it is one, and
`optimizer.groups=((".*norm./scale", 0.0), …)` keeps it at one.
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

EPSILON = 1e-12  # of its batch norms


class Stage(nn.Module):
    """x [N, H, W, C] -> [N, H // 2, W // 2, features]."""

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
    """The fields of `Classifier`, and these. Endpoints: "stem", "stage1" to "stage3",
    "pre_logits".

    Attributes:
      patch_size: of the stem's kernel, k x k; it has 2 k k C features, the whitened patches and their negatives.
      width: channels of the first stage; the others have 4 times as many.
      scale: of the logits.
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
        """Images [N, H, W, C] -> logits [N, num_classes], float32."""
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
    """airbench94.py's: one torch.nn.Sequential."""

    def name(match):
        return f"{int(match[1]) + 1}.{match[2]}"

    return {"airbench": Layout(rules=[("stem_conv", "0"), (r"stage(\d)/(\w+)", name), ("head", "7")])}
