"""Every optimizer of the catalogue beside optax called directly, with decay on some parameters; bad arguments."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from models.errors import UserError
from train.optim import catalogue, schedule_free
from train.optim.parameters import named

RNG = np.random.default_rng(0)
SHAPES = {
    "stem_conv": {"kernel": (3, 3, 1, 4)},
    "conv": {"kernel": (3, 3, 4, 6), "bias": (6,)},
    "hidden": {"kernel": (6, 8)},
    "head": {"kernel": (8, 3), "bias": (3,)},
}
PARAMS = jax.tree.map(
    lambda shape: jnp.asarray(RNG.normal(size=shape), jnp.float32), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
)
DECAY = 0.03
GENERIC = [name for name, row in catalogue.ENTRIES.items() if row.where.startswith("optax")]


def rate(step):
    return jnp.float32(0.01) / (1 + step)


def decay_mask(tree):
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", tree)


def gradients(step):
    return jax.tree.map(lambda w: jnp.sin(3 * w + step) * (1 + step) + 0.1 * w, PARAMS)


def steps(tx, update=None, count=4, **extra):
    """Returns the parameters after some steps of an optimizer; `update` maps (updates, params, step) to updates."""
    params, state = PARAMS, tx.init(PARAMS)
    tx = optax.with_extra_args_support(tx)
    for step in range(count):
        moves, state = tx.update(gradients(step), state, params, **extra)
        moves = update(moves, params, step) if update else moves
        params = optax.apply_updates(params, moves)
    return params


def assert_same(a, b, tolerance=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=tolerance), a, b)


def create(text, decay=0.0):
    return catalogue.create(text, rate, decay, decay_mask)


def theirs(name):
    return getattr(optax.contrib if hasattr(optax.contrib, name) else optax, name)


def test_everything_that_optax_calls_an_optimizer_has_a_row():
    rated = {"learning_rate", "max_learning_rate", "optimizer", "fast_optimizer", "base_optimizer", "l2_norm_clip"}
    names = {
        name
        for module in (optax, optax.contrib)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if next(iter(inspect.signature(function).parameters), "") in rated
        and not name.startswith(("_", "scale_by_"))
        and name not in ("selective_transform", "with_extra_args_support")
    }
    assert names <= catalogue.ENTRIES.keys() | catalogue.REFUSED.keys()
    assert set(catalogue.ENTRIES) <= names | {"nadam", "nadamw"}  # partial functions
    assert not catalogue.ENTRIES.keys() & catalogue.REFUSED.keys()
    for name in catalogue.ENTRIES:
        with pytest.raises(UserError, match=f"optimizer.name {name}: .*nonsense.*usage: {name}\\(") as error:
            create(f"{name}(nonsense=1)")
        usage = str(error.value).split("usage: ")[1]
        assert not any(word in usage for word in ("mask", "dtype", "weight_decay", "learning_rate", "<"))


@pytest.mark.parametrize("name", GENERIC)
def test_the_functions_of_optax_are_called_as_they_are(name):
    """Covers the decay, too: coupled decay is added to the gradient, decoupled decay to the update."""
    extra = {"value": jnp.float32(1.5)} if catalogue.ENTRIES[name].needs else {}
    kind = catalogue.ENTRIES[name].decay
    without = {"weight_decay": 0.0} if "weight_decay" in inspect.signature(theirs(name)).parameters else {}
    plain = theirs(name)(rate, **without)
    assert_same(steps(create(name), **extra), steps(plain, **extra))

    def add(moves, params, step):
        return jax.tree.map(
            lambda move, w, decays: move - rate(step) * DECAY * w * decays, moves, params, decay_mask(params)
        )

    if kind == catalogue.DECOUPLED:
        expected = steps(plain, add, **extra)
    else:
        expected = steps(optax.chain(optax.add_decayed_weights(DECAY, decay_mask), plain), **extra)
    assert_same(steps(create(name, DECAY), **extra), expected)
    if name in ("dog", "dowg"):  # their first steps are too small for a difference
        return
    with pytest.raises(AssertionError):
        assert_same(expected, steps(create(name), **extra))


BESIDE = {  # builders of ours, and what optax has for the case that nothing or everything decays
    "novograd": lambda decay: optax.novograd(rate, weight_decay=decay),
    "prodigy": lambda decay: optax.contrib.prodigy(rate, weight_decay=decay),
    "dadapt_adamw": lambda decay: optax.contrib.dadapt_adamw(rate, weight_decay=decay),
}


@pytest.mark.parametrize("name", BESIDE)
def test_decay_that_optax_cannot_mask(name):
    def everything(tree):
        return jax.tree.map(lambda _: True, tree)

    for decay in (0.0, 5.0):
        ours = catalogue.create(name, rate, decay, everything)
        assert_same(steps(ours), steps(BESIDE[name](decay)))
    masked = named(steps(create(name, 5.0)))
    whole, none = named(steps(BESIDE[name](5.0))), named(steps(BESIDE[name](0.0)))
    if name == "novograd":  # layers do not depend on each other
        for path, weights in masked.items():
            np.testing.assert_allclose(weights, (whole if path.endswith("kernel") else none)[path], rtol=1e-5)


def test_polyak_rprop_sm3_and_noisy_sgd_are_those_of_optax():
    value = jnp.float32(1.5)
    ours = steps(create("polyak_sgd(most=0.3)"), value=value)
    assert_same(ours, steps(optax.polyak_sgd(0.3, scaling=rate), value=value))
    constant = functools.partial(catalogue.create, decay_mask=decay_mask, weight_decay=0.0)
    assert_same(steps(constant("sm3", lambda _: 0.1)), steps(optax.sm3(0.1)))
    assert_same(steps(constant("rprop(start=0.1)", lambda _: 1.0)), steps(optax.rprop(0.1)))
    assert_same(steps(create("noisy_sgd(seed=3)")), steps(optax.noisy_sgd(rate, key=3)))


def test_lars_in_the_form_of_the_paper():
    """Computes algorithm 1 of You 2017: v = m v + lr x local x (g + d w) with local = trust |w| / (|g| + d |w|)."""
    w, velocity = np.asarray(PARAMS["conv"]["kernel"], np.float64), 0.0
    for step in range(4):
        g = np.asarray(gradients(step)["conv"]["kernel"], np.float64)
        local = 0.02 * np.linalg.norm(w) / (np.linalg.norm(g) + 0.5 * np.linalg.norm(w))
        velocity = 0.9 * velocity + float(rate(step)) * local * (g + 0.5 * w)
        w = w - velocity
    ours = steps(create("lars(trust=0.02, form=you)", 0.5))
    np.testing.assert_allclose(ours["conv"]["kernel"], w, rtol=1e-5)
    other = steps(create("lars(trust=0.02)", 0.5))
    assert not np.allclose(other["conv"]["kernel"], w, rtol=1e-5)
    assert_same(steps(create("lars(trust=0.02, form=you)")), steps(create("lars(trust=0.02)")))  # without decay
    np.testing.assert_array_equal(ours["conv"]["bias"], other["conv"]["bias"])  # no trust ratio where nothing decays
    with pytest.raises(UserError, match="form='paper' must be one of optax, you"):
        create("lars(form=paper)")


def orthogonalized(matrix):
    """Returns five Newton-Schulz iterations of Jordan 2024 in NumPy, in the form of the authors' code."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (np.linalg.norm(x) + 1e-8)
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def test_muon_trains_hidden_matrices_and_adamw_the_rest():
    one = steps(create("muon"), count=1)
    moved = named(jax.tree.map(lambda after, before: np.asarray(after - before), one, PARAMS))
    grads = {path: np.asarray(g, np.float64) for path, g in named(gradients(0)).items()}
    for path, (rows, columns) in {"conv/kernel": (36, 6), "hidden/kernel": (6, 8)}.items():
        # After one step, the momentum with bias correction and Nesterov's look ahead is a multiple of the gradient
        update = orthogonalized(grads[path].reshape(rows, columns)) * max(1, columns / rows) ** 0.5
        np.testing.assert_allclose(moved[path].reshape(rows, columns), -0.01 * update, rtol=2e-3, atol=2e-5)
    adam = {path: moved[path] for path in moved if path not in ("conv/kernel", "hidden/kernel")}
    for path, move in adam.items():  # Adam's first step is the sign, here with 0.015 of the learning rate
        np.testing.assert_allclose(move, -0.00015 * np.sign(grads[path]), rtol=1e-3, atol=1e-8)
    assert set(adam) == {"stem_conv/kernel", "conv/bias", "head/kernel", "head/bias"}
    mine = steps(create("muon(adam='conv/.*', adam_factor=1)"), count=1)
    np.testing.assert_allclose(
        mine["conv"]["kernel"] - PARAMS["conv"]["kernel"], -0.01 * np.sign(grads["conv/kernel"]), rtol=1e-3
    )


