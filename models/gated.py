"""Residual networks that compute, for each image, some of their blocks.

  Veit & Belongie 2018    Convolutional networks with adaptive inference graphs, arXiv 1711.11503     convnet_aig*
  Wu et al. 2018          BlockDrop: dynamic inference paths in residual networks, arXiv 1711.08393   blockdrop*

What was decided for a block is its endpoint "stage1/block0/gate", [N]: 1 where the branch is computed, 0 where the
shortcut alone goes on. A call with keep=[N, blocks] decides instead of the network: `jnp.ones` computes everything.
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

OPEN = (0.1, 2.0)  # what the two logits of a gate start from: open for 87% of the samples (Veit 2018, section 3.2: 85%)


class Gate(nn.Module):
    """x [N, H, W, C] -> float32 [N], 1 where a block is to be computed, else 0 (Veit 2018, sections 3.1 and 3.2).

    Channels are averaged over space; two dense layers make the logits of closed and open. In training a sample by
    Gumbel-max, through which gradients go as through the softmax at `temperature` (straight through); otherwise the
    larger logit decides.

    Attributes:
      layers: constructors of the ingredients.
      features: of the layer between.
      temperature: of the softmax.
      train: whether to sample, from the rng stream "dropout".
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
    """Samples of the second of two classes, 0 or 1, with the gradient of the Gumbel-softmax (Jang et al. 2017, arXiv
    1611.01144): logits [N, 2] -> [N].
    """
    noisy = logits + jax.random.gumbel(key, logits.shape)
    soft = nn.softmax(noisy / temperature)[:, 1]
    hard = (noisy[:, 1] > noisy[:, 0]).astype(soft.dtype)
    return soft + jax.lax.stop_gradient(hard - soft)


class Adaptive(ResNet):
    """What the networks here share. `gated`: names of the blocks that may be skipped, "stage1/block0"."""

    def check(self) -> None:
        super().check()
        if self.shortcut == "none":
            raise UserError("shortcut='none' leaves nothing of a block that is skipped")
        if self.remat:
            raise UserError(
                "remat=True is not for networks that skip blocks: what a rematerialized one decided cannot be read"
            )

    @property
    def gated(self) -> tuple[str, ...]:
        return self.blocks

    def _visit(self, keep: jax.Array | None) -> Callable:
        """How a block is called where `keep` [N, blocks] is given; UserError for another shape."""
        if keep is not None and (keep.ndim != 2 or keep.shape[1] != len(self.blocks)):
            raise UserError(
                f"keep must be of shape [N, {len(self.blocks)}], for each image and block, not {list(keep.shape)}"
            )

        def visit(block, x):
            return block(x, None if keep is None else keep[:, self.blocks.index("/".join(block.path[-2:]))])

        return visit


def gates(model: Adaptive, variables: Any, images: jax.Array, **options: Any) -> tuple[Any, jax.Array]:
    """Applies a network.

    Args:
      model, variables, images, **options: as for `model.apply`.

    Returns:
      What `model.apply` returns, and for each block whether it was computed: float32 [N, blocks].
    """
    output, found = capture(model, variables, images, **options)  # with `keep`, every block has a gate
    on = jnp.ones(len(images))
    return output, jnp.stack([found.get(f"{block}/gate", on) for block in model.blocks], -1)


class Costs(NamedTuple):
    """Mult-adds of an image: what is computed in any case (stem, shortcuts, head); what decides, gates or the policy,
    unless a call says what to keep; the branch of each block.
    """

    always: int
    deciding: int
    blocks: tuple[int, ...]


def costs(model: Adaptive, cost: Complexity) -> Costs:
    """Of what `models.analysis.cost.analyze` found for the network."""
    branches, deciding = dict.fromkeys(model.blocks, 0), 0
    for layer in cost.layers:
        block, _, name = layer.path.rpartition("/")
        if layer.path.startswith("policy/") or block.endswith("/gate"):
            deciding += layer.mult_adds
        elif block in branches and name.startswith("conv"):
            branches[block] += layer.mult_adds
    return Costs(cost.mult_adds - deciding - sum(branches.values()), deciding, tuple(branches.values()))


