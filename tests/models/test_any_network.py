"""Any network with any method: each pair of tests/combinations.py works or is refused in one line.

Compilation is what costs time here, so a family has three programs of a training step (tests/any_network.py), in which
different layers get different norms and initializations. `make test-all` also trains each norm in all layers.
"""

import functools
import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import weights
from models.compress.fold import fold
from models.errors import UserError
from models.explain import cam, occlusion, receptive, rollout
from models.explain.method import outline
from models.layers import init
from models.layers import low_bit as lowbit
from models.layers.endpoint import capture
from models.layers.ingredients import HEAD
from models.weights import torch_names
from tests import any_network, combinations, sentences, tiny
from tests.any_network import (
    BATCH,
    PROGRAMS,
    all_inits,
    assert_learns,
    create,
    inputs_of,
    is_text,
    low_bit,
    optimizer_of,
    start,
    stepped,
    stepped_from,
    subject,
    take_step,
    whole,
)
from tests.combinations import ALL_INITS, BOTH, FAMILIES, FILTERS, FORMATS, LOW_BIT, METHODS, NORMS, in_full, refusal
from tests.golden import drawn
from tests.networks import PERTURBED
from train.export import cards, formats, graph
from train.export import network as export
from train.optim import pruning, weight_sharing
from train.optim.parameters import named
from train.run import build_run
from train.setup import pretrained
from train.storage import checkpoint


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Compiles with few optimizations: these tests spend more time on compilation than on computation."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def last_family():
    """Returns [the family of the last test]."""
    return [None]


@pytest.fixture(autouse=True)
def one_family_at_a_time(request, last_family):
    """Drops the programs of the previous family: each maps memory, which is limited for each process (conftest)."""
    family = getattr(request.node, "callspec", None) and request.node.callspec.params.get("family")
    if last_family != [family]:
        last_family[:] = [family]
        for programs in (any_network.gradients_of, any_network.updates):
            programs.cache_clear()
        jax.clear_caches()


# -- methods -------------------------------------------------------------------------------------------------------


def trained(family, program, folder):
    """Checks a step of that program and its precision."""
    assert_learns(stepped(family, program))
    model = subject(family, program).model
    assert model.dtype == ("bfloat16" if program == "ternary" else None)


def normalized(family, spec, folder):
    """Checks the norm in all layers, abstractly, and a step of the program in which some layers have it."""
    model = create(family, norm=spec)
    inputs = models.abstract([jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs_of(family)])
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    logits, _ = jax.eval_shape(
        functools.partial(model.apply, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}),
        variables,
        *inputs,
    )
    assert logits.dtype == jnp.float32 and logits.shape[0] == BATCH
    assert ("batch_stats" in variables) == ("batch" in spec)
    if spec == "batch":
        result = stepped(family, "whole")
        means = [leaf for name, leaf in named(result.after.model_state).items() if name.endswith("mean")]
        assert means and all(mean.any() for mean in means)  # they start at 0
    else:
        program = "ternary" if spec in ("layer", "frozen_batch", "instance") else "xnor"
        layer = subject(family, program).model.norm
        assert_learns(stepped(family, program))
        # The program has enough places for it
        assert layer == spec or layer.args[0].index(spec) < len(layer.args[1].known)


def initialized(family, spec, folder):
    number, used = next((i, used) for i, (used, _) in enumerate(all_inits(family)) if spec in used)
    result = stepped_from(family, number)
    kernels = [leaf for name, leaf in named(result.before.params).items() if name.endswith("kernel")]
    assert any(kernel.shape == used[spec] and kernel.any() for kernel in kernels)
    assert_learns(result)


def of_data(family, how, folder):
    if refusal(family, f"data_init={how}"):
        return build_run(config_of(family, folder, data_init=how))
    it = whole(family)
    images, key = jnp.asarray(inputs_of(family)[0]), jax.random.key(2)
    variables = (
        init.lsuv(it.model, it.variables, images, key) if how == "lsuv" else init.whiten(it.model, it.variables, images)
    )
    variables = jax.tree.map(np.asarray, variables)
    before, after = named(it.variables["params"]), named(variables["params"])
    changed = [name for name in before if np.any(before[name] != after[name])]
    if how == "lsuv":
        assert changed == [name for name in before if name.endswith("kernel")]
    else:
        assert len(changed) == 1
    assert_learns(take_step(family, start(family, variables)))


def config_of(family, folder, **changes):
    """Returns a run's config for digits, or for a few sentences."""
    entry = FAMILIES[family]
    if is_text(family):
        sentences.write(folder)
        return sentences.config(f"text:{folder}", optimizer__warmup="0 steps", **changes)
    c = tiny.config(model__name=entry.name, data__channels=3, **changes)
    with c.unlocked():
        del c.model["width"]
        c.model.update({name: value for name, value in entry.fields.items() if name != "num_classes"})
    c.model.image_size = 8
    return c


