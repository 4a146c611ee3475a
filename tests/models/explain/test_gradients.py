"""Tests of models/explain: gradients, class activation maps and rollout, beside captum, pytorch-grad-cam and NumPy."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.errors import UserError
from models.explain import cam, gradient, rollout
from models.explain.method import outline, picked
from models.explain.rules import RULES, with_rule
from models.layers.attention import attention_weights
from models.layers.endpoint import capture
from tests.golden import FOLDER, drawn
from tests.networks import SMALL
from tests.tiers import keep, keep_first

GOLDEN = np.load(FOLDER / "explain.npz")
ABOUT = json.loads(str(GOLDEN["explained"]))
OPTIONS = {"smooth_grad": {"samples": 2}, "integrated_gradients": {"steps": 2}}
METHODS = {
    name: getattr(module, name)
    for module, names in (
        (
            gradient,
            ("saliency", "smooth_grad", "integrated_gradients", "guided_backprop", "deconvnet", "guided_grad_cam"),
        ),
        (cam, ("grad_cam", "grad_cam_plus_plus")),
    )
    for name in names
}


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Compiles with few optimizations: these tests spend more time on compilation than on computation."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def network(kind, **fields):
    """Returns a small network, its variables, and two images."""
    name, own = SMALL[kind]
    model = models.create(name, **{**own, **fields})
    variables = drawn.variables(model)
    channels = 1 if kind == "lenet" else 3
    return model, variables, jnp.asarray(drawn.images("explained", (2, 32, 32, channels)))


# -- beside other libraries --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", keep_first(4, [key for key in GOLDEN.files if "|" in key and not key.endswith("|largest")])
)
def test_equals_captum_and_pytorch_grad_cam(key):
    kind, method, *endpoint = key.split("|")
    name, fields, _ = ABOUT["fields"][kind]
    model = models.create(name, **fields)
    options = {"endpoint": endpoint[0]} if endpoint else {}
    if method == "integrated_gradients":
        options = {"steps": ABOUT["steps"], "baseline": tuple(ABOUT["baseline"])}
    images = drawn.images(f"explain {kind}", ABOUT["shape"])
    values = METHODS[method](model, drawn.variables(model), images, np.asarray(ABOUT["target"]), **options).values
    values = np.asarray(values)
    if values.ndim == 3:  # pytorch-grad-cam scales maps to [0, 1]
        values = values - values.min((1, 2), keepdims=True)
        values /= values.max((1, 2), keepdims=True)
    theirs = GOLDEN[key].astype(np.float32)
    # Grad-CAM++ adds 1e-6 to g^2 (2 + S g), which is about 1e-4 in the transformer.
    atol = 0.03 if method == "grad_cam_plus_plus" else 1e-3
    np.testing.assert_allclose(values / GOLDEN[f"{key}|largest"], theirs, atol=atol)
    assert np.corrcoef(values.ravel(), theirs.ravel())[0, 1] > (0.999 if atol == 0.03 else 0.99999)


# -- every network -----------------------------------------------------------------------------------------------------


@pytest.mark.full  # tests/models/test_any_network.py tries each method with each family
@pytest.mark.parametrize(
    "kind,fields",
    [
        *((kind, {}) for kind in SMALL),
        *((kind, {"dtype": "bfloat16"}) for kind in SMALL),
        ("basic", {"conv": "binary_weight"}),
        ("vgg", {"conv": "binary_weight"}),
        ("preact", {"conv": "xnor", "act": "identity"}),
    ],
)
def test_every_method_on_every_network(kind, fields):
    model, variables, images = network(kind, **fields)
    variables = jax.tree.map(lambda x: np.where(np.abs(x) < np.median(np.abs(x)), 0, x) if x.ndim > 1 else x, variables)

    @jax.jit  # all in one program
    def explained(variables, images):
        return {name: method(model, variables, images, 3, **OPTIONS.get(name, {})) for name, method in METHODS.items()}

    for name, explanation in explained(variables, images).items():
        height, width = explanation.values.shape[1:3]
        expected = (2, height, width) if name.startswith("grad_cam") else images.shape
        assert explanation.values.shape == expected and explanation.values.dtype == jnp.float32
        assert (
            jnp.isfinite(explanation.values).all()
            and explanation.target.tolist() == [3, 3]
            and explanation.logits.shape == (2, 10)
        )
        # Without negative weights, its maps may be zero
        assert explanation.values.any() or name == "grad_cam_plus_plus", name


@pytest.mark.parametrize("kind", keep(("inverted",), SMALL))  # test_any_network.py tries Grad-CAM on every family
def test_grad_cam_and_its_guided_gradient_on_every_network(kind):
    model, variables, images = network(kind)
    explanation = gradient.guided_grad_cam(model, variables, images)
    assert explanation.values.shape == images.shape and jnp.isfinite(explanation.values).all()
    np.testing.assert_array_equal(explanation.target, explanation.logits.argmax(-1))


# -- class activation maps ---------------------------------------------------------------------------------------------

AVERAGED = [
    ("basic", {}), ("vit", {"pool": "mean"}), ("dense", {}), ("inverted", {}), ("swin", {}), ("preact", {}),
    ("bit", {}), ("separable", {}), ("ladder_start", {}), ("blockdrop", {}), ("early_exit", {}),
    ("vgg", {"classifier": (), "dropout": 0.0}), ("swin", {"dtype": "bfloat16"}), ("inverted", {"dtype": "bfloat16"}),
]  # fmt: skip


@pytest.mark.parametrize("kind,fields", keep_first(2, AVERAGED))
def test_cam_is_grad_cam_times_the_places_where_the_mean_is_classified(kind, fields):
    model, variables, images = network(kind, **fields)
    maps, gradients = cam.cam(model, variables, images, [1, 2]), cam.grad_cam(model, variables, images, [1, 2])
    assert list(outline(model, variables, images).endpoints).count("last_map") == 1
    places, largest = maps.values[0].size, jnp.abs(maps.values).max()
    half = 0.02 if "dtype" in fields else 1e-5
    np.testing.assert_allclose(jnp.maximum(maps.values, 0), places * gradients.values, atol=half * largest)
    score = picked(maps.logits, maps.target) - variables["params"]["head"]["bias"][np.asarray([1, 2])]
    np.testing.assert_allclose(maps.values.mean((1, 2)), score, atol=half * largest)
    assert (maps.values < 0).any()


def test_counterfactual_maps_are_of_the_negated_gradients():
    model, variables, images = network("vgg")
    options = {"target": 5, "endpoint": "stage1"}
    for_class, against = (cam.grad_cam(model, variables, images, **options, counterfactual=c).values for c in (0, 1))

    def score(add):
        logits, activations = capture(model, variables, images, add={"stage1": add})
        return logits[:, 5].sum(), activations["stage1"]

    gradients, maps = jax.jit(jax.grad(score, has_aux=True))(jnp.zeros((2, 16, 16, 4)))
    signed = np.einsum("nhwc,nc->nhw", maps, np.asarray(gradients).mean((1, 2)))
    np.testing.assert_allclose(for_class, np.maximum(signed, 0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(against, np.maximum(-signed, 0), rtol=1e-4, atol=1e-6)
    assert (for_class > 0).any() and (against > 0).any()


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind,fields", [("inverted", {}), ("vit_c", {"stem_act": "relu"})])
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_only_changes_gradients(kind, fields, rule):
    model, variables, images = network(kind, **fields)
    ruled = with_rule(model, rule)
    assert ruled == with_rule(model, rule) and hash(ruled) == hash(with_rule(model, rule))  # compiled once
    np.testing.assert_array_equal(jax.jit(ruled.apply)(variables, images), jax.jit(model.apply)(variables, images))
    x, dy = drawn.images("x", (50,)) * 5, drawn.images("dy", (50,))
    act, positive = ruled.stem_act if fields else ruled.act, np.maximum(dy, 0)
    passes = 1 if rule == "deconvnet" else (x > 0) & ((x < 6) | (kind == "vit_c"))  # relu6, relu
    np.testing.assert_array_equal(jax.vjp(act, x)[1](dy)[0], positive * passes)


def test_a_rule_needs_an_activation_to_replace():
    with pytest.raises(UserError, match="Dense has no field `act`"):
        with_rule(models.layers.conv.Dense(3), "guided")
    with pytest.raises(UserError, match="unknown rule 'guide'; did you mean 'guided'"):
        with_rule(network("lenet")[0], "guide")


def test_integrated_gradients_sum_to_what_the_score_gains():
    model, variables, images = network("vit")
    baseline = (0.5, 0.0, -1.0)
    explanation = gradient.integrated_gradients(model, variables, images, [4, 9], baseline=baseline)
    start = jax.jit(model.apply)(variables, jnp.broadcast_to(jnp.asarray(baseline), images.shape))
    gained = picked(explanation.logits, explanation.target) - picked(start, explanation.target)
    np.testing.assert_allclose(explanation.values.sum((1, 2, 3)), gained, rtol=1e-4, atol=1e-4)


def test_smooth_grad_is_the_mean_gradient_at_noisy_images():
    model, variables, images = network("lenet")
    plain = gradient.saliency(model, variables, images)
    same = gradient.smooth_grad(model, variables, images, samples=3, noise=0.0)
    np.testing.assert_allclose(same.values, plain.values, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(same.target, plain.target)
    smooth = gradient.smooth_grad(model, variables, images, samples=3, noise=0.2, seed=7).values
    total = 0
    for key in jax.random.split(jax.random.key(7), 3):
        noise = jax.random.normal(key, images.shape[1:])
        noisy = jnp.stack([x + 0.2 * (x.max() - x.min()) * noise for x in images])
        total += gradient.saliency(model, variables, noisy, plain.target).values
    np.testing.assert_allclose(smooth, total / 3, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", keep_first(2, METHODS))
def test_images_do_not_depend_on_their_batch(name):
    """Checks that each image has its own class, the most probable one of each."""
    model, variables, images = network("lenet")
    options = {"samples": 2} if name == "smooth_grad" else {}
    options |= {"steps": 2} if name == "integrated_gradients" else {}
    both = METHODS[name](model, variables, images, [-1, 7], **options)
    for i, target in enumerate([None, 7]):
        alone = METHODS[name](model, variables, images[i : i + 1], target, **options)
        np.testing.assert_allclose(both.values[i], alone.values[0], rtol=1e-4, atol=1e-5)
        assert both.target[i] == alone.target[0] == (both.logits[0].argmax() if target is None else 7)


# -- rollout -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", keep_first(1, [{"pool": "mean"}, {}, {"remat": True}]), ids=str)
def test_attention_rollout_is_a_product_over_the_blocks(fields):
    model, variables, images = network("vit", **fields)
    explanation = rollout.attention_rollout(model, variables, images, 2)
    weights = attention_weights(model.clone(remat=False), variables, images)[1]
    for n in range(2):
        product = np.eye(len(next(iter(weights.values()))[n, 0]))
        for block in ("block0", "block1"):
            mixed = np.mean(weights[f"{block}/attention"][n], 0) + np.eye(len(product))
            product = mixed / mixed.sum(1, keepdims=True) @ product
        row = product.mean(0) if "pool" in fields else product[0, 1:]
        np.testing.assert_allclose(explanation.values[n], row.reshape(4, 4), rtol=1e-4)
    np.testing.assert_allclose(rollout.rollout(model, weights, 2).sum(-1), 1, rtol=1e-5)


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call,message",
    [
        (functools.partial(cam.grad_cam, endpoint="conv3"), "unknown endpoint 'conv3'.* allowed: conv1, conv2"),
        (
            functools.partial(gradient.guided_grad_cam, endpoint="pre_logits"),
            "with positions 'pre_logits'.*: conv1, conv2",
        ),
        (functools.partial(gradient.saliency, target=10), "target=10 is out of range: this network has classes 0 to 9"),
        (functools.partial(cam.grad_cam, target=[1, 2, 3]), "must be a class, or one for each of the 2 images"),
        (functools.partial(gradient.smooth_grad, samples=0), "samples=0 must be at least 1"),
        (functools.partial(gradient.smooth_grad, noise=-1.0), "noise=-1.0 must be at least 0"),
        (functools.partial(gradient.integrated_gradients, steps=0), "steps=0 must be at least 1"),
        (functools.partial(gradient.integrated_gradients, baseline=(0, 0)), "a tuple of 1 numbers, one per channel"),
    ],
)
def test_errors_are_one_line(call, message):
    with pytest.raises(UserError, match=message):
        call(*network("lenet"))
