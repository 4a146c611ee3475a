"""Plain Flax networks: what one would write with flax.linen alone, to compare ours with.

    network = plain.create("resnet50", blocks=1)       plain.ours("resnet50", blocks=1) is the same network of ours

Each computes what its counterpart of `models` computes, with as many parameters. Both are without dropout and
stochastic depth. Parameters, statistics, softmax and logits are float32. Flax's attention rounds what goes into the
softmax to the type of the computation, which saves it memory traffic; ours does not.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import models
from models.errors import choice_error

_NOISE = ("dropout", "stochastic_depth")
_BORDER: Any = ((1, 1), (1, 1))  # Flax annotates padding as str


def _batch_norm(train: bool, dtype: Any) -> functools.partial:
    return functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype)


def _logits(x: jax.Array, num_classes: int, dtype: Any) -> jax.Array:
    return nn.Dense(num_classes, dtype=dtype)(x).astype(jnp.float32)


class Bottleneck(nn.Module):
    """A residual block of 1x1, 3x3 and 1x1 convolutions."""

    conv: Callable
    norm: Callable
    features: int
    stride: int

    @nn.compact
    def __call__(self, x):
        y = nn.relu(self.norm()(self.conv(self.features, (1, 1))(x)))
        y = nn.relu(self.norm()(self.conv(self.features, (3, 3), self.stride, padding=1)(y)))
        y = self.norm()(self.conv(4 * self.features, (1, 1))(y))
        if x.shape != y.shape:
            x = self.norm()(self.conv(4 * self.features, (1, 1), self.stride)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet with bottlenecks."""

    stage_sizes: Sequence[int]
    num_classes: int
    dtype: Any

    @nn.compact
    def __call__(self, x, train=False):
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = _batch_norm(train, self.dtype)
        x = nn.relu(norm()(conv(64, (7, 7), 2, padding=3)(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), _BORDER)
        for stage, size in enumerate(self.stage_sizes):
            for i in range(size):
                x = Bottleneck(conv, norm, 64 * 2**stage, 2 if stage and not i else 1)(x)
        return _logits(x.mean((1, 2)), self.num_classes, self.dtype)


class DenseNet(nn.Module):
    """DenseNet with bottlenecks and compression."""

    stage_sizes: Sequence[int]
    num_classes: int
    dtype: Any
    growth: int = 32

    @nn.compact
    def __call__(self, x, train=False):
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = _batch_norm(train, self.dtype)
        x = nn.relu(norm()(conv(2 * self.growth, (7, 7), 2, padding=3)(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), _BORDER)
        for stage, size in enumerate(self.stage_sizes):
            if stage:
                x = conv(x.shape[-1] // 2, (1, 1))(nn.relu(norm()(x)))
                x = nn.avg_pool(x, (2, 2), (2, 2))
            for _ in range(size):
                y = conv(4 * self.growth, (1, 1))(nn.relu(norm()(x)))
                y = conv(self.growth, (3, 3), padding=1)(nn.relu(norm()(y)))
                x = jnp.concatenate([x, y], -1)
        return _logits(nn.relu(norm()(x)).mean((1, 2)), self.num_classes, self.dtype)


class InvertedResidual(nn.Module):
    """A block of MobileNetV2."""

    conv: Callable
    norm: Callable
    features: int
    stride: int
    expansion: int

    @nn.compact
    def __call__(self, x):
        y, inner = x, self.expansion * x.shape[-1]
        if self.expansion > 1:
            y = nn.relu6(self.norm()(self.conv(inner, (1, 1))(y)))
        y = self.conv(inner, (3, 3), self.stride, padding=1, feature_group_count=inner)(y)
        y = self.norm()(self.conv(self.features, (1, 1))(nn.relu6(self.norm()(y))))
        return x + y if x.shape == y.shape else y


class MobileNetV2(nn.Module):
    """MobileNetV2 of width 1."""

    stage_sizes: Sequence[int]
    num_classes: int
    dtype: Any

    @nn.compact
    def __call__(self, x, train=False):
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = _batch_norm(train, self.dtype)
        x = nn.relu6(norm()(conv(32, (3, 3), 2, padding=1)(x)))
        stages = zip((16, 24, 32, 64, 96, 160, 320), (1, 2, 2, 2, 1, 2, 1), self.stage_sizes, strict=True)
        for stage, (features, stride, size) in enumerate(stages):
            for i in range(size):
                x = InvertedResidual(conv, norm, features, 1 if i else stride, 6 if stage else 1)(x)
        x = nn.relu6(norm()(conv(1280, (1, 1))(x)))
        return _logits(x.mean((1, 2)), self.num_classes, self.dtype)


class ConvNeXt(nn.Module):
    """ConvNeXt with layer scale."""

    stage_sizes: Sequence[int]
    num_classes: int
    dtype: Any
    width: int = 96

    @nn.compact
    def __call__(self, x, train=False):
        conv = functools.partial(nn.Conv, dtype=self.dtype)
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        norm = functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
        x = norm()(conv(self.width, (4, 4), 4, padding="VALID")(x))
        for stage, size in enumerate(self.stage_sizes):
            if stage:
                x = conv(self.width * 2**stage, (2, 2), 2, padding="VALID")(norm()(x))
            for i in range(size):
                channels = x.shape[-1]
                y = norm()(conv(channels, (7, 7), padding=3, feature_group_count=channels)(x))
                y = dense(channels)(nn.gelu(dense(4 * channels)(y), approximate=False))
                start = nn.initializers.constant(1e-6)
                scale = self.param(f"scale{stage}_{i}", start, (channels,), jnp.float32)
                x = x + y * scale.astype(y.dtype)
        return _logits(norm()(x.mean((1, 2))), self.num_classes, self.dtype)


class WindowAttention(nn.Module):
    """Attention within windows of 7 x 7 positions, shifted by 3 with `shifted`, with relative position biases."""

    heads: int
    shifted: bool
    dtype: Any

    @nn.compact
    def __call__(self, x):
        size, (batch, height, width, channels) = 7, x.shape
        shift = 3 if self.shifted and height > size else 0
        grid = (height // size, size, width // size, size)
        x = jnp.roll(x, (-shift, -shift), (1, 2)).reshape(batch, *grid, channels).swapaxes(2, 3)
        x = x.reshape(-1, size * size, channels)  # [N windows, T, C]
        table = self.param("bias", nn.initializers.truncated_normal(0.02), ((2 * size - 1) ** 2, self.heads))
        places = np.moveaxis(np.mgrid[:size, :size], 0, -1).reshape(-1, 2)
        apart = places[:, None] - places + size - 1
        bias = table[apart[..., 0] * (2 * size - 1) + apart[..., 1]].transpose(2, 0, 1)[None]  # [1, heads, T, T]
        if shift:
            wrapped = np.arange(height) >= height - shift
            region = (2 * wrapped[:, None] + wrapped).reshape(grid).swapaxes(1, 2).reshape(-1, size * size)
            hidden = np.where(region[:, :, None] == region[:, None], 0, -1e9).astype(np.float32)
            bias = bias + jnp.tile(hidden, (batch, 1, 1))[:, None]
        q, k, v = jnp.split(nn.Dense(3 * channels, dtype=self.dtype)(x), 3, -1)
        q, k, v = (a.reshape(*a.shape[:2], self.heads, channels // self.heads) for a in (q, k, v))
        y = nn.dot_product_attention(q, k, v, bias, dtype=self.dtype, force_fp32_for_softmax=True)
        y = nn.Dense(channels, dtype=self.dtype)(y.reshape(x.shape))
        y = y.reshape(batch, grid[0], grid[2], size, size, channels).swapaxes(2, 3)
        return jnp.roll(y.reshape(batch, height, width, channels), (shift, shift), (1, 2))


class Swin(nn.Module):
    """Swin Transformer for images whose sides are multiples of 224."""

    stage_sizes: Sequence[int]
    num_classes: int
    dtype: Any
    width: int = 96

    @nn.compact
    def __call__(self, x, train=False):
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        norm = functools.partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
        x = norm()(nn.Conv(self.width, (4, 4), 4, padding="VALID", dtype=self.dtype)(x))
        for stage, size in enumerate(self.stage_sizes):
            if stage:
                parts = [x[:, row::2, column::2] for column in range(2) for row in range(2)]
                x = dense(self.width * 2**stage, use_bias=False)(norm()(jnp.concatenate(parts, -1)))
            for i in range(size):
                x = x + WindowAttention(3 * 2**stage, i % 2 == 1, self.dtype)(norm()(x))
                y = nn.gelu(dense(4 * x.shape[-1])(norm()(x)), approximate=False)
                x = x + dense(x.shape[-1])(y)
        return _logits(norm()(x).mean((1, 2)), self.num_classes, self.dtype)


def _attention(heads: int, dtype: Any) -> nn.Module:
    return nn.MultiHeadDotProductAttention(heads, dtype=dtype, force_fp32_for_softmax=True)


class ViT(nn.Module):
    """Vision Transformer with a class token and learned positions."""

    depth: int
    num_classes: int
    dtype: Any
    width: int = 768

    @nn.compact
    def __call__(self, x, train=False):
        norm = functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        x = nn.Conv(self.width, (16, 16), 16, padding="VALID", dtype=self.dtype)(x)
        x = x.reshape(x.shape[0], -1, self.width)
        token = self.param("token", nn.initializers.zeros_init(), (1, 1, self.width)).astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, self.width)), x], 1)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:])).astype(x.dtype)
        for _ in range(self.depth):
            x = x + _attention(12, self.dtype)(norm()(x))
            x = x + dense(self.width)(nn.gelu(dense(4 * self.width)(norm()(x)), approximate=False))
        return _logits(norm()(x)[:, 0], self.num_classes, self.dtype)


