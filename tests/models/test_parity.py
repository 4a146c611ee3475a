"""Networks equal those of other libraries with the same weights, as recorded by golden/make_FAMILY.py."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.layers.endpoint import capture
from models.layers.init import jit_once
from models.weights.layouts import flatten
from tests.golden import FOLDER, drawn
from tests.golden.parity import manifest, projections, shapes_of
from tests.tiers import keep

GOLDEN = {path.stem: dict(np.load(path)) for path in sorted((FOLDER).glob("*.npz"))}
ABOUT = {family: json.loads(str(arrays["about"])) for family, arrays in GOLDEN.items() if "about" in arrays}
CASES = [(family, label) for family, record in ABOUT.items() for label in record["cases"]]
RELATIVES = (
    "densenet-timm",
    "efficientnet_lite-symmetric",
    "efficientnet_lite-v1_tf",
    "efficientnet_lite-v2_tf",
    "mobilenet-v2_timm",
    "msdnet-anytime",
    "msdnet-budgeted",
    "msdnet-imagenet",
    "msdnet-min",
    "resnet-basic",
    "resnet-bit_wide",
    "resnet-resnext",
    "resnet-wide",
    "swin-even",
    "swin-timm_tall",
    "convnext-unscaled",
    "vgg-timm",
)  # other families, for `make test-all`
MANIFESTS = {name: entry for record in ABOUT.values() for name, entry in record["manifests"].items()}


def close(ours, theirs, what):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max(), err_msg=what)


@pytest.mark.parametrize(
    "family,label", [pytest.param(*case, marks=[pytest.mark.full] * ("-".join(case) in RELATIVES)) for case in CASES]
)
def test_equal(family, label):
    """Compares logits in both modes and the statistics that training updates, with drawn weights and statistics."""
    case, golden = ABOUT[family]["cases"][label], GOLDEN[family]
    model = models.create(
        case["name"],
        **{field: tuple(value) if isinstance(value, list) else value for field, value in case["fields"].items()},
    )
    variables = drawn.variables(model)
    state, endpoints = [name for name in variables if name != "params"], case.get("endpoints", ())

    def output(variables, images, **kwargs):
        """Returns logits, or those of all exits [exits, N, num_classes], and the updated collections."""
        output_and_state, at = capture(model, variables, images, mutable=state, names=endpoints, **kwargs)
        return jnp.stack([at[name] for name in endpoints]) if endpoints else output_and_state[0], output_and_state[1]

    @jit_once
    def run(variables, images):
        trained, updated = (
            output(variables, images, train=True, rngs={"dropout": jax.random.key(0)}) if state else (None, {})
        )
        return output(variables, images)[0], trained, updated

    assert case["shapes"]
    for shape in map(tuple, case["shapes"]):
        key = f"{label}|{'x'.join(map(str, shape))}"
        logits, trained, updated = run(variables, jnp.asarray(drawn.images(key, shape)))
        close(logits, golden[f"{key}|eval"], f"{key} eval")
        assert (f"{key}|train" in golden) == ("batch_stats" in variables)
        if "batch_stats" in variables:
            close(trained, golden[f"{key}|train"], f"{key} train")
            close(projections(flatten(updated)), golden[f"{key}|stats"], f"{key} statistics")


@pytest.mark.parametrize(
    "name",
    keep(
        (
            "alexnet", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "resnetv2_50x1_bit", "densenet121",
            "mobilenet_v1", "mobilenet_v2", "efficientnet_lite0", "convnext_tiny", "swin_t", "vit_tiny_patch16",
            "convnet_aig38", "airbench94", "msdnet_cifar_budgeted",
        ),
        MANIFESTS,
    ),
)  # fmt: skip
def test_exported_names_and_shapes_are_those_of_the_library(name):
    layout, digest, count = MANIFESTS[name]
    shapes = shapes_of(models.create(name), layout)
    assert len(shapes) == count and manifest(shapes) == digest
