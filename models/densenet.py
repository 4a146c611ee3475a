"""Densely connected networks: Huang et al. 2017, arXiv 1608.06993, and their memory-efficient computation.

densenet121 ...         for ImageNet (table 1), with torchvision's layout
densenetL_kK            for CIFAR (section 3), with L layers that add K channels each
densenet_bcL_kK         the same with bottlenecks and compression
remat=True              Pleiss et al. 2017, arXiv 1707.06990
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from models.errors import UserError
from models.layers.endpoint import Endpoint
from models.layers.ingredients import Classifier, Ingredients
from models.layers.pooling import avg_pool, max_pool
from models.layers.regularize import Dropout
from models.weights.layouts import Layout

STEMS = ("imagenet", "cifar")
_KEPT = "output of a convolution"  # name of the activations that `remat` stores for the backward pass


class DenseLayer(nn.Module):
    """A layer that computes new channels [N, H, W, growth] from all earlier maps [N, H, W, C_i] (section 3).

    Normalization and activation precede each convolution: a 3x3 convolution, which with a `bottleneck` follows a 1x1
    convolution to `bottleneck` times `growth` channels. In training, `dropout` follows each convolution.
    """

    layers: Ingredients
    growth: int
    bottleneck: int
    dropout: float
    train: bool

    @nn.compact
    def __call__(self, features: Sequence[jax.Array]) -> jax.Array:
        conv, _, norm, act = self.layers
        sizes = [(self.bottleneck * self.growth, 1)] if self.bottleneck else []
        x = jnp.concatenate(features, -1)
        for i, (channels, size) in enumerate([*sizes, (self.growth, 3)], 1):
            x = conv(channels, size, name=f"conv{i}")(act(norm(name=f"norm{i}")(x)))
            x = Dropout(self.dropout, deterministic=not self.train)(checkpoint_name(x, _KEPT))
        return x


class DenseBlock(nn.Module):
    """A block of `size` layers, each an endpoint: maps [N, H, W, C] to [N, H, W, C + size growth]."""

    layer: functools.partial
    size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = [x]
        for i in range(self.size):
            features.append(Endpoint(f"layer{i}")(self.layer(name=f"layer{i}")(features)))
        return jnp.concatenate(features, -1)


class Transition(nn.Module):
    """A 1x1 convolution and a 2x2 mean between blocks: maps [N, H, W, C] to [N, H / 2, W / 2, features]."""

    layers: Ingredients
    features: int
    dropout: float
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, _, norm, act = self.layers
        x = conv(self.features, 1, name="conv")(act(norm(name="norm")(x)))
        return avg_pool(Dropout(self.dropout, deterministic=not self.train)(x), 2)


class DenseNet(Classifier):
    """Densely connected network, with the fields of `Classifier` and those below.

    Endpoints: "stem", "stage1", "stage1/layer0", ..., "last_map", "pre_logits".

    A stage is a dense block; the endpoint of a layer has only its new channels.

    Attributes:
      stage_sizes: Number of layers of each dense block.
      growth: Channels that each layer adds (the paper's k).
      stem: "imagenet": 7x7 with stride 2, normalization, activation and 3x3 max-pooling with stride 2; "cifar": 3x3.
      width: Channels of the stem.
      bottleneck: Channels of the 1x1 convolution in a layer, as a multiple of `growth`; 0 omits this convolution.
      compression: Channels after a transition, as a fraction of those before (the paper's theta).
      dropout: Dropout rate after each convolution except the stem's. The paper trains with 0.2 on CIFAR and SVHN
        without augmentation.
      remat: Whether the backward pass recomputes concatenations, normalizations and activations instead of storing
        them. A block of L layers then needs O(L) memory instead of O(L^2). Outputs of convolutions are stored.
    """

    stage_sizes: Sequence[int] = (6, 12, 24, 16)
    growth: int = 32
    stem: str = "imagenet"
    width: int = 64
    bottleneck: int = 4
    compression: float = 0.5
    dropout: float = 0.0
    remat: bool = False

    def check(self) -> None:
        self._need_choice("stem", STEMS)
        self._need_numbers("stage_sizes", (6, 12, 24, 16))
        self._need_at_least(1, "growth", "width")
        self._need_at_least(0, "bottleneck")
        self._need_rates("dropout")
        if not 0 < self.compression <= 1:
            raise UserError(f"compression={self.compression} must be above 0 and at most 1")
        if 0 in self._transitions():
            raise UserError(f"compression={self.compression} leaves no channels after a transition")

    def _transitions(self) -> list[int]:
        """Returns the channels after each transition, rounded down (section 3)."""
        channels = [self.width]
        for size in self.stage_sizes[:-1]:
            channels.append(int(self.compression * (channels[-1] + size * self.growth)))
        return channels[1:]

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [N, H, W, C] to logits [N, num_classes], float32; training may need the rng stream "dropout"."""
        layers = self.ingredients(train)
        noise = {"dropout": self.dropout, "train": train}
        kind = DenseLayer
        if self.remat:
            kind = nn.remat(kind, policy=jax.checkpoint_policies.save_only_these_names(_KEPT))
        layer = functools.partial(kind, layers, self.growth, self.bottleneck, **noise)
        x = self._stem(layers, images)
        for stage, size in enumerate(self.stage_sizes, 1):
            if stage > 1:
                features = self._transitions()[stage - 2]
                x = Transition(layers, features, **noise, name=f"transition{stage - 1}")(x)
            x = Endpoint(f"stage{stage}")(DenseBlock(layer, size, name=f"stage{stage}")(x))
        x = layers.act(layers.norm(name="final_norm")(x))
        x = Endpoint("pre_logits")(Endpoint("last_map")(x).mean((1, 2)))  # [N, H, W, C] -> [N, C]
        return layers.dense(self.num_classes, name="head")(x).astype(jnp.float32)

    def _stem(self, layers: Ingredients, images: jax.Array) -> jax.Array:
        if self.stem == "cifar":
            return Endpoint("stem")(layers.conv(self.width, 3, name="stem_conv")(images))
        x = layers.conv(self.width, 7, 2, name="stem_conv")(images)
        x = layers.act(layers.norm(name="stem_norm")(x))
        return Endpoint("stem")(max_pool(x, 3, 2, padding=1))


_net = functools.partial


def _cifar(per_block: int, growth: int, **fields) -> functools.partial:
    """Returns a network for CIFAR with three blocks (section 3).

    The stem has 16 channels, or 2k in networks with bottlenecks and compression.
    """
    return _net(
        DenseNet, stage_sizes=(per_block,) * 3, growth=growth, stem="cifar", num_classes=10, image_size=32, **fields
    )


VARIANTS = {
    # Table 1; 161, of growth 48, is torchvision's.
    "densenet121": _net(DenseNet),
    "densenet161": _net(DenseNet, stage_sizes=(6, 12, 36, 24), growth=48, width=96),
    "densenet169": _net(DenseNet, stage_sizes=(6, 12, 32, 32)),
    "densenet201": _net(DenseNet, stage_sizes=(6, 12, 48, 32)),
    "densenet264": _net(DenseNet, stage_sizes=(6, 12, 64, 48)),
    # Table 2. Four of the L layers are the stem, two transitions and the head.
    **{
        f"densenet{depth}_k{k}": _cifar((depth - 4) // 3, k, width=16, bottleneck=0, compression=1.0)
        for depth, k in ((40, 12), (100, 12), (100, 24))
    },
    **{
        f"densenet_bc{depth}_k{k}": _cifar((depth - 4) // 6, k, width=2 * k)
        for depth, k in ((100, 12), (250, 24), (190, 40))
    },
}


def layouts(model: DenseNet) -> dict[str, Layout]:
    """Returns the layouts of torchvision and timm, which agree, for networks with their stem and bottlenecks."""
    if model.stem != "imagenet" or not model.bottleneck:
        return {}
    layout = Layout(
        rules=[
            ("stem_conv", "features.conv0"),
            ("stem_norm", "features.norm0"),
            (r"stage(\d+)/layer(\d+)/(\w+)", lambda m: f"features.denseblock{m[1]}.denselayer{int(m[2]) + 1}.{m[3]}"),
            (r"transition(\d+)/(\w+)", r"features.transition\1.\2"),
            ("final_norm", "features.norm5"),
            ("head", "classifier"),
        ]
    )
    return {"torchvision": layout, "timm": layout}
