"""VGG: stages of 3x3 convolutions.

  Simonyan & Zisserman 2015    Very deep convolutional networks for large-scale image recognition, arXiv 1409.1556

3x3 convolutions with padding 1 keep the resolution, and an activation follows each. A stage of them ends in 2x2
max-pooling, and the next stage has twice the channels, up to 512. The networks differ only in depth (table 1).
Convolutions have biases, also with normalization, as in torchvision's *_bn.

The *_cifar networks have the same stages for images of 32 x 32, which the stages reduce to 1 x 1, with normalization
and only the head after them. This is the VGG of the literature on pruning.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.errors import UserError
from models.layers.endpoint import Endpoint
from models.layers.ingredients import Classifier, Ingredients
from models.layers.pooling import adaptive_avg_pool, max_pool
from models.layers.regularize import Dropout
from models.weights.layouts import DENSE_AS_CONV, Conversion, Layout, flattened

MAP_SIZE = 7  # height and width of the flattened map for images of any size; table 1's at 224 x 224


class Stage(nn.Module):
    """Convolutions and max-pooling: maps x [N, H, W, C] to [N, H // 2, W // 2, features]."""

    layers: Ingredients
    depth: int
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, _, norm, act = self.layers
        for i in range(1, self.depth + 1):
            x = conv(self.features, 3, padding=1, use_bias=True, name=f"conv{i}")(x)
            x = Endpoint(f"conv{i}")(act(norm(name=f"norm{i}")(x)))
        return max_pool(x, 2, 2)


class VGG(Classifier):
    """Stages of 3x3 convolutions and a dense classifier, with the fields of `Classifier` and those below.

    It takes images of any size from 32. Endpoints: "stage1/conv1", ... (activations), "stage1", ... (pooled),
    "last_map" (if `classifier` is empty), "pre_logits".

    Attributes:
      stage_sizes: Number of convolutions of each stage.
      width: Channels of the first stage; each later stage doubles them, up to 8 `width`.
      classifier: Features of the dense layers before the head, which see a flattened map of 7 x 7. With (), the head
        sees the mean of the map.
      dropout: Dropout rate after each of these layers.
    """

    norm: str | Callable = "none"
    stage_sizes: Sequence[int] = (2, 2, 3, 3, 3)
    width: int = 64
    classifier: Sequence[int] = (4096, 4096)
    dropout: float = 0.5

    def check(self) -> None:
        self._need_numbers("stage_sizes", (2, 2, 3, 3, 3))
        self._need_numbers("classifier", (4096, 4096), empty=True)
        self._need_at_least(1, "width")
        self._need_rates("dropout")
        if self.dropout and not self.classifier:
            raise UserError(
                f"dropout={self.dropout} has no effect with classifier=(): dropout follows the layers of classifier"
            )

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [N, H, W, C] to logits [N, num_classes], float32; training may need the rng stream "dropout"."""
        layers = self.ingredients(train)
        x = images
        for stage, depth in enumerate(self.stage_sizes, 1):
            features = self.width * min(2 ** (stage - 1), 8)
            x = Endpoint(f"stage{stage}")(Stage(layers, depth, features, name=f"stage{stage}")(x))
        if not self.classifier:
            x = Endpoint("last_map")(x)
        x = adaptive_avg_pool(x, MAP_SIZE if self.classifier else 1)
        x = jax.lax.collapse(x, 1)  # [N, H, W, C] -> [N, H W C]
        for i, features in enumerate(self.classifier, 1):
            x = layers.act(layers.dense(features, name=f"hidden{i}")(x))
            x = Dropout(self.dropout, deterministic=not train)(x)
        x = Endpoint("pre_logits")(x)
        return layers.dense(self.num_classes, name="head")(x).astype(jnp.float32)


_SIZES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # table 1: A, B, D, E
VARIANTS = {
    **{f"vgg{depth}": functools.partial(VGG, stage_sizes=sizes) for depth, sizes in _SIZES.items()},
    **{f"vgg{depth}_bn": functools.partial(VGG, stage_sizes=sizes, norm="batch") for depth, sizes in _SIZES.items()},
    **{
        f"vgg{depth}_cifar": functools.partial(
            VGG, stage_sizes=_SIZES[depth], norm="batch", classifier=(), dropout=0.0, num_classes=10, image_size=32
        )
        for depth in (11, 13, 16)
    },
}
# Converts the first dense layer [H W C, D] to timm's 7x7 convolution [D, C, H, W]
_MAP_AS_CONV = Conversion(
    lambda ours: ours.reshape(MAP_SIZE, MAP_SIZE, -1, ours.shape[-1]).transpose(3, 2, 0, 1),
    lambda theirs: theirs.transpose(2, 3, 1, 0).reshape(-1, theirs.shape[0]),
)


def layouts(model: VGG) -> dict[str, Layout]:
    """Returns the layouts of torchvision and timm for networks with two hidden layers.

    timm's networks agree with these for images up to 224 x 224.
    """
    if len(model.classifier) != 2:
        return {}

    def features(offset):
        """Returns names by the index in one sequence of convolutions, norms, activations and poolings."""
        period = 2 if model.norm == "none" else 3

        def name(match):
            stage, i = int(match[1]) - 1, int(match[2]) - 1
            return f"features.{period * (sum(model.stage_sizes[:stage]) + i) + stage + offset}"

        return name

    convs = [(r"stage(\d+)/conv(\d+)", features(0)), (r"stage(\d+)/norm(\d+)", features(1))]
    return {
        "torchvision": Layout(
            rules=[
                *convs,
                ("hidden1", "classifier.0", flattened(MAP_SIZE, MAP_SIZE)),
                ("hidden2", "classifier.3"),
                ("head", "classifier.6"),
            ]
        ),
        "timm": Layout(
            rules=[
                *convs,
                ("hidden1", "pre_logits.fc1", _MAP_AS_CONV),
                ("hidden2", "pre_logits.fc2", DENSE_AS_CONV),
                ("head", "head.fc"),
            ]
        ),
    }