def low_bits(family, field, kind, folder):
    """Checks that all layers of that field except the first and the head are quantized to few values."""
    model = create(family, **{field: kind})
    inputs = inputs_of(family)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    layers = {"/".join(path) for path in lowbit.layers(model, shapes, *inputs)}
    kernels = {
        name.removesuffix("/kernel"): len(leaf.shape)
        for name, leaf in named(shapes["params"]).items()
        if name.endswith("/kernel")
    }
    order = []
    jax.eval_shape(lambda variables: order.extend(capture(model, variables, *inputs, layers=True)[1]), shapes)
    first = {name.startswith("policy/"): name for name in reversed(order) if name in kernels}.values()
    if is_text(family):
        first = []  # the embedding comes first
    of_field = {name for name, rank in kernels.items() if rank == {"conv": 4, "dense": 2}[field]}
    assert layers == {name for name in of_field - set(first) if name.split("/")[-1] != HEAD} and layers
    if kind not in PROGRAMS:
        return
    it, result = subject(family, kind), stepped(family, kind)
    assert_learns(result)
    stored = lowbit.stored(it.model, result.after.variables(), *inputs)
    for name in layers:
        kernel = np.asarray(named(stored["params"])[f"{name}/kernel"])
        values = [np.unique(one) for one in kernel.reshape(-1, kernel.shape[-1]).T]  # per filter
        assert max(map(len, values)) == (3 if kind == "ternary" else 2) or kernel[..., 0].size < 9, name


def two_steps(family, variables, tx):
    first = take_step(family, start(family, variables, tx), tx)
    return first.after, take_step(family, first.after, tx).after


def pruned(family, folder):
    """Checks that half of each layer is pruned once, and that a second step moves the remaining weights."""
    variables = whole(family).variables
    text = "magnitude(0.5, by='layer')"
    cut, retrained = two_steps(family, variables, optimizer_of(variables["params"], prune=text))
    moved = 0
    for name, mask in pruning.masks_of(retrained.opt_state).items():
        before, after = named(cut.params)[name], named(retrained.params)[name]
        assert (after[~mask] == 0).all() and (~mask).sum() == round(0.5 * mask.size), name
        moved += (before != after).sum()
    assert moved > 0


def without_filters(family, folder):
    it = whole(family)
    path = FILTERS.get(family) or PERTURBED[type(it.model).__name__]["widths"][1][0][0]
    coupled = functools.partial(pruning.vectors, it.model, it.variables, it.model.example())
    text = f"magnitude(0.5, structure='filters', what='{path}/kernel')"
    tx = optimizer_of(it.variables["params"], coupled, prune=text)
    _, retrained = two_steps(family, it.variables, tx)
    kernel = named(retrained.params)[f"{path}/kernel"]
    gone = ~kernel.reshape(-1, kernel.shape[-1]).any(0)
    assert gone.sum() == round(0.5 * len(gone))


def shared(family, folder):
    """Checks weight sharing for one kernel: each takes a while."""
    kernel = next(
        name
        for name, leaf in named(whole(family).variables["params"]).items()
        if name.endswith("/kernel") and leaf.size > 16
    )
    text = f"linear(conv=2, dense=2, what='{kernel}')"
    params = weight_sharing.plan(text).snap(whole(family).variables["params"])
    result = take_step(
        family, start(family, {**whole(family).variables, "params": params}, tx := optimizer_of(params, share=text)), tx
    )
    before, after = (named(state.params)[kernel] for state in (result.before, result.after))
    assert np.any(before != after) and len(np.unique(after)) == len(np.unique(before)) == 4


def with_new_head(family, folder):
    variables, model = whole(family).variables, create(family, num_classes=7)
    drawn_anew = drawn.variables(model)
    source = pretrained.Pretrained("a run", FAMILIES[family].name, weights.flatten(variables))
    with pytest.raises(UserError, match="has 10 classes, but the data have 7: init_new=") as error:
        pretrained.start(model, drawn_anew, source, [])
    new = re.search(r"init_new=(\S+) initializes", str(error.value))[1].split("|")
    started, old, other = (
        weights.flatten(tree) for tree in (pretrained.start(model, drawn_anew, source, new), variables, drawn_anew)
    )
    for name, leaf in started.items():
        is_head = "head" in name.split("/") and not name.startswith("policy/")
        np.testing.assert_array_equal(leaf, (other if is_head else old)[name])
        assert not is_head or leaf.shape[-1] == 7


