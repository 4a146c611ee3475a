"""Vision Transformers: transformer encoders whose tokens are patches of the image.

Dosovitskiy et al. 2021  An image is worth 16x16 words, arXiv 2010.11929                  vit_*_patch*
Chen et al. 2021         An empirical study of training self-supervised ViTs, 2104.02057  positions="sincos2d"
Xiao et al. 2021         Early convolutions help transformers see better, 2106.14881      vit_p_*, vit_c_*
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models.errors import UserError
from models.layers.activation import activation
from models.layers.attention import SelfAttention
from models.layers.endpoint import Endpoint
from models.layers.ingredients import Classifier, Ingredients
from models.layers.norm import norm
from models.layers.regularize import Dropout, StochasticDepth, drop_rates
from models.layers.stage import mlp
from models.weights import jax_vit
from models.weights.layouts import TRANSPOSED, Layout, count_batches

CHOICES = {"pool": ("token", "mean"), "positions": ("learned", "sincos2d")}
EPSILON = 1e-6  # of the normalization, as in the authors' code (flax's default)


def sincos2d(height: int, width: int, channels: int) -> np.ndarray:
    """Returns fixed position embeddings of a grid of patches, float32 [height * width, channels], row by row.

    The channels have four equal parts: sine and cosine of the row, sine and cosine of the column, each at the
    frequencies 10000^(-4 i / channels) (Chen 2021, appendix A).
    """
    frequencies = 10000.0 ** -(np.arange(channels // 4) / (channels // 4))
    rows, columns = (index.reshape(-1, 1) * frequencies for index in np.mgrid[:height, :width])  # [H W, C / 4]
    waves = [np.sin(rows), np.cos(rows), np.sin(columns), np.cos(columns)]
    return np.concatenate(waves, 1).astype(np.float32)


def resize_positions(positions: jax.Array, old: tuple[int, int], new: tuple[int, int]) -> jax.Array:
    """Resizes learned position embeddings to another grid of patches (Dosovitskiy 2021, section 3.2), as timm does.

    The resampling is bicubic, with antialiasing if the new grid is smaller.

    Args:
      positions: [1, P + H W, C]; the first P belong to tokens that are not patches (the class token) and stay the same.
      old: (H, W) of the grid of `positions`.
      new: (H, W) of the grid of the result.

    Raises:
      UserError: There are fewer positions than the old grid has patches.
    """
    prefix = positions.shape[1] - old[0] * old[1]
    if prefix < 0:
        raise UserError(f"{positions.shape[1]} positions are too few for {old[0]} x {old[1]} patches")
    if old == new:
        return positions
    channels = positions.shape[-1]
    grid = positions[:, prefix:].reshape(1, *old, channels)  # [1, H W, C] -> [1, H, W, C]
    grid = jax.image.resize(grid, (1, *new, channels), "cubic", antialias=True)
    return jnp.concatenate([positions[:, :prefix], grid.reshape(1, -1, channels)], 1)


class Block(nn.Module):
    """A block: x + attention(norm(x)), then x + mlp(norm(x)); maps [N, T, C] to the same shape (fig. 1, eq. 2 and 3).

    Attributes:
      layers: Constructors of the ingredients.
      heads, mlp_width, dropout: See ViT.
      drop_branch: Probability, per example, of dropping a branch in training.
      train: Whether this is a training step.
    """

    layers: Ingredients
    heads: int
    mlp_width: int
    dropout: float
    drop_branch: float
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        _, dense, norm, _ = self.layers
        dropout = functools.partial(Dropout, self.dropout, deterministic=not self.train)
        drop_branch = functools.partial(StochasticDepth, self.drop_branch, deterministic=not self.train)
        y = SelfAttention(dense, self.heads, name="attention")(norm(name="norm1", epsilon=EPSILON)(x))
        x = x + drop_branch()(dropout()(y))
        y = mlp(self.layers, norm(name="norm2", epsilon=EPSILON)(x), self.mlp_width, dropout)
        return x + drop_branch()(dropout()(y))


class ViT(Classifier):
    """Vision Transformer, with the fields of `Classifier` and those below.

    Endpoints: "stem" (a map), "block0", ..., "last_map" (tokens; only with pool="mean"), "pre_logits".

    `image_size` fixes the number of tokens, so images of another size are refused. Importing weights resizes positions
    that were learned at another size.
    Dense kernels are drawn from truncated_normal:0.02, as in later codes. The authors' code draws them from
    xavier_uniform and starts the head at 0.

    Attributes:
      patch_size: Height and width of the patches that the stem projects; a divisor of image_size.
      width: Channels of each token, a multiple of heads.
      depth: Number of blocks.
      heads: Number of attention heads.
      mlp_width: Channels of the hidden layer of an MLP.
      pool: Input of the head: "token" (a learned class token) or "mean" (the mean of all tokens, without a class
        token).
      positions: "learned", or "sincos2d" (fixed, zero for the class token; width must be a multiple of 4).
      stem_channels: Channels of the 3x3 convolutions of Xiao 2021's stem. Each is normalized and activated, and a 1x1
        convolution follows them. Convolutions that increase the channels have stride 2; the product of the strides
        must be patch_size. () projects patches instead.
      stem_norm, stem_act: `norm` and `act` of that stem; None uses those of the network.
      dropout: Dropout rate of the tokens with their positions, in the MLPs, and at the end of each branch.
      stochastic_depth: Probability of dropping the last block's branches. It grows linearly from 0 for the first block.
      remat: Whether the backward pass recomputes the activations inside blocks instead of storing them.
    """

    norm: str | Callable = "channel"
    act: str | Callable = "gelu"
    kernel_init: str | Callable = "truncated_normal:0.02"
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    pool: str = "token"
    positions: str = "learned"
    stem_channels: Sequence[int] = ()
    stem_norm: str | Callable | None = None
    stem_act: str | Callable | None = None
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    remat: bool = False

    @property
    def grid(self) -> int:
        """The number of patches along each side of an image."""
        return self.image_size // self.patch_size

    def check(self) -> None:
        for field, allowed in CHOICES.items():
            self._need_choice(field, allowed)
        self._need_at_least(1, "patch_size", "width", "depth", "heads", "mlp_width")
        self._need_rates("dropout", "stochastic_depth")
        self._need_numbers("stem_channels", (48, 96), empty=True)
        if self.width % self.heads:
            raise UserError(f"heads={self.heads} must divide width={self.width}")
        if self.pool == "mean":
            self._need_mean_over_space(self.width)
        if self.positions == "sincos2d" and self.width % 4:
            raise UserError(f"positions='sincos2d' needs a width that is a multiple of 4, not width={self.width}")
        if self.image_size % self.patch_size:
            raise UserError(f"image_size={self.image_size} must be a multiple of patch_size={self.patch_size}")
        stem = self.stem_channels
        if not stem and (self.stem_norm, self.stem_act) != (None, None):
            raise UserError("stem_norm and stem_act need a convolutional stem: set stem_channels")
        if stem and math.prod(self._stem_strides()) != self.patch_size:
            raise UserError(
                f"stem_channels={stem} have strides {self._stem_strides()}, whose product is not "
                f"patch_size={self.patch_size}"
            )
        self._stem_ingredients(self.ingredients(train=False), train=False)

    def _norms(self):
        return (self.norm, self.stem_norm)

    def _stem_strides(self) -> list[int]:
        """Returns 2 for convolutions that change the channels and 1 for those that keep them (Xiao 2021, section 3)."""
        return [
            1 if i and channels == self.stem_channels[i - 1] else 2 for i, channels in enumerate(self.stem_channels)
        ]

    def _stem_ingredients(self, layers: Ingredients, train: bool) -> Ingredients:
        kind = self.norm if self.stem_norm is None else self.stem_norm
        dtype = cast(functools.partial, layers.dense).keywords["dtype"]
        return layers._replace(
            norm=norm(kind, train=train, dtype=dtype, axis_name=self._norm_axis(train)),
            act=layers.act if self.stem_act is None else activation(self.stem_act),
            conv=functools.partial(layers.conv, use_bias=kind == "none"),
        )

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [N, H, W, C] to logits [N, num_classes], float32; training may need the rng stream "dropout".

        Raises:
          UserError: The images are not image_size x image_size.
        """
        if images.shape[1:3] != (self.image_size,) * 2:
            raise UserError(
                f"images of {images.shape[1]} x {images.shape[2]}: image_size={self.image_size} fixes the "
                "positions of this network; set image_size, and resize imported positions"
            )
        layers = self.ingredients(train)
        x = Endpoint("stem")(self._stem(layers, images, train))
        x = jax.lax.collapse(x, 1, 3)  # [N, H', W', C] -> [N, H' W', C]
        x = Dropout(self.dropout, deterministic=not train)(self._with_positions(x))
        block = functools.partial(
            nn.remat(Block) if self.remat else Block, layers, self.heads, self.mlp_width, self.dropout, train=train
        )
        for i, drop_branch in enumerate(drop_rates(self.stochastic_depth, [self.depth])[0]):
            x = Endpoint(f"block{i}")(block(drop_branch=drop_branch, name=f"block{i}")(x))
        x = layers.norm(name="final_norm", epsilon=EPSILON)(x)
        x = x[:, 0] if self.pool == "token" else Endpoint("last_map")(x).mean(1)  # [N, T, C] -> [N, C]
        return layers.dense(self.num_classes, name="head")(Endpoint("pre_logits")(x)).astype(jnp.float32)

    def _stem(self, layers: Ingredients, images: jax.Array, train: bool) -> jax.Array:
        """Maps images [N, H, W, C] to a map [N, H / patch_size, W / patch_size, width]."""
        conv, _, norm, act = self._stem_ingredients(layers, train)
        if not self.stem_channels:
            size = self.patch_size
            return conv(self.width, size, size, padding=0, use_bias=True, name="stem_conv")(images)
        x = images
        for i, (features, stride) in enumerate(zip(self.stem_channels, self._stem_strides(), strict=True), 1):
            x = act(norm(name=f"stem_norm{i}")(conv(features, 3, stride, name=f"stem_conv{i}")(x)))
        return conv(self.width, 1, use_bias=True, name="stem_out")(x)

    def _with_positions(self, x: jax.Array) -> jax.Array:
        """Prepends the class token, if there is one, to the tokens [N, T, C] of the patches, and adds positions."""
        prefix = int(self.pool == "token")
        if prefix:
            token = self.param("class_token", nn.initializers.zeros_init(), (1, 1, self.width), jnp.float32)
            token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, self.width))
            x = jnp.concatenate([token, x], 1)
        if self.positions == "learned":
            shape = (1, prefix + self.grid**2, self.width)
            positions = self.param("positions", nn.initializers.normal(0.02), shape, jnp.float32)
        else:
            positions = self.fixed_positions()
        return x + jnp.asarray(positions, x.dtype)

    def fixed_positions(self) -> np.ndarray:
        """Returns the positions of positions="sincos2d": [1, T, C], zero for the class token."""
        return np.pad(sincos2d(self.grid, self.grid, self.width), ((int(self.pool == "token"), 0), (0, 0)))[None]


