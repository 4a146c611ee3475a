"""The tasks gated, policy and multi_exit: losses and metrics by hand, learned parameters, and whole runs."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import models
from configs import transfer
from models import weights
from models.errors import UserError
from models.gated import gates
from models.layers.endpoint import capture
from tests import tiny
from tests.golden import drawn
from tests.train.test_loop import final
from train import loop, restore, tasks
from train.probing import features
from train.run import Run, build_run
from train.setup import pretrained
from train.tasks import gated as gated_module

MASK = np.array([1, 1, 1, 1, 0, 0], np.float32)
LABELS = np.array([3, 1, 3, 9, 3, 1])
IMAGES = jnp.asarray(drawn.images("tasks", (6, 8, 8, 1)) + 2 * drawn.images("tasks colors", (6, 1, 1, 1)))
BATCH = {"image": IMAGES, "label": jnp.asarray(LABELS), "mask": jnp.asarray(MASK)}
NETWORKS = {
    "gated": ("convnet_aig38", {"width": 4, "stage_sizes": (1, 2), "rates": (1, 0.3, None), "gate_width": 4}),
    "policy": ("blockdrop32", {"width": 4, "stage_sizes": (1, 2), "policy_sizes": (1,), "policy_width": 4}),
    "multi_exit": ("early_exit_resnet62", {"width": 4, "stage_sizes": (1, 2), "exits": (1, 2), "exit_width": 4}),
}


@functools.cache
def network(name):
    """Returns a tiny network with one input channel, and drawn variables."""
    model = models.create(NETWORKS[name][0], **NETWORKS[name][1])
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    return model, jax.tree.map(jnp.asarray, drawn.filled(shapes, drawn.weight))


def create(text, model, to_steps=None):
    return tasks.create(ml_collections.ConfigDict({"name": text, "label_smoothing": 0.0}), model, 10, to_steps=to_steps)


def cross_entropy(logits, labels=LABELS):
    logits = np.asarray(logits, np.float64)
    return np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(labels)), labels]


def ratio(metric):
    return np.asarray(metric[0]) / np.asarray(metric[1])


RUNS = {  # smaller than SMALL
    "gated": ("convnet_aig38", {"stage_sizes": (1, 1), "rates": (1, 0.3), "gate_width": 4}),
    "policy": ("blockdrop32", {"stage_sizes": (1, 1), "policy_sizes": (1,), "policy_width": 4}),
    "multi_exit": ("early_exit_resnet62", {"stage_sizes": (1, 1), "exits": (1,), "exit_width": 4}),
}


# -- gated ---------------------------------------------------------------------------------------------------------


COMPUTED = np.array([[1, 0, 1], [1, 1, 1], [1, 0, 1], [1, 0, 0], [1, 1, 0], [1, 1, 0]], np.float32)


def test_the_loss_of_gates_by_hand(monkeypatch):
    """Computes the loss by hand; the last two images are padding."""
    model, logits = network("gated")[0], drawn.images("logits", (6, 10))
    monkeypatch.setattr(gated_module, "gates", lambda *_, **__: ((jnp.asarray(logits), {}), jnp.asarray(COMPUTED)))
    loss, (metrics, _, _) = create("gated(weight=3.0)", model).loss({}, {}, {}, BATCH, jax.random.key(0), 0)
    apart = np.mean([(1 - 1) ** 2, (1 / 4 - 0.3) ** 2, (3 / 4 - 0.7) ** 2])
    assert loss == pytest.approx(cross_entropy(logits)[:4].sum() / 6 + 3 * apart, rel=1e-5)
    assert ratio(metrics["rate_loss"]) == pytest.approx(apart, rel=1e-5)
    assert ratio(metrics["blocks"]) == pytest.approx(2) and metrics["blocks"][1] == 4
    assert ratio(metrics["loss"]) == pytest.approx(cross_entropy(logits)[:4].mean(), rel=1e-5)


def test_computed_blocks_and_costs_by_hand():
    model = network("gated")[0]
    used = create("gated", model).used(jnp.asarray(COMPUTED), BATCH)
    always = 9 * 4 * 64 + 4 * 8 * 16 + (4 * 4 + 4 * 2) + (8 * 4 + 4 * 2) + 8 * 10  # stem, projection, gates, head
    each = (2 * 9 * 4 * 4 * 64, 9 * 4 * 8 * 16 + 9 * 8 * 8 * 16, 2 * 9 * 8 * 8 * 16)
    assert ratio(used["blocks"]) == pytest.approx(2)
    assert ratio(used["average_mult_adds"]) == pytest.approx(always + each[0] + each[1] / 4 + each[2] * 3 / 4)
    np.testing.assert_allclose(ratio(used["gate_rates"]), [1, 1 / 4, 3 / 4])
    empty = create("gated", model).used(jnp.asarray(COMPUTED), {**BATCH, "mask": jnp.zeros(6)})
    assert all(np.sum(total) == np.sum(weight) == 0 for total, weight in empty.values())


def test_evaluation_measures_what_the_gates_decide():
    model, variables = network("gated")
    logits, computed = gates(model, variables, IMAGES)
    metrics = create("gated", model).evaluate(variables, {}, BATCH)
    np.testing.assert_allclose(ratio(metrics["gate_rates"]), computed[:4].mean(0))
    assert ratio(metrics["accuracy"]) == np.mean(logits.argmax(-1)[:4] == LABELS[:4])


def test_gates_learn_toward_their_rates():
    """Checks that gates close with a target rate of zero, and that a closed batch's weight counts nothing."""
    model, variables = network("gated")
    task, state = (
        create("gated(weight=1e6)", model.clone(rates=(1, 0.0, 0.0))),
        {"batch_stats": variables["batch_stats"]},
    )
    gradient = jax.jit(jax.grad(lambda params: task.loss(params, state, {}, BATCH, jax.random.key(0), 0)[0]))(
        variables["params"]
    )
    for i in (0, 1):
        bias = gradient["stage2"][f"block{i}"]["gate"]["dense2"]["bias"]
        assert bias[1] > 0 > bias[0]


