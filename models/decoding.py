"""Translation by a Transformer, token by token: greedy search and beam search.

Scores are normalized as in Wu et al. 2016 (arXiv 1609.08144). A batch of sources runs in one jitted program of static
shapes.

A hypothesis is a sequence of tokens without PAD that ends with `eos` or has `length` tokens. Its score is the sum of
the log-probabilities of its tokens. Beam search divides the score by ((5 + number of tokens) / 6)^alpha (Wu 2016,
eq. 14, without the coverage penalty).
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models.errors import UserError
from models.transformer import BOS, EOS, PAD, Transformer

_NEVER = -1e7  # log-probability and score of slots that hold no hypothesis


@functools.partial(jax.jit, static_argnames=("model", "length", "bos", "eos"))
def greedy(
    model: Transformer, variables: Mapping[str, Any], source: jax.Array, *, length: int, bos: int = BOS, eos: int = EOS
) -> jax.Array:
    """Translates by the most likely token at each position, until every sequence has ended.

    Args:
      model: A Transformer from `models.create`.
      variables: Its trained variables.
      source: int [N, S].
      length: Maximum number of tokens of a translation, including `eos`; at most the model's max_length.
      bos: Token that the decoder reads first; it is not part of the result.
      eos: Token that ends a sequence.

    Returns:
      int32 [N, length], one translation per source, with PAD after its `eos`.

    Raises:
      UserError: `length` exceeds the model's max_length, or a token is not in the vocabulary.
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
    """State of a beam search with N sources, B beams and at most L tokens, before the token at `place` is chosen.

    Attributes:
      place: Position of the next token, the same for all sequences.
      alive: int32 [N, B, L], sequences that have not ended.
      alive_logs: [N, B], log-probabilities of these sequences; _NEVER in unused slots.
      ended: int32 [N, B, L], the best sequences that have ended.
      ended_scores: [N, B], normalized scores of these sequences; _NEVER in unused slots.
      next_logs: [N, B, V], log-probabilities of the next token of sequences that have not ended.
      cache: Cache of sequences that have not ended; arrays [N B, ...].
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
    """Translates by beam search, which extends the `beams` most likely sequences at each position.

    Extensions are ranked by probability. An extension that ends with `eos` becomes a hypothesis if it ranks among the
    first `beams`. The `beams` best extensions that do not end continue the search. A source is finished when it has
    `beams` hypotheses, so one beam is the same as `greedy`. The defaults of beams and alpha are those of Vaswani et al.
    2017, section 6.1.

    Args:
      model: See `greedy`.
      variables: See `greedy`.
      source: See `greedy`.
      length: See `greedy`.
      beams: Number of sequences that are extended per source, and of hypotheses that are returned.
      alpha: Strength of the preference for longer hypotheses; 0 disables it.
      bos: See `greedy`.
      eos: See `greedy`.

    Returns:
      int32 [N, beams, length], best first, with PAD after `eos`; and scores, float32 [N, beams], below -1e6 in slots
      without a hypothesis.

    Raises:
      UserError: See `greedy`; or `beams` is not positive, or `alpha` is negative.
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
        alive_logs=never.at[:, 0].set(0.0),  # all beams start the same, so only one is in use
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
        # Takes 2 * beams extensions: at most one of each beam ends, so at least `beams` do not end.
        logs = state.alive_logs[:, :, None] + state.next_logs  # [N, B, V]
        vocabulary = logs.shape[-1]
        count = min(2 * beams, beams * vocabulary)
        logs, best_indices = jax.lax.top_k(jax.lax.collapse(logs, 1), count)  # [N, B V] -> [N, 2 B]
        parent, token = best_indices // vocabulary, (best_indices % vocabulary).astype(jnp.int32)
        tokens = _take(state.alive, parent).at[:, :, state.place].set(token)  # [N, 2 B, L]
        ends, real = token == eos, logs > _NEVER / 2

        counts = ends & real & (jnp.arange(count) < beams) & ~done(state)[:, None]
        scores = jnp.where(counts, logs / penalty(state.place + 1), _NEVER)
        ended, ended_scores = _best(
            beams, jnp.concatenate([state.ended, tokens], 1), jnp.concatenate([state.ended_scores, scores], 1)
        )

        alive_logs, best = jax.lax.top_k(jnp.where(ends, _NEVER, logs), beams)  # [N, 2 B] -> [N, B]
        alive, parent = _take(tokens, best), _take(parent, best)
        cache = jax.tree.map(  # [N B, ...] -> [N, B, ...] -> [N B, ...]
            lambda x: _take(x.reshape(batch, beams, *x.shape[1:]), parent).reshape(x.shape), state.cache
        )
        token = _take(token, best).reshape(-1)  # [N, 2 B] -> [N, B] -> [N B]
        next_logs, cache = _next(model, variables, cache, token, state.place + 1, source_of_beams, length)
        next_logs = next_logs.reshape(batch, beams, vocabulary)  # [N B, V] -> [N, B, V]
        return Beams(state.place + 1, alive, alive_logs, ended, ended_scores, next_logs, cache)

    end = jax.lax.while_loop(unfinished, step, start)
    cut = ~done(end)[:, None] & (end.alive_logs > _NEVER / 2)  # sequences that reached `length` without ending
    scores = jnp.where(cut, end.alive_logs / penalty(length), _NEVER)
    return _best(beams, jnp.concatenate([end.ended, end.alive], 1), jnp.concatenate([end.ended_scores, scores], 1))


def _check(model: Transformer, length: int, bos: int, eos: int) -> None:
    if not 1 <= length <= model.max_length:
        raise UserError(f"length={length} of translations must be from 1 to the model's max_length={model.max_length}")
    for name, token in (("bos", bos), ("eos", eos)):
        if not 0 <= token < model.vocab_size or token == eos == PAD:
            raise UserError(
                f"{name}={token} must be in [0, {model.vocab_size}), and eos must not be the padding, {PAD}"
            )


def _first(model, variables, source, length, bos):
    """Returns the log-probabilities of the first token [N, V], and the cache."""
    encoded = model.apply(variables, source, method="encode")
    token = jnp.full(source.shape[0], bos, jnp.int32)
    return _decode_next(model, variables, token, 0, source, encoded, length)


def _next(model, variables, cache, token, place, source, length):
    """Returns the log-probabilities [N, V] after `token` [N], the decoder's input at `place`, and the cache.

    After the last token, `place` equals `length`, one past the end of the cache. The call then uses the last position
    instead, and nothing reads its result.
    """
    place = jnp.minimum(place, length - 1)
    return _decode_next(model, {**variables, "cache": cache}, token, place, source, None, length)


def _decode_next(model, variables, *inputs):
    logits, new = model.apply(variables, *inputs, method="decode_next", mutable=["cache"])
    return jax.nn.log_softmax(logits).at[:, PAD].set(_NEVER), new["cache"]


def _take(x: jax.Array, indices: jax.Array) -> jax.Array:
    """Gathers elements of x [N, K, ...] by indices [N, B] along the second axis: [N, B, ...]."""
    return jnp.take_along_axis(x, indices.reshape(*indices.shape, *(1,) * (x.ndim - 2)), 1)


def _best(count: int, tokens: jax.Array, scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the sequences with the `count` best scores: tokens [N, K, L] and scores [N, K] with K cut to `count`."""
    scores, best = jax.lax.top_k(scores, count)
    return _take(tokens, best), scores
