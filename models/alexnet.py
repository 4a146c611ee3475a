"""AlexNet.

  Krizhevsky et al. 2012    ImageNet classification with deep convolutional neural networks (NIPS)    alexnet_original
  Krizhevsky 2014           One weird trick for parallelizing CNNs, arXiv 1404.5997                   alexnet

`alexnet_original` is the network of the paper's figure 2. Its two towers, which meet in conv3 and in the dense layers,
are convolutions with two groups, and it has local response normalization. Images have 227 x 227 pixels, which conv1
maps to the 55 x 55 positions of the figure. The paper's text says 224 pixels, but those do not give 55 positions.
`alexnet` is torchvision's network: one tower, fewer maps, no response normalization.

Dropout applies to the outputs of the hidden layers, as in the paper; torchvision applies it to their inputs. The paper
draws kernels with init="normal:0.01" and starts the biases of conv2, conv4, conv5 and the hidden layers at one; biases
here start at zero.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from models.errors import UserError, has_type
from models.layers.endpoint import Endpoint
from models.layers.ingredients import Classifier
from models.layers.pooling import adaptive_avg_pool, max_pool
from models.layers.regularize import Dropout
from models.weights.layouts import Layout, flattened

MAP_SIZE = 6  # height and width of the flattened map for images of any size; the paper's at 227 x 227


def local_response_norm(x: jax.Array, n: int, k: float, alpha: float) -> jax.Array:
    """Returns x / (k + alpha sum(x^2))^0.75, with the sum over the n channels around each (Krizhevsky 2012, eq. 1).

    alpha multiplies the sum, as in the paper. PyTorch's and Caffe's alpha is n times as large, because it multiplies
    the mean. x is [..., C]; sums and powers are float32 for any type of x.
    """
    x32 = x.astype(jnp.float32)
    window, ones = (1,) * (x.ndim - 1) + (n,), (1,) * x.ndim
    padding = ((0, 0),) * (x.ndim - 1) + ((n // 2, n - 1 - n // 2),)
    scale = lax.rsqrt(k + alpha * lax.reduce_window(jnp.square(x32), 0.0, lax.add, window, ones, padding))
    return (x32 * scale * jnp.sqrt(scale)).astype(x.dtype)  # s^-3/4 without a power, which is slower than the sum


class AlexNet(Classifier):
    """Five convolutions and three dense layers, with the fields of `Classifier` and those below.

    Endpoints: "conv1" to "conv5" (activations), "pool5", "pre_logits".

    Attributes:
      stem: Kernel size, stride and padding of conv1.
      convs: Channels of conv1 to conv5.
      groups: Groups of conv2, conv4 and conv5.
      local_response: n, k and alpha of `local_response_norm`, after the activations of conv1 and conv2; None disables
        it.
      classifier: Features of the dense layers before the head.
      dropout: Dropout rate after each of these layers.
    """

    norm: str | Callable = "none"
    image_size: int = 227
    stem: Sequence[int] = (11, 4, 0)
    convs: Sequence[int] = (96, 256, 384, 384, 256)
    groups: int = 2
    local_response: tuple[int, float, float] | None = (5, 2.0, 1e-4)  # Krizhevsky 2012, section 3.3
    classifier: Sequence[int] = (4096, 4096)
    dropout: float = 0.5

    def check(self) -> None:
        self._need_numbers("stem", (11, 4, 0), count=3, least=0)
        if 0 in self.stem[:2]:
            raise UserError(f"stem={self.stem} must be (kernel size, stride, padding), e.g. (11, 4, 0)")
        self._need_numbers("convs", (64, 192, 384, 256, 256), count=5)
        self._need_numbers("classifier", (4096, 4096), empty=True)
        self._need_at_least(1, "groups")
        self._need_rates("dropout")
        response = self.local_response
        if response is not None and (
            not isinstance(response, (tuple, list))
            or len(response) != 3
            or not has_type(response[0], int)
            or any(not has_type(value, float) or value <= 0 for value in response)
        ):
            raise UserError(f"local_response={response} must be (n, k, alpha), e.g. (5, 2.0, 1e-4), or None")

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [N, H, W, C] to logits [N, num_classes], float32; training may need the rng stream "dropout"."""
        layers = self.ingredients(train)

        def conv(i, x, size, stride=1, padding=None, groups=1):
            x = layers.conv(self.convs[i - 1], size, stride, padding=padding, groups=groups, name=f"conv{i}")(x)
            return Endpoint(f"conv{i}")(layers.act(layers.norm(name=f"norm{i}")(x)))

        def pool(x):  # windows overlap (section 3.4)
            return max_pool(x, 3, 2)

        def respond(x):
            return x if self.local_response is None else local_response_norm(x, *self.local_response)

        x = conv(1, images, *self.stem)
        x = conv(2, pool(respond(x)), 5, groups=self.groups)
        x = conv(3, pool(respond(x)), 3)
        x = conv(4, x, 3, groups=self.groups)
        x = conv(5, x, 3, groups=self.groups)
        x = Endpoint("pool5")(pool(x))
        x = jax.lax.collapse(adaptive_avg_pool(x, MAP_SIZE), 1)  # [N, H, W, C] -> [N, 36 C]
        for i, features in enumerate(self.classifier, 1):
            x = layers.act(layers.dense(features, name=f"hidden{i}")(x))
            x = Dropout(self.dropout, deterministic=not train)(x)
        x = Endpoint("pre_logits")(x)
        return layers.dense(self.num_classes, name="head")(x).astype(jnp.float32)


VARIANTS = {
    "alexnet_original": functools.partial(AlexNet),
    "alexnet": functools.partial(
        AlexNet, image_size=224, stem=(11, 4, 2), convs=(64, 192, 384, 256, 256), groups=1, local_response=None
    ),
}
_TORCHVISION = {
    "conv1": "features.0",
    "conv2": "features.3",
    "conv3": "features.6",
    "conv4": "features.8",
    "conv5": "features.10",
    "hidden1": "classifier.1",
    "hidden2": "classifier.4",
    "head": "classifier.6",
}
_CAFFE = {**{f"conv{i}": f"conv{i}" for i in range(1, 6)}, "hidden1": "fc6", "hidden2": "fc7", "head": "fc8"}


def layouts(model: AlexNet) -> dict[str, Layout]:
    """Returns torchvision's layout, and Caffe's with "weight" and "bias" for its blobs 0 and 1.

    Caffe's own weights expect another order of channels, other means, and local_response=(5, 1.0, 2e-5).
    """
    if model.norm != "none" or len(model.classifier) != 2:
        return {}

    def layout(names):
        return Layout(
            rules=[
                (ours, theirs, flattened(MAP_SIZE, MAP_SIZE)) if ours == "hidden1" else (ours, theirs)
                for ours, theirs in names.items()
            ]
        )

    torchvision = {} if model.local_response or model.groups > 1 else {"torchvision": layout(_TORCHVISION)}
    return {**torchvision, "caffe": layout(_CAFFE)}
