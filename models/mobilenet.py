"""MobileNets: depthwise separable convolutions, and inverted residuals.

  Howard et al. 2017     MobileNets, arXiv 1704.04861                                  mobilenet_v1*
  Sandler et al. 2018    MobileNetV2, inverted residuals and linear bottlenecks,
                         arXiv 1801.04381                                              mobilenet_v2*

The layout is that of timm and torchvision: padding k // 2, and ReLU6 in both versions, as in the authors' code (the
text of the first paper says ReLU). The authors' own weights need TensorFlow's padding and epsilon, padding="tf" and
norm_epsilon=1e-3.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.errors import UserError, has_type
from models.layers.endpoint import Endpoint
from models.layers.ingredients import Classifier, Ingredients
from models.layers.regularize import Dropout
from models.layers.stage import Stage
from models.weights.layouts import Layout

PADDINGS = ("symmetric", "tf")
V2_STAGES = ((16, 1), (24, 2), (32, 2), (64, 2), (96, 1), (160, 2), (320, 1))  # channels, stride: Sandler 2018, table 2


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Rounds to the nearest positive multiple of `divisor` that is at least 0.9 `channels`, as in the authors' code."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


class Separable(nn.Module):
    """A depthwise separable 3x3 convolution (Howard 2017, fig. 3), or an ordinary one if `separable` is False.

    Maps x [N, H, W, C] to [N, H / stride, W / stride, features].
    """

    layers: Ingredients
    features: int
    stride: int
    separable: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, _, norm, act = self.layers
        if not self.separable:
            return act(norm(name="conv_norm")(conv(self.features, 3, self.stride, name="conv")(x)))
        x = conv(x.shape[-1], 3, self.stride, groups=x.shape[-1], name="depthwise")(x)
        x = act(norm(name="depthwise_norm")(x))
        x = conv(self.features, 1, name="pointwise")(x)
        return act(norm(name="pointwise_norm")(x))


class InvertedResidual(nn.Module):
    """An inverted residual block: wide inside, with a shortcut between narrow ends (Sandler 2018, table 1, fig. 3b).

    Maps x [N, H, W, C] to [N, H / stride, W / stride, features]. The branch is a 1x1 convolution to `expansion` C
    channels (omitted for expansion 1), a depthwise convolution, and a 1x1 convolution to `features`.

    Attributes:
      layers: Constructors of the ingredients.
      features: Channels of the output.
      stride: Stride of the depthwise convolution.
      expansion: Ratio of the hidden channels to the input channels.
      linear: Whether the last convolution has no activation.
      shortcut: Whether there is a shortcut if the shapes of input and output agree.
      kernel_size: Kernel size of the depthwise convolution.
    """

    layers: Ingredients
    features: int
    stride: int
    expansion: int
    linear: bool
    shortcut: bool
    kernel_size: int = 3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, _, norm, act = self.layers
        inner, y = x.shape[-1] * self.expansion, x
        if self.expansion != 1:
            y = act(norm(name="expand_norm")(conv(inner, 1, name="expand")(y)))
        y = conv(y.shape[-1], self.kernel_size, self.stride, groups=y.shape[-1], name="depthwise")(y)
        y = act(norm(name="depthwise_norm")(y))
        y = norm(name="project_norm")(conv(self.features, 1, name="project")(y))
        y = y if self.linear else act(y)
        return x + y if self.shortcut and x.shape == y.shape else y


def _stage(block: Callable, size: int, stride: int, name: str) -> Stage:
    """Returns a stage of `size` blocks, the first of which has the stride."""
    return Stage([functools.partial(block, stride=stride if i == 0 else 1) for i in range(size)], name=name)


class MobileNet(Classifier):
    """Base of all versions, with the fields of `Classifier` and those below.

    Endpoints: "stem", "stage1", "stage1/block0", ..., "last_map", "pre_logits".

    Attributes:
      stage_sizes: Number of blocks of each stage.
      width_multiplier: Factor on the channels of every layer, which are then rounded to multiples of 8.
      dropout: Dropout rate before the head.
      padding: "symmetric" pads convolutions by k // 2, "tf" as TensorFlow's "SAME" does, by an amount that depends on
        the size of the map and is unequal on two sides where the stride is 2 and the size even.
      norm_epsilon: Number that normalization adds to the variance; None is the norm's own, 1e-5 for "batch".
    """

    act: str | Callable = "relu6"
    stage_sizes: Sequence[int] = ()
    width_multiplier: float = 1.0
    dropout: float = 0.0
    padding: str = "symmetric"
    norm_epsilon: float | None = None

    def check(self) -> None:
        self._need_numbers("stage_sizes", (1, 2, 2, 6, 2))
        self._need_rates("dropout")
        self._need_choice("padding", PADDINGS)
        if self.norm_epsilon is not None and not (has_type(self.norm_epsilon, float) and self.norm_epsilon > 0):
            raise UserError(f"norm_epsilon={self.norm_epsilon} must be a number above 0, e.g. 1e-3")
        if self.width_multiplier <= 0:
            raise UserError(f"width_multiplier={self.width_multiplier} must be above 0")

    def ingredients(self, train: bool) -> Ingredients:
        """Resolves the fields for one forward pass."""
        layers = super().ingredients(train)
        if self.padding == "tf":
            layers = layers._replace(conv=functools.partial(layers.conv, padding="tf"))
        if self.norm_epsilon is not None:
            layers = layers._replace(norm=functools.partial(layers.norm, epsilon=self.norm_epsilon))
        return layers

    def _channels(self, channels: int) -> int:
        """Returns the channels of a layer that has `channels` at width 1."""
        return make_divisible(channels * self.width_multiplier)

    def _stem_channels(self) -> int:
        return self._channels(32)

    def _stem(self, layers: Ingredients, images: jax.Array) -> jax.Array:
        """Maps [N, H, W, C] to [N, H / 2, W / 2, 32 width_multiplier]."""
        x = layers.conv(self._stem_channels(), 3, 2, name="stem_conv")(images)
        return Endpoint("stem")(layers.act(layers.norm(name="stem_norm")(x)))

    def _head(self, layers: Ingredients, x: jax.Array, train: bool) -> jax.Array:
        """Maps [N, H, W, C] to logits [N, num_classes], float32."""
        x = Endpoint("pre_logits")(Endpoint("last_map")(x).mean((1, 2)))
        x = Dropout(self.dropout, deterministic=not train)(x)
        return layers.dense(self.num_classes, name="head")(x).astype(jnp.float32)


class MobileNetV1(MobileNet):
    """Stages of separable convolutions (Howard 2017, table 1), with the fields of `MobileNet` and the one below.

    The first stage keeps the stem's resolution. Each later one halves it and doubles the channels.

    Attributes:
      separable: Whether the convolutions are separable; False gives the "Conv MobileNet" of table 4.
    """

    stage_sizes: Sequence[int] = (1, 2, 2, 6, 2)
    separable: bool = True

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [N, H, W, C] to logits [N, num_classes], float32; training may need the rng stream "dropout"."""
        layers = self.ingredients(train)
        x = self._stem(layers, images)
        for stage, size in enumerate(self.stage_sizes):
            block = functools.partial(Separable, layers, self._channels(64 * 2**stage), separable=self.separable)
            x = _stage(block, size, 1 if stage == 0 else 2, f"stage{stage + 1}")(x)
            x = Endpoint(f"stage{stage + 1}")(x)
        return self._head(layers, x, train)


