"""Swin Transformer: Liu et al. 2021, Hierarchical vision transformer using shifted windows, arXiv 2103.14030.

The layout is that of torchvision. Maps whose size is not a multiple of the window are padded on the right and at the
bottom, and an axis that a single window covers is not shifted.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models.errors import UserError
from models.layers.attention import SelfAttention
from models.layers.endpoint import Endpoint
from models.layers.ingredients import Classifier, Ingredients
from models.layers.regularize import StochasticDepth, drop_rates
from models.layers.stage import Stage, mlp
from models.weights.layouts import Conversion, Layout

EXPANSION = 4  # ratio of the hidden channels of an MLP to its input channels; section 3.3


def relative_positions(window: int) -> np.ndarray:
    """Returns the row of the bias table for each query and key, [window**2, window**2] (section 3.2)."""
    positions = np.moveaxis(np.mgrid[:window, :window], 0, -1).reshape(-1, 2)  # [T, 2]: row, column
    distance = positions[:, None] - positions[None] + window - 1  # shifted to start at 0
    return distance[..., 0] * (2 * window - 1) + distance[..., 1]


def shifted_mask(height: int, width: int, window: int, shift: tuple[int, int]) -> np.ndarray:
    """Returns the attention mask after a cyclic shift: a query sees the keys that were its neighbors before (fig. 4).

    Args:
      height: Height of the map, a multiple of `window`.
      width: Width of the map, a multiple of `window`.
      window: Height and width of a window.
      shift: Number of positions that rows and columns were shifted up and left.

    Returns:
      bool [windows, window**2, window**2].
    """

    def wrapped(size: int, offset: int) -> np.ndarray:  # True for positions that came from the other end
        return np.arange(size) >= size - offset

    regions = 2 * wrapped(height, shift[0])[:, None] + wrapped(width, shift[1])
    regions = windows_of(regions[None, :, :, None], window)[..., 0]  # [windows, T]
    return regions[:, :, None] == regions[:, None]


def windows_of(x, window: int):
    """Splits maps [N, H, W, C] into windows [H W N / window**2, window**2, C]; H and W are multiples of `window`.

    Windows at the same place in the images are neighbors. A TPU stores the images of a batch along its lanes, before
    and after the split, which therefore transposes no lanes.
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // window, window, width // window, window, channels)
    return x.transpose(1, 3, 0, 2, 4, 5).reshape(-1, window * window, channels)