def test_the_decay_of_muon_is_that_of_each_part():
    decayed, without = (named(steps(create("muon", decay), count=1)) for decay in (0.5, 0.0))
    for path, start in named(PARAMS).items():
        factor = {"conv/kernel": 1, "hidden/kernel": 1}.get(path, 0.015) * path.endswith("kernel")
        np.testing.assert_allclose(
            without[path] - decayed[path], 0.01 * 0.5 * factor * start, rtol=1e-2, atol=2e-7, err_msg=path
        )


def test_schedule_free_is_that_of_optax_and_its_averages_are_evaluated():
    for name, base in (
        ("schedule_free_sgd", optax.contrib.schedule_free_sgd(0.1)),
        ("schedule_free_adamw", optax.contrib.schedule_free_adamw(0.1)),
    ):
        ours = catalogue.create(name, lambda _: jnp.float32(0.1), 0.0, decay_mask)
        assert_same(steps(ours), steps(base))
        params, state, wrapped = PARAMS, base.init(PARAMS), optax.chain(optax.clip_by_global_norm(1e9), ours)
        outer = wrapped.init(PARAMS)
        for step in range(3):
            moves, state = base.update(gradients(step), state, params)
            _, outer = wrapped.update(gradients(step), outer, params)
            params = optax.apply_updates(params, moves)
        expected = optax.contrib.schedule_free_eval_params(state, params)
        assert_same(schedule_free.averaged(outer, params), expected)


