"""Unusual uses of networks: batches of one and of none, images too small, other derivatives, an absent GPU."""

import re

import jax
import jax.numpy as jnp
import pytest

import models
from models.analysis.__main__ import main as command_line
from models.analysis.cost import analyze
from models.errors import UserError
from models.kernels import native
from models.kernels.lowerings import EmptyMap
from models.kernels.tracing import lowering
from models.layers import conv
from models.layers.init import jit_once
from tests import tiny
from tests.networks import SMALL
from train.run import build_run

TRANSFORMER = {"vocab_size": 11, "width": 16, "heads": 2, "layers": 1, "ff_width": 8, "max_length": 8}


def some_in_full(names, quick):
    """Returns test parameters: the names, with all but the quick ones marked `full`."""
    return [pytest.param(name, marks=[pytest.mark.full] * (name not in quick)) for name in names]


def small(kind, **fields):
    name, own = SMALL[kind]
    return models.create(name, **{**own, **fields})


def images(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


def shapes(model, *inputs):
    with lowering("plain"):
        return jax.eval_shape(model.init, jax.random.key(0), *inputs)


def trained(model, variables, batch):
    """Traces a training call."""
    return jax.eval_shape(
        lambda variables, x: model.apply(
            variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
        ),
        variables,
        batch,
    )


# -- batch norm of one value per channel -----------------------------------------------------------------------------

ONE_VALUE = {
    "dense layers": ("lenet_300_100", {"norm": "batch"}, 28, "hidden1_norm"),
    "dense after convolutions": ("lenet5", {"norm": "batch"}, 28, "hidden1_norm"),
    "the momentum given": ("lenet_300_100", {"norm": "batch:0.6"}, 28, "hidden1_norm"),
    "residual": ("resnet8", {"width": 4}, 4, "stage3/block0/norm1"),
    "preactivated": ("preresnet20", {"width": 4}, 4, "stage3/block0/norm2"),
    "dense": ("densenet40_k12", {"growth": 4}, 4, "stage3/layer0/norm1"),
    "mobile": ("mobilenet_v2", {"width_multiplier": 0.25}, 32, "stage6/block0/depthwise_norm"),
    "convnext": ("convnext_tiny", {"norm": "batch", "width": 4, "stage_sizes": (1, 1)}, 8, "stage2/block0/norm"),
    "swin": ("swin_t", {"norm": "batch", "width": 4, "heads": (1,), "stage_sizes": (1,)}, 4, "stem_norm"),
    "gates": ("convnet_aig38", {"width": 4}, 32, "stage1/block0/gate/norm"),
}


@pytest.mark.parametrize(
    "case", some_in_full(ONE_VALUE, ("dense layers", "dense after convolutions", "residual", "convnext", "swin"))
)
def test_batch_norm_of_one_value_is_refused_by_the_name_of_its_layer(case):
    name, fields, size, layer = ONE_VALUE[case]
    model = models.create(name, **fields)
    channels = 3
    variables = shapes(model, images(1, size, size, channels))  # initialization does not count as training
    with pytest.raises(
        UserError,
        match=f"^norm 'batch' at {layer} erases its input: .* over 1 value; .*batch_size"
        ".*accumulate.*larger images.*sync_norm.*group, layer or frozen_batch",
    ):
        trained(model, variables, images(1, size, size, channels))
    with pytest.raises(UserError, match="over 0 values"):
        trained(model, variables, images(0, size, size, channels))
    trained(model, variables, images(2, size, size, channels))
    jax.eval_shape(model.apply, variables, images(1, size, size, channels))  # with running statistics
    for norm in ("frozen_batch", "layer"):
        other = models.create(name, **{**fields, "norm": norm})
        trained(other, shapes(other, images(1, size, size, channels)), images(1, size, size, channels))


@pytest.mark.parametrize("sync_norm", [False, True])
def test_values_are_counted_over_devices_where_statistics_are_synchronized(sync_norm):
    model = models.create("lenet_300_100", norm="batch", sync_norm=sync_norm)
    variables = shapes(model, images(1, 28, 28, 1))

    def on_devices(x):  # four devices, with one example each
        return jax.vmap(
            lambda x: model.apply(variables_of(x), x, train=True, mutable=["batch_stats"])[0], axis_name="batch"
        )(x)

    def variables_of(x):
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), variables)

    if sync_norm:
        assert jax.eval_shape(on_devices, images(4, 1, 28, 28, 1)).shape == (4, 1, 10)
    else:
        with pytest.raises(UserError, match="hidden1_norm erases its input"):
            jax.eval_shape(on_devices, images(4, 1, 28, 28, 1))


ONE_EACH = {
    "batch_size": {"batch_size": 1},
    "accumulate": {"batch_size": 4, "accumulate": 4},
    "devices": {"batch_size": 4, "devices": 4},
    "lsuv": {"batch_size": 1, "data_init": "lsuv"},
}


def dense_run(**changes):
    config = tiny.config(steps_per_call=1, **changes)
    config.model = type(config.model)({"name": "lenet_300_100", "norm": "batch"})
    return config


