"""Translation by a Transformer, token by token: greedy search, and beam search as Wu et al. 2016 (arXiv 1609.08144)
normalize it. One jitted program of static shapes for a batch of sources.

A hypothesis is a sequence of tokens, PAD not among them, that ends with `eos` or has `length` of them. Its score is the
sum of its tokens' log-probabilities, divided in beam search by ((5 + its number of tokens) / 6)^alpha (Wu 2016, eq. 14;
no coverage penalty).
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models.errors import UserError
from models.transformer import BOS, EOS, PAD, Transformer

_NEVER = -1e7  # a log-probability, and score, that no hypothesis has


@functools.partial(jax.jit, static_argnames=("model", "length", "bos", "eos"))
def greedy(
    model: Transformer, variables: Mapping[str, Any], source: jax.Array, *, length: int, bos: int = BOS, eos: int = EOS
) -> jax.Array:
    """The likeliest token at each place, until every sequence has ended.

    Args:
      model, variables: from `models.create`, and trained.
      source: int [N, S].
      length: tokens of a translation at most, its `eos` included; up to the model's max_length.
      bos: what the decoder reads first; it is no part of the result.
      eos: what ends a sequence.

    Returns:
      int32 [N, length]: a translation each, PAD after its `eos`.

    Raises:
      UserError: length is more than the model takes, or a token is none of the vocabulary's.
    """
    _check(model, length, bos, eos)
    batch = source.shape[0]
    logs, cache = _first(model, variables, source, length, bos)
    start = (0, jnp.full((batch, length), PAD, jnp.int32), jnp.zeros(batch, bool), logs, cache)

    def unfinished(state):
        place, _, ended, _, _ = state
        return (place < length) & ~ended.all()

    def step(state):
        place, tokens, ended, logs, cache = state
        token = jnp.where(ended, PAD, logs.argmax(-1).astype(jnp.int32))  # [N, V] -> [N]
        tokens = tokens.at[:, place].set(token)
        logs, cache = _next(model, variables, cache, token, place + 1, source, length)
        return place + 1, tokens, ended | (token == eos), logs, cache

    return jax.lax.while_loop(unfinished, step, start)[1]


class Beams(NamedTuple):
    """State of a beam search before the token at `place` is chosen; N sources, B beams, L tokens at most.

    Attributes:
      place: of the next token, the same in all.
      alive: int32 [N, B, L], sequences that have not ended.
      alive_logs: [N, B], the logarithm of their probability; _NEVER where there are fewer.
      ended: int32 [N, B, L], the best that have.
      ended_scores: [N, B], normalized; _NEVER where there are fewer.
      next_logs: [N, B, V], the logarithm of the probability of each next token of those alive.
      cache: of those alive; arrays [N B, ...].
    """

    place: int | jax.Array
    alive: jax.Array
    alive_logs: jax.Array
    ended: jax.Array
    ended_scores: jax.Array
    next_logs: jax.Array
    cache: Any


@functools.partial(jax.jit, static_argnames=("model", "length", "beams", "alpha", "bos", "eos"))
def beam_search(
    model: Transformer,
    variables: Mapping[str, Any],
    source: jax.Array,
    *,
    length: int,
    beams: int = 4,
    alpha: float = 0.6,
    bos: int = BOS,
    eos: int = EOS,
) -> tuple[jax.Array, jax.Array]:
    """The best hypotheses among those that continue the `beams` likeliest beginnings at each place.

    Continuations are ranked by probability. One that ends counts if it is among the first `beams`; it leaves its place
    to the next that does not end. A source is done when `beams` have ended, so one beam is `greedy`. The default beams
    and alpha are those of Vaswani et al. 2017, section 6.1.

    Args:
      model, variables, source, length, bos, eos: as for `greedy`.
      beams: sequences that are continued for each source, and hypotheses that are returned.
      alpha: how much longer hypotheses are favoured; 0 for not.

    Returns:
      int32 [N, beams, length], PAD after the `eos`, best first; and their scores, float32 [N, beams], below -1e6 for
      those beyond the hypotheses that there are.

    Raises:
      UserError: as for `greedy`, or beams is not positive, or alpha is negative.
    """
    _check(model, length, bos, eos)
    if beams < 1 or alpha < 0:
        raise UserError(f"beams={beams} must be at least 1, and alpha={alpha} at least 0")
    batch = source.shape[0]
    source_of_beams = jnp.repeat(source, beams, 0)  # [N, S] -> [N B, S]
    next_logs, cache = _first(model, variables, source, length, bos)
    nothing = jnp.full((batch, beams, length), PAD, jnp.int32)
    never = jnp.full((batch, beams), _NEVER)
    start = Beams(
        place=0,
        alive=nothing,
        alive_logs=never.at[:, 0].set(0.0),  # all begin alike, so there is one at first
        ended=nothing,
        ended_scores=never,
        next_logs=jnp.repeat(next_logs[:, None], beams, 1),  # [N, V] -> [N, B, V]
        cache=jax.tree.map(lambda x: jnp.repeat(x, beams, 0), cache),  # [N, ...] -> [N B, ...]
    )

    def penalty(tokens):
        return ((5 + tokens) / 6) ** alpha

    def done(state):
        return (state.ended_scores > _NEVER).all(1)  # [N]

    def unfinished(state):
        return (state.place < length) & ~done(state).all()

    def step(state):
        # Twice as many as beams: at most one continuation of each beam ends, so enough of them do not.
        logs = state.alive_logs[:, :, None] + state.next_logs  # [N, B, V]
        vocabulary = logs.shape[-1]
        count = min(2 * beams, beams * vocabulary)
        logs, chosen = jax.lax.top_k(jax.lax.collapse(logs, 1), count)  # [N, B V] -> [N, 2 B]
        parent, token = chosen // vocabulary, (chosen % vocabulary).astype(jnp.int32)
        tokens = _take(state.alive, parent).at[:, :, state.place].set(token)  # [N, 2 B, L]
        ends, real = token == eos, logs > _NEVER / 2

        counts = ends & real & (jnp.arange(count) < beams) & ~done(state)[:, None]
        scores = jnp.where(counts, logs / penalty(state.place + 1), _NEVER)
        ended, ended_scores = _best(
            beams, jnp.concatenate([state.ended, tokens], 1), jnp.concatenate([state.ended_scores, scores], 1)
        )

        alive_logs, kept = jax.lax.top_k(jnp.where(ends, _NEVER, logs), beams)  # [N, 2 B] -> [N, B]
        alive, parent = _take(tokens, kept), _take(parent, kept)
        cache = jax.tree.map(  # [N B, ...] -> [N, B, ...] -> [N B, ...]
            lambda x: _take(x.reshape(batch, beams, *x.shape[1:]), parent).reshape(x.shape), state.cache
        )
        token = _take(token, kept).reshape(-1)  # [N, 2 B] -> [N, B] -> [N B]
        next_logs, cache = _next(model, variables, cache, token, state.place + 1, source_of_beams, length)
        next_logs = next_logs.reshape(batch, beams, vocabulary)  # [N B, V] -> [N, B, V]
        return Beams(state.place + 1, alive, alive_logs, ended, ended_scores, next_logs, cache)

    end = jax.lax.while_loop(unfinished, step, start)
    cut = ~done(end)[:, None] & (end.alive_logs > _NEVER / 2)  # by `length`, which is then reached
    scores = jnp.where(cut, end.alive_logs / penalty(length), _NEVER)
    return _best(beams, jnp.concatenate([end.ended, end.alive], 1), jnp.concatenate([end.ended_scores, scores], 1))


def _check(model: Transformer, length: int, bos: int, eos: int) -> None:
    if not 1 <= length <= model.max_length:
        raise UserError(f"length={length} of translations must be from 1 to the model's max_length={model.max_length}")
    for name, token in (("bos", bos), ("eos", eos)):
        if not 0 <= token < model.vocab_size or token == eos == PAD:
            raise UserError(f"{name}={token} is none of the {model.vocab_size} tokens, or the padding")


def _first(model, variables, source, length, bos):
    """Log-probabilities of the first token [N, V], and the cache."""
    encoded = model.apply(variables, source, method="encode")
    token = jnp.full(source.shape[0], bos, jnp.int32)
    return _decode_next(model, variables, token, 0, source, encoded, length)


def _next(model, variables, cache, token, place, source, length):
    """Log-probabilities [N, V] after `token` [N], which has `place` in what the decoder reads; and the cache.

    Nobody asks for what follows the last token, for which there is no place.
    """
    place = jnp.minimum(place, length - 1)
    return _decode_next(model, {**variables, "cache": cache}, token, place, source, None, length)


def _decode_next(model, variables, *inputs):
    logits, new = model.apply(variables, *inputs, method="decode_next", mutable=["cache"])
    return jax.nn.log_softmax(logits).at[:, PAD].set(_NEVER), new["cache"]


def _take(x: jax.Array, indices: jax.Array) -> jax.Array:
    """X [N, K, ...], indices [N, B] -> [N, B, ...]."""
    return jnp.take_along_axis(x, indices.reshape(*indices.shape, *(1,) * (x.ndim - 2)), 1)


def _best(count: int, tokens: jax.Array, scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The `count` of best scores: tokens [N, K, L], scores [N, K] -> [N, count, L], [N, count]."""
    scores, chosen = jax.lax.top_k(scores, count)
    return _take(tokens, chosen), scores