def maps_of(windows: jax.Array, batch: int, height: int, width: int) -> jax.Array:
    """Joins windows into maps [N, H, W, C]; the inverse of `windows_of`."""
    size, channels = int(windows.shape[1] ** 0.5), windows.shape[2]
    x = windows.reshape(height // size, width // size, batch, size, size, channels)
    return x.transpose(2, 0, 3, 1, 4, 5).reshape(batch, height, width, channels)


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias per relative position; maps [N, H, W, C] to the same shape.

    Attributes:
      layers: Constructors of the ingredients.
      heads: Number of attention heads.
      window: Height and width of a window.
      shifted: Whether windows are shifted by half their size, down and right.
    """

    layers: Ingredients
    heads: int
    window: int
    shifted: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, _ = x.shape
        bottom, right = -height % self.window, -width % self.window
        x = jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)))
        sizes = x.shape[1:3]
        down, across = (self.window // 2 if self.shifted and size > self.window else 0 for size in sizes)
        shift = (down, across)
        x = windows_of(jnp.roll(x, (-shift[0], -shift[1]), (1, 2)), self.window)  # [windows N, T, C]
        table_shape = ((2 * self.window - 1) ** 2, self.heads)
        table = self.param("position_bias", nn.initializers.truncated_normal(0.02), table_shape, jnp.float32)
        bias = table[relative_positions(self.window)].transpose(2, 0, 1)[None]  # [1, heads, T, T]
        mask = None
        if any(shift):
            mask = shifted_mask(sizes[0], sizes[1], self.window, shift)
            tokens = self.window**2
            mask = jnp.broadcast_to(mask[:, None], (len(mask), batch, tokens, tokens)).reshape(-1, 1, tokens, tokens)
        x = SelfAttention(self.layers.dense, self.heads, name="attention")(x, bias, mask)
        x = jnp.roll(maps_of(x, batch, sizes[0], sizes[1]), shift, (1, 2))
        return x[:, :height, :width]


class Block(nn.Module):
    """A block (fig. 3b): x + attention(norm(x)), then x + mlp(norm(x)); maps [N, H, W, C] to the same shape.

    Attributes:
      layers, heads, window, shifted: See WindowAttention.
      drop_branch: Probability, per example, of dropping a branch in training.
      train: Whether this is a training step.
    """

    layers: Ingredients
    heads: int
    window: int
    shifted: bool
    drop_branch: float
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = self.layers.norm
        drop = functools.partial(StochasticDepth, self.drop_branch, deterministic=not self.train)
        attention = WindowAttention(self.layers, self.heads, self.window, self.shifted, name="windows")
        x = x + drop()(attention(norm(name="norm1")(x)))
        return x + drop()(mlp(self.layers, norm(name="norm2")(x), EXPANSION * x.shape[-1]))


def merge_patches(layers: Ingredients, x: jax.Array) -> jax.Array:
    """Merges 2x2 neighboring positions (section 3.1): [N, H, W, C] -> [N, H / 2, W / 2, 2 C]."""
    _, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    x = layers.norm(name="merge_norm")(jnp.concatenate(parts, -1))
    return layers.conv(2 * channels, 1, name="merge")(x)  # has a bias only without normalization


class Swin(Classifier):
    """Swin Transformer, with the fields of `Classifier` and those below.

    Endpoints: "stem", "stage1", "stage1/block0", ..., "last_map", "pre_logits".

    Attributes:
      stage_sizes: Number of blocks of each stage; every second block has shifted windows. Each stage after the first
        halves the resolution and doubles the channels.
      heads: Number of attention heads of each stage.
      width: Channels of the first stage.
      patch_size: Height and width of the patches that the stem projects.
      window: Height and width of the windows, in positions of the map. cuDNN's flash attention takes only even ones.
      stochastic_depth: Probability of dropping the last block's branches. It grows linearly from 0 for the first block.
        The paper trains with 0.2, 0.3, 0.5 for T, S, B (appendix A2.1).
      remat: Whether the backward pass recomputes the activations inside blocks instead of storing them.
    """

    norm: str | Callable = "channel"
    act: str | Callable = "gelu"
    kernel_init: str | Callable = "truncated_normal:0.02"
    stage_sizes: Sequence[int] = (2, 2, 6, 2)
    heads: Sequence[int] = (3, 6, 12, 24)
    width: int = 96
    patch_size: int = 4
    window: int = 7
    stochastic_depth: float = 0.0
    remat: bool = False

    def check(self) -> None:
        self._need_numbers("stage_sizes", (2, 2, 6, 2))
        self._need_numbers("heads", (3, 6, 12, 24))
        if len(self.heads) != len(self.stage_sizes):
            raise UserError(f"heads={self.heads} must have as many numbers as stage_sizes={self.stage_sizes}")
        self._need_at_least(1, "width", "patch_size", "window")
        self._need_rates("stochastic_depth")
        for stage, heads in enumerate(self.heads):
            if self.width * 2**stage % heads:
                raise UserError(
                    f"heads={self.heads}: the {self.width * 2**stage} channels of stage {stage + 1} are not "
                    f"divisible into {heads} heads"
                )
        self._need_mean_over_space(self.width * 2 ** (len(self.heads) - 1))  # channels of the last stage

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [N, H, W, C] to logits [N, num_classes], float32; training may need the rng stream "dropout"."""
        layers = self.ingredients(train)
        patch = self.patch_size
        x = layers.conv(self.width, patch, patch, padding=0, use_bias=True, name="stem_conv")(images)
        x = Endpoint("stem")(layers.norm(name="stem_norm")(x))  # [N, H / patch, W / patch, width]
        block = functools.partial(nn.remat(Block) if self.remat else Block, layers, window=self.window, train=train)
        rates_of = drop_rates(self.stochastic_depth, self.stage_sizes)
        for stage, (rates, heads) in enumerate(zip(rates_of, self.heads, strict=True)):
            blocks = [
                functools.partial(block, heads=heads, shifted=i % 2 == 1, drop_branch=rate)
                for i, rate in enumerate(rates)
            ]
            transition = functools.partial(merge_patches, layers) if stage > 0 else None
            x = Endpoint(f"stage{stage + 1}")(Stage(blocks, transition, name=f"stage{stage + 1}")(x))
        x = Endpoint("last_map")(layers.norm(name="final_norm")(x)).mean((1, 2))  # [N, H, W, C] -> [N, C]
        return layers.dense(self.num_classes, name="head")(Endpoint("pre_logits")(x)).astype(jnp.float32)


_net = functools.partial
VARIANTS = {  # section 3.3
    "swin_t": _net(Swin),
    "swin_s": _net(Swin, stage_sizes=(2, 2, 18, 2)),
    "swin_b": _net(Swin, stage_sizes=(2, 2, 18, 2), width=128, heads=(4, 8, 16, 32)),
    "swin_l": _net(Swin, stage_sizes=(2, 2, 18, 2), width=192, heads=(6, 12, 24, 48)),
}

# Converts a 1x1 convolution to a dense layer: [1, 1, C, D] <-> [D, C]
_CONV_AS_DENSE = Conversion(lambda ours: ours[0, 0].T, lambda theirs: theirs.T[None, None])


def layouts(model: Swin) -> dict[str, Layout]:
    """Returns the layouts of torchvision and timm; timm's networks agree if windows divide the map of every stage."""
    block = r"stage(\d)/block(\d+)/"

    def features(place: int, name: str):  # torchvision numbers the stem, the stages and the transitions consecutively
        return lambda match: f"features.{2 * int(match[1]) + place}.{name}".replace("#", match[match.re.groups])

    def layers(name: str):  # timm counts stages from 0
        return lambda match: f"layers.{int(match[1]) - 1}.{name}".replace("#", match[match.re.groups])

    def rules(block_name, mlp1, mlp2):
        table = "attn.relative_position_bias_table"
        return [
            (f"{block}norm1", block_name("#.norm1")),
            (f"{block}norm2", block_name("#.norm2")),
            (f"{block}windows/attention/qkv", block_name("#.attn.qkv")),
            (f"{block}windows/attention/out", block_name("#.attn.proj")),
            (f"{block}windows/position_bias", block_name(f"#.{table}")),
            (f"{block}expand", block_name(f"#.{mlp1}")),
            (f"{block}reduce", block_name(f"#.{mlp2}")),
            ("final_norm", "norm"),
        ]

    def positions(names: Sequence[str]) -> dict[str, np.ndarray]:
        index = relative_positions(model.window).reshape(-1)
        return {name.replace("bias_table", "index"): index for name in names if name.endswith("bias_table")}

    torchvision = Layout(
        rules=[
            ("stem_conv", "features.0.0"),
            ("stem_norm", "features.0.2"),
            ("head", "head"),
            (r"stage(\d)/merge_norm", features(-2, "norm")),
            (r"stage(\d)/merge", features(-2, "reduction"), _CONV_AS_DENSE),
            *rules(functools.partial(features, -1), "mlp.0", "mlp.3"),
        ],
        extra=positions,
    )
    timm = Layout(
        rules=[
            ("stem_conv", "patch_embed.proj"),
            ("stem_norm", "patch_embed.norm"),
            ("head", "head.fc"),
            (r"stage(\d)/merge_norm", layers("downsample.norm")),
            (r"stage(\d)/merge", layers("downsample.reduction"), _CONV_AS_DENSE),
            *rules(lambda name: layers(f"blocks.{name}"), "mlp.fc1", "mlp.fc2"),
        ]
    )
    return {"torchvision": torchvision, "timm": timm}
