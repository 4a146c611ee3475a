"""LeNet: networks for handwritten digits, which papers on pruning and compression use.

  LeCun et al. 1998    Gradient-based learning applied to document recognition (Proc. IEEE 86)
  Han et al. 2015      Learning both weights and connections, arXiv 1506.02626, table 1: LeNet-300-100 and LeNet-5

Both networks are Caffe's versions, which Han et al. used. They have rectifiers instead of tanh. Caffe's LeNet-5 has 50
maps and 500 hidden units instead of 16 and 84, and max-pooling instead of trained averages. Its only activation follows
the hidden layer; there is none between convolution and pooling.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.errors import UserError
from models.layers.endpoint import Endpoint
from models.layers.ingredients import Classifier
from models.layers.pooling import max_pool
from models.weights.layouts import Layout, flattened


class LeNet(Classifier):
    """Convolutions with pooling, then dense layers; it has the fields of `Classifier` and those below.

    The first dense layer sees the flattened map, so its parameters depend on `image_size`. A `norm` follows every
    convolution and every hidden layer; "instance" does not work after hidden layers, which have no space to average
    over. Endpoints: "conv1", "conv2" (pooled), "pre_logits".

    Attributes:
      convs: Channels of the 5x5 convolutions without padding, each followed by 2x2 max-pooling.
      hidden: Features of the dense layers before the head.
    """

    norm: str | Callable = "none"
    num_classes: int = 10
    image_size: int = 28
    convs: Sequence[int] = ()
    hidden: Sequence[int] = (300, 100)

    def check(self) -> None:
        self._need_numbers("convs", (20, 50), empty=True)
        self._need_numbers("hidden", (300, 100), empty=True)
        if self.norm == "instance" and self.hidden:
            raise UserError("norm='instance' averages over space, which the hidden layers of a LeNet do not have")
        if self.map_size() < 1:
            raise UserError(f"image_size={self.image_size} leaves nothing after {len(self.convs)} convolutions")

    def map_size(self) -> int:
        """Returns the height and width of the flattened map."""
        return functools.reduce(lambda size, _: (size - 4) // 2, self.convs, self.image_size)

    def example(self, size: int | None = None, channels: int = 1) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Returns the shape and type of images [1, size, size, channels]; size None is `image_size`."""
        return super().example(size, channels)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [N, image_size, image_size, C] to logits [N, num_classes], float32."""
        layers = self.ingredients(train)
        x = images
        for i, features in enumerate(self.convs, 1):
            x = layers.norm(name=f"conv{i}_norm")(layers.conv(features, 5, padding=0, name=f"conv{i}")(x))
            x = Endpoint(f"conv{i}")(max_pool(x, 2, 2))
        x = jax.lax.collapse(x, 1)  # [N, H, W, C] -> [N, H W C]
        for i, features in enumerate(self.hidden, 1):
            x = layers.dense(features, name=f"hidden{i}")(x)
            x = layers.act(layers.norm(name=f"hidden{i}_norm")(x))
        x = Endpoint("pre_logits")(x)
        return layers.dense(self.num_classes, name="head")(x).astype(jnp.float32)


VARIANTS = {
    "lenet_300_100": functools.partial(LeNet),
    "lenet5": functools.partial(LeNet, convs=(20, 50), hidden=(500,)),
}


def layouts(model: LeNet) -> dict[str, Layout]:
    """Returns Caffe's layout (conv1, conv2, ip1, ...), with "weight" and "bias" for its blobs 0 and 1."""
    if model.norm != "none":
        return {}
    dense = [*(f"hidden{i + 1}" for i in range(len(model.hidden))), "head"]
    first, *others = [(name, f"ip{i}") for i, name in enumerate(dense, 1)]
    return {
        "caffe": Layout(
            rules=[(r"conv(\d+)", r"conv\1"), (*first, flattened(model.map_size(), model.map_size())), *others]
        )
    }