def test_schedule_free_sgd_by_hand():
    """Computes Defazio 2024, equations 3 to 5, with a constant learning rate: x is the mean of z."""
    ours = catalogue.create("schedule_free_sgd(b1=0.8)", lambda _: jnp.float32(0.1), 0.0, decay_mask)
    y = z = x = np.asarray(PARAMS["hidden"]["kernel"], np.float64)
    params, state = PARAMS, ours.init(PARAMS)
    for step in range(4):
        moves, state = ours.update(jax.tree.map(jnp.sin, params), state, params)
        params = optax.apply_updates(params, moves)
        z = z - 0.1 * np.sin(y)
        x = x + (z - x) / (step + 1)
        y = 0.2 * z + 0.8 * x
    np.testing.assert_allclose(params["hidden"]["kernel"], y, rtol=1e-5)
    np.testing.assert_allclose(schedule_free.averaged(state, params)["hidden"]["kernel"], x, rtol=1e-5)


def test_sophia_uses_the_diagonal_of_the_hessian():
    """Checks a quadratic whose Hessian is diagonal, where Hutchinson's estimate is exact."""
    curvature = jax.tree.map(lambda w: 1 + jnp.abs(w), PARAMS)

    def product(vector):
        return jax.tree.map(jnp.multiply, curvature, vector)

    tx = create("sophia(update_interval=2, b2=0.5, gamma=0.5)")
    state = tx.init(PARAMS)
    first, state = tx.update(gradients(0), state, PARAMS, hessian_product=product)
    for move, gradient in zip(jax.tree.leaves(first), jax.tree.leaves(gradients(0)), strict=True):
        np.testing.assert_allclose(move, -0.01 * np.sign(gradient), rtol=1e-5)  # no estimate yet: clipped to 1
    second, state = tx.update(gradients(0), state, PARAMS, hessian_product=product)
    for move, gradient, c in zip(*map(jax.tree.leaves, (second, gradients(0), curvature)), strict=True):
        expected = np.clip(gradient / np.maximum(0.5 * 0.5 * c, 1e-8), -1, 1)
        np.testing.assert_allclose(move, -0.005 * expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lyon", "unknown optimizer.name 'lyon'; did you mean 'lion'"),
        ("lion(b1=1.5)", r"b1=1.5 must be in \[0, 1\); usage: lion\(b1: float = 0.9, b2: float = 0.99\)"),
        ("lion(b3=0.5)", "b3"),
        ("adafactor(weight_decay_rate=0.1)", "usage: adafactor"),
        ("lion(mu_dtype=float16)", r"usage: lion\(b1: float = 0.9, b2: float = 0.99\)$"),
        ("dog(init_step=3)", "init_step=3 must have the form"),
        ("muon(adam='(')", "is not a regular expression"),
        ("prodigy(b2=1)", "b2=1 must be in"),
        ("rmsprop(momentum=high)", "momentum must be float, not 'high'"),
        ("lbfgs", "optimizer.name=lbfgs: its line search evaluates the loss of one batch many times"),
        ("sam(rho=0.1)", "set optimizer.sam"),
        ("shampoo", "optax has none"),
    ],
)
def test_mistakes_are_one_line(text, message):
    with pytest.raises(UserError, match=message) as error:
        create(text)
    assert "\n" not in str(error.value)


def test_the_usual_learning_rate_and_the_warning():
    assert catalogue.usual("lion(b1=0.95)", 0.0) == (
        1e-4,
        ["optimizer.learning_rate=0: 0.0001, the usual one of lion(b1=0.95) (Chen 2023, section 5: a tenth to a third "
         "of AdamW's)"],
    )  # fmt: skip
    assert catalogue.usual("lion", 3e-3) == (3e-3, [])
    rate, (line,) = catalogue.usual("adamw", 0.1)
    assert rate == 0.1 and line.startswith("warning: optimizer.learning_rate=0.1 is 100 times the usual one of adamw")
    assert catalogue.usual("mine.py:Own", 5.0) == (5.0, [])
    with pytest.raises(UserError, match="mine.py:Own has none: set it"):
        catalogue.usual("mine.py:Own", 0.0)


@pytest.mark.parametrize("name", catalogue.ENTRIES)
def test_every_state_consists_of_numbers_that_a_checkpoint_can_hold(name):
    tx = catalogue.create(name, rate, DECAY, decay_mask)
    for path, leaf in named(jax.eval_shape(tx.init, PARAMS)).items():
        assert jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == bool, path