class Transformer(nn.Module):
    """Encoder and decoder of the base size, for translation; token 0 pads sequences."""

    depth: int
    num_classes: int
    dtype: Any
    width: int = 512

    @nn.compact
    def __call__(self, source, target, train=False):
        embed = nn.Embed(self.num_classes, self.width, dtype=self.dtype)
        visible, causal = (source != 0)[:, None, None], nn.make_causal_mask(target)
        memory, x = (embed(tokens) * self.width**0.5 + self._waves(tokens.shape[1]) for tokens in (source, target))
        for _ in range(self.depth):
            memory = self._feed_forward(self._attend(memory, memory, visible))
        for _ in range(self.depth):
            x = self._attend(self._attend(x, x, causal), memory, visible)
            x = self._feed_forward(x)
        return embed.attend(x).astype(jnp.float32)

    def _waves(self, length):
        angles = np.arange(length)[:, None] / 10000 ** (np.arange(0, self.width, 2) / self.width)
        waves = np.stack([np.sin(angles), np.cos(angles)], -1).reshape(length, self.width)
        return jnp.asarray(waves, self.dtype)

    def _attend(self, x, memory, mask):
        return self._norm(x + _attention(8, self.dtype)(x, memory, mask=mask))

    def _feed_forward(self, x):
        y = nn.relu(nn.Dense(4 * self.width, dtype=self.dtype)(x))
        return self._norm(x + nn.Dense(self.width, dtype=self.dtype)(y))

    def _norm(self, x):
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)(x)