@pytest.mark.parametrize("changes", ONE_EACH)
def test_a_run_of_one_value_per_channel_is_refused_when_it_is_set_up(changes):
    with pytest.raises(UserError, match="hidden1_norm erases its input"):
        build_run(dense_run(**ONE_EACH[changes]))


def test_the_command_reports_it_in_one_line_and_writes_nothing(tmp_path):
    done = tiny.run(
        "--config=configs/digits.py",
        f"--workdir={tmp_path}/run",
        "--config.batch_size=1",
        "--config.data.image_size=4",
        "--config.data.crop=resize",
        "--config.steps_per_call=1",
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch("error: norm 'batch' at stage3/block0/norm1 erases its input[^\n]*\n", done.stderr), done.stderr
    assert not (tmp_path / "run").exists()


def test_costs_of_one_example_are_still_computed():
    cost = analyze(models.create("lenet_300_100", norm="batch"), (1, 28, 28, 1))
    assert sum(layer.params for layer in cost.layers) == 266_610 + 2 * 400


# -- empty maps and empty batches ------------------------------------------------------------------------------------

SMALLEST = {
    "convnext_tiny": 32, "alexnet": 63, "alexnet_original": 67, "vgg11_bn": 32, "vgg16_cifar": 32, "airbench94": 9,
    "densenet121": 29, "densenet40_k12": 4, "lenet5": 16, "swin_t": 4, "blockdrop101": 2,
    "convnext_ladder14_separate_downsampling": 32, "mobilenet_v2": 1, "resnet20": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "name", some_in_full(SMALLEST, ("convnext_tiny", "alexnet", "vgg16_cifar", "airbench94", "lenet5", "resnet20"))
)
def test_the_smallest_image_of_well_known_networks(name):
    size = SMALLEST[name]
    with pytest.raises(
        UserError,
        match=rf"^images of {size - 1} x 300 are too small: this \w+ takes images of "
        f"{size} x {size} or larger",
    ):
        shapes(models.create(name), images(1, size - 1, 300, 3))


@pytest.mark.parametrize(
    "kind",
    some_in_full(
        SMALL,
        ("basic", "blockdrop", "dense_imagenet", "convnext", "ladder_end", "swin", "lenet", "vgg", "airbench", "vit"),
    ),
)
def test_every_family_names_the_smallest_image_that_it_accepts(kind):
    model = small(kind)
    with pytest.raises(UserError) as caught:
        shapes(model, images(1, 0, 0, 3))
    text = str(caught.value)
    if "image_size=" in text:  # the number of tokens depends on it
        assert text.startswith("images of 0 x 0: image_size=32 fixes the positions")
        return
    least = int(re.fullmatch(r"images of 0 x 0 are too small: this \w+ takes images of (\d+) x \1 or larger", text)[1])
    shapes(model, images(1, least, least, 3))
    shapes(model, images(1, least, least + 9, 3))
    for height, width in ((least - 1, least - 1), (least - 1, least + 9), (least + 9, least - 1), (least, 0)):
        with pytest.raises(UserError, match=f"images of {height} x {width} are too small: .* {least} x {least} or"):
            shapes(model, images(1, height, width, 3))


def test_a_network_within_another_names_the_size_of_its_empty_map():
    import flax.linen as nn

    with pytest.raises(EmptyMap, match="they leave a map of 1 x 0"):
        shapes(nn.Sequential([small("convnext")]), images(1, 4, 3, 3))


def test_a_trained_network_refuses_small_images_before_anything_is_computed():
    model = small("convnext")
    variables = models.initialize(model, jax.random.key(0), (1, 32, 32, 3))
    with pytest.raises(UserError, match="images of 4 x 4 are too small"):
        model.apply(variables, jnp.zeros((2, 4, 4, 3)))  # used to die of SIGFPE
    with pytest.raises(UserError, match="images of 4 x 4 are too small"):
        jax.jit(jax.grad(lambda v, x: model.apply(v, x).sum()))(variables, jnp.zeros((2, 4, 4, 3)))


def test_commands_report_it_in_one_line(capsys):
    assert command_line(["complexity", "convnext_tiny", "--resolution=8"]) == 2
    assert capsys.readouterr().err.endswith("takes images of 32 x 32 or larger\n")


ONCE = ((1, 1), ((1, 1), (1, 1)), (1, 1))  # strides, padding, dilation
MISFITS = {
    "no places of dy": ("conv_kernel_gradient", (2, 8, 8, 16), (2, 8, 0, 32), (3, 3, 16, 32), 1, ONCE),
    "no rows of dy": ("conv_kernel_gradient", (2, 8, 8, 16), (2, 0, 8, 32), (3, 3, 16, 32), 1, ONCE),
    "other images": ("conv_kernel_gradient", (2, 8, 8, 16), (3, 8, 8, 32), (3, 3, 16, 32), 1, ONCE),
    "no places of x": ("conv_forward", (2, 0, 0, 16), (3, 3, 16, 32), (2, 8, 8, 32), 1, ONCE),
    "no places to go back from": ("conv_input_gradient", (2, 0, 8, 32), (3, 3, 32, 16), (2, 8, 8, 16), 1, ONCE),
    "more images out": ("conv_forward", (2, 8, 8, 16), (3, 3, 16, 32), (3, 8, 8, 32), 1, ONCE),
    "half a vector": ("conv_forward", (2, 8, 8, 16), (3, 3, 16, 18), (2, 8, 8, 18), 1, ONCE),
    "other channels": ("conv_forward", (2, 8, 8, 16), (3, 3, 32, 32), (2, 8, 8, 32), 1, ONCE),
    "no groups": ("conv_forward", (2, 8, 8, 16), (3, 3, 16, 32), (2, 8, 8, 32), 0, ONCE),
    "groups of two": ("conv_forward", (2, 8, 8, 32), (3, 3, 2, 32), (2, 8, 8, 32), 16, ONCE),
    "no stride": ("conv_forward", (2, 8, 8, 16), (3, 3, 16, 32), (2, 8, 8, 32), 1, ((0, 1), *ONCE[1:])),
    "no dilation": ("conv_forward", (2, 8, 8, 16), (3, 3, 16, 32), (2, 8, 8, 32), 1, (*ONCE[:2], (1, 0))),
    "padding that cuts": (
        "conv_kernel_gradient", (2, 8, 8, 16), (2, 8, 8, 32), (3, 3, 16, 32), 1, ((1, 1), ((1, 1), (-1, 1)), (1, 1)),
    ),
    "three axes": ("conv_forward", (8, 8, 16), (3, 3, 16, 32), (8, 8, 32), 1, ONCE),
    "bits of other channels": ("conv_signs", (2, 8, 8, 40), (3, 3, 1, 32), (2, 8, 8, 32), 1, ONCE),
    "bits of fewer features": ("conv_signs", (2, 8, 8, 16), (3, 3, 1, 32), (2, 8, 8, 40), 1, ONCE),
    "signs of nothing": ("conv_signs", (2, 0, 8, 16), (3, 3, 1, 32), (2, 8, 8, 32), 1, ONCE),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_native_code_checks_its_sizes(case):
    if not native.available():
        pytest.skip("no C++ compiler here")
    target, a, b, shape, groups, how = MISFITS[case]
    with pytest.raises(jax.errors.JaxRuntimeError, match="sizes that do not fit"):
        native.call(
            target, jnp.ones(a), jnp.ones(b, "uint32" if target == "conv_signs" else "float32"), shape, groups, *how
        ).block_until_ready()


@pytest.mark.parametrize("kind", SMALL)
def test_an_empty_batch_gives_no_logits(kind):
    model = small(kind)
    variables = shapes(model, images(1, 32, 32, 3))
    assert jax.eval_shape(model.apply, variables, images(0, 32, 32, 3)).shape == (0, model.num_classes)


@pytest.mark.parametrize("kind", some_in_full(SMALL, ("vit", "lenet")))
def test_an_empty_batch_is_computed(kind):
    model = small(kind)
    variables = models.initialize(model, jax.random.key(0), (1, 32, 32, 3))
    none = jnp.zeros((0, 32, 32, 3))
    gradient = jit_once(jax.grad(lambda v: model.apply(v, none).sum()))(variables)
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient))


