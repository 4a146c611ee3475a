"""Tests of models/decoding.py: the cache equals the whole decoder, and searches equal simple ones in Python."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.decoding import beam_search, greedy
from models.errors import UserError
from models.layers.init import jit_once
from tests.golden import drawn
from tests.golden.make_transformer import SOURCE, TARGET, TINY
from tests.tiers import keep_first

PAD, BOS, EOS = 0, 1, 2


def tiny(**fields):
    model = models.create("transformer_base", **{**TINY, "layers": 1, **fields})
    return model, drawn.variables(model)


@pytest.mark.parametrize(
    "fields",
    keep_first(
        1, [{}, {"prenorm": True, "layers": 2}, {"positions": "none"}, {"positions": "learned"}, {"norm": "batch"}]
    ),
)
def test_the_cache_equals_the_whole_decoder(fields):
    model, variables = tiny(**fields)
    whole = jit_once(model.apply)(variables, SOURCE, TARGET)
    encoded = model.apply(variables, SOURCE, method="encode")
    step = jax.jit(functools.partial(model.apply, method="decode_next", mutable=["cache"]), static_argnums=5)
    cache, length = {}, 9  # longer than the target: positions to come are masked
    for place in range(TARGET.shape[1]):
        memory = encoded if place == 0 else None
        logits, cache = step({**variables, **cache}, TARGET[:, place], place, SOURCE, memory, length)
        np.testing.assert_allclose(logits, whole[:, place], rtol=1e-5, atol=1e-5)
    block = cache["cache"]["decoder"]["block0"]
    assert block["attention"]["keys"].shape == (3, 9, 2, 8) and block["cross"]["values"].shape == (3, 9, 2, 8)


def test_keys_of_the_source_are_computed_once():
    """Checks that the projection of the encoder's output is only called in the first step, and stays in the cache."""
    model, variables = tiny()
    encoded = model.apply(variables, SOURCE, method="encode")
    token = jnp.full(3, BOS)
    _, cache = model.apply(variables, token, 0, SOURCE, encoded, 5, method="decode_next", mutable=["cache"])
    del variables["params"]["decoder"]["block0"]["cross"]["kv"]
    _, later = model.apply({**variables, **cache}, token, 1, SOURCE, None, 5, method="decode_next", mutable=["cache"])
    cross = (tree["cache"]["decoder"]["block0"]["cross"] for tree in (cache, later))
    jax.tree.map(np.testing.assert_array_equal, *cross)


@functools.cache
def whole_decoder(model):
    return jax.jit(model.apply)


def logs_of(model, variables, source):
    """Returns log-probabilities of the next tokens after a prefix, by the whole decoder; padding is excluded."""

    @functools.cache
    def logs(beginning):
        target = np.full((1, model.max_length), PAD)
        target[0, : len(beginning) + 1] = (BOS, *beginning)
        logits = whole_decoder(model)(variables, source[None], target)
        log_probabilities = np.asarray(jax.nn.log_softmax(logits[0, len(beginning)]), np.float64)
        log_probabilities[PAD] = -np.inf
        return log_probabilities

    return logs


def greedy_in_python(logs, length):
    tokens = ()
    while len(tokens) < length and EOS not in tokens:
        tokens += (int(logs(tokens).argmax()),)
    return tokens


def brute_force(logs, vocabulary, length, alpha):
    """Returns every hypothesis with its score, best first."""
    hypotheses = []
    for count in range(1, length + 1):
        for tokens in itertools.product(range(1, vocabulary), repeat=count):
            if EOS not in tokens[:-1] and (tokens[-1] == EOS or count == length):
                log = sum(logs(tokens[:i])[token] for i, token in enumerate(tokens))
                hypotheses.append((log / ((5 + count) / 6) ** alpha, tokens))
    return sorted(hypotheses, reverse=True)


def beam_in_python(logs, length, beams, alpha):
    """Returns the result of `beam_search` for one source, computed with lists."""
    alive, ended = [(0.0, ())], []
    for count in range(1, length + 1):
        grown = sorted(
            (
                (log + step, (*tokens, token))
                for log, tokens in alive
                for token, step in enumerate(logs(tokens))
                if step > -np.inf
            ),
            reverse=True,
        )
        ended += [(log / ((5 + count) / 6) ** alpha, tokens) for log, tokens in grown[:beams] if tokens[-1] == EOS]
        alive = [(log, tokens) for log, tokens in grown if tokens[-1] != EOS][:beams]
        if len(ended) >= beams:
            break
    else:
        ended += [(log / ((5 + length) / 6) ** alpha, tokens) for log, tokens in alive]
    return sorted(ended, reverse=True)[:beams]