_net = functools.partial
_SIZES = {  # Dosovitskiy 2021, table 1; tiny, small: Touvron et al. 2021, arXiv 2012.12877, table 1
    "tiny": {"depth": 12, "width": 192, "mlp_width": 768, "heads": 3},
    "small": {"depth": 12, "width": 384, "mlp_width": 1536, "heads": 6},
    "base": {"depth": 12, "width": 768, "mlp_width": 3072, "heads": 12},
    "large": {"depth": 24, "width": 1024, "mlp_width": 4096, "heads": 16},
    "huge": {"depth": 32, "width": 1280, "mlp_width": 5120, "heads": 16},
}
_EARLY = {  # Xiao 2021, table 1 (of ViT_P), and the channels of ViT_C's stem, section 3
    "1gf": ({"depth": 12, "width": 192, "mlp_width": 3 * 192, "heads": 3}, (24, 48, 96, 192)),
    "4gf": ({"depth": 12, "width": 384, "mlp_width": 3 * 384, "heads": 6}, (48, 96, 192, 384)),
    "18gf": ({"depth": 12, "width": 768, "mlp_width": 4 * 768, "heads": 12}, (64, 128, 128, 256, 256, 512)),
    "36gf": ({"depth": 14, "width": 1024, "mlp_width": 4 * 1024, "heads": 16}, (64, 128, 128, 256, 256, 512)),
}
VARIANTS = {
    **{
        f"vit_{size}_patch{patch}": _net(ViT, patch_size=patch, **fields)
        for size, fields in _SIZES.items()
        for patch in (32, 16, 14)
    },
    **{f"vit_p_{size}": _net(ViT, **fields) for size, (fields, _) in _EARLY.items()},
    # The stem takes the place of one block.
    **{
        f"vit_c_{size}": _net(
            ViT, **{**fields, "depth": fields["depth"] - 1}, stem_channels=channels, stem_norm="batch", stem_act="relu"
        )
        for size, (fields, channels) in _EARLY.items()
    },
}


