"""ConvNeXt: Liu et al. 2022, A ConvNet for the 2020s, arXiv 2201.03545.

Padding, epsilons and biases follow the authors' code, which torchvision and timm share.
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
from models.layers.stage import Stage, mlp
from models.weights.layouts import TRAILING_ONES, Layout

EPSILON = 1e-6  # of the normalization, as in the authors' code
EXPANSION = 4  # ratio of the hidden channels of a block to its input channels; section 2.4


class Block(nn.Module):
    """A block (fig. 4): maps x [N, H, W, C] to x + scale * reduce(act(expand(norm(depthwise(x))))), of the same shape.

    Attributes:
      layers: Constructors of the ingredients.
      kernel_size: Kernel size of the depthwise convolution.
      layer_scale: See ConvNeXt.
      drop_branch: Probability, per example, of dropping the branch in training.
      train: Whether this is a training step.
    """

    layers: Ingredients
    kernel_size: int
    layer_scale: float
    drop_branch: float
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        y = self.layers.conv(channels, self.kernel_size, groups=channels, use_bias=True, name="depthwise")(x)
        y = mlp(self.layers, self.layers.norm(name="norm")(y), EXPANSION * channels)
        if self.layer_scale:
            start = nn.initializers.constant(self.layer_scale)
            y = y * self.param("layer_scale", start, (channels,), jnp.float32).astype(y.dtype)
        return x + StochasticDepth(self.drop_branch, deterministic=not self.train)(y)


def downsample(norm: Callable, conv: Callable, features: int, x: jax.Array) -> jax.Array:
    """Halves the resolution between stages (section 2.6): [N, H, W, C] -> [N, H / 2, W / 2, features]."""
    return conv(features, 2, 2, padding=0, name="downsample_conv")(norm(name="downsample_norm")(x))


class ConvNeXt(Classifier):
    """ConvNeXt, with the fields of `Classifier` and those below.

    Endpoints: "stem", "stage1", "stage1/block0", ..., "pre_logits".

    Attributes:
      stage_sizes: Number of blocks of each stage; each stage after the first halves the resolution and doubles the
        channels.
      width: Channels of the stem and of the first stage.
      kernel_size: Kernel size of the depthwise convolutions.
      layer_scale: Initial value of the learned per-channel factor on every branch (Touvron et al. 2021, arXiv
        2103.17239); 0 disables the factor.
      stochastic_depth: Probability of dropping the last block's branch. It grows linearly from 0 for the first block.
        The paper trains with 0.1, 0.4, 0.5, 0.5 for T, S, B, L (table 5).
      remat: Whether the backward pass recomputes the activations inside blocks instead of storing them.
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
        """Maps images [N, H, W, C] to logits [N, num_classes], float32; training may need the rng stream "dropout"."""
        layers = self.ingredients(train)
        layers = layers._replace(norm=functools.partial(layers.norm, epsilon=EPSILON))
        x = layers.conv(self.width, 4, 4, padding=0, use_bias=True, name="stem_conv")(images)
        x = Endpoint("stem")(layers.norm(name="stem_norm")(x))  # [N, H / 4, W / 4, width]
        block = functools.partial(
            nn.remat(Block) if self.remat else Block, layers, self.kernel_size, self.layer_scale, train=train
        )
        for stage, rates in enumerate(drop_rates(self.stochastic_depth, self.stage_sizes)):
            blocks = [functools.partial(block, drop_branch=rate) for rate in rates]
            conv, features = functools.partial(layers.conv, use_bias=True), self.width * 2**stage
            transition = functools.partial(downsample, layers.norm, conv, features) if stage else None
            x = Endpoint(f"stage{stage + 1}")(Stage(blocks, transition, name=f"stage{stage + 1}")(x))
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
    """Returns the layouts of torchvision (with layer scale only) and timm."""
    block = r"stage(\d)/block(\d+)/"

    def features(place: int, name: str):  # torchvision numbers the stem, the stages and the transitions consecutively
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

    def stages(name: str):  # timm counts stages from 0
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
