"""Transformer: Vaswani et al. 2017, Attention is all you need, arXiv 1706.03762. Encoder and decoder, for translation.

  logits = model.apply(variables, source, target)                                       all places at once, for training
  encoded = model.apply(variables, source, method="encode")
  logits = model.apply(variables, target, encoded, source, method="decode")

models/decoding.py translates with it, token by token. Tokens are int [N, T]; PAD, at the end, fills up shorter
sequences.
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

PAD, BOS, EOS = 0, 1, 2  # tokens: what fills up a sentence, begins and ends it, where nobody says otherwise
POSITIONS = ("sine", "learned", "none")
# Others average over the places of a sequence, so that a decoder would see the tokens that it is to predict.
NORMS_OF_PLACES = ("channel", "batch", "none")


def sine(length: int, channels: int) -> np.ndarray:
    """Positions (section 3.5), float32 [length, channels]: sines at even, cosines at odd channels, of one angle."""
    angles = np.arange(length)[:, None] / 10000 ** (np.arange(0, channels, 2) / channels)  # [length, channels / 2]
    waves = np.stack([np.sin(angles), np.cos(angles)], -1)  # [length, channels / 2, 2]
    return waves.reshape(length, channels).astype(np.float32)


class Block(nn.Module):
    """What blocks of encoder and decoder share.

    Attributes:
      layers: constructors of the ingredients.
      heads, ff_width, prenorm, dropout: see Transformer.
      train: whether dropout acts.
    """

    layers: Ingredients
    heads: int
    ff_width: int
    prenorm: bool
    dropout: float
    train: bool

    def _residual(self, name: str, x: jax.Array, sublayer: Callable) -> jax.Array:
        """norm(x + sublayer(x)) (section 3.1), or x + sublayer(norm(x)); dropout on the sublayer (section 5.4)."""
        norm = self.layers.norm(name=f"{name}_norm")
        y = sublayer(norm(x) if self.prenorm else x)
        x = x + Dropout(self.dropout, deterministic=not self.train)(y)
        return x if self.prenorm else norm(x)

    def _feed_forward(self, x: jax.Array) -> jax.Array:
        """Section 3.3, at each place."""
        y = self.layers.act(self.layers.dense(self.ff_width, name="expand")(x))
        return self.layers.dense(x.shape[-1], name="reduce")(y)


class EncoderBlock(Block):
    """x [N, S, C] -> the same; fig. 1, left."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """mask: bool [N, 1, 1, S], the places of tokens."""
        attention = SelfAttention(self.layers.dense, self.heads, name="attention")
        x = self._residual("attention", x, lambda x: attention(x, mask=mask))
        return self._residual("feed_forward", x, self._feed_forward)


class DecoderBlock(Block):
    """x [N, T, C] -> the same; fig. 1, right."""

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        memory: jax.Array | None,
        memory_mask: jax.Array,
        place: int | jax.Array | None,
    ) -> jax.Array:
        """Attends to itself, and to a memory.

        Args:
          x: [N, T, C].
          mask, place: of SelfAttention; [1, 1, T, L], L being T or, where `place` is given, the cache's length.
          memory: [N, S, C], what the encoder gave; None where the cache has its keys and values.
          memory_mask: bool [N, 1, 1, S], the places of its tokens.
        """
        attention = SelfAttention(self.layers.dense, self.heads, name="attention")
        x = self._residual("attention", x, lambda x: attention(x, mask=mask, place=place))
        cross = CrossAttention(self.layers.dense, self.heads, name="cross")
        remember = place is not None and memory is not None
        x = self._residual("cross", x, lambda x: cross(x, memory, memory_mask, remember))
        return self._residual("feed_forward", x, self._feed_forward)


class Stack(nn.Module):
    """Blocks, each an endpoint; and a normalization at the end where the blocks have theirs before the sublayers.

    Attributes:
      ingredients: of a network, train -> Ingredients.
      block: constructor, block(layers, train=..., name=...).
      depth: blocks.
      prenorm: see Transformer.
    """

    ingredients: Callable[[bool], Ingredients]
    block: Callable
    depth: int
    prenorm: bool

    @nn.compact
    def __call__(self, x: jax.Array, *context: jax.Array | int | None, train: bool) -> jax.Array:
        layers = self.ingredients(train)
        for i in range(self.depth):
            x = Endpoint(f"block{i}")(self.block(layers, train=train, name=f"block{i}")(x, *context))
        return layers.norm(name="final_norm")(x) if self.prenorm else x


class Transformer(Network):
    """The fields of `Network`, and these. Endpoints: "encoder/block0", ..., "decoder/block0", ..., "pre_logits".

    One matrix, `embedding` [vocab_size, width], embeds source and target and gives the logits (section 3.4); it is
    drawn from a normal distribution of variance 1 / width, whatever `kernel_init` is, and is no `dense`. All dense
    layers have biases, which the authors' code has in feed-forward layers alone.

    Attributes:
      vocab_size: tokens, PAD included. The paper's 37,000 (section 5.1) make 63.1M and 214.2M parameters of base and
        big. Table 3 has 65M, which fits 41,000, as its networks of 2, 4 and 8 layers do, and 213M, which fits 36,000.
      width: channels (the paper's d_model), a multiple of heads, and even.
      heads: of each attention.
      layers: blocks of the encoder, and of the decoder.
      ff_width: channels of a feed-forward layer's hidden layer.
      dropout: rate, of embedded tokens with positions, and at the end of each sublayer.
      max_length: of source and target.
      positions: "sine"; "learned" (table 3, row E), a vector for each place of source and target, drawn as those of
        tokens are; or "none": the encoder is then a function of the set of tokens.
      prenorm: normalization before each sublayer, and at the end of encoder and decoder, instead of after each sum.
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
        if not callable(plugins.load(self.norm)) and self.norm not in NORMS_OF_PLACES:
            raise UserError(
                f"norm '{self.norm}' averages over a sequence, so that a decoder would see what it is to "
                f"predict; allowed here: {', '.join(NORMS_OF_PLACES)}"
            )

    def ingredients(self, train: bool) -> Ingredients:
        """Those of the fields. The first layer and the last are the embedding: low bits are for every dense layer."""
        return self._ingredients(train, Sites(first=False))

    def example(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Source and target, [1, max_length] tokens each."""
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
        """Logits of the token that follows each of `target`, given those before it and the source.

        Args:
          source: int [N, S].
          target: int [N, T], as the decoder reads it: from a token that begins every sequence, so logits [:, t] are of
            target[:, t + 1].
          train: whether dropout (rng stream "dropout") acts.

        Returns:
          [N, T, vocab_size], float32.

        Raises:
          UserError: more than max_length tokens.
        """
        return self.decode(target, self.encode(source, train), source, train)

    def encode(self, source: jax.Array, train: bool = False) -> jax.Array:
        """Source [N, S] -> [N, S, width]; attention sees no PAD."""
        return self.encoder(self._embed(source, 0, train), _tokens(source), train=train)

    def decode(self, target: jax.Array, encoded: jax.Array, source: jax.Array, train: bool = False) -> jax.Array:
        """Target [N, T], what `encode` gave for `source` -> logits [N, T, vocab_size], as `__call__` has them.

        No place sees those after it, PAD among them.
        """
        length = target.shape[1]
        causal = np.tril(np.ones((1, 1, length, length), bool))
        x = self.decoder(self._embed(target, 0, train), causal, encoded, _tokens(source), None, train=train)
        return self._logits(x)

    def decode_next(
        self, token: jax.Array, place: int | jax.Array, source: jax.Array, encoded: jax.Array | None, length: int
    ) -> jax.Array:
        """One step of `decode`: its logits at `place`, the keys and values of earlier places remembered.

        They are in the collection "cache", which must be mutable; the batch is the first axis of each of its arrays.
        The first call, at place 0, gets `encoded` and makes it: room for `length` places, and keys and values of the
        encoded source, which are computed only there. Further calls have it among the variables, and `encoded` is None.

        Args:
          token: int [N], at `place` of the target.
          place: from 0 to length - 1.
          source: int [N, S].
          encoded: [N, S, width], or None.

        Returns:
          [N, vocab_size], float32.
        """
        seen = (jnp.arange(length) <= place)[None, None, None]  # [1, 1, 1, length]
        x = self._embed(token[:, None], place, train=False)  # [N] -> [N, 1, C]
        return self._logits(self.decoder(x, seen, encoded, _tokens(source), place, train=False))[:, 0]

    def _embed(self, tokens: jax.Array, place: int | jax.Array, train: bool) -> jax.Array:
        """Tokens [N, T], the first of them at `place` -> [N, T, C]; section 3.4."""
        length = tokens.shape[1]
        if length > self.max_length:
            raise UserError(f"a sequence of {length} tokens is longer than max_length={self.max_length}")
        x = self.embedding[tokens] * self.width**0.5
        if self.positions != "none":
            table = self.places if self.positions == "learned" else jnp.asarray(sine(self.max_length, self.width))
            x = x + jax.lax.dynamic_slice_in_dim(table, place, length)
        return self.embedding_dropout(x.astype(self.dtype or jnp.float32), deterministic=not train)

    def _logits(self, x: jax.Array) -> jax.Array:
        """[N, T, C] -> [N, T, vocab_size]."""
        x = self.pre_logits(x)
        return jnp.matmul(x, self.embedding.T.astype(x.dtype), preferred_element_type=jnp.float32)


def _tokens(source: jax.Array) -> jax.Array:
    """The mask of what is no PAD: [N, S] -> [N, 1, 1, S], for all heads and queries."""
    return (source != PAD)[:, None, None]


VARIANTS = {  # table 3, base and big; dropout is the one of English-German
    "transformer_base": functools.partial(Transformer),
    "transformer_big": functools.partial(Transformer, width=1024, heads=16, ff_width=4096, dropout=0.3),
}