def layouts(model: ViT) -> dict[str, Layout]:
    """Returns torchvision's layout for networks with a class token; timm's and JAX's for those that project patches.

    Both libraries keep fixed positions as if they were learned. Pool "mean" is timm's class_token=False,
    global_pool="avg", fc_norm=False, its vit_*_gap_*.
    """

    def extra(name: str) -> Callable:
        fixed = {} if model.positions == "learned" else {name: model.fixed_positions()}
        return lambda names: count_batches(names) | fixed

    block, tv = r"block(\d+)/", r"encoder.layers.encoder_layer_\1."
    torchvision = Layout(
        rules=[
            ("class_token", "class_token"),
            ("positions", "encoder.pos_embedding"),
            ("stem_conv", "conv_proj"),
            ("stem_out", "conv_proj.conv_last"),
            (r"stem_conv(\d)", lambda match: f"conv_proj.conv_bn_relu_{int(match[1]) - 1}.0"),
            (r"stem_norm(\d)", lambda match: f"conv_proj.conv_bn_relu_{int(match[1]) - 1}.1"),
            (f"{block}norm(\\d)", rf"{tv}ln_\2"),
            (f"{block}attention/qkv/kernel", f"{tv}self_attention.in_proj_weight", TRANSPOSED),
            (f"{block}attention/qkv/bias", f"{tv}self_attention.in_proj_bias"),
            (f"{block}attention/out", f"{tv}self_attention.out_proj"),
            (f"{block}expand", f"{tv}mlp.0"),
            (f"{block}reduce", f"{tv}mlp.3"),
            ("final_norm", "encoder.ln"),
            ("head", "heads.head"),
        ],
        extra=extra("encoder.pos_embedding"),
    )
    timm = Layout(
        rules=[
            ("class_token", "cls_token"),
            ("positions", "pos_embed"),
            ("stem_conv", "patch_embed.proj"),
            (f"{block}norm(\\d)", r"blocks.\1.norm\2"),
            (f"{block}attention/qkv", r"blocks.\1.attn.qkv"),
            (f"{block}attention/out", r"blocks.\1.attn.proj"),
            (f"{block}expand", r"blocks.\1.mlp.fc1"),
            (f"{block}reduce", r"blocks.\1.mlp.fc2"),
            ("final_norm", "norm"),
            ("head", "head"),
        ],
        extra=extra("pos_embed"),
    )
    by_library = {"torchvision": torchvision} if model.pool == "token" else {}
    if not model.stem_channels:
        by_library["timm"] = timm
        if model.positions == "learned":
            by_library["jax"] = jax_vit.layout()
    return by_library


def adapt(model: ViT, arrays: Mapping[str, np.ndarray], source: str) -> Mapping[str, np.ndarray]:
    """Resizes learned positions of a square grid if they are for images of another size.

    models/weights/layouts.py describes the arguments.
    """
    name = layouts(model)[source].place("positions")[0] if source != "ablate" else "positions"
    if model.positions != "learned" or name not in arrays or arrays[name].ndim != 3:
        return arrays
    prefix = int(model.pool == "token")
    old = math.isqrt(max(arrays[name].shape[1] - prefix, 0))
    if old**2 + prefix != arrays[name].shape[1]:
        return arrays  # not a square grid; reading the weights refuses the shape
    resized = resize_positions(jnp.asarray(arrays[name]), (old, old), (model.grid, model.grid))
    return {**arrays, name: np.asarray(resized)}