def resumed(family, folder):
    """Checks that a second step from the file written after the first gives the same bits."""
    first = stepped(family, "whole").after
    saved = checkpoint.Checkpoints(folder)
    saved.save(1, first, {}, {})
    saved.wait()
    leaves, _ = saved.restore(1)
    saved.close()
    again = checkpoint.unflatten(start(family, whole(family).variables), leaves, "checkpoint 1")
    tiny.assert_same(take_step(family, again).after, take_step(family, first).after)


# -- explanations --------------------------------------------------------------------------------------------------


@functools.cache
def moved(family):
    """Returns the network's variables moved slightly off their start: no value is 0 or equals another by chance."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: np.float32(leaf + 0.1 * np.abs(rng.standard_normal(leaf.shape)) * (leaf.ndim < 2)),
        whole(family).variables,
    )


def explained(family, method):
    return method(whole(family).model, moved(family), inputs_of(family)[0])


def assert_map(values):
    values = np.asarray(values)
    assert values.ndim == 3 and values.shape[0] == BATCH and values.shape[1] * values.shape[2] > 1
    assert values.dtype == np.float32 and np.isfinite(values).all() and values.any()


def occluded(family, folder):
    explanation = explained(family, functools.partial(occlusion.occlusion, size=8, stride=8))
    assert explanation.score.shape == (BATCH, 2, 2)
    assert_map(explanation.score - np.asarray(explanation.logits).max(-1)[:, None, None])


def rolled(family, folder):
    explanation = explained(family, rollout.attention_rollout)
    assert_map(explanation.values)
    assert (explanation.values > 0).all() and (explanation.values.sum((1, 2)) < 1 + 1e-5).all()


def field_of(family, folder):
    model, images = whole(family).model, jnp.asarray(inputs_of(family)[0])
    outline(model, whole(family).variables, images)
    fields = {name: field for name, field in receptive.fields(model, images.shape).items() if field}
    for field in fields.values():
        top, left, bottom, right = field.clipped(0, 0, images.shape[1:])
        assert 0 <= top < bottom <= images.shape[1] and 0 <= left < right <= images.shape[2] and min(field.size) > 0
    assert fields or family in ("ViT",)


# -- files ---------------------------------------------------------------------------------------------------------


def network_of(family):
    entry, model = FAMILIES[family], whole(family).model
    return export.PortableNetwork(entry.name, entry.fields, (1, *model.example()[0].shape[1:]), moved(family))


def card_of(family, format):
    shape = network_of(family).inputs[1:]
    channels = shape[-1]
    return {
        "format": format, "file": formats.FORMATS[format].file, "folded": list(formats.FORMATS[format].folds),
        "labels": [], "architecture": FAMILIES[family].name, "fields": FAMILIES[family].fields,
        "inputs": list(network_of(family).inputs), "license": None, "probabilities": "softmax",
        "preprocessing": {
            "mean": [0.5] * channels, "std": [0.25] * channels, "channels": channels, "shape": list(shape),
            "crop": "resize", "size": shape[0], "eval_crop": 0.875, "exif": "apply",
        },
    }  # fmt: skip


@functools.cache
def pixels_of(family):
    return np.random.default_rng(0).integers(0, 256, (3, *network_of(family).inputs[1:]), np.uint8)


@functools.cache
def logits_of(family):
    network = network_of(family)
    return formats.of_variables(network.create(), network.variables, card_of(family, "stablehlo"))(pixels_of(family))[1]


def assert_near(logits, family):
    np.testing.assert_allclose(logits, logits_of(family), rtol=0, atol=2e-5 * np.abs(logits_of(family)).max())


def folded(family, folder):
    model = whole(family).model
    if is_text(family):  # it normalizes sums
        return np.testing.assert_array_equal(fold(model, moved(family), *inputs_of(family)).pairs, [])
    images = graph.normalized(pixels_of(family), card_of(family, "onnx")["preprocessing"])
    parts = fold(model, moved(family), images)
    assert bool(parts.pairs) == (family not in ("BiT", "ViT"))
    return assert_near(jax.jit(parts.apply(model))(parts.variables, images), family)


def written(family, format, folder):
    """Writes the network and opens it again."""
    if is_text(family):
        run = build_run(config_of(family, folder))
        return export.network(run, run.state)
    network, how, card = network_of(family), formats.FORMATS[format], card_of(family, format)
    if format == "torch":
        description = torch_names.constructor(network.name, network.create())
        card["torch"] = dict(zip(("library", "name", "arguments"), description, strict=True))
    if format == "onnx":
        converted = ONNX.of(family)
        return assert_near(how.open(converted, card)(pixels_of(family))[1], family)
    how.write(network, card, folder / card["file"])
    if format == "stablehlo":
        return assert_near(how.open(folder, card)(pixels_of(family))[1], family)
    model, variables = cards.network(folder, card)  # in these formats the logits are equal to the bit
    assert model == network.create()
    tiny.assert_same(dict(variables), dict(network.variables))
    return None


class Converted:
    """The networks as ONNX, all converted by one process on first use."""

    def __init__(self):
        self._root = None

    def of(self, family):
        """Returns the folder; fails with the error of jax2onnx."""
        if self._root is None:
            self._root = tempfile.TemporaryDirectory()
            folders = {}
            for name in FAMILIES:
                if not is_text(name):
                    folder = Path(self._root.name) / name.replace(" ", "_")
                    folder.mkdir()
                    network = network_of(name)
                    weights.save(folder / "model.safetensors", network.create(), network.variables)
                    (folder / cards.NAME).write_text(json.dumps(card_of(name, "onnx")))
                    folders[name] = folder
            subprocess.run([sys.executable, "-c", CONVERT, *map(str, folders.values())], cwd=tiny.ROOT, check=True)
        folder = Path(self._root.name) / family.replace(" ", "_")
        assert (folder / "model.onnx").exists(), (folder / "error.txt").read_text()
        return folder


CONVERT = """
import pathlib, sys, traceback
from train.export import onnx_side
for folder in map(pathlib.Path, sys.argv[1:]):
    try:
        onnx_side.convert(folder, folder / "model.onnx")
    except Exception:
        (folder / "error.txt").write_text(traceback.format_exc())