# -- policy --------------------------------------------------------------------------------------------------------


def test_rewards_by_hand():
    logits = jnp.eye(10)[jnp.asarray([3, 1, 0, 9])]
    keep = jnp.asarray([[1, 1, 1], [1, 0, 1], [0, 0, 0], [0, 0, 0]], jnp.float32)
    rewards = tasks.policy.reward(logits, BATCH["label"][:4], keep, 5.0)
    np.testing.assert_allclose(rewards, [0, 1 - (2 / 3) ** 2, -5, 1], rtol=1e-6)


SAMPLE = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 1]], bool)


def expected(shift, model, variables, learned, penalty, bound, entropy):
    """Returns the loss as a plain sum, with `shift` [K] on the policy's logits alone: rewards are constants."""
    own = {name: tree["policy"] for name, tree in variables.items()}
    logits, _ = model.policy(parent=None).apply(own, IMAGES, train=True, mutable=["batch_stats"])
    z = np.asarray(logits, np.float64)
    open_ = np.arange(3) >= 3 - learned
    sample, greedy = np.where(open_, SAMPLE, True), np.where(open_, z >= 0, True)
    outputs = [
        np.asarray(model.apply(variables, IMAGES, keep=jnp.asarray(keep, jnp.float32))).argmax(-1)
        for keep in (sample, greedy)
    ]
    probability = 1 / (1 + np.exp(-(z + shift)))
    p, total = bound * probability + (1 - bound) * (1 - probability), 0.0
    for i in np.flatnonzero(MASK):
        reward, base = (
            1 - keep[i].mean() ** 2 if best[i] == LABELS[i] else -penalty
            for best, keep in zip(outputs, (sample, greedy), strict=True)
        )
        for k in np.flatnonzero(open_):
            total -= (reward - base) * np.log(p[i, k] if sample[i, k] else 1 - p[i, k])
            total += entropy * (p[i, k] * np.log(p[i, k]) + (1 - p[i, k]) * np.log(1 - p[i, k]))
    return total / len(MASK), greedy, p


