"""Residual networks, and the plain networks to compare them with.

  He et al. 2016       Deep residual learning for image recognition, arXiv 1512.03385       plain*, resnet*
  He et al. 2016b      Identity mappings in deep residual networks, arXiv 1603.05027        preresnet*
  Zagoruyko 2016       Wide residual networks, arXiv 1605.07146                             wide_resnet*
  Xie et al. 2017      Aggregated residual transformations, arXiv 1611.05431                resnext*
  Kolesnikov 2020      Big transfer (BiT), arXiv 1912.11370                                 resnetv2_*_bit
  Huang et al. 2016    Deep networks with stochastic depth, arXiv 1603.09382                stochastic_depth=
  Goyal et al. 2017    Accurate, large minibatch SGD, arXiv 1706.02677, section 5.1         zero_gamma=True

ImageNet networks have torchvision's layout: padding k // 2, and the stride of a bottleneck in its 3x3 ("v1.5").
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from models.errors import UserError
from models.layers.conditional import compacted
from models.layers.endpoint import Endpoint
from models.layers.ingredients import Classifier, Ingredients
from models.layers.pooling import max_pool
from models.layers.regularize import Dropout, StochasticDepth
from models.layers.stage import Stage, apply_block
from models.weights.layouts import DENSE_AS_CONV, SAME, Conversion, Layout

CHOICES = {
    "stem": ("imagenet", "cifar", "bit"),
    "shortcut": ("A", "A_both", "B", "C", "none"),
    "stride_in": ("3x3", "1x1"),
}
EXPANSION = 4  # ratio of the output channels of a bottleneck to its inner channels; He 2016, table 1
_ones, _zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()


class Block(nn.Module):
    """A block: maps x [N, H, W, C] to shortcut(x) + branch(x), [N, H / stride, W / stride, features].

    The branch has two 3x3 convolutions, or with `bottleneck` 1x1, 3x3 and 1x1 convolutions. Normalization and
    activation follow each convolution, and the last activation follows the sum (He 2016, fig. 2 and 5). With `preact`
    they precede each convolution (He 2016b, fig. 1b).

    Attributes:
      layers: Constructors of the ingredients.
      features: Channels of the output.
      inner: Channels between the convolutions.
      stride: Stride of the first 3x3; in a bottleneck, of the convolution that `stride_in` names.
      groups: Groups of a bottleneck's 3x3.
      shortcut: See ResNet.
      preact_first: Whether a preact block normalizes and activates its input; False if the stem has done so.
      zero: Parameter that starts at zero so that the branch does: "scale" (of the last norm), "kernel" (of the last
        convolution) or "" for none.
      dropout: Dropout rate before the last convolution (Zagoruyko 2016, section 2.4).
      drop_branch: Probability, per example, of dropping the branch in training.
      train: Whether this is a training step.
      gate: Constructor of a module that decides from x which examples need the branch (gated.py).
    """

    layers: Ingredients
    features: int
    inner: int
    stride: int
    bottleneck: bool
    groups: int
    stride_in: str
    shortcut: str
    preact: bool
    preact_first: bool
    zero: str
    dropout: float
    drop_branch: float
    train: bool
    gate: Callable | None = None

    @nn.compact
    def __call__(self, x: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        """Computes the block.

        Args:
          x: [N, H, W, C].
          keep: [N], 1 for the examples that need the branch, 0 for others; None lets the gate decide, if there is one,
            or computes the branch for all.
        """
        _, _, norm, act = self.layers
        source = act(norm(name="norm1")(x)) if self.preact and self.preact_first else x
        if keep is None and self.gate is not None:
            keep = self.gate(name="gate")(x)
        if self.shortcut == "none":
            y = self._branch(source)
        elif keep is None:
            y = self._branch(source)
            y = self._shortcut(x, source) + StochasticDepth(self.drop_branch, deterministic=not self.train)(y)
        else:
            keep = Endpoint("gate")(keep)
            y = self._shortcut(x, source)
            if self.train:
                drop = StochasticDepth(self.drop_branch, deterministic=False)
                y += drop(self._branch(source)) * keep[:, None, None, None].astype(y.dtype)
            else:
                y = compacted(Block._added, self, keep > 0, (source, y), y)
        return y if self.preact else act(y)

    def _added(self, inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
        source, shortcut = inputs
        return shortcut + self._branch(source)

    def _branch(self, y: jax.Array) -> jax.Array:
        """Applies the residual branch. With `preact`, the input is already normalized and activated."""
        conv, _, norm, act = self.layers
        if self.bottleneck:
            strides = (self.stride, 1) if self.stride_in == "1x1" else (1, self.stride)
            middle = (self.inner, 3, strides[1], self.groups)
            branch = [(self.inner, 1, strides[0], 1), middle, (self.features, 1, 1, 1)]
        else:
            branch = [(self.inner, 3, self.stride, 1), (self.features, 3, 1, 1)]
        for i, (features, size, stride, groups) in enumerate(branch, 1):
            last = i == len(branch)
            if self.preact and i > 1:
                y = act(norm(name=f"norm{i}")(y))
            if last:
                y = Dropout(self.dropout, deterministic=not self.train)(y)
            zero = {"kernel_init": _zeros} if last and self.zero == "kernel" else {}
            y = conv(features, size, stride, groups=groups, name=f"conv{i}", **zero)(y)
            if not self.preact:
                y = norm(name=f"norm{i}", scale_init=_zeros if last and self.zero == "scale" else _ones)(y)
                y = y if last else act(y)
        return y

    def _shortcut(self, x: jax.Array, source: jax.Array) -> jax.Array:
        """Applies the shortcut (He 2016, section 4.1).

        Projections of preact blocks start from the activated input (He 2016b, appendix).
        """
        conv, _, norm, _ = self.layers
        changes = self.stride != 1 or x.shape[-1] != self.features
        if self.shortcut == "C" or (self.shortcut == "B" and changes):
            x = conv(self.features, 1, self.stride, name="downsample_conv")(source)
            return x if self.preact else norm(name="downsample_norm")(x)
        if changes:
            for axis in (1, 2):  # [N, H, W, C] -> [N, H / stride, W / stride, C]; x[:, ::2] exports as a gather
                x = lax.slice_in_dim(x, 0, None, self.stride, axis)
            new = self.features - x.shape[-1]
            before = new // 2 if self.shortcut == "A_both" else 0
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, new - before)))
        return x


class ResNet(Classifier):
    """Plain and residual networks of He et al. and their descendants.

    It has the fields of `Classifier` and those below.
    Endpoints: "stem", "stage1", "stage1/block0", ..., "last_map" (the averaged map), "pre_logits".
    `kernel_init` initializes every kernel, including the head's. (torchvision's head starts from another distribution,
    Goyal 2017's from normal:0.01.)

    Attributes:
      stage_sizes: Number of blocks of each stage; each stage after the first halves the resolution and doubles the
        channels.
      bottleneck: Whether blocks are 1x1, 3x3, 1x1 convolutions instead of two 3x3.
      stem: "imagenet": 7x7 with stride 2 and 3x3 max-pooling with stride 2; "cifar": 3x3; "bit": like "imagenet", for
        preact networks, but the first block normalizes, and pooling pads with zeros.
      width: Channels of the stem and of the first stage (inside, for bottlenecks).
      widen: Factor on the channels of the stages, not of the stem (Zagoruyko's k).
      groups, base_width: Groups of a bottleneck's 3x3, and channels per group in the first stage if width is 64.
        ResNeXt's 32x4d has 32 and 4, a wide_resnet50_2 has 1 and 128.
      stride_in: Convolution of a bottleneck that has its stride, "3x3", or "1x1" as in He 2016.
      shortcut: He 2016, section 4.1. "A": subsampling, zeros for new channels, no parameters; "A_both": the same with
        half of the zeros before the channels, as in akamaster's networks, which is another order of the channels; "B":
        projections where shapes change; "C": projections everywhere; "none": a plain network.
      preact: Puts normalization and activation before each convolution (He 2016b).
      zero_gamma: Starts residual branches at zero, by the scale of their last normalization, or by their last kernel
        if no normalization follows it (preact=True, norm="none").
      stochastic_depth: Probability of dropping the last block's branch. It grows linearly with the number of the block,
        from the first block on.
      dropout: Dropout rate between the convolutions of a block.
      remat: Whether the backward pass recomputes the activations inside blocks instead of storing them.
    """

    stage_sizes: Sequence[int] = (2, 2, 2, 2)
    bottleneck: bool = False
    stem: str = "imagenet"
    width: int = 64
    widen: int = 1
    groups: int = 1
    base_width: int = 64
    stride_in: str = "3x3"
    shortcut: str = "B"
    preact: bool = False
    zero_gamma: bool = False
    stochastic_depth: float = 0.0
    dropout: float = 0.0
    remat: bool = False

    def check(self) -> None:
        for field, allowed in CHOICES.items():
            self._need_choice(field, allowed)
        self._need_rates("stochastic_depth", "dropout")
        self._need_numbers("stage_sizes", (2, 2, 2, 2))
        self._need_at_least(1, "width", "widen", "groups", "base_width")
        if self.stem == "bit" and not self.preact:
            raise UserError("stem='bit' has no normalization of its own and needs preact=True")
        if not self.bottleneck and (self.groups, self.base_width, self.stride_in) != (1, 64, "3x3"):
            raise UserError("groups, base_width and stride_in need bottleneck=True")
        if self.shortcut == "none" and (self.zero_gamma or self.stochastic_depth):
            raise UserError("zero_gamma and stochastic_depth need a network with shortcuts")
        if self._inner(0) < 1:
            raise UserError(f"width={self.width} with base_width={self.base_width} leaves no channels in a bottleneck")

    @property
    def blocks(self) -> tuple[str, ...]:
        """The names of all blocks, in order: "stage1/block0", ...."""
        return tuple(f"stage{stage}/block{i}" for stage, size in enumerate(self.stage_sizes, 1) for i in range(size))

    def _planes(self, stage: int) -> int:
        return self.width * self.widen * 2**stage

    def _inner(self, stage: int) -> int:
        return self._planes(stage) * self.base_width // 64 * self.groups

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [N, H, W, C] to logits [N, num_classes], float32; training may need the rng stream "dropout"."""
        return self._forward(self.ingredients(train), images, train)

    def _forward(
        self,
        layers: Ingredients,
        images: jax.Array,
        train: bool,
        visit: Callable = apply_block,
        gates: Sequence[Callable | None] = (),
    ) -> jax.Array:
        """Computes the logits.

        Args:
          layers: Constructors of the ingredients.
          images: [N, H, W, C].
          train: Whether this is a training step.
          visit: Computes the output of a block, visit(block, x); networks that skip blocks per example replace it.
          gates: Constructor of the gate of each block, or None.
        """
        x = self._stem(layers, images)
        for stage, blocks in enumerate(self._blocks(layers, train, gates), 1):
            x = Endpoint(f"stage{stage}")(Stage(blocks, name=f"stage{stage}")(x, visit))
        if self.preact:
            x = layers.act(layers.norm(name="final_norm")(x))
        x = Endpoint("pre_logits")(Endpoint("last_map")(x).mean((1, 2)))  # [N, H, W, C] -> [N, C]
        return layers.dense(self.num_classes, name="head")(x).astype(jnp.float32)

    def _blocks(
        self, layers: Ingredients, train: bool, gates: Sequence[Callable | None]
    ) -> list[list[functools.partial]]:
        """Returns the constructors of the blocks of each stage."""
        zero = ("kernel" if self.preact or self.norm == "none" else "scale") if self.zero_gamma else ""
        drop_slope = self.stochastic_depth / sum(self.stage_sizes)
        block = functools.partial(
            nn.remat(Block) if self.remat else Block,
            layers,
            bottleneck=self.bottleneck,
            groups=self.groups,
            stride_in=self.stride_in,
            shortcut=self.shortcut,
            preact=self.preact,
            zero=zero,
            dropout=self.dropout,
            train=train,
        )
        stages, number = [], 0
        for stage, size in enumerate(self.stage_sizes):
            stages.append([])
            for i in range(size):
                stages[-1].append(
                    functools.partial(
                        block,
                        features=self._planes(stage) * (EXPANSION if self.bottleneck else 1),
                        inner=self._inner(stage),
                        stride=2 if stage > 0 and i == 0 else 1,
                        preact_first=number > 0 or self.stem == "bit",
                        drop_branch=drop_slope * (number + 1),
                        gate=gates[number] if gates else None,
                    )
                )
                number += 1
        return stages

    def _stem(self, layers: Ingredients, images: jax.Array) -> jax.Array:
        size, stride = (3, 1) if self.stem == "cifar" else (7, 2)
        x = layers.conv(self.width, size, stride, name="stem_conv")(images)
        if self.stem == "bit":  # the padding zeros take part in the maximum, as in the authors' code
            x = max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, 2)
        else:
            x = layers.act(layers.norm(name="stem_norm")(x))
        if self.stem == "imagenet":
            x = max_pool(x, 3, 2, padding=1)
        return Endpoint("stem")(x)


