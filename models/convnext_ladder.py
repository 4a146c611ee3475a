"""The ladder from ResNet-50 to ConvNeXt-T, one change per step: Liu et al. 2022, arXiv 2201.03545, fig. 2, table 10.

Names carry the number of the table's row. Row 1 changes only the training recipe, so it has the network of row 0.
Row 9 covers the kernel sizes 7 (kept), 9 and 11. Row 0 is the ResNet-50 of models/resnet.py, with the same layer names.
Row 14 computes the same function as the ConvNeXt-T of models/convnext.py without layer scale.

The paper describes the steps in words. This implementation matches the mult-adds of table 10 in rows 2 to 12, and all
rows of table 11 for the larger networks (tests/models/test_convnext.py). It does not match table 10's 4.46e9 for row 13
and 4.49e9 for row 14. Replacing batch by channel normalization changes no convolution, so row 13 costs 4.15e9, as row
12 does; row 14, which is ConvNeXt-T, costs 4.46e9. Table 11 agrees: 14.81e9 before and after the replacement, and
15.35e9 at the end.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.convnext import downsample
from models.errors import UserError
from models.layers.endpoint import Endpoint
from models.layers.ingredients import Classifier, Ingredients
from models.layers.pooling import max_pool
from models.layers.regularize import StochasticDepth, drop_rates
from models.layers.stage import Stage


class Block(nn.Module):
    """A block: maps x [N, H, W, C] to shortcut(x) + branch(x), [N, H / stride, W / stride, features].

    Attributes:
      layers: Constructors from `Ladder.ingredients`.
      depthwise, inverted, moved_up, kernel_size, fewer_acts, fewer_norms: See Ladder.
      features: Channels of the output.
      stride: Stride of the spatial convolution.
      drop_branch: Probability, per example, of dropping the branch in training.
      train: Whether this is a training step.
    """

    layers: Ingredients
    depthwise: bool
    inverted: bool
    moved_up: bool
    kernel_size: int
    fewer_acts: bool
    fewer_norms: bool
    features: int
    stride: int
    drop_branch: float
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, _, norm, act = self.layers
        channels = x.shape[-1]
        inner = 4 * self.features if self.inverted else self.features // 4
        spatial = channels if self.moved_up else inner
        space = (spatial, self.kernel_size, self.stride, self.depthwise)
        widen, narrow = (inner, 1, 1, False), (self.features, 1, 1, False)
        y = x
        convolutions = (space, widen, narrow) if self.moved_up else (widen, space, narrow)
        for i, (features, size, stride, depthwise) in enumerate(convolutions, 1):
            features, groups = (y.shape[-1], y.shape[-1]) if depthwise else (features, 1)
            normed = i == 1 or not self.fewer_norms  # the remaining one precedes the 1x1 convolutions
            y = conv(features, size, stride, groups=groups, normed=normed, name=f"conv{i}")(y)
            y = norm(name=f"norm{i}")(y) if normed else y
            if i == 2 or (i == 1 and not self.fewer_acts):  # the remaining one is between the 1x1 convolutions
                y = act(y)
        if self.stride != 1 or channels != self.features:
            normed = not self.fewer_norms
            x = conv(self.features, 1, self.stride, normed=normed, name="downsample_conv")(x)
            x = norm(name="downsample_norm")(x) if normed else x
        y = x + StochasticDepth(self.drop_branch, deterministic=not self.train)(y)
        return y if self.fewer_acts else act(y)


class Ladder(Classifier):
    """ResNet-50 with any of the changes that lead to ConvNeXt-T; it has the fields of `Classifier` and those below.

    Rows 10 and 13 of the table are the fields `act` and `norm`. `kernel_init` is the same in all rows.
    Endpoints: "stem", "stage1", "stage1/block0", ..., "last_map" (the averaged map, if the head follows directly),
    "pre_logits".

    Attributes:
      stage_sizes: Number of blocks of each stage; each stage after the first halves the resolution and doubles the
        channels.
      patchify: Makes the stem a 4x4 convolution with stride 4, instead of a 7x7 convolution and max-pooling, both with
        stride 2.
      depthwise: Makes the spatial convolution depthwise.
      width: Channels of the stem; the first stage's blocks have 4 width -> width -> 4 width channels.
      inverted: Gives blocks width -> 4 width -> width channels. The hidden layer of a block that halves the resolution
        has four times the channels of its output.
      moved_up: Puts the spatial convolution first in a block, at the width of the block's input.
      kernel_size: Kernel size of the spatial convolution.
      fewer_acts: Keeps one activation per block, between the 1x1 convolutions; none after the sum or in the stem.
      fewer_norms: Keeps one normalization per block, after its first convolution; none after the projection of the
        shortcut. A convolution then lacks a bias only if batch or instance normalization follows, which would cancel
        the bias.
      separate_downsampling: Puts normalization and a 2x2 convolution with stride 2 between stages, instead of strides
        and projections in blocks, and normalization before the head.
      stochastic_depth: As in ConvNeXt; the recipe of row 1 and later has 0.1.
    """

    stage_sizes: Sequence[int] = (3, 4, 6, 3)
    patchify: bool = False
    depthwise: bool = False
    width: int = 64
    inverted: bool = False
    moved_up: bool = False
    kernel_size: int = 3
    fewer_acts: bool = False
    fewer_norms: bool = False
    separate_downsampling: bool = False
    stochastic_depth: float = 0.0

    def check(self) -> None:
        self._need_numbers("stage_sizes", (3, 3, 9, 3))
        self._need_at_least(1, "width")
        self._need_rates("stochastic_depth")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise UserError(f"kernel_size={self.kernel_size} must be odd, so that blocks keep the resolution")

    def ingredients(self, train: bool) -> Ingredients:
        """Resolves the fields; `conv` also takes `normed`, which says whether normalization follows."""
        layers = super().ingredients(train)
        biases, cancelling = self.fewer_norms, self.norm in ("batch", "instance")

        def conv(*args, normed: bool, **kwargs):
            bias = {"use_bias": True} if biases and not (normed and cancelling) else {}
            return layers.conv(*args, **bias, **kwargs)

        epsilon = 1e-6 if self.norm == "channel" else 1e-5  # ConvNeXt's, ResNet's
        return layers._replace(conv=conv, norm=functools.partial(layers.norm, epsilon=epsilon))

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [N, H, W, C] to logits [N, num_classes], float32; training may need the rng stream "dropout"."""
        layers = self.ingredients(train)
        x = Endpoint("stem")(self._stem(layers, images))
        block = functools.partial(
            Block,
            layers,
            self.depthwise,
            self.inverted,
            self.moved_up,
            self.kernel_size,
            self.fewer_acts,
            self.fewer_norms,
            train=train,
        )
        for stage, rates in enumerate(drop_rates(self.stochastic_depth, self.stage_sizes)):
            features = self.width * 2**stage * (1 if self.inverted else 4)
            halves = stage > 0 and not self.separate_downsampling
            blocks = [
                functools.partial(block, features=features, stride=2 if halves and i == 0 else 1, drop_branch=rate)
                for i, rate in enumerate(rates)
            ]
            transition = None
            if stage > 0 and self.separate_downsampling:
                conv = functools.partial(layers.conv, normed=False)
                transition = functools.partial(downsample, layers.norm, conv, features)
            x = Endpoint(f"stage{stage + 1}")(Stage(blocks, transition, name=f"stage{stage + 1}")(x))
        if not self.separate_downsampling:
            x = Endpoint("last_map")(x)
        x = x.mean((1, 2))  # [N, H, W, C] -> [N, C]
        if self.separate_downsampling:
            x = layers.norm(name="final_norm")(x)
        return layers.dense(self.num_classes, name="head")(Endpoint("pre_logits")(x)).astype(jnp.float32)

    def _stem(self, layers: Ingredients, images: jax.Array) -> jax.Array:
        shape = {"kernel_size": 4, "strides": 4, "padding": 0} if self.patchify else {"kernel_size": 7, "strides": 2}
        x = layers.conv(self.width, **shape, normed=True, name="stem_conv")(images)
        x = layers.norm(name="stem_norm")(x)
        x = x if self.fewer_acts else layers.act(x)
        return x if self.patchify else max_pool(x, 3, 2, padding=1)


def _steps() -> dict[str, functools.partial]:
    """Returns the networks by name; each row adds its own fields to those of the row before."""
    steps, fields = {}, {}

    def step(name: str, **change: Any) -> None:
        fields.update(change)
        steps[f"convnext_ladder{name}"] = functools.partial(Ladder, **fields)

    step("00_resnet50")
    step("02_stage_ratio", stage_sizes=(3, 3, 9, 3))
    step("03_patchify_stem", patchify=True)
    step("04_depthwise", depthwise=True)
    step("05_width96", width=96)
    step("06_inverted_bottleneck", inverted=True)
    step("07_depthwise_first", moved_up=True)
    step("08_kernel5", kernel_size=5)
    step("09b_kernel9", kernel_size=9)  # the paper does not keep this kernel and the next; row 9 overwrites them
    step("09c_kernel11", kernel_size=11)
    step("09_kernel7", kernel_size=7)
    step("10_gelu", act="gelu")
    step("11_fewer_activations", fewer_acts=True)
    step("12_fewer_norms", fewer_norms=True)
    step("13_layer_norm", norm="channel")
    step("14_separate_downsampling", separate_downsampling=True)
    return steps


VARIANTS = _steps()