# {name: (constructor, its field and ours of the depth, numbers of blocks)}
_NETWORKS: dict[str, tuple[Callable, str, str, int | tuple[int, ...]]] = {
    "resnet50": (ResNet, "stage_sizes", "stage_sizes", (3, 4, 6, 3)),
    "densenet121": (DenseNet, "stage_sizes", "stage_sizes", (6, 12, 24, 16)),
    "mobilenet_v2": (MobileNetV2, "stage_sizes", "stage_sizes", (1, 2, 3, 4, 3, 3, 1)),
    "convnext_tiny": (ConvNeXt, "stage_sizes", "stage_sizes", (3, 3, 9, 3)),
    "swin_t": (Swin, "stage_sizes", "stage_sizes", (2, 2, 6, 2)),
    "vit_base_patch16": (ViT, "depth", "depth", 12),
    "transformer_base": (Transformer, "depth", "layers", 6),
}
NAMES = tuple(_NETWORKS)


def _depth(name: str, blocks: int | None) -> int | tuple[int, ...]:
    """Returns the number of blocks, per stage if the network has stages.

    Raises:
      UserError: There is no plain network of this name.
    """
    if name not in _NETWORKS:
        raise choice_error("plain network", name, NAMES)
    whole = _NETWORKS[name][3]
    if blocks is None:
        return whole
    return blocks if isinstance(whole, int) else (blocks,) * len(whole)


def create(name: str, blocks: int | None = None, num_classes: int = 1000, dtype: Any = jnp.bfloat16) -> nn.Module:
    """Returns a plain network, called as `module.apply(variables, images, train=...)`.

    Args:
      name: One of NAMES. "transformer_base" takes source and target tokens instead of images.
      blocks: Blocks of each stage, or of the whole network if it has no stages (of encoder and of decoder each); None
        for those of `name`.
      num_classes: Number of classes, or of tokens.
      dtype: Type of the computation.

    Raises:
      UserError: There is no plain network of this name.
    """
    depth = _depth(name, blocks)
    kind, field, _, _ = _NETWORKS[name]
    return kind(**{field: depth}, num_classes=num_classes, dtype=dtype)


def ours(name: str, blocks: int | None = None, num_classes: int = 1000, dtype: Any = jnp.bfloat16) -> nn.Module:
    """Returns the network of `models` that `create` returns plainly; the arguments are the same."""
    depth = _depth(name, blocks)
    fields = {field: 0.0 for field in _NOISE if field in models.fields(name)}
    classes = "vocab_size" if "vocab_size" in models.fields(name) else "num_classes"
    dtype = jnp.dtype(dtype).name
    return models.create(name, **{_NETWORKS[name][2]: depth, classes: num_classes}, dtype=dtype, **fields)
