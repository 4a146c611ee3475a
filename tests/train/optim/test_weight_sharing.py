"""Shared weights: few values remain, gradients are those of the values, zeros stay, and runs resume to the bit."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models.compress import codebook
from models.errors import UserError
from tests import tiny
from train import loop
from train.optim import weight_sharing
from train.run import build_run
from train.setup import pretrained

RNG = np.random.default_rng(0)


def params():
    conv = RNG.normal(size=(3, 3, 4, 8)).astype(np.float32)
    conv[RNG.random(conv.shape) < 0.5] = 0
    return {
        "conv": {"kernel": conv, "bias": np.ones(8, np.float32)},
        "head": {"kernel": RNG.normal(size=(30, 7)).astype(np.float32)},
    }


def values(weights):
    return np.unique(np.asarray(weights)[np.asarray(weights) != 0])


def test_snapped_weights_are_those_of_the_codebook():
    drawn = params()
    plan = weight_sharing.plan("linear(conv=3, dense=2)")
    snapped = plan.snap(drawn)
    np.testing.assert_array_equal(snapped["conv"]["kernel"], codebook.share(drawn["conv"]["kernel"], 3).weights())
    assert len(values(snapped["conv"]["kernel"])) == 8 and len(values(snapped["head"]["kernel"])) == 4
    np.testing.assert_array_equal(snapped["conv"]["bias"], drawn["conv"]["bias"])


@pytest.mark.parametrize("tx", [optax.sgd(0.01, 0.9), optax.adam(0.01)], ids=["sgd", "adam"])
def test_the_values_are_trained_as_if_they_were_the_parameters(tx):
    """Compares with training the codebook itself by loss(codebook[index]) and the same optimizer."""
    plan = weight_sharing.plan("linear(conv=3, dense=3)")
    start = plan.snap(params())
    target = jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape), jnp.float32), start)

    def loss(tree):
        return sum(jnp.square(a - b).sum() for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(target), strict=True))

    wrapped = weight_sharing.wrap(tx, plan)
    ours, state = start, wrapped.init(start)
    books = {name: jnp.asarray(values(layer["kernel"])) for name, layer in start.items()}
    index = {name: np.searchsorted(books[name], layer["kernel"]) for name, layer in start.items()}

    def expand(books):
        kernels = {
            name: jnp.where(start[name]["kernel"] == 0, 0, book[np.minimum(index[name], len(book) - 1)])
            for name, book in books.items()
        }
        return {"conv": {"kernel": kernels["conv"], "bias": start["conv"]["bias"]}, "head": {"kernel": kernels["head"]}}

    theirs_state = tx.init(books)
    update = jax.jit(wrapped.update)
    for _ in range(5):
        updates, state = update(jax.grad(loss)(ours), state, ours)
        ours = optax.apply_updates(ours, updates)
        changes, theirs_state = tx.update(jax.grad(lambda b: loss(expand(b)))(books), theirs_state, books)
        books = optax.apply_updates(books, changes)
    for name, layer in expand(books).items():
        np.testing.assert_allclose(ours[name]["kernel"], layer["kernel"], rtol=2e-4, atol=1e-5)
        mask = np.asarray(start[name]["kernel"]) != 0
        np.testing.assert_array_equal(np.asarray(ours[name]["kernel"]) != 0, mask)
        assert len(values(ours[name]["kernel"])) <= 8
    assert (np.asarray(ours["conv"]["bias"]) != 1).all()  # unshared parameters are trained as usual


def test_a_run_shares_and_goes_on_to_the_bit(tmp_path):
    loop.train(tiny.config(optimizer__prune="magnitude(0.8)", duration="6 steps"), tmp_path / "pruned")
    config = tiny.config(
        init_from=str(tmp_path / "pruned"),
        init_new="",
        optimizer__share="density(conv=4, dense=3)",
        optimizer__learning_rate=1e-3,
    )
    whole = loop.train(config, tmp_path / "whole")
    before, after = (pretrained.load(tmp_path / name).arrays for name in ("pruned", "whole"))
    for name, weights in after.items():
        if name.endswith("kernel"):
            np.testing.assert_array_equal(weights == 0, before[name] == 0, name)
            assert len(values(weights)) <= (8 if weights.ndim == 2 else 16), name
            assert (values(weights)[:8] != values(codebook.share(before[name], 4).weights())[:8]).any()
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    steps = sorted(int(folder.name) for folder in (tmp_path / "cut" / "checkpoints").iterdir() if folder.name.isdigit())
    assert len(steps) > 1
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / str(steps[-1]))
    (tmp_path / "cut" / "summary.json").unlink()
    assert loop.train(config, tmp_path / "cut")["loss"] == whole["loss"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer__share": "lineal(8)"}, "unknown optimizer.share 'lineal'; did you mean 'linear'"),
        ({"optimizer__share": "linear(conv=0)"}, "conv=0, dense=5: bits must be in .1, 16."),
        ({"optimizer__share": "linear(what='(')"}, r"what='\(' is not a regular expression"),
        ({"optimizer__share": "linear(what='none')"}, "what='none' matches no parameter; one is named head/bias"),
        (
            {"optimizer__share": "linear", "optimizer__prune": "magnitude(0.5)"},
            "prune in one run, and share values in a second run that",
        ),
        ({"optimizer__share": "linear", "optimizer__clip_norm": 1.0}, "clip_norm, lars and lamb would count it"),
        (
            {"optimizer__share": "linear", "model__conv": "binary_weight"},
            "do not support binary layers, where 0 counts as 1: st",
        ),
        (
            {"optimizer__prune": "magnitude", "model__conv": "binary_weight"},
            "do not support binary layers, where 0 counts as 1",
        ),
        ({"optimizer__share": "linear", "ema_decay": 0.9}, "ema_decay=0.9: averaged weights would be neither"),
    ],
)
def test_mistakes_are_one_line(changes, message):
    with pytest.raises(UserError, match=message):
        build_run(tiny.config(**changes))