"""
ONNX = Converted()


# -- the product ---------------------------------------------------------------------------------------------------

CHECKS = {
    "trained in float32": functools.partial(trained, program="whole"),
    "trained in bfloat16": functools.partial(trained, program="ternary"),
    **{f"norm={spec}": functools.partial(normalized, spec=spec) for spec in NORMS},
    **{f"init={spec}": functools.partial(initialized, spec=spec) for spec in ALL_INITS},
    **{f"data_init={how}": functools.partial(of_data, how=how) for how in ("lsuv", "whiten")},
    **{f"{field}={kind}": functools.partial(low_bits, field=field, kind=kind) for kind in LOW_BIT for field in BOTH},
    "prune weights": pruned, "prune filters": without_filters, "share": shared, "new head": with_new_head,
    "resume": resumed, "fold": folded,
    "grad_cam": lambda family, folder: assert_map(explained(family, cam.grad_cam).values),
    "cam": lambda family, folder: assert_map(explained(family, cam.cam).values), "occlusion": occluded,
    "attention_rollout": rolled, "receptive field": field_of,
    **{f"export {format}": functools.partial(written, format=format) for format in FORMATS},
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "method"),
    [
        pytest.param(family, method, marks=[pytest.mark.full] * in_full(family, method))
        for family in FAMILIES
        for method in METHODS
    ],
)
def test_any_network_with_any_method(family, method, tmp_path):
    if line := refusal(family, method):
        with pytest.raises(UserError, match=line) as error:
            CHECKS[method](family, folder=tmp_path)
        assert "\n" not in str(error.value)
    else:
        CHECKS[method](family, folder=tmp_path)


ALONE = [{"norm": norm} for norm in NORMS] + [{"low_bit": kind} for kind in LOW_BIT]


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fields", ALONE, ids=lambda fields: "=".join(*fields.items()))
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_with_one_norm_or_kind_of_low_bits_in_all_layers(family, fields, dtype):
    if refusal(family, f"norm={fields.get('norm')}"):
        pytest.skip("refused, as the test above shows")
    fields = low_bit(family, fields["low_bit"]) if "low_bit" in fields else fields
    program = (*fields.items(), ("dtype", None if dtype == "float32" else dtype))
    assert_learns(
        take_step(family, start(family, subject(family, program).variables, program=program), program=program)
    )


@pytest.mark.full
@pytest.mark.parametrize("spec", ALL_INITS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_from_one_initialization_of_all_kernels(family, spec):
    model = create(family, init=spec)
    variables = models.initialize(model, jax.random.key(1), model.example())
    state = start(family, jax.tree.map(np.asarray, variables))
    if spec == "dirac":  # a transition that is the identity ignores channels that a DenseNet's layers append, so
        for _ in range(2):  # they get no gradient until a step changes it; an MSDNet has two in a row
            state = take_step(family, state).after
    assert_learns(take_step(family, state))


def test_every_family_and_every_method_is_covered():
    classes = {
        partial.func
        for module in set(models.FAMILIES.values())
        for partial in importlib.import_module(module).VARIANTS.values()
    }
    assert {type(create(family)) for family in FAMILIES} == classes
    assert set(CHECKS) == set(METHODS)


def test_the_page_has_the_table_of_what_is_refused():
    assert combinations.table() in (tiny.ROOT / "docs" / "troubleshooting.md").read_text()
