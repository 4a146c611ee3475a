"""ConvNeXt: Liu et al. 2022, A ConvNet for the 2020s, arXiv 2201.03545.

Padding, epsilons and the places of biases are those of the authors' code, of torchvision and of timm.
models/convnext_ladder.py has the networks between ResNet-50 and ConvNeXt-T.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.errors import UserError
from models.layers.endpoint import Endpoint
from models.layers.ingredients import Classifier, Ingredients
from models.layers.regularize import StochasticDepth, drop_rates
from models.weights.layouts import TRAILING_ONES, Layout

EPSILON = 1e-6  # of the normalization, in the authors' code
EXPANSION = 4  # channels inside of a block per channel of its input; section 2.4


class Block(nn.Module):
    """One unit: x [N, H, W, C] -> x + scale * reduce(act(expand(norm(depthwise(x))))), of the same shape (fig. 4).

    Attributes:
      layers: constructors of the ingredients.
      kernel_size: of the depthwise convolution.
      layer_scale: see ConvNeXt.
      drop_branch: probability of dropping the branch of an example.
      train: whether that acts.
    """

    layers: Ingredients
    kernel_size: int
    layer_scale: float
    drop_branch: float
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, dense, norm, act = self.layers
        channels = x.shape[-1]
        y = conv(channels, self.kernel_size, groups=channels, use_bias=True, name="depthwise")(x)
        y = dense(EXPANSION * channels, name="expand")(norm(name="norm")(y))  # [N, H, W, 4 C]
        y = dense(channels, name="reduce")(act(y))
        if self.layer_scale:
            start = nn.initializers.constant(self.layer_scale)
            y = y * self.param("layer_scale", start, (channels,), jnp.float32).astype(y.dtype)
        return x + StochasticDepth(self.drop_branch, deterministic=not self.train)(y)


class Stage(nn.Module):
    """With `features` not 0, halves the resolution to so many channels (section 2.6); then blocks, each an endpoint."""

    layers: Ingredients
    features: int
    blocks: Sequence[Callable]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.features:
            x = self.layers.norm(name="downsample_norm")(x)
            x = self.layers.conv(self.features, 2, 2, padding=0, use_bias=True, name="downsample_conv")(x)
        for i, block in enumerate(self.blocks):
            x = Endpoint(f"block{i}")(block(name=f"block{i}")(x))
        return x


class ConvNeXt(Classifier):
    """The fields of `Classifier`, and these. Endpoints: "stem", "stage1", "stage1/block0", ..., "pre_logits".

    Attributes:
      stage_sizes: blocks of each stage; each stage but the first halves the resolution, and has twice the channels.
      width: channels of the stem, and of the first stage.
      kernel_size: of the depthwise convolutions.
      layer_scale: first value of the learned factor, one for each channel, on every branch (Touvron et al. 2021, arXiv
        2103.17239); 0: no such factor.
      stochastic_depth: probability of dropping the last block's branch, growing linearly to it from 0 for the first.
        The paper trains with 0.1, 0.4, 0.5, 0.5 for T, S, B, L (table 5).
      remat: whether blocks are computed again for the gradient, instead of kept.
    """

    norm: str | Callable = "channel"
    act: str | Callable = "gelu"
    kernel_init: str | Callable = "truncated_normal:0.02"
    stage_sizes: Sequence[int] = (3, 3, 9, 3)
    width: int = 96
    kernel_size: int = 7
    layer_scale: float = 1e-6
    stochastic_depth: float = 0.0
    remat: bool = False

    def check(self) -> None:
        self._need_numbers("stage_sizes", (3, 3, 9, 3))
        self._need_at_least(1, "width")
        self._need_rates("stochastic_depth")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise UserError(f"kernel_size={self.kernel_size} must be odd, so that blocks keep the resolution")
        if self.layer_scale < 0:
            raise UserError(f"layer_scale={self.layer_scale} must be positive, or 0 for none")

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Images [N, H, W, C] -> logits [N, num_classes], float32; rng stream "dropout" where training needs it."""
        layers = self.ingredients(train)
        layers = layers._replace(norm=functools.partial(layers.norm, epsilon=EPSILON))
        x = layers.conv(self.width, 4, 4, padding=0, use_bias=True, name="stem_conv")(images)
        x = Endpoint("stem")(layers.norm(name="stem_norm")(x))  # [N, H / 4, W / 4, width]
        block = functools.partial(
            nn.remat(Block) if self.remat else Block, layers, self.kernel_size, self.layer_scale, train=train
        )
        for stage, rates in enumerate(drop_rates(self.stochastic_depth, self.stage_sizes)):
            blocks = [functools.partial(block, drop_branch=rate) for rate in rates]
            features = self.width * 2**stage if stage else 0
            x = Endpoint(f"stage{stage + 1}")(Stage(layers, features, blocks, name=f"stage{stage + 1}")(x))
        x = layers.norm(name="final_norm")(x.mean((1, 2)))  # [N, H, W, C] -> [N, C]
        return layers.dense(self.num_classes, name="head")(Endpoint("pre_logits")(x)).astype(jnp.float32)


