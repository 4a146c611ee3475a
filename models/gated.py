"""Residual networks that compute only some of their blocks for each image.

  Veit & Belongie 2018    Convolutional networks with adaptive inference graphs, arXiv 1711.11503     convnet_aig*
  Wu et al. 2018          BlockDrop: dynamic inference paths in residual networks, arXiv 1711.08393   blockdrop*

The decision for a block is its endpoint "stage1/block0/gate", [N]: 1 where the branch is computed, 0 where only the
shortcut is. A call with keep=[N, blocks] overrides the network's decisions: `jnp.ones` computes everything.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import resnet
from models.analysis.cost import Complexity
from models.errors import UserError, has_type
from models.layers.endpoint import capture
from models.layers.ingredients import Ingredients
from models.layers.norm import separates_channels
from models.layers.pooling import avg_pool
from models.resnet import ResNet
from models.weights.layouts import Layout, with_own

# Initial biases of the two logits of a gate, which open it for 87% of the samples (Veit 2018, section 3.2: 85%)
OPEN = (0.1, 2.0)


class Gate(nn.Module):
    """A gate (Veit 2018, sections 3.1 and 3.2): maps x [N, H, W, C] to float32 [N], 1 to compute a block, 0 to skip it.

    Channels are averaged over space, and two dense layers compute the logits of closed and open. In training, the gate
    samples by Gumbel-max, and gradients are those of the softmax at `temperature` (straight-through estimator).
    Otherwise the larger logit decides.

    Attributes:
      layers: Constructors of the ingredients.
      features: Features of the hidden layer.
      temperature: Temperature of the softmax.
      train: Whether to sample, from the rng stream "dropout".
    """

    layers: Ingredients
    features: int
    temperature: float
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        _, dense, norm, act = self.layers
        x = act(norm(name="norm")(dense(self.features, name="dense1")(x.mean((1, 2)))))  # [N, H, W, C] -> [N, features]
        start = nn.initializers.normal(0.001)
        logits = dense(2, name="dense2", kernel_init=start, bias_init=_open)(x).astype(jnp.float32)
        if not self.train:
            return (logits[:, 1] > logits[:, 0]).astype(jnp.float32)
        return straight_through(logits, self.make_rng("dropout"), self.temperature)


def _open(key, shape, dtype):
    del key
    return jnp.asarray(OPEN, dtype).reshape(shape)


def straight_through(logits: jax.Array, key: jax.Array, temperature: float) -> jax.Array:
    """Samples one of two classes, with the gradient of the Gumbel-softmax (Jang et al. 2017, arXiv 1611.01144).

    Args:
      logits: [N, 2].
      key: Key for the noise.
      temperature: Temperature of the softmax.

    Returns:
      [N], 1 for the second class, 0 for the first.
    """
    noisy = logits + jax.random.gumbel(key, logits.shape)
    soft = nn.softmax(noisy / temperature)[:, 1]
    hard = (noisy[:, 1] > noisy[:, 0]).astype(soft.dtype)
    return soft + jax.lax.stop_gradient(hard - soft)


class Adaptive(ResNet):
    """Base of the networks that skip blocks per image."""

    def check(self) -> None:
        super().check()
        if self.shortcut == "none":
            raise UserError("shortcut='none' does not work with skipped blocks, whose output is the shortcut")
        if self.remat:
            raise UserError(
                "remat=True does not work with networks that skip blocks: decisions of rematerialized blocks cannot "
                "be read"
            )

    @property
    def gated(self) -> tuple[str, ...]:
        """The names of the blocks that can be skipped, "stage1/block0", ...."""
        return self.blocks

    def _visit(self, keep: jax.Array | None) -> Callable:
        """Returns the function that calls a block with its column of `keep` [N, blocks], or with None.

        Raises:
          UserError: `keep` has another shape.
        """
        if keep is not None and (keep.ndim != 2 or keep.shape[1] != len(self.blocks)):
            raise UserError(
                f"keep must be of shape [N, {len(self.blocks)}], one column per block, not {list(keep.shape)}"
            )

        def visit(block, x):
            return block(x, None if keep is None else keep[:, self.blocks.index("/".join(block.path[-2:]))])

        return visit


def gates(model: Adaptive, variables: Any, images: jax.Array, **options: Any) -> tuple[Any, jax.Array]:
    """Applies a network and returns its decisions as well.

    Args:
      model: The network.
      variables: Its variables.
      images: [N, H, W, C].
      **options: Other arguments of `model.apply`.

    Returns:
      The result of `model.apply`, and float32 [N, blocks], 1 for each block that was computed.
    """
    output, activations = capture(model, variables, images, **options)  # with `keep`, every block has a gate
    on = jnp.ones(len(images))
    return output, jnp.stack([activations.get(f"{block}/gate", on) for block in model.blocks], -1)


class Costs(NamedTuple):
    """Mult-adds per image.

    Attributes:
      always: Mult-adds of the stem, the shortcuts and the head.
      deciding: Mult-adds of the gates or the policy, which a call with `keep` does not compute.
      blocks: Mult-adds of the branch of each block.
    """

    always: int
    deciding: int
    blocks: tuple[int, ...]


def costs(model: Adaptive, cost: Complexity) -> Costs:
    """Splits the cost of a network, from `models.analysis.cost.analyze`, by what is always computed and what is not."""
    branches, deciding = dict.fromkeys(model.blocks, 0), 0
    for layer in cost.layers:
        block, _, name = layer.path.rpartition("/")
        if layer.path.startswith("policy/") or block.endswith("/gate"):
            deciding += layer.mult_adds
        elif block in branches and name.startswith("conv"):
            branches[block] += layer.mult_adds
    return Costs(cost.mult_adds - deciding - sum(branches.values()), deciding, tuple(branches.values()))


class GatedResNet(Adaptive):
    """ConvNet-AIG, a residual network with gates in the blocks; it has the fields of `ResNet` and those below.

    Attributes:
      target: Fraction of the images for which a block should be computed (the paper's t); see the task "gated".
      rates: Target rate of each block in order. None stands for `target`. A block of rate 1 has no gate and is always
        computed. () uses `target` for all blocks.
      gate_width: Hidden features of a gate (the paper's d).
      temperature: Temperature of the gates' softmax in training.
    """

    target: float = 0.5
    rates: Sequence[float | None] = ()
    gate_width: int = 16
    temperature: float = 1.0

    def check(self) -> None:
        super().check()
        self._need_at_least(1, "gate_width")
        if not self.temperature > 0:
            raise UserError(f"temperature={self.temperature} must be above 0")
        if self.rates and (not isinstance(self.rates, (tuple, list)) or len(self.rates) != len(self.blocks)):
            raise UserError(f"rates={self.rates} must have one rate for each of the {len(self.blocks)} blocks, or none")
        wrong = [
            rate
            for rate in (self.target, *self.rates)
            if rate is not None and not (has_type(rate, float) and 0 <= rate <= 1)
        ]
        if wrong:
            raise UserError(f"target and rates must be fractions of the images in [0, 1], not {wrong[0]}")
        if not self.gated:
            raise UserError("rates are all 1, so no block has a gate; set some of them below 1")
        if separates_channels(self.norm, self.gate_width):
            raise UserError(
                f"norm='{self.norm}' normalizes each of the gate_width={self.gate_width} features alone, which "
                "makes the input of each gate constant; use fewer groups or more features"
            )

    @property
    def block_rates(self) -> tuple[float, ...]:
        """The target of each block."""
        return tuple(self.target if rate is None else rate for rate in self.rates or (None,) * len(self.blocks))

    @property
    def gated(self) -> tuple[str, ...]:
        return tuple(block for block, rate in zip(self.blocks, self.block_rates, strict=True) if rate < 1)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, keep: jax.Array | None = None) -> jax.Array:
        """Maps images [N, H, W, C] to logits [N, num_classes], float32; training needs the rng stream "dropout".

        `keep` [N, blocks] overrides the gates.
        """
        layers = self.ingredients(train)
        gate = functools.partial(Gate, layers, self.gate_width, self.temperature, train)
        return self._forward(
            layers, images, train, self._visit(keep), [gate if block in self.gated else None for block in self.blocks]
        )


class BlockDrop(Adaptive):
    """A residual network with a policy, which sees the image once and decides which blocks to compute.

    It has the fields of `ResNet` and those below. Parameter paths are those of a ResNet; the policy's start with
    "policy/". Unlike in the authors' code, the projection of a skipped block is activated: this concerns 4 blocks of
    blockdrop101.

    Attributes:
      policy_sizes: Number of blocks of each stage of the policy, a residual network of 3x3 convolutions (section 4.1).
      policy_width: Channels of the first stage of the policy.
      policy_pool: Size of the cells over which the policy first averages the image.
    """

    policy_sizes: Sequence[int] = (1, 1, 1)
    policy_width: int = 16
    policy_pool: int = 1

    def check(self) -> None:
        super().check()
        self._need_numbers("policy_sizes", (1, 1, 1))
        self._need_at_least(1, "policy_width", "policy_pool")
        if self.policy_pool > self.image_size:
            raise UserError(f"policy_pool={self.policy_pool} must be at most image_size={self.image_size}")

    def policy(self, **fields: Any) -> ResNet:
        """Returns the policy, which maps `pooled` images to the logits [N, blocks] of computing each block.

        With parent=None it stands alone, and its paths do not start with "policy/".
        """
        names = (
            "norm",
            "act",
            "kernel_init",
            "conv",
            "dense",
            "dtype",
            "sync_norm",
            "widths",
            "stem",
            "shortcut",
            "preact",
        )
        shared = {name: getattr(self, name) for name in names}
        if "parent" in fields:
            start = "policy/"
            shared["widths"] = tuple(
                (path.removeprefix(start), width) for path, width in self.widths if path.startswith(start)
            )
        return ResNet(
            num_classes=len(self.blocks),
            image_size=self.image_size // self.policy_pool,
            stage_sizes=self.policy_sizes,
            width=self.policy_width,
            **shared,
            **fields,
        )

    def pooled(self, images: jax.Array) -> jax.Array:
        """Returns the images that the policy sees, [N, H / pool, W / pool, C]."""
        return avg_pool(images, self.policy_pool) if self.policy_pool > 1 else images

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, keep: jax.Array | None = None) -> jax.Array:
        """Maps images [N, H, W, C] to logits [N, num_classes], float32.

        The policy computes the blocks whose probability is at least 1/2; `keep` [N, blocks] overrides it.
        """
        if keep is None:
            keep = (self.policy(name="policy")(self.pooled(images), train) >= 0).astype(jnp.float32)
        return self._forward(self.ingredients(train), images, train, self._visit(keep))


_T = None  # stands for the rate `target`
# The authors' rates: early blocks are always computed; in AIG-50, so are the last and some that halve the resolution.
_AIG50 = (1, 1, 0.8, 1, _T, _T, _T, 1, _T, _T, _T, _T, _T, 1, 0.7, 1)
_AIG101 = (1,) * 8 + (_T,) * 25


def _of(kind: type, name: str, **fields: Any) -> functools.partial:
    """Returns the residual network `name` as a network of class `kind`."""
    return functools.partial(kind, **{**resnet.VARIANTS[name].keywords, **fields})


VARIANTS = {
    # CIFAR networks have projections and one target for all blocks (0.7 in table 1), as in the authors' code.
    **{f"convnet_aig{depth}": _of(GatedResNet, f"resnet{depth}", shortcut="B", target=0.7) for depth in (38, 74, 110)},
    "convnet_aig50": _of(GatedResNet, "resnet50", rates=_AIG50),
    "convnet_aig101": _of(GatedResNet, "resnet101", rates=_AIG101),
    # Section 4.1: policies have 3 and 4 blocks; the one for ImageNet sees half the resolution.
    **{f"blockdrop{depth}": _of(BlockDrop, f"resnet{depth}") for depth in (32, 110)},
    "blockdrop101": _of(BlockDrop, "resnet101", policy_sizes=(1, 1, 1, 1), policy_width=64, policy_pool=2),
}


def layouts(model: Adaptive) -> dict[str, Layout]:
    """Returns the layouts of the residual network; gates and policies keep their names here.

    Importing weights with new="*/gate" or new="policy" initializes them instead of reading them.
    """
    return with_own(resnet.layouts(model), r".*/gate/.*|policy/.*")