def test_an_empty_batch_of_sentences():
    model = models.create("transformer_base", **TRANSFORMER)
    variables = shapes(model, *model.example())
    assert jax.eval_shape(model.apply, variables, *[images(0, 8, dtype="int32")] * 2).shape == (0, 8, 11)


@pytest.mark.parametrize("how", ["auto", "packed"])
def test_binary_layers_of_an_empty_batch(how):
    model = models.create("resnet8", width=4, conv="xnor")
    variables = shapes(model, images(1, 8, 8, 3))
    with lowering(how):
        assert jax.eval_shape(model.apply, variables, images(0, 8, 8, 3)).shape == (0, 10)


@pytest.mark.parametrize("groups", [1, 16])
def test_gradients_of_an_empty_batch_are_zero(groups):
    """Checks gradients for an empty batch, also in native code, which a CPU uses for these channels."""
    x, kernel = jnp.zeros((0, 8, 8, 16)), jnp.ones((3, 3, 16 // groups, 16))
    gradient = jax.grad(lambda k: conv.conv2d(x, k, (1, 1), ((1, 1), (1, 1)), groups=groups).sum())(kernel)
    assert gradient.shape == kernel.shape and not gradient.any()
    gradient = jax.grad(lambda k: conv.product(jnp.zeros((0, 5, 16)), k).sum())(jnp.ones((16, 16)))
    assert not gradient.any()


def test_an_exported_program_refuses_an_empty_batch_with_a_clear_error():
    model = small("vit", depth=1)
    variables = models.initialize(model, jax.random.key(0), (1, 32, 32, 3))
    with lowering("plain"):
        program = jax.export.export(jax.jit(lambda x: model.apply(variables, x)))(
            images(*jax.export.symbolic_shape("N, 32, 32, 3"))
        )
    assert program.call(jnp.zeros((2, 32, 32, 3))).shape == (2, 10)
    with pytest.raises(ValueError, match="Expected value >= 1 for dimension variable 'N'"):
        program.call(jnp.zeros((0, 32, 32, 3)))