class GatedResNet(Adaptive):
    """ConvNet-AIG: gates in the blocks; the fields of `ResNet`, and these.

    Attributes:
      target: share of the images for which a block should be computed (the paper's t), see the task "gated".
      rates: of each block in order; None is `target`, 1 has no gate and is always computed. () is `target` for all.
      gate_width: features of a gate (the paper's d).
      temperature: of the gates' softmax in training.
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
            raise UserError(f"rates={self.rates} must be one for each of the {len(self.blocks)} blocks, or none")
        wrong = [
            rate
            for rate in (self.target, *self.rates)
            if rate is not None and not (has_type(rate, float) and 0 <= rate <= 1)
        ]
        if wrong:
            raise UserError(f"target and rates are shares of the images in [0, 1], not {wrong[0]}")
        if not self.gated:
            raise UserError("rates of 1 alone leave no block with a gate")
        if separates_channels(self.norm, self.gate_width):
            raise UserError(
                f"norm='{self.norm}' leaves nothing of what a gate sees, one number for each of its "
                f"gate_width={self.gate_width} features: want fewer groups, or more features"
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
        """Images [N, H, W, C] -> logits [N, num_classes], float32; rng stream "dropout" in training. keep [N, blocks]
        overrides the gates.
        """
        layers = self.ingredients(train)
        gate = functools.partial(Gate, layers, self.gate_width, self.temperature, train)
        return self._forward(
            layers, images, train, self._visit(keep), [gate if block in self.gated else None for block in self.blocks]
        )


class BlockDrop(Adaptive):
    """A residual network, and a policy that sees the image once and says which blocks to compute; the fields of
    `ResNet`, and these. The paths of the network are those of a ResNet, the policy's begin with "policy/".

    A projection whose block is skipped is activated here, in the authors' code it is not: of blockdrop101, 4 blocks.

    Attributes:
      policy_sizes: blocks, of two 3x3 convolutions, of the stages of the policy, a residual network too (section 4.1).
      policy_width: its channels in the first stage.
      policy_pool: size of the cells over which it averages the image first.
    """

    policy_sizes: Sequence[int] = (1, 1, 1)
    policy_width: int = 16
    policy_pool: int = 1

    def check(self) -> None:
        super().check()
        self._need_numbers("policy_sizes", (1, 1, 1))
        self._need_at_least(1, "policy_width", "policy_pool")
        if self.policy_pool > self.image_size:
            raise UserError(f"policy_pool={self.policy_pool} is more than image_size={self.image_size}")

    def policy(self, **fields: Any) -> ResNet:
        """The policy: images, `pooled`, to logits of computing each block, [N, blocks]. Alone, with parent=None, its
        paths do not begin with "policy/".
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
        """The images as the policy sees them: [N, H / pool, W / pool, C]."""
        return avg_pool(images, self.policy_pool) if self.policy_pool > 1 else images

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, keep: jax.Array | None = None) -> jax.Array:
        """Images [N, H, W, C] -> logits [N, num_classes], float32. keep [N, blocks] is there instead of the policy's
        decision, which is to compute what has a probability of at least 1/2.
        """
        if keep is None:
            keep = (self.policy(name="policy")(self.pooled(images), train) >= 0).astype(jnp.float32)
        return self._forward(self.ingredients(train), images, train, self._visit(keep))


_T = None  # the rate `target`
# Rates of the authors: early blocks, of AIG-50 also some that halve the resolution and the last, are always computed.
_AIG50 = (1, 1, 0.8, 1, _T, _T, _T, 1, _T, _T, _T, _T, _T, 1, 0.7, 1)
_AIG101 = (1,) * 8 + (_T,) * 25


def _of(kind: type, name: str, **fields: Any) -> functools.partial:
    """That kind of the residual network `name`."""
    return functools.partial(kind, **{**resnet.VARIANTS[name].keywords, **fields})


VARIANTS = {
    # On CIFAR with projections and one target for all blocks (0.7 in table 1), as in the authors' code.
    **{f"convnet_aig{depth}": _of(GatedResNet, f"resnet{depth}", shortcut="B", target=0.7) for depth in (38, 74, 110)},
    "convnet_aig50": _of(GatedResNet, "resnet50", rates=_AIG50),
    "convnet_aig101": _of(GatedResNet, "resnet101", rates=_AIG101),
    # Section 4.1: policies of 3 and 4 blocks; that on ImageNet sees half of the resolution.
    **{f"blockdrop{depth}": _of(BlockDrop, f"resnet{depth}") for depth in (32, 110)},
    "blockdrop101": _of(BlockDrop, "resnet101", policy_sizes=(1, 1, 1, 1), policy_width=64, policy_pool=2),
}


def layouts(model: Adaptive) -> dict[str, Layout]:
    """Those of the residual network; gates and policies keep our names: new="*/gate" draws them, or "policy"."""
    return with_own(resnet.layouts(model), r".*/gate/.*|policy/.*")
