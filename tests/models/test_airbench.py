"""The speedrun: its training step beside PyTorch's, its averages and views, and that it resumes exactly."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

import models
from configs import cifar10
from models.errors import UserError
from models.weights.layouts import flatten
from tests import tiny
from tests.golden import FOLDER, drawn
from tests.golden.make_airbench import BATCH, FIELDS, STEPS
from train import loop, tasks
from train.optim import build as optimizer
from train.optim import lookahead as lookahead_lib
from train.run import build_run
from train.setup import config as config_lib
from train.storage import checkpoint
from train.tasks.views import averaged

GOLDEN = np.load(FOLDER / "airbench.npz")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Returns a file of 96 training images and 32 test images."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("arrays") / "images.npz"
    np.savez(
        path,
        **{
            f"{split}_{name}": array
            for split, n in (("train", 96), ("test", 32))
            for name, array in (("image", rng.integers(0, 256, (n, 16, 16, 3), np.uint8)), ("label", np.arange(n) % 10))
        },
    )
    return path


def small(images):
    c = cifar10.get_config("speedrun,width=2,batch=16,epochs=2.5")  # 15 steps
    c.data.source, c.eval_batch_size, c.devices, c.steps_per_call = f"arrays:{images}", 24, 1, 1
    c.precision = "float32"
    return c


def test_steps_of_its_optimizer_equal_pytorch():
    c = cifar10.get_config(f"speedrun,batch={BATCH}")
    c.optimizer.schedule = "constant"
    model = models.create("airbench94", **FIELDS)
    variables = drawn.variables(model)
    state = {"batch_stats": variables["batch_stats"]}
    task = tasks.create(config_lib.Reader(c.task), model, 10)
    params = variables["params"]
    tx, _ = optimizer.create(
        config_lib.Reader(c.optimizer),
        params,
        functools.partial(config_lib.steps, batch_size=1, examples=1, total=100),
        100,
    )

    @jax.jit
    def step(params, state, opt_state, images):
        batch = {"image": images, "label": jnp.arange(BATCH), "mask": jnp.ones(BATCH)}
        grads, (_, state, _) = jax.grad(task.loss, has_aux=True)(params, state, {}, batch, jax.random.key(0), 0)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), state, opt_state

    opt_state = tx.init(params)
    for number in range(STEPS):
        shown = jnp.asarray(drawn.images(f"step{number}", (BATCH, 32, 32, 3)))
        params, state, opt_state = step(params, state, opt_state, shown)
    arrays = flatten({"params": params, **state})
    recorded = {name.removeprefix("steps/"): GOLDEN[name] for name in GOLDEN.files if name.startswith("steps/")}
    assert arrays.keys() == recorded.keys()
    for name, theirs in recorded.items():
        np.testing.assert_allclose(arrays[name], theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max(), err_msg=name)


def test_lookahead_by_hand():
    average = lookahead_lib.create("lookahead(0.9, power=2.0, every=3, start='4 steps')", lambda text: int(text[0]), 12)
    fast, slow, expected = 0.0, 0.0, []
    state = {"w": jnp.zeros(()), "n": jnp.zeros((), jnp.int32)}, {"w": jnp.zeros(()), "n": jnp.zeros((), jnp.int32)}
    for step in range(1, 13):
        state = jax.tree.map(lambda x: x + 1, state[0]), state[1]
        state = average(jnp.asarray(step), *state)
        fast += 1
        if step <= 6:  # the first multiple of 3 after 4
            slow = fast
        elif step % 3 == 0:
            rate = 0.9**3 * (step / 12) ** 2
            slow = fast = rate * slow + (1 - rate) * fast
        expected.append((fast, slow))
        assert (float(state[0]["w"]), float(state[1]["w"])) == pytest.approx((fast, slow), rel=1e-5)
    assert state[0]["n"] == 12 and state[0]["n"].dtype == jnp.int32  # a counter is not averaged
    for text in ("lookahead(1.0)", "lookahead(0.5, every=0)", "lookahead(0.5, start='9 epochs')"):
        with pytest.raises(UserError, match=r"lookahead\("):
            lookahead_lib.create(text, lambda text: 12, 12)


def test_views_are_weighted_as_published():
    """Checks that the logits of a linear network are those of the weighted mean of the views."""
    images = drawn.images("views", (3, 5, 6, 2))
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
    mean = 0.5 * images + 0.25 * padded[:, :-2, :-2] + 0.25 * padded[:, 2:, 2:]
    for views, seen in (
        ("one", images),
        ("mirror", (images + images[:, :, ::-1]) / 2),
        ("mirror_shift", (mean + mean[:, :, ::-1]) / 2),
    ):
        kernel = drawn.images("kernel", (60, 4))
        logits = averaged(lambda x: x.reshape(len(x), -1) @ kernel, jnp.asarray(images), views)
        np.testing.assert_allclose(logits, seen.reshape(3, -1) @ kernel, rtol=1e-4, atol=1e-5)
    large = jax.image.resize(jnp.asarray(images), (3, 6, 7, 2), "linear")  # 256/224 of the sides, rounded
    five = sum(large[:, i : i + 5, j : j + 6] for i, j in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 0))) / 5
    for views, seen in (("five_crops", five), ("ten_crops", (five + five[:, :, ::-1]) / 2)):
        logits = averaged(lambda x: x.reshape(len(x), -1) @ kernel, jnp.asarray(images), views)
        np.testing.assert_allclose(logits, seen.reshape(3, -1) @ kernel, rtol=1e-4, atol=1e-5)
    sides = []
    logits = averaged(
        lambda x: sides.append(x.shape[1:3]) or jnp.mean(x, (1, 2)), jnp.ones((3, 16, 16, 2)), "multi_scale"
    )
    assert sides == [(16, 16), (14, 14), (18, 18)]
    np.testing.assert_allclose(logits, 1, rtol=1e-5)
    section = ml_collections.ConfigDict({"name": "classify(views=mirrored)", "label_smoothing": 0.0})
    with pytest.raises(UserError, match="unknown views of a task 'mirrored'; did you mean 'mirror'"):
        tasks.create(section, None, 10)


@pytest.mark.full
def test_it_resumes_exactly_and_leaves_what_it_freezes(images, tmp_path):
    """Checks that a new run continues bitwise from the state after seven steps, as a checkpoint holds it."""
    loop.train(small(images), tmp_path / "whole")
    run = build_run(small(images))
    state, calls = run.parallel.place(run.state), 0
    for _, items in run.feed.calls(0, 7):
        state, calls = run.train_call(state, run.feed.data, items)[0], calls + 1
    again = build_run(small(images))
    state = again.parallel.place(run.parallel.fetch(state))
    for _, items in again.feed.calls(calls, again.total):
        state, _ = again.train_call(state, again.feed.data, items)
    final_state = again.parallel.fetch(state)
    saved = checkpoint.Checkpoints(tmp_path / "whole" / "checkpoints", 2, "accuracy")
    leaves, metadata = saved.restore_newest(warn=print)
    assert metadata["step"] == 15
    tiny.assert_same(checkpoint.unflatten(again.state, leaves, "whole"), final_state)
    old, new = (flatten({"params": params}) for params in (run.state.params, final_state.params))
    still = {name for name in old if np.array_equal(old[name], new[name])}
    assert still == {name for name in old if name.endswith("scale")} | {"stem_conv/kernel"}
    assert not np.array_equal(final_state.ema["params"]["head"]["kernel"], run.state.ema["params"]["head"]["kernel"])


def test_streamed_batches_equal_resident_ones(images):
    by_pipeline = []
    for pipeline in ("resident", "stream"):
        c = small(images)
        c.data.pipeline = pipeline
        run = build_run(c)
        items = [jax.tree.map(np.asarray, item) for _, item in run.feed.calls(5, 8)]  # epoch 0 ends after 6
        batches = [
            jax.tree.map(np.asarray, run.feed.gather(run.feed.data, jax.tree.map(lambda x: x[0, 0], item)))
            for item in items
        ]
        by_pipeline.append([{name: batch[name] for name in ("image", "label", "mirrored")} for batch in batches])
    tiny.assert_same(*by_pipeline)