_net = functools.partial
_CIFAR = {"stem": "cifar", "width": 16, "num_classes": 10, "image_size": 32}
_SIZES = {  # depth: (blocks of each stage, bottleneck); He 2016, table 1; 200: He 2016b, table 5
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
    200: ((3, 24, 36, 3), True),
}


def _imagenet(depth: int, **fields) -> functools.partial:
    stage_sizes, bottleneck = _SIZES[depth]
    return _net(ResNet, stage_sizes=stage_sizes, bottleneck=bottleneck, **fields)


def _bit(depth: int, factor: int) -> functools.partial:
    """Returns a BiT network, `factor` times as wide, with group normalization and weight standardization."""
    return _imagenet(depth, preact=True, stem="bit", width=64 * factor, norm="group:32", conv="standardized")


def _cifar(depth: int, **fields) -> functools.partial:
    """Returns a network for CIFAR with 6n + 2 layers and parameter-free shortcuts (He 2016, section 4.2)."""
    return _net(ResNet, stage_sizes=((depth - 2) // 6,) * 3, **{**_CIFAR, "shortcut": "A", **fields})


VARIANTS = {
    **{f"plain{d}": _imagenet(d, shortcut="none") for d in (18, 34)},
    **{f"resnet{d}": _imagenet(d) for d in (18, 34, 50, 101, 152)},
    **{f"preresnet{d}": _imagenet(d, preact=True) for d in (18, 34, 50, 101, 152, 200)},
    **{f"wide_resnet{d}_2": _imagenet(d, base_width=128) for d in (50, 101)},
    "resnext50_32x4d": _imagenet(50, groups=32, base_width=4),
    "resnext101_32x4d": _imagenet(101, groups=32, base_width=4),
    "resnext101_32x8d": _imagenet(101, groups=32, base_width=8),
    "resnext101_64x4d": _imagenet(101, groups=64, base_width=4),
    **{
        f"resnetv2_{d}x{factor}_bit": _bit(d, factor)
        for d, factor in ((50, 1), (50, 3), (101, 1), (101, 3), (152, 2), (152, 4))
    },
    **{f"plain{d}": _cifar(d, shortcut="none") for d in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{d}": _cifar(d) for d in (8, 14, 20, 32, 38, 44, 56, 74, 110, 1202)},
    **{f"preresnet{d}": _cifar(d, preact=True) for d in (20, 32, 44, 56, 110)},
    # He 2016b, section 3 and table 4: 9n + 2 layers, bottlenecks.
    **{
        f"preresnet{9 * n + 2}": _net(ResNet, stage_sizes=(n,) * 3, bottleneck=True, preact=True, **_CIFAR)
        for n in (18, 111)
    },
    # Zagoruyko 2016, table 1: 6n + 4 layers, WRN-depth-k.
    **{
        f"wide_resnet{6 * n + 4}_{k}": _net(ResNet, stage_sizes=(n,) * 3, widen=k, preact=True, **_CIFAR)
        for n, k in ((2, 4), (2, 8), (4, 10), (6, 2), (6, 4))
    },
}


# Converts the kernel of a dense layer [C, D] to that of a 1x1 convolution [1, 1, C, D].
_AS_1X1 = Conversion(lambda ours: ours[None, None], lambda theirs: theirs[0, 0])


def layouts(model: ResNet) -> dict[str, Layout]:
    """Returns the layouts of torchvision and timm, which agree, if the stem is theirs and activations follow the sum.

    Networks for CIFAR have those of github.com/akamaster/pytorch_resnet_cifar10 and chenyaofo/pytorch-cifar-models:
    "akamaster" with shortcut "A_both" or "B", "chenyaofo" with "B".
    BiT's networks have timm's layout and "bit", the names in the authors' .npz files. timm's resnetv2_50 and similar
    networks with batch normalization have neither the stem of preresnets here nor that of BiT.
    """
    block = r"stage(\d)/block(\d+)/"

    def torch(head: str, downsample: str) -> Layout:
        return Layout(
            rules=[
                ("stem_conv", "conv1"),
                ("stem_norm", "bn1"),
                ("head", head),
                (rf"{block}conv(\d)", r"layer\1.\2.conv\3"),
                (rf"{block}norm(\d)", r"layer\1.\2.bn\3"),
                (rf"{block}downsample_conv", rf"layer\1.\2.{downsample}.0"),
                (rf"{block}downsample_norm", rf"layer\1.\2.{downsample}.1"),
            ]
        )

    if model.stem == "imagenet" and not model.preact:
        return dict.fromkeys(("torchvision", "timm"), torch("fc", "downsample"))
    if model.stem == "cifar" and not model.preact and not model.bottleneck:
        akamaster = {"akamaster": torch("linear", "shortcut")} if model.shortcut in ("A_both", "B") else {}
        return akamaster | ({"chenyaofo": torch("fc", "downsample")} if model.shortcut == "B" else {})
    if model.stem != "bit" or not model.bottleneck:
        return {}

    def timm(name: str):  # stages counted from 0
        return lambda match: match.expand(rf"stages.{int(match[1]) - 1}.blocks.\2.{name}")

    def bit(name: str):  # units counted from 1
        return lambda match: f"resnet/block{match[1]}/unit{int(match[2]) + 1:02}/{name}"

    conv, leaves = "standardized_conv2d", {"kernel": "kernel", "scale": "gamma", "bias": "beta"}
    return {
        "timm": Layout(
            rules=[
                ("stem_conv", "stem.conv"),
                ("final_norm", "norm"),
                ("head", "head.fc", DENSE_AS_CONV),
                (rf"{block}downsample_conv", timm("downsample.conv")),
                (rf"{block}(\w+)", timm(r"\3")),
            ]
        ),
        "bit": Layout(
            separator="/",
            kernels=SAME,
            leaves=leaves,
            rules=[
                ("stem_conv", f"resnet/root_block/{conv}"),
                ("final_norm", "resnet/group_norm"),
                ("head/kernel", "resnet/head/conv2d/kernel", _AS_1X1),
                ("head/bias", "resnet/head/conv2d/bias"),
                *((rf"{block}conv{i}", bit(f"{unit}/{conv}")) for i, unit in enumerate("abc", 1)),
                *((rf"{block}norm{i}", bit(f"{unit}/group_norm")) for i, unit in enumerate("abc", 1)),
                (rf"{block}downsample_conv", bit(f"a/proj/{conv}")),
            ],
        ),
    }