@pytest.mark.parametrize("learned", [3, 2])
def test_the_loss_of_a_policy_and_its_gradient(monkeypatch, learned):
    model, variables = network("policy")
    drawn_from = []

    def bernoulli(key, p):
        jax.debug.callback(drawn_from.append, p)
        return jnp.asarray(SAMPLE)

    monkeypatch.setattr(jax.random, "bernoulli", bernoulli)
    task = create("policy(penalty=2.0, bound=0.7, entropy=0.05, curriculum='3 steps')", model, lambda text: 3)
    state = {"batch_stats": variables["batch_stats"]}
    (loss, (metrics, new, task_state)), gradient = jax.value_and_grad(task.loss, has_aux=True)(
        variables["params"], state, {"learned": jnp.int32(0)}, BATCH, jax.random.key(0), jnp.int32(learned - 1)
    )
    by_hand = functools.partial(
        expected, model=model, variables=variables, learned=learned, penalty=2.0, bound=0.7, entropy=0.05
    )
    expected_loss, greedy, p = by_hand(np.zeros(3))
    assert int(task_state["learned"]) == learned
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    jax.effects_barrier()
    np.testing.assert_allclose(drawn_from[0], p, rtol=1e-4)
    assert ratio(metrics["blocks"]) == pytest.approx(greedy[:4].sum(1).mean())
    slopes = [(by_hand(step)[0] - by_hand(-step)[0]) / 2e-4 for step in 1e-4 * np.eye(3)]
    np.testing.assert_allclose(gradient["policy"]["head"]["bias"], slopes, rtol=1e-3, atol=1e-6)
    assert (gradient["policy"]["head"]["bias"][: 3 - learned] == 0).all()
    # The network does not change.
    moving = {path[0].key for path, leaf in jax.tree_util.tree_leaves_with_path(gradient) if (leaf != 0).any()}
    assert moving == {"policy"} and all((leaf != 0).any() for leaf in jax.tree.leaves(gradient["policy"]))
    assert changed(state, new) == {"policy"}


def changed(old, new):
    """Returns the top-level names of the running statistics that have changed."""
    assert jax.tree.structure(old) == jax.tree.structure(new)
    return {
        path[1].key
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(old), jax.tree.leaves(new), strict=True)
        if not np.array_equal(a, b)
    }


def test_both_learn_together():
    model, variables = network("policy")
    state = {"batch_stats": variables["batch_stats"]}
    task = create("policy(joint=True)", model)
    (loss, (metrics, new, _)), gradient = jax.jit(jax.value_and_grad(task.loss, has_aux=True))(
        variables["params"], state, {"learned": jnp.int32(3)}, BATCH, jax.random.key(0), jnp.int32(0)
    )
    moving = {path[0].key for path, leaf in jax.tree_util.tree_leaves_with_path(gradient) if (leaf != 0).any()}
    assert moving == {"policy", "stem_conv", "stem_norm", "stage1", "stage2", "head"} and np.isfinite(loss)
    assert changed(state, new) == {"policy", "stem_norm", "stage1", "stage2"}
    policy_key, model_key, sample_key = jax.random.split(jax.random.key(0), 3)
    own = {name: tree["policy"] for name, tree in variables.items()}
    logits = model.policy(parent=None).apply(own, IMAGES, train=True, mutable=["batch_stats"])[0]
    p = jax.nn.sigmoid(logits)
    keep = jax.random.bernoulli(sample_key, 0.8 * p + 0.2 * (1 - p)).astype(jnp.float32)
    output = model.apply(variables, IMAGES, train=True, keep=keep, mutable=["batch_stats"])[0]
    assert ratio(metrics["loss"]) == pytest.approx(cross_entropy(output)[:4].mean(), rel=1e-4)