class MobileNetV2(MobileNet):
    """Stages of inverted residuals (Sandler 2018, table 2), then a 1x1 convolution to 1280 channels.

    It has the fields of `MobileNet` and those below. A `width_multiplier` below 1 does not reduce the 1280 channels.

    Attributes:
      expansion: Expansion of all blocks after the first stage, whose blocks have 1.
      linear: Whether the narrow ends have no activation (section 3.2, fig. 6a).
      shortcut: Whether blocks have shortcuts if shapes allow them (fig. 6b).
    """

    stage_sizes: Sequence[int] = (1, 2, 3, 4, 3, 3, 1)
    dropout: float = 0.2
    expansion: int = 6
    linear: bool = True
    shortcut: bool = True

    def check(self) -> None:
        super().check()
        if len(self.stage_sizes) > len(V2_STAGES):
            raise UserError(f"stage_sizes={self.stage_sizes} must have at most {len(V2_STAGES)} stages")
        self._need_at_least(1, "expansion")

    def _stages(self) -> Sequence[tuple[int, int, int]]:
        """Returns channels at width 1, stride and kernel size of each stage."""
        return [(channels, stride, 3) for channels, stride in V2_STAGES]

    def _last_channels(self) -> int:
        return make_divisible(1280 * max(1.0, self.width_multiplier))

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [N, H, W, C] to logits [N, num_classes], float32; training may need the rng stream "dropout"."""
        layers = self.ingredients(train)
        x = self._stem(layers, images)
        for stage, (size, row) in enumerate(zip(self.stage_sizes, self._stages(), strict=False), 1):
            channels, stride, kernel_size = row
            block = functools.partial(
                InvertedResidual,
                layers,
                self._channels(channels),
                expansion=1 if stage == 1 else self.expansion,
                linear=self.linear,
                shortcut=self.shortcut,
                kernel_size=kernel_size,
            )
            x = Endpoint(f"stage{stage}")(_stage(block, size, stride, f"stage{stage}")(x))
        x = layers.conv(self._last_channels(), 1, name="last_conv")(x)
        x = layers.act(layers.norm(name="last_norm")(x))
        return self._head(layers, x, train)


_v1, _v2 = functools.partial(MobileNetV1), functools.partial(MobileNetV2)
VARIANTS = {
    "mobilenet_v1": _v1,
    **{
        f"mobilenet_v1_{round(100 * width):03}": functools.partial(_v1, width_multiplier=width)
        for width in (0.25, 0.5, 0.75)
    },
    "mobilenet_v1_conv": functools.partial(_v1, separable=False),  # Howard 2017, table 4
    "mobilenet_v1_shallow": functools.partial(_v1, stage_sizes=(1, 2, 2, 1, 2)),  # Howard 2017, table 5
    "mobilenet_v2": _v2,
    **{
        f"mobilenet_v2_{round(100 * width):03}": functools.partial(_v2, width_multiplier=width)
        for width in (0.35, 0.5, 0.75, 1.3, 1.4)
    },
}
# Names of the layers of a block in torchvision's and timm's layouts; blocks of the first stage do not expand.
_FIRST_STAGE = {
    "depthwise": ("0.0", "conv_dw"),
    "depthwise_norm": ("0.1", "bn1"),
    "project": ("1", "conv_pw"),
    "project_norm": ("2", "bn2"),
}
_OTHER_STAGES = {
    "expand": ("0.0", "conv_pw"),
    "expand_norm": ("0.1", "bn1"),
    "depthwise": ("1.0", "conv_dw"),
    "depthwise_norm": ("1.1", "bn2"),
    "project": ("2", "conv_pwl"),
    "project_norm": ("3", "bn3"),
}
_SEPARABLE = {"depthwise": "conv_dw", "depthwise_norm": "bn1", "pointwise": "conv_pw", "pointwise_norm": "bn2"}


def layouts(model: MobileNet) -> dict[str, Layout]:
    """Returns timm's layout, and torchvision's for the second version; none for networks that these do not have.

    torchvision has no TensorFlow padding.
    """

    def timm(rules):
        return Layout(
            rules=[
                ("stem_conv", "conv_stem"),
                ("stem_norm", "bn1"),
                ("last_conv", "conv_head"),
                ("last_norm", "bn2"),
                ("head", "classifier"),
                *rules,
            ]
        )

    def timm_block(layer):
        return lambda match: f"blocks.{int(match[1]) - 1}.{match[2]}.{layer}"

    if isinstance(model, MobileNetV1):
        rules = [(rf"stage(\d+)/block(\d+)/{ours}", timm_block(theirs)) for ours, theirs in _SEPARABLE.items()]
        return {"timm": timm(rules)} if model.separable else {}
    if model.expansion == 1 or not model.linear:
        return {}

    def features(layer):
        return lambda match: f"features.{1 + sum(model.stage_sizes[: int(match[1]) - 1]) + int(match[2])}.conv.{layer}"

    blocks = [
        (rf"stage({stages})/block(\d+)/{ours}", theirs)
        for stages, layers in (("1", _FIRST_STAGE), (r"\d+", _OTHER_STAGES))
        for ours, theirs in layers.items()
    ]
    by_timm = {"timm": timm([(pattern, timm_block(layer)) for pattern, (_, layer) in blocks])}
    if model.padding == "tf" or model.norm_epsilon is not None:
        return by_timm
    last = f"features.{1 + sum(model.stage_sizes)}"
    return {
        "torchvision": Layout(
            rules=[
                ("stem_conv", "features.0.0"),
                ("stem_norm", "features.0.1"),
                ("last_conv", f"{last}.0"),
                ("last_norm", f"{last}.1"),
                ("head", "classifier.1"),
                *((pattern, features(layer)) for pattern, (layer, _) in blocks),
            ]
        ),
        **by_timm,
    }