def padded(tokens, length):
    return [*tokens, *[PAD] * (length - len(tokens))]


WORDS = np.array([[3, 4, 5, 3], [5, 3, 0, 0], [4, 4, 3, 0], [5, 5, 5, 4], [3, 0, 0, 0], [4, 5, 0, 0]], np.int32)


@pytest.fixture(scope="module")
def toy():
    """Returns a model of six tokens, none followed by itself; some translations end early and others late."""
    model, variables = tiny(vocab_size=6, max_length=8, prenorm=True)
    params = variables["params"]
    params["embedding"] = 2 * params["embedding"]
    norm = params["decoder"]["final_norm"]
    norm["scale"], norm["bias"] = -norm["scale"], 0.3 * params["embedding"][EOS]
    return model, variables


def test_greedy_takes_the_likeliest_until_the_end(toy):
    model, variables = toy
    translations = np.asarray(greedy(model, variables, WORDS, length=8))
    expected = [padded(greedy_in_python(logs_of(*toy, source), 8), 8) for source in WORDS]
    assert translations.tolist() == expected and translations.dtype == np.int32
    lengths = {len(tokens) - tokens.count(PAD) for tokens in expected}
    assert len(lengths) > 2 and min(lengths) < 8  # otherwise the test would cover little


@pytest.mark.parametrize("alpha", keep_first(1, [0.6, 0.0, 2.0]))
def test_one_beam_is_greedy(toy, alpha):
    tokens, scores = beam_search(*toy, WORDS, length=8, beams=1, alpha=alpha)
    np.testing.assert_array_equal(tokens[:, 0], greedy(*toy, WORDS, length=8))
    assert scores.shape == (6, 1)


@pytest.mark.parametrize("alpha", keep_first(1, [0.6, 0.0]))
def test_wide_beam_search_is_brute_force(toy, alpha):
    """Checks that every hypothesis is found with as many beams as there are continuations."""
    length, beams = 3, 4 * 4 * 5
    tokens, scores = beam_search(*toy, WORDS, length=length, beams=beams, alpha=alpha)
    for n, source in enumerate(WORDS):
        best = brute_force(logs_of(*toy, source), 6, length, alpha)[:beams]
        np.testing.assert_allclose(scores[n, : len(best)], [score for score, _ in best], rtol=1e-4, atol=1e-4)
        hypotheses = {tuple(hypotheses) for hypotheses in tokens[n, : len(best)].tolist()}
        assert tokens[n, 0].tolist() == padded(best[0][1], length) and len(hypotheses) == len(best)


@pytest.mark.parametrize("beams,alpha,length", keep_first(1, [(3, 0.6, 6), (4, 0.6, 8), (3, 0.0, 5)]))
def test_beam_search_equals_a_search_with_lists(toy, beams, alpha, length):
    """Compares with each source on its own: the rest of its batch has no effect."""
    tokens, scores = beam_search(*toy, WORDS, length=length, beams=beams, alpha=alpha)
    assert tokens.shape == (6, beams, length) and tokens.dtype == jnp.int32
    for n, source in enumerate(WORDS):
        expected = beam_in_python(logs_of(*toy, source), length, beams, alpha)
        assert tokens[n].tolist() == [padded(tokens, length) for _, tokens in expected]
        np.testing.assert_allclose(scores[n], [score for score, _ in expected], rtol=1e-4, atol=1e-4)


def test_the_defaults_are_those_of_the_paper(toy):
    default, named = (beam_search(*toy, WORDS, length=4, **fields) for fields in ({}, {"beams": 4, "alpha": 0.6}))
    jax.tree.map(np.testing.assert_array_equal, default, named)


def test_fewer_hypotheses_than_beams_are_marked(toy):
    tokens, scores = beam_search(*toy, WORDS, length=1, beams=8)
    assert (np.asarray(scores[:, :5]) > -1e6).all() and (np.asarray(scores[:, 5:]) < -1e6).all()


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"length": 9}, "length=9 of translations must be from 1 to the model's max_length=8"),
        ({"length": 0}, "length=0"),
        ({"length": 4, "eos": 6}, r"eos=6 must be in \[0, 6\)"),
        ({"length": 4, "eos": 0}, "eos must not be the padding"),
        ({"length": 4, "beams": 0}, "beams=0"),
        ({"length": 4, "alpha": -1.0}, "alpha=-1.0"),
    ],
)
def test_mistakes_are_one_line(toy, fields, message):
    with pytest.raises(UserError, match=message) as error:
        beam_search(*toy, WORDS, **fields)
    assert "\n" not in str(error.value)