@pytest.mark.parametrize("bound", [0.0, 1.0])
def test_probabilities_of_0_and_1_give_finite_numbers(bound):
    model, variables = network("policy")
    params = jax.tree.map(jnp.array, variables["params"])
    params["policy"]["head"]["bias"] = jnp.asarray([100.0, -100.0, 100.0])
    task = create(f"policy(bound={bound})", model)
    loss, gradient = jax.value_and_grad(
        lambda params: task.loss(
            params, {"batch_stats": variables["batch_stats"]}, {}, BATCH, jax.random.key(0), jnp.int32(0)
        )[0]
    )(params)
    assert np.isfinite(loss) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_the_curriculum_goes_from_the_last_block_to_all():
    model, variables = network("policy")
    variables = jax.tree.map(jnp.array, variables)
    variables["params"]["policy"]["head"]["bias"] = jnp.full(3, -100.0)  # drops every optional block
    task = create("policy(curriculum='2 epochs')", model, {"2 epochs": 30, "100%": 60}.get)
    with pytest.raises(UserError, match="curriculum='2 epochs' is longer than the training of 20 steps"):
        create("policy(curriculum='2 epochs')", model, {"2 epochs": 30, "100%": 20}.get)
    assert task.init(jax.random.key(0), (1, 8, 8, 1))[1] == {"learned": 1}
    loss = jax.jit(
        lambda step: task.loss(
            variables["params"], {"batch_stats": variables["batch_stats"]}, {}, BATCH, jax.random.key(0), step
        )[1]
    )
    for step, learned in ((0, 1), (9, 1), (10, 2), (19, 2), (20, 3), (30, 3), (10**6, 3)):
        metrics, _, task_state = loss(jnp.int32(step))
        assert int(task_state["learned"]) == learned and ratio(metrics["blocks"]) == 3 - learned
    for learned, rates in ((1, [1, 1, 0]), (2, [1, 0, 0]), (3, [0, 0, 0])):
        metrics = task.evaluate(variables, {"learned": jnp.int32(learned)}, BATCH)
        assert ratio(metrics["gate_rates"]).tolist() == rates and ratio(metrics["blocks"]) == sum(rates)
        logits = model.apply(variables, IMAGES, keep=jnp.broadcast_to(jnp.asarray(rates, jnp.float32), (6, 3)))
        assert ratio(metrics["loss"]) == pytest.approx(cross_entropy(logits)[:4].mean(), rel=1e-4)
    assert create("policy", model).init(jax.random.key(0), (1, 8, 8, 1))[1] == {"learned": 3}


# -- multi_exit ----------------------------------------------------------------------------------------------------


def test_every_exit_counts():
    model, variables = network("multi_exit")
    task, state = create("multi_exit", model), {"batch_stats": variables["batch_stats"]}
    exits = ["exit1", "exit2", "exit3"]
    _, activations = capture(model, variables, IMAGES, names=exits, train=True, mutable=["batch_stats"])
    loss, (metrics, new, _) = task.loss(variables["params"], state, {}, BATCH, jax.random.key(0), 0)
    losses = [cross_entropy(activations[name])[:4] for name in exits]
    assert loss == pytest.approx(np.sum(losses) / 6, rel=1e-5)
    assert "exit1" in changed(state, new)
    logits, activations = capture(model, variables, IMAGES, names=exits)
    right = [(activations[name].argmax(-1) == LABELS)[:4].mean() for name in exits]
    metrics = task.evaluate(variables, {}, BATCH)
    np.testing.assert_allclose(ratio(metrics["accuracy_by_exit"]), right)
    assert ratio(metrics["accuracy"]) == right[-1]
    assert ratio(metrics["loss"]) == pytest.approx(cross_entropy(logits)[:4].mean(), rel=1e-5)
    first = 9 * 4 * 64 + 2 * 9 * 4 * 4 * 64 + (9 * 4 * 4 * 16 + 9 * 4 * 4 * 4 + 4 * 10)
    second = first + (9 * 4 * 8 * 16 + 9 * 8 * 8 * 16) + (9 * 8 * 4 * 4 + 9 * 4 * 4 * 1 + 4 * 10)
    assert ratio(metrics["mult_adds_by_exit"]).tolist() == [first, second, second + 2 * 9 * 8 * 8 * 16 + 8 * 10]


