"""Multi-scale dense networks: Huang et al. 2018, arXiv 1703.09844, as in github.com/kalviny/MSDNet-PyTorch.

Every layer reads the outputs of all earlier layers, at its own scale and at the next finer one. An exit after each
block of layers reads the coarsest scale. Deeper layers drop fine scales ("network reduction", section 4).

  msdnet_cifar_anytime      7 exits, equally spaced
  msdnet_cifar_budgeted     5 exits, with increasing spacing
  msdnet_imagenet_stepN     5 exits, N layers apart
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.errors import UserError
from models.layers.endpoint import Endpoint
from models.layers.exit_router import Exit, run_exits
from models.layers.ingredients import Classifier, Ingredients
from models.layers.pooling import max_pool
from models.weights.layouts import Layout

CHOICES = {"stem": ("cifar", "imagenet"), "step_mode": ("even", "lin_grow"), "prune": ("max", "min")}


class Step(NamedTuple):
    """The plan of a layer.

    Attributes:
      scales: Number of scales that the layer keeps, the coarsest ones.
      transition: Channels after a transition that follows the layer, in units of `growth_factors`; None without one.
    """

    scales: int
    transition: int | None


class Stem(nn.Module):
    """The first layer, which computes a map for each scale from images [N, H, W, 3].

    Each map except the finest is computed from the next finer map. The finest map is [N, H, W, features[0]], or with
    `pooled` [N, H / 4, W / 4, features[0]]. Each further map has half the resolution of the previous one.
    """

    layers: Ingredients
    features: Sequence[int]
    pooled: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        conv, _, norm, act = self.layers
        maps = []
        for scale, features in enumerate(self.features, 1):
            large = self.pooled and scale == 1
            size, stride = (7, 2) if large else (3, 1 if scale == 1 else 2)
            bias = {"use_bias": True} if large else {}  # the reference has a bias here and nowhere else
            x = act(norm(name=f"norm{scale}")(conv(features, size, stride, name=f"conv{scale}", **bias)(x)))
            x = max_pool(x, 3, 2, padding=1) if large else x
            maps.append(x)
        return maps


class Unit(nn.Module):
    """A 1x1 and a 3x3 convolution: maps [N, H, W, C] to [N, H / stride, W / stride, features].

    The 1x1 convolution has at most `bottleneck` times `features` channels. Normalization and activation follow each
    convolution (in a DenseNet they precede it).
    """

    layers: Ingredients
    features: int
    stride: int
    bottleneck: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, _, norm, act = self.layers
        inner = min(x.shape[-1], self.bottleneck * self.features)
        for i, (features, size, stride) in enumerate([(inner, 1, 1), (self.features, 3, self.stride)], 1):
            x = act(norm(name=f"norm{i}")(conv(features, size, stride, name=f"conv{i}")(x)))
        return x


class Layer(nn.Module):
    """A layer that appends new channels to the maps of the `scales` coarsest scales; maps are sorted finest first.

    Half of the new channels come from the next finer map, if there is one, and the others from the scale's own map.

    Attributes:
      layers: Constructors of the ingredients.
      growths: New channels of each scale, including dropped scales.
      bottlenecks: Bottleneck of the units that read each scale.
      scales: Number of scales that the layer keeps.
    """

    layers: Ingredients
    growths: Sequence[int]
    bottlenecks: Sequence[int]
    scales: int

    @nn.compact
    def __call__(self, maps: list[jax.Array]) -> list[jax.Array]:
        total, grown = len(self.growths), []
        at = dict(zip(range(total - len(maps), total), maps, strict=True))
        for scale in range(total - self.scales, total):
            features, parts = self.growths[scale], [at[scale]]
            if scale - 1 in at:
                features //= 2
                down = Unit(self.layers, features, 2, self.bottlenecks[scale - 1], name=f"down{scale + 1}")
                parts.append(down(at[scale - 1]))
            parts.append(Unit(self.layers, features, 1, self.bottlenecks[scale], name=f"same{scale + 1}")(at[scale]))
            grown.append(jnp.concatenate(parts, -1))
        return grown


class Transition(nn.Module):
    """A 1x1 convolution at each remaining scale; `features` are the channels of all scales."""

    layers: Ingredients
    features: Sequence[int]

    @nn.compact
    def __call__(self, maps: list[jax.Array]) -> list[jax.Array]:
        conv, _, norm, act = self.layers
        scales = range(len(self.features) - len(maps), len(self.features))
        return [
            act(norm(name=f"norm{scale + 1}")(conv(self.features[scale], 1, name=f"conv{scale + 1}")(x)))
            for scale, x in zip(scales, maps, strict=True)
        ]


class Block(nn.Module):
    """The layers before an exit.

    The first block takes images. Later blocks take a list of feature maps, one per remaining scale. All blocks return
    such a list.

    Attributes:
      layers: Constructors of the ingredients.
      steps: Plan of the layers.
      factors: Channels of each scale, as a multiple of those in the plan.
      layer: Constructor of a layer.
      stem: Constructor of the stem in the first block, else None.
      mark: Function that marks the stem's finest map as an endpoint of the network; None marks nothing.
    """

    layers: Ingredients
    steps: Sequence[Step]
    factors: Sequence[int]
    layer: Callable
    stem: Callable | None = None
    mark: Callable[[jax.Array], jax.Array] | None = None

    @nn.compact
    def __call__(self, maps: Any) -> list[jax.Array]:
        if self.stem is not None:
            maps = self.stem(name="stem")(maps)
            maps[0] = self.mark(maps[0]) if self.mark else maps[0]
        for i, step in enumerate(self.steps):
            maps = self.layer(scales=step.scales, name=f"layer{i}")(maps)
            if step.transition is not None:
                features = [step.transition * factor for factor in self.factors]
                maps = Transition(self.layers, features, name=f"transition{i}")(maps)
        return maps


class MSDNet(Classifier):
    """Multi-scale dense network, with the fields of `Classifier` and those below. Scale 1 is the finest.

    Endpoints: "stem" (the finest map of the first layer); "block1", "exit1", "block2", ..., the coarsest map that an
    exit reads, and its logits; "pre_logits" of the last exit. With `leave`, see `models.layers.exit_router.Leaving`.

    Attributes:
      stem: "imagenet": 7x7 with stride 2 and 3x3 max-pooling with stride 2; "cifar": 3x3.
      num_exits: Number of exits, and of blocks.
      base: Number of layers of the first block.
      step, step_mode: Number of layers of the other blocks. "even": `step`; "lin_grow": i step + 1 for the i-th of
        them.
      width: Channels of the first layer at a scale of factor 1.
      growth: New channels of each layer at a scale of factor 1.
      growth_factors: Factor of each scale on `width` and `growth`; its length is the number of scales.
      bottleneck_factors: For each scale, a factor for the 1x1 convolutions that read this scale. They have this factor
        times the channels of the following 3x3 convolution, but at most as many as their input.
      reduction: Channels after a transition as a fraction of those before; 0 disables transitions.
      prune: How fine scales are dropped. "max": layers are split evenly among the scales, with a transition wherever a
        scale is dropped; "min": the last layer keeps one scale, and each earlier layer keeps one more, up to all.
        Transitions then follow one third and two thirds of the layers.
      exit_width: Channels of the exits' convolutions; 0 uses the channels of the coarsest scale.
    """

    kernel_init: str | Callable = "msra_fan_out"
    stem: str = "imagenet"
    num_exits: int = 5
    base: int = 4
    step: int = 4
    step_mode: str = "even"
    width: int = 32
    growth: int = 16
    growth_factors: Sequence[int] = (1, 2, 4, 4)
    bottleneck_factors: Sequence[int] = (1, 2, 4, 4)
    reduction: float = 0.5
    prune: str = "max"
    exit_width: int = 0

    def check(self) -> None:
        for field, allowed in CHOICES.items():
            self._need_choice(field, allowed)
        self._need_at_least(1, "num_exits", "base", "step", "width", "growth")
        self._need_at_least(0, "exit_width")
        self._need_numbers("growth_factors", (1, 2, 4, 4))
        self._need_numbers("bottleneck_factors", self.growth_factors, count=len(self.growth_factors))
        if not 0 <= self.reduction <= 1:
            raise UserError(f"reduction={self.reduction} must be at least 0 and at most 1")
        if any(self.growth * factor % 2 for factor in self.growth_factors[1:]):
            raise UserError(
                f"growth={self.growth} with growth_factors={self.growth_factors}: the number of new channels must be "
                "even at all scales except the first, because half of them come from the next finer scale"
            )
        if any(step.transition == 0 for steps in self.plan() for step in steps):
            raise UserError(f"reduction={self.reduction} leaves no channels after a transition")

    def plan(self) -> list[list[Step]]:
        """Returns the plan of the layers of each block."""
        counts = [
            self.base,
            *(self.step if self.step_mode == "even" else self.step * i + 1 for i in range(1, self.num_exits)),
        ]
        total, scales = sum(counts), len(self.growth_factors)
        steps, left, channels = [], scales, self.width
        for number in range(1, total + 1):
            before, channels, transition = left, channels + self.growth, None
            if self.prune == "max":
                left = scales - (number - 1) // math.ceil(total / scales)
                reduces = left < before
            else:
                left = min(scales, total - number + 1)
                reduces = number in (total // 3, 2 * total // 3)
            if reduces and self.reduction:
                transition = channels = math.floor(self.reduction * channels)
            steps.append(Step(left, transition))
        ends = [sum(counts[: i + 1]) for i in range(len(counts))]
        return [steps[end - count : end] for count, end in zip(counts, ends, strict=True)]

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, leave: Any = None) -> jax.Array:
        """Returns the logits of the last exit, or with `leave` those of the exit where each example left.

        Args:
          images: [N, H, W, C].
          train: Whether this is a training step.
          leave: Thresholds, float [num_exits - 1]; see `models.layers.exit_router.Leaving`. Within
            `models.layers.conditional.skipping()`, blocks after the exit of an example are not computed for it.

        Returns:
          Logits [N, num_classes], float32.

        Raises:
          UserError: `leave` is given in training or has another length.
        """
        layers = self.ingredients(train)

        def mark(label: str) -> Callable[[jax.Array], jax.Array]:
            return Endpoint(label) if leave is None else lambda x: x

        growths, widths = (
            tuple(channels * factor for factor in self.growth_factors) for channels in (self.growth, self.width)
        )
        stem = functools.partial(Stem, layers, widths, self.stem == "imagenet")
        block = functools.partial(
            Block,
            layers,
            layer=functools.partial(Layer, layers, growths, self.bottleneck_factors),
            factors=self.growth_factors,
        )

        def step(module, maps, number, plan):
            first = {"stem": stem, "mark": mark("stem")} if number == 1 else {}
            *maps, coarsest = block(steps=plan, **first, name=f"block{number}")(maps)
            coarsest = mark(f"block{number}")(coarsest)
            last = mark("pre_logits") if number == self.num_exits else None
            leaving = Exit(layers, self.num_classes, self.exit_width, last, name=f"exit{number}")
            return [*maps, coarsest], leaving(coarsest)

        steps = [functools.partial(step, number=number, plan=plan) for number, plan in enumerate(self.plan(), 1)]
        return run_exits(self, steps, images, leave, train)


def _cifar(**fields) -> functools.partial:
    return functools.partial(
        MSDNet,
        stem="cifar",
        width=16,
        growth=6,
        growth_factors=(1, 2, 4),
        bottleneck_factors=(1, 2, 4),
        exit_width=128,
        num_classes=10,
        image_size=32,
        **fields,
    )


# The configurations of the reference's README.md and run_imagenet.sh.
VARIANTS = {
    "msdnet_cifar_anytime": _cifar(num_exits=7, base=4, step=2),
    "msdnet_cifar_budgeted": _cifar(num_exits=5, base=1, step=1, step_mode="lin_grow"),
    **{f"msdnet_imagenet_step{n}": functools.partial(MSDNet, base=n, step=n) for n in (4, 6, 7)},
}


_KINDS = ("conv", "norm")  # indices 0 and 1 in a sequence of three in the reference


def layouts(model: MSDNet) -> dict[str, Layout]:
    """Returns the layout of the reference, "msdnet_pytorch".

    It numbers the layers and transitions of a block together, and scales from the finest remaining one.
    """
    scales, positions = len(model.growth_factors), {}
    for number, steps in enumerate(model.plan(), 1):
        index = int(number == 1)  # after the stem
        for i, step in enumerate(steps):
            first = scales - step.scales
            positions[number, "layer", i], positions[number, "transition", i] = (index, first), (index + 1, first)
            index += 1 if step.transition is None else 2

    def at(match: re.Match) -> tuple[str, int]:
        """Returns the name of the layer or transition, and the index of the scale in it."""
        number, i, scale = (int(match[group]) for group in ("block", "i", "scale"))
        index, first = positions[number, match["kind"], i]
        return f"blocks.{number - 1}.{index}", scale - 1 - first

    def stem(match: re.Match) -> str:
        inside = "" if model.stem == "imagenet" and match[2] == "1" else "net."
        return f"blocks.0.0.layers.{int(match[2]) - 1}.{inside}{_KINDS.index(match[1])}"

    def unit(match: re.Match) -> str:
        layer, scale = at(match)
        unit = {"same": "conv_normal", "down": "conv_down"}[match["unit"]]
        return f"{layer}.layers.{scale}.{unit}.net.{3 * int(match['n']) - 3 + _KINDS.index(match['of'])}"

    def transition(match: re.Match) -> str:
        layer, scale = at(match)
        return f"{layer}.m.{scale}.net.{_KINDS.index(match['of'])}"

    def convolution(match: re.Match) -> str:
        return f"classifier.{int(match[1]) - 1}.m.{int(match[3]) - 1}.net.{_KINDS.index(match[2])}"

    block = r"block(?P<block>\d+)/(?P<kind>layer|transition)(?P<i>\d+)/"
    return {
        "msdnet_pytorch": Layout(
            [
                (r"block1/stem/(conv|norm)(\d+)", stem),
                (block + r"(?P<unit>same|down)(?P<scale>\d+)/(?P<of>conv|norm)(?P<n>\d)", unit),
                (block + r"(?P<of>conv|norm)(?P<scale>\d+)", transition),
                (r"exit(\d+)/(conv|norm)(\d)", convolution),
                (r"exit(\d+)/head", lambda match: f"classifier.{int(match[1]) - 1}.linear"),
            ]
        )
    }