_net = functools.partial
VARIANTS = {  # section 3
    "convnext_tiny": _net(ConvNeXt),
    "convnext_small": _net(ConvNeXt, stage_sizes=(3, 3, 27, 3)),
    "convnext_base": _net(ConvNeXt, stage_sizes=(3, 3, 27, 3), width=128),
    "convnext_large": _net(ConvNeXt, stage_sizes=(3, 3, 27, 3), width=192),
    "convnext_xlarge": _net(ConvNeXt, stage_sizes=(3, 3, 27, 3), width=256),
}


def layouts(model: ConvNeXt) -> dict[str, Layout]:
    """torchvision's, of networks with layer scale, and timm's."""
    block = r"stage(\d)/block(\d+)/"

    def features(place: int, name: str):  # torchvision counts the stem, stages and what is between them together
        return lambda match: f"features.{2 * int(match[1]) + place}.{name}".replace("#", match[match.re.groups])

    torchvision = Layout(
        rules=[
            ("stem_conv", "features.0.0"),
            ("stem_norm", "features.0.1"),
            (r"stage(\d)/downsample_norm", features(-2, "0")),
            (r"stage(\d)/downsample_conv", features(-2, "1")),
            (f"{block}depthwise", features(-1, "#.block.0")),
            (f"{block}norm", features(-1, "#.block.2")),
            (f"{block}expand", features(-1, "#.block.3")),
            (f"{block}reduce", features(-1, "#.block.5")),
            (f"{block}layer_scale", features(-1, "#.layer_scale"), TRAILING_ONES),
            ("final_norm", "classifier.0"),
            ("head", "classifier.2"),
        ]
    )

    def stages(name: str):  # timm counts them from 0
        return lambda match: f"stages.{int(match[1]) - 1}.{name}".replace("#", match[match.re.groups])

    timm = Layout(
        rules=[
            ("stem_conv", "stem.0"),
            ("stem_norm", "stem.1"),
            (r"stage(\d)/downsample_norm", stages("downsample.0")),
            (r"stage(\d)/downsample_conv", stages("downsample.1")),
            (f"{block}depthwise", stages("blocks.#.conv_dw")),
            (f"{block}norm", stages("blocks.#.norm")),
            (f"{block}expand", stages("blocks.#.mlp.fc1")),
            (f"{block}reduce", stages("blocks.#.mlp.fc2")),
            (f"{block}layer_scale", stages("blocks.#.gamma")),
            ("final_norm", "head.norm"),
            ("head", "head.fc"),
        ]
    )
    return {"torchvision": torchvision, "timm": timm} if model.layer_scale else {"timm": timm}