# -- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("gated", "resnet8", "task gated is for networks with gates .*, not ResNet"),
        ("gated", "policy", "task gated is for networks with gates .*, not BlockDrop"),
        ("policy", "gated", "task policy is for networks with a policy .*, not GatedResNet"),
        ("multi_exit", "policy", "task multi_exit is for networks with exits .*, not BlockDrop"),
        ("gated(wieght=1)", "gated", "task.name gated: .*'wieght'"),
        ("gated(weight=a)", "gated", "task.name gated: weight must be float, not 'a'"),
        ("gated(weight=-1.0)", "gated", "weight=-1.0 must be at least 0"),
        ("policy(penalty=-1.0)", "policy", "penalty=-1.0 and entropy=0.1 must be at least 0"),
        ("policy(entropy=-0.1)", "policy", "penalty=5.0 and entropy=-0.1 must be at least 0"),
        ("policy(bound=1.2)", "policy", r"bound=1.2 in \[0, 1\]"),
        ("policy(curriculum='soon')", "policy", "cannot read .*'soon'|'soon'"),
        ("multi_exit(3)", "multi_exit", "task.name multi_exit: "),
        ("gated|policy", "gated", "must name exactly one of"),
        ("gate", "gated", "unknown task.name 'gate'; did you mean 'gated'"),
    ],
)
def test_mistakes_are_one_line(text, name, message):
    own = NETWORKS.get(name, (name, {"width": 4}))
    with pytest.raises(UserError, match=message) as error:
        build_run(config(own, text))
    assert "\n" not in str(error.value)


# -- whole runs ----------------------------------------------------------------------------------------------------


def config(own, text, **changes):
    name, fields = own
    c = tiny.config(**{"model__name": name, "task__name": text, **changes})
    for field, value in fields.items():
        c.model[field] = value
    return c


TEXTS = {"gated": "gated", "policy": "policy(curriculum='6 steps', joint=True)", "multi_exit": "multi_exit"}


@pytest.mark.full
@pytest.mark.parametrize("kind", ["gated", "policy"])
def test_killed_and_resumed_it_ends_with_the_same_bits(tmp_path, monkeypatch, kind):
    c = config(RUNS[kind], TEXTS[kind], optimizer__learning_rate=0.01)
    whole = loop.train(c, tmp_path / "whole")
    evaluate = Run.evaluate

    def killed(run, state, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "evaluate", killed)  # at step 6, after step 4 was saved
    with pytest.raises(KeyboardInterrupt):
        loop.train(c, tmp_path / "run")
    monkeypatch.setattr(Run, "evaluate", evaluate)
    assert final(tmp_path / "run")[1]["step"] == 4
    again = loop.train(c, tmp_path / "run")
    tiny.assert_same(final(tmp_path / "run")[0], final(tmp_path / "whole")[0])
    assert {"blocks", "average_mult_adds", "gate_rates"} <= again.keys() and len(again["gate_rates"]) == 2
    assert all(again[name] == whole[name] for name in ("accuracy", "blocks", "average_mult_adds", "gate_rates"))


