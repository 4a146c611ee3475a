"""Transformer: Vaswani et al. 2017, Attention is all you need, arXiv 1706.03762. Encoder and decoder, for translation.

  logits = model.apply(variables, source, target)                             all positions at once, for training
  encoded = model.apply(variables, source, method="encode")
  logits = model.apply(variables, target, encoded, source, method="decode")

models/decoding.py translates with it, token by token. Tokens are int [N, T]; shorter sequences are padded at the end
with PAD.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models import plugins
from models.errors import UserError
from models.layers.attention import CrossAttention, SelfAttention
from models.layers.endpoint import Endpoint
from models.layers.ingredients import Ingredients, Network, Sites
from models.layers.regularize import Dropout
from models.layers.stage import mlp

PAD, BOS, EOS = 0, 1, 2  # default tokens for padding, the beginning and the end of a sequence
POSITIONS = ("sine", "learned", "none")
# Other norms average over a sequence, so a decoder would see the tokens that it has to predict.
POSITIONWISE_NORMS = ("channel", "batch", "none")


def sine(length: int, channels: int) -> np.ndarray:
    """Returns position encodings (section 3.5), float32 [length, channels]: sines (even channels) and cosines (odd)."""
    angles = np.arange(length)[:, None] / 10000 ** (np.arange(0, channels, 2) / channels)  # [length, channels / 2]
    waves = np.stack([np.sin(angles), np.cos(angles)], -1)  # [length, channels / 2, 2]
    return waves.reshape(length, channels).astype(np.float32)


class Block(nn.Module):
    """Base of the blocks of encoder and decoder.

    Attributes:
      layers: Constructors of the ingredients.
      heads, ff_width, prenorm, dropout: See Transformer.
      train: Whether dropout is active.
    """

    layers: Ingredients
    heads: int
    ff_width: int
    prenorm: bool
    dropout: float
    train: bool

    def _residual(self, name: str, x: jax.Array, sublayer: Callable) -> jax.Array:
        """Returns norm(x + sublayer(x)) (section 3.1), or x + sublayer(norm(x)) with `prenorm`.

        Dropout applies to the output of the sublayer (section 5.4).
        """
        norm = self.layers.norm(name=f"{name}_norm")
        y = sublayer(norm(x) if self.prenorm else x)
        x = x + Dropout(self.dropout, deterministic=not self.train)(y)
        return x if self.prenorm else norm(x)

    def _feed_forward(self, x: jax.Array) -> jax.Array:
        """Applies the feed-forward network of section 3.3 at each position."""
        return mlp(self.layers, x, self.ff_width)


class EncoderBlock(Block):
    """A block of the encoder (fig. 1, left): maps x [N, S, C] to the same shape."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Attends within x.

        Args:
          x: [N, S, C].
          mask: bool [N, 1, 1, S], False for PAD.
        """
        attention = SelfAttention(self.layers.dense, self.heads, name="attention")
        x = self._residual("attention", x, lambda x: attention(x, mask=mask))
        return self._residual("feed_forward", x, self._feed_forward)


class DecoderBlock(Block):
    """A block of the decoder (fig. 1, right): maps x [N, T, C] to the same shape."""

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        memory: jax.Array | None,
        memory_mask: jax.Array,
        place: int | jax.Array | None,
    ) -> jax.Array:
        """Attends to x and to the output of the encoder.

        Args:
          x: [N, T, C].
          mask: Mask of SelfAttention, [1, 1, T, L]; L is T, or the length of the cache if `place` is not None.
          memory: [N, S, C], the output of the encoder; None if the cache has its keys and values.
          memory_mask: bool [N, 1, 1, S], False for PAD in the source.
          place: See SelfAttention.
        """
        attention = SelfAttention(self.layers.dense, self.heads, name="attention")
        x = self._residual("attention", x, lambda x: attention(x, mask=mask, place=place))
        cross = CrossAttention(self.layers.dense, self.heads, name="cross")
        remember = place is not None and memory is not None
        x = self._residual("cross", x, lambda x: cross(x, memory, memory_mask, remember))
        return self._residual("feed_forward", x, self._feed_forward)


class Stack(nn.Module):
    """A sequence of blocks, each of which is an endpoint, with a final normalization if `prenorm`.

    Attributes:
      ingredients: Function that resolves the ingredients of a network, train -> Ingredients.
      block: Constructor of a block, block(layers, train=..., name=...).
      depth: Number of blocks.
      prenorm: See Transformer.
    """

    ingredients: Callable[[bool], Ingredients]
    block: Callable
    depth: int
    prenorm: bool

    @nn.compact
    def __call__(self, x: jax.Array, *context: jax.Array | np.ndarray | int | None, train: bool) -> jax.Array:
        layers = self.ingredients(train)
        for i in range(self.depth):
            x = Endpoint(f"block{i}")(self.block(layers, train=train, name=f"block{i}")(x, *context))
        return layers.norm(name="final_norm")(x) if self.prenorm else x


class Transformer(Network):
    """Encoder and decoder for translation, with the fields of `Network` and those below.

    Endpoints: "encoder/block0", ..., "decoder/block0", ..., "pre_logits".

    One matrix, `embedding` [vocab_size, width], embeds source and target and computes the logits (section 3.4). It is
    drawn from a normal distribution of variance 1 / width, independent of `kernel_init`, and is not a `dense` layer.
    All dense layers have biases; the authors' code has them only in feed-forward layers.

    Attributes:
      vocab_size: Number of tokens, including PAD. With the paper's 37,000 (section 5.1), base and big have 63.1M and
        214.2M parameters. Table 3 states 65M for base, which fits 41,000 tokens. Its sizes for 2, 4 and 8 layers fit
        41,000 tokens too. It states 213M for big, which fits 36,000 tokens.
      width: Channels (the paper's d_model), an even multiple of heads.
      heads: Number of attention heads.
      layers: Number of blocks of the encoder, and of the decoder.
      ff_width: Channels of the hidden layer of a feed-forward network.
      dropout: Dropout rate of embedded tokens with positions, and at the end of each sublayer.
      max_length: Maximum length of source and target.
      positions: "sine"; "learned" (table 3, row E), a vector per position of source and target, drawn like the
        embedding; or "none", with which the encoder is a function of the set of tokens.
      prenorm: Normalizes before each sublayer and at the end of encoder and decoder, instead of after each sum.
    """

    norm: str | Callable = "channel"
    act: str | Callable = "relu"
    kernel_init: str | Callable = "xavier_uniform"
    vocab_size: int = 37_000
    width: int = 512
    heads: int = 8
    layers: int = 6
    ff_width: int = 2048
    dropout: float = 0.1
    max_length: int = 256
    positions: str = "sine"
    prenorm: bool = False

    def check(self) -> None:
        self._need_at_least(1, "vocab_size", "width", "heads", "layers", "ff_width", "max_length")
        self._need_rates("dropout")
        self._need_choice("positions", POSITIONS)
        if self.width % self.heads or self.width % 2:
            raise UserError(f"width={self.width} must be even and a multiple of heads={self.heads}")
        if not callable(plugins.load(self.norm)) and self.norm not in POSITIONWISE_NORMS:
            raise UserError(
                f"norm '{self.norm}' averages over a sequence, so a decoder would see the tokens that it has to "
                f"predict; allowed here: {', '.join(POSITIONWISE_NORMS)}"
            )

    def ingredients(self, train: bool) -> Ingredients:
        """Resolves the fields; every dense layer can be low-bit, because the embedding is the first and last layer."""
        return self._ingredients(train, Sites(first=False))

    def example(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Returns shapes and types of source and target, [1, max_length] tokens each."""
        return (jax.ShapeDtypeStruct((1, self.max_length), jnp.int32),) * 2

    def setup(self) -> None:
        shape = (self.vocab_size, self.width)
        self.embedding = self.param("embedding", nn.initializers.normal(self.width**-0.5), shape, jnp.float32)
        if self.positions == "learned":
            self.places = self.param(
                "positions", nn.initializers.normal(self.width**-0.5), (self.max_length, self.width), jnp.float32
            )
        self.embedding_dropout = Dropout(self.dropout)
        fields = {"heads": self.heads, "ff_width": self.ff_width, "prenorm": self.prenorm, "dropout": self.dropout}
        encoder_block, decoder_block = (functools.partial(kind, **fields) for kind in (EncoderBlock, DecoderBlock))
        self.pre_logits = Endpoint("pre_logits")
        self.encoder = Stack(self.ingredients, encoder_block, self.layers, self.prenorm)
        self.decoder = Stack(self.ingredients, decoder_block, self.layers, self.prenorm)

    def __call__(self, source: jax.Array, target: jax.Array, train: bool = False) -> jax.Array:
        """Returns the logits of each next token of `target`, given the tokens so far and the source.

        Args:
          source: int [N, S].
          target: int [N, T], the input of the decoder: it starts with a token that begins every sequence, so
            logits[:, t] predict target[:, t + 1].
          train: Whether dropout (rng stream "dropout") is active.

        Returns:
          [N, T, vocab_size], float32.

        Raises:
          UserError: A sequence is longer than max_length.
        """
        return self.decode(target, self.encode(source, train), source, train)

    def encode(self, source: jax.Array, train: bool = False) -> jax.Array:
        """Encodes source tokens [N, S] as [N, S, width]; attention ignores PAD."""
        return self.encoder(self._embed(source, 0, train), _tokens(source), train=train)

    def decode(self, target: jax.Array, encoded: jax.Array, source: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits [N, T, vocab_size] for target tokens [N, T], given the output of `encode` for `source`.

        No position attends to later positions. Padding comes last, so tokens before it never attend to PAD.
        """
        length = target.shape[1]
        causal = np.tri(length, dtype=bool)[None, None]  # [1, 1, T, T]
        x = self.decoder(self._embed(target, 0, train), causal, encoded, _tokens(source), None, train=train)
        return self._logits(x)

    def decode_next(
        self, token: jax.Array, place: int | jax.Array, source: jax.Array, encoded: jax.Array | None, length: int
    ) -> jax.Array:
        """Returns the logits of `decode` at position `place`, using cached keys and values of earlier positions.

        The collection "cache" must be mutable; the batch is the first axis of each of its arrays. The first call, at
        position 0, takes `encoded` and creates the cache: space for `length` positions, and the keys and values of the
        encoded source. Later calls read it from the variables and take None.

        Args:
          token: int [N], the tokens of the target at `place`.
          place: Position from 0 to length - 1.
          source: int [N, S].
          encoded: [N, S, width], or None.
          length: Number of positions in the cache.

        Returns:
          [N, vocab_size], float32.
        """
        mask = (jnp.arange(length) <= place)[None, None, None]  # [1, 1, 1, length]
        x = self._embed(token[:, None], place, train=False)  # [N] -> [N, 1, C]
        return self._logits(self.decoder(x, mask, encoded, _tokens(source), place, train=False))[:, 0]

    def _embed(self, tokens: jax.Array, place: int | jax.Array, train: bool) -> jax.Array:
        """Embeds tokens [N, T], the first of which is at position `place`, as [N, T, C] (section 3.4)."""
        length = tokens.shape[1]
        if length > self.max_length:
            raise UserError(f"a sequence of {length} tokens is longer than max_length={self.max_length}")
        x = self.embedding[tokens] * self.width**0.5
        if self.positions != "none":
            table = self.places if self.positions == "learned" else jnp.asarray(sine(self.max_length, self.width))
            x = x + jax.lax.dynamic_slice_in_dim(table, place, length)
        return self.embedding_dropout(x.astype(self.dtype or jnp.float32), deterministic=not train)

    def _logits(self, x: jax.Array) -> jax.Array:
        """Maps [N, T, C] to logits [N, T, vocab_size]."""
        x = self.pre_logits(x)
        return jnp.matmul(x, self.embedding.T.astype(x.dtype), preferred_element_type=jnp.float32)


def _tokens(source: jax.Array) -> jax.Array:
    """Returns the mask of tokens other than PAD, [N, S] -> [N, 1, 1, S], for all heads and queries."""
    return (source != PAD)[:, None, None]


VARIANTS = {  # table 3, base and big; the dropout rate is that of English-German
    "transformer_base": functools.partial(Transformer),
    "transformer_big": functools.partial(Transformer, width=1024, heads=16, ff_width=4096, dropout=0.3),
}
