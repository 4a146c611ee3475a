"""Swin Transformer: Liu et al. 2021, Hierarchical vision transformer using shifted windows, arXiv 2103.14030.

Laid out as torchvision's: maps that windows do not divide are padded on the right and at the bottom, and an axis along
which one window covers the map is not shifted.
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
from models.weights.layouts import Conversion, Layout

EXPANSION = 4  # of the hidden layer of an MLP; section 3.3


def relative_positions(window: int) -> np.ndarray:
    """The row of the bias table for each query and key of a window, [window**2, window**2] (section 3.2)."""
    places = np.stack(np.mgrid[:window, :window], -1).reshape(-1, 2)  # [T, 2]: row, column
    distance = places[:, None] - places[None] + window - 1  # from 0
    return distance[..., 0] * (2 * window - 1) + distance[..., 1]


def shifted_mask(height: int, width: int, window: int, shift: tuple[int, int]) -> np.ndarray:
    """Which keys a query sees after a cyclic shift: those that were its neighbours before (fig. 4).

    Args:
      height, width: of the map, multiples of `window`.
      shift: places that rows and columns were moved up and left.

    Returns:
      bool [windows, window**2, window**2].
    """

    def parts(size, moved):  # 1 for what came from the other end
        return np.arange(size) >= size - moved

    regions = 2 * parts(height, shift[0])[:, None] + parts(width, shift[1])
    regions = windows_of(regions[None, :, :, None], window)[..., 0]  # [windows, T]
    return regions[:, :, None] == regions[:, None]


def windows_of(x, window: int):
    """Maps [N, H, W, C] to windows [N H W / window**2, window**2, C]; sizes are multiples of `window`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // window, window, width // window, window, channels)
    return x.swapaxes(2, 3).reshape(batch * (height // window) * (width // window), window * window, channels)


def maps_of(windows: jax.Array, batch: int, height: int, width: int) -> jax.Array:
    """The inverse of `windows_of`: [N, H, W, C]."""
    size, channels = int(windows.shape[1] ** 0.5), windows.shape[2]
    x = windows.reshape(batch, height // size, width // size, size, size, channels)
    return x.swapaxes(2, 3).reshape(batch, height, width, channels)


class WindowAttention(nn.Module):
    """Self-attention inside of windows, with a learned bias for each relative position: x [N, H, W, C] -> the same.

    Attributes:
      layers: constructors of the ingredients.
      heads: of the attention.
      window: height and width of a window.
      shifted: whether windows are displaced by half their size, down and right.
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
        shift = tuple(self.window // 2 if self.shifted and size > self.window else 0 for size in sizes)
        x = windows_of(jnp.roll(x, (-shift[0], -shift[1]), (1, 2)), self.window)  # [N windows, T, C]
        table_shape = ((2 * self.window - 1) ** 2, self.heads)
        table = self.param("position_bias", nn.initializers.truncated_normal(0.02), table_shape, jnp.float32)
        bias = table[relative_positions(self.window)].transpose(2, 0, 1)[None]  # [1, heads, T, T]
        mask = None
        if any(shift):
            mask = jnp.tile(shifted_mask(*sizes, self.window, shift), (batch, 1, 1))[:, None]  # [N windows, 1, T, T]
        x = SelfAttention(self.layers.dense, self.heads, name="attention")(x, bias, mask)
        x = jnp.roll(maps_of(x, batch, *sizes), shift, (1, 2))
        return x[:, :height, :width]


class Block(nn.Module):
    """One unit (fig. 3b): x + attention(norm(x)), then x + mlp(norm(x)); [N, H, W, C] -> the same.

    Attributes:
      layers, heads, window, shifted: see WindowAttention.
      drop_branch: probability of dropping a branch of an example.
      train: whether that acts.
    """

    layers: Ingredients
    heads: int
    window: int
    shifted: bool
    drop_branch: float
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        _, dense, norm, act = self.layers
        drop = functools.partial(StochasticDepth, self.drop_branch, deterministic=not self.train)
        attention = WindowAttention(self.layers, self.heads, self.window, self.shifted, name="windows")
        x = x + drop()(attention(norm(name="norm1")(x)))
        y = dense(EXPANSION * x.shape[-1], name="expand")(norm(name="norm2")(x))
        return x + drop()(dense(x.shape[-1], name="reduce")(act(y)))


class Stage(nn.Module):
    """With `merge`, halves the resolution and doubles the channels; then blocks, each an endpoint."""

    layers: Ingredients
    merge: bool
    blocks: Sequence[Callable]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.merge:
            x = self._merge(x)
        for i, block in enumerate(self.blocks):
            x = Endpoint(f"block{i}")(block(name=f"block{i}")(x))
        return x

    def _merge(self, x: jax.Array) -> jax.Array:
        """Patch merging (section 3.1): 2x2 places side by side, [N, H, W, C] -> [N, H / 2, W / 2, 2 C]."""
        batch, height, width, channels = x.shape
        x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        x = x.reshape(batch, (height + 1) // 2, 2, (width + 1) // 2, 2, channels)
        x = x.transpose(0, 1, 3, 4, 2, 5).reshape(*x.shape[:2], x.shape[3], 4 * channels)  # a column, then the next
        x = self.layers.norm(name="merge_norm")(x)
        return self.layers.conv(2 * channels, 1, name="merge")(x)  # without bias where there is normalization


class Swin(Classifier):
    """The fields of `Classifier`, and these.

    Endpoints: "stem", "stage1", "stage1/block0", ..., "last_map", "pre_logits".

    Attributes:
      stage_sizes: blocks of each stage, of which every second one has shifted windows; each stage but the first halves
        the resolution, and has twice the channels.
      heads: of the attention, for each stage.
      width: channels of the first stage.
      patch_size: of the patches that the stem projects.
      window: height and width of the windows, in places of the map. (cuDNN's flash attention takes even ones alone.)
      stochastic_depth: probability of dropping the last block's branches, growing linearly to it from 0 for the first
        block's. The paper trains with 0.2, 0.3, 0.5 for T, S, B (appendix A2.1).
      remat: whether blocks are computed again for the gradient, instead of kept.
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
                    f"heads={self.heads}: the {self.width * 2**stage} channels of stage {stage + 1} cannot "
                    f"be dealt to {heads} heads"
                )
        self._need_mean_over_space(self.width * 2 ** (len(self.heads) - 1))  # of the last stage

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Images [N, H, W, C] -> logits [N, num_classes], float32; rng stream "dropout" where training needs it."""
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
            x = Endpoint(f"stage{stage + 1}")(Stage(layers, stage > 0, blocks, name=f"stage{stage + 1}")(x))
        x = Endpoint("last_map")(layers.norm(name="final_norm")(x)).mean((1, 2))  # [N, H, W, C] -> [N, C]
        return layers.dense(self.num_classes, name="head")(Endpoint("pre_logits")(x)).astype(jnp.float32)


_net = functools.partial
VARIANTS = {  # section 3.3
    "swin_t": _net(Swin),
    "swin_s": _net(Swin, stage_sizes=(2, 2, 18, 2)),
    "swin_b": _net(Swin, stage_sizes=(2, 2, 18, 2), width=128, heads=(4, 8, 16, 32)),
    "swin_l": _net(Swin, stage_sizes=(2, 2, 18, 2), width=192, heads=(6, 12, 24, 48)),
}

# A 1x1 convolution kept as a dense layer: [1, 1, C, D] <-> [D, C]
_CONV_AS_DENSE = Conversion(lambda ours: ours[0, 0].T, lambda theirs: theirs.T[None, None])


def layouts(model: Swin) -> dict[str, Layout]:
    """Torchvision's and timm's. timm's networks are the same functions where windows divide every stage's map."""
    block = r"stage(\d)/block(\d+)/"

    def features(place: int, name: str):  # torchvision counts the stem, stages and what is between them together
        return lambda match: f"features.{2 * int(match[1]) + place}.{name}".replace("#", match[match.re.groups])

    def layers(name: str):  # timm counts them from 0
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