@pytest.mark.full
def test_a_policy_starts_from_a_trained_network_and_then_both_train_on(tmp_path):
    name, fields = RUNS["policy"]
    loop.train(tiny.config(model__name="resnet8", model__stage_sizes=(1, 1), duration="4 steps"), tmp_path / "resnet")
    alone = config(
        (name, fields),
        "policy(curriculum='50%')",
        duration="4 steps",
        optimizer__weight_decay=0.0,
        optimizer__name="adam",
        optimizer__groups=(("policy/.*", 1.0), (".*", 0.0)),
        init_from=str(tmp_path / "resnet"),
        init_new="policy",
    )
    loop.train(alone, tmp_path / "policy")
    network, state = (restore.load(tmp_path / folder)[1].variables() for folder in ("resnet", "policy"))
    policy = {collection: tree.pop("policy") for collection, tree in state.items()}
    tiny.assert_same(network, state)
    start = build_run(alone).state.variables()
    assert not np.array_equal(start["params"]["policy"]["head"]["kernel"], policy["params"]["head"]["kernel"])
    run = build_run(
        config((name, fields), "policy(joint=True)", steps_per_call=1, init_new="", init_from=str(tmp_path / "policy"))
    )
    tiny.assert_same(run.state.variables(), restore.load(tmp_path / "policy")[1].variables())
    _, items = next(run.feed.calls(0, 1))
    both = run.parallel.fetch(run.train_call(run.parallel.place(run.state), run.feed.data, items)[0])
    assert not np.array_equal(both.params["stem_conv"]["kernel"], network["params"]["stem_conv"]["kernel"])
    assert int(both.task_state["learned"]) == 2


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.full) for kind in RUNS])
def test_two_devices(kind):
    """Checks vector metrics and the state of a task, by pmap and by shard_map."""
    by_lift = []
    for parallel in ("pmap", "shard_map"):
        run = build_run(
            config(
                RUNS[kind], TEXTS[kind], devices=2, parallel=parallel, steps_per_call=1, optimizer__learning_rate=0.01
            )
        )
        _, items = next(run.feed.calls(0, 1))
        state, metrics = run.train_call(run.parallel.place(run.state), run.feed.data, items)
        by_lift.append((run.parallel.fetch(state).params, run.evaluate(state)))
        assert np.asarray(metrics["loss"][1]).tolist() == [32]
        results = by_lift[-1][1]
        if kind == "multi_exit":
            assert len(results["accuracy_by_exit"]) == len(results["mult_adds_by_exit"]) == 2
        else:
            assert len(results["gate_rates"]) == 2 and sum(results["gate_rates"]) == pytest.approx(results["blocks"])
        if kind == "policy":
            learned = run.parallel.fetch(state).task_state["learned"]
            assert learned == 1 and learned.dtype == np.int32 and results["gate_rates"][0] == 1
    tiny.assert_same(*(params for params, _ in by_lift))
    assert by_lift[0][1] == by_lift[1][1]


# -- other operations on such networks -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "task", "new"),
    [
        ("msdnet_cifar_budgeted", "multi_exit", "*/head"),
        ("early_exit_resnet62", "multi_exit", "head|*/head"),
        ("convnet_aig38", "gated", "head"),
        ("blockdrop32", "policy(joint=True)", "head"),
        ("resnet20", "classify", "head"),
    ],
)
def test_transfer_has_their_task_and_heads(name, task, new):
    c = transfer.get_config(f"model={name},to=digits")
    assert (c.task.name, c.init_new) == (task, new)


def test_errors_for_other_classes_at_exits_name_the_remedy():
    fields = {"width": 4, "stage_sizes": (1, 1), "exits": (1,), "exit_width": 4}
    model, before = (models.create("early_exit_resnet62", **fields, num_classes=classes) for classes in (10, 7))
    arrays = weights.flatten(models.initialize(before, jax.random.key(0), (1, 8, 8, 1)))
    start = pretrained.Pretrained("x", "early_exit_resnet62", arrays)
    variables = models.initialize(model, jax.random.key(1), (1, 8, 8, 1))
    with pytest.raises(
        UserError, match=r"7 classes, but the data have 10: init_new=head\|\*/head initializes its heads randomly"
    ):
        pretrained.start(model, variables, start, [])
    started = weights.flatten(pretrained.start(model, variables, start, ["head", "*/head"]))
    np.testing.assert_array_equal(started["exit1/conv1/kernel"], arrays["exit1/conv1/kernel"])
    assert started["exit1/head/bias"].shape == started["head/bias"].shape == (10,)


def test_lsuv_is_not_for_gates():
    with pytest.raises(UserError, match="data_init=lsuv would rescale the kernels of gates"):
        build_run(config(NETWORKS["gated"], "gated", data_init="lsuv"))


def test_one_number_per_image_is_not_a_feature():
    run = build_run(config(NETWORKS["gated"], "gated"))
    with pytest.raises(UserError, match="gate is one number per image"):
        features.check(run, f"{run.task.model.gated[0]}/gate")
