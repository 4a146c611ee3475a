"""What strangers do to networks: batches of one and of none, images too small, other derivatives, an absent GPU."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

import models
from models.analysis.__main__ import main as command_line
from models.analysis.cost import analyze
from models.errors import UserError
from models.kernels import native
from models.kernels.lowerings import EmptyMap
from models.kernels.tracing import lowering
from models.layers import attention, conv
from models.layers.init import jit_once
from tests import tiny
from tests.networks import SMALL
from train import loop, step
from train.run import build_run

TRANSFORMER = {"vocab_size": 11, "width": 16, "heads": 2, "layers": 1, "ff_width": 8, "max_length": 8}


def some_in_full(names, quick):
    """Parameters of a test: the names, those that are not quick marked."""
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
    variables = shapes(model, images(1, size, size, channels))  # initialization is no training
    with pytest.raises(
        UserError,
        match=f"^norm 'batch' at {layer} leaves nothing .* over 1 value there; .*batch_size"
        ".*accumulate.*larger images.*sync_norm.*group, layer or frozen_batch",
    ):
        trained(model, variables, images(1, size, size, channels))
    with pytest.raises(UserError, match="over 0 values"):
        trained(model, variables, images(0, size, size, channels))
    trained(model, variables, images(2, size, size, channels))
    jax.eval_shape(model.apply, variables, images(1, size, size, channels))  # by running statistics
    for norm in ("frozen_batch", "layer"):
        other = models.create(name, **{**fields, "norm": norm})
        trained(other, shapes(other, images(1, size, size, channels)), images(1, size, size, channels))


@pytest.mark.parametrize("sync_norm", [False, True])
def test_values_are_counted_over_devices_where_statistics_are_synchronized(sync_norm):
    model = models.create("lenet_300_100", norm="batch", sync_norm=sync_norm)
    variables = shapes(model, images(1, 28, 28, 1))

    def on_devices(x):  # 4 of them, an example each
        return jax.vmap(
            lambda x: model.apply(variables_of(x), x, train=True, mutable=["batch_stats"])[0], axis_name="batch"
        )(x)

    def variables_of(x):
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), variables)

    if sync_norm:
        assert jax.eval_shape(on_devices, images(4, 1, 28, 28, 1)).shape == (4, 1, 10)
    else:
        with pytest.raises(UserError, match="hidden1_norm leaves nothing"):
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
    with pytest.raises(UserError, match="hidden1_norm leaves nothing"):
        build_run(dense_run(**ONE_EACH[changes]))


def test_the_command_says_so_in_one_line_and_writes_nothing(tmp_path):
    done = tiny.run(
        "--config=configs/digits.py",
        f"--workdir={tmp_path}/run",
        "--config.batch_size=1",
        "--config.data.image_size=4",
        "--config.data.crop=resize",
        "--config.steps_per_call=1",
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch("error: norm 'batch' at stage3/block0/norm1 leaves nothing[^\n]*\n", done.stderr), done.stderr
    assert not (tmp_path / "run").exists()


def test_costs_of_one_example_are_known_all_the_same():
    cost = analyze(models.create("lenet_300_100", norm="batch"), (1, 28, 28, 1))
    assert sum(layer.params for layer in cost.layers) == 266_610 + 2 * 400


# -- averages of weights ---------------------------------------------------------------------------------------------


def averaged(decay, warmup, steps=30):
    """The average of 1, 2, 3, ... after each step, from 0 on."""
    import optax

    from train import state as states

    tx = optax.sgd(1.0)
    state = states.create({"params": {"w": jnp.zeros(())}, "counted": {"n": jnp.zeros((), jnp.int32)}}, {}, tx, 0, True)
    update = jax.jit(
        functools.partial(
            step.update, optimizer=tx, learning_rate=lambda _: jnp.float32(1), ema_decay=decay, ema_warmup=warmup
        )
    )
    found = []
    for t in range(1, steps + 1):
        state, _ = update(state, {"w": jnp.float32(-1)}, {}, {"counted": {"n": jnp.int32(t)}}, {})
        assert int(state.ema["model_state"]["counted"]["n"]) == t
        found.append(float(state.ema["params"]["w"]))
    return found


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
@pytest.mark.parametrize("warmup", [False, True])
def test_the_decay_of_averages_warms_up(decay, warmup):
    expected, average = [], 0.0
    for t in range(1, 31):
        now = min(decay, (1 + t) / (10 + t)) if warmup else decay
        average = now * average + (1 - now) * t
        expected.append(average)
    np.testing.assert_allclose(averaged(decay, warmup), expected, rtol=1e-5)
    if decay == 0.9999:  # after 30 steps: near the last weights, or where it began
        assert (expected[-1] > 20) == warmup and (expected[-1] < 0.1) != warmup


@pytest.mark.parametrize("warmup", [None, False])
def test_a_short_run_evaluates_what_it_learned(tmp_path, warmup):
    config = tiny.config(duration="100 steps", ema_decay=0.9999, evaluate_every="0 steps", steps_per_call=10)
    if warmup is not None:
        config.ema_warmup = warmup
    accuracy = loop.train(config, tmp_path)["accuracy"]
    assert accuracy > 0.8 if warmup is None else accuracy < 0.5


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
def test_every_family_says_the_smallest_image_that_it_takes(kind):
    model = small(kind)
    with pytest.raises(UserError) as caught:
        shapes(model, images(1, 0, 0, 3))
    text = str(caught.value)
    if "image_size=" in text:  # tokens are as many as this says
        assert text.startswith("images of 0 x 0: image_size=32 fixes the positions")
        return
    least = int(re.fullmatch(r"images of 0 x 0 are too small: this \w+ takes images of (\d+) x \1 or larger", text)[1])
    shapes(model, images(1, least, least, 3))
    shapes(model, images(1, least, least + 9, 3))
    for height, width in ((least - 1, least - 1), (least - 1, least + 9), (least + 9, least - 1), (least, 0)):
        with pytest.raises(UserError, match=f"images of {height} x {width} are too small: .* {least} x {least} or"):
            shapes(model, images(1, height, width, 3))


def test_a_network_that_is_a_part_says_what_is_left():
    import flax.linen as nn

    with pytest.raises(EmptyMap, match="a map of 1 x 0 is left"):
        shapes(nn.Sequential([small("convnext")]), images(1, 4, 3, 3))


def test_a_trained_network_refuses_small_images_before_anything_is_computed():
    model = small("convnext")
    variables = models.initialize(model, jax.random.key(0), (1, 32, 32, 3))
    with pytest.raises(UserError, match="images of 4 x 4 are too small"):
        model.apply(variables, jnp.zeros((2, 4, 4, 3)))  # died of SIGFPE
    with pytest.raises(UserError, match="images of 4 x 4 are too small"):
        jax.jit(jax.grad(lambda v, x: model.apply(v, x).sum()))(variables, jnp.zeros((2, 4, 4, 3)))


def test_commands_say_it_in_one_line(capsys):
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
    "half a vector": ("conv_forward", (2, 8, 8, 16), (3, 3, 16, 24), (2, 8, 8, 24), 1, ONCE),
    "other channels": ("conv_forward", (2, 8, 8, 16), (3, 3, 32, 32), (2, 8, 8, 32), 1, ONCE),
    "no groups": ("conv_forward", (2, 8, 8, 16), (3, 3, 16, 32), (2, 8, 8, 32), 0, ONCE),
    "groups of two": ("conv_forward", (2, 8, 8, 32), (3, 3, 2, 32), (2, 8, 8, 32), 16, ONCE),
    "no stride": ("conv_forward", (2, 8, 8, 16), (3, 3, 16, 32), (2, 8, 8, 32), 1, ((0, 1), *ONCE[1:])),
    "no dilation": ("conv_forward", (2, 8, 8, 16), (3, 3, 16, 32), (2, 8, 8, 32), 1, (*ONCE[:2], (1, 0))),
    "padding that cuts": (
        "conv_kernel_gradient",
        (2, 8, 8, 16),
        (2, 8, 8, 32),
        (3, 3, 16, 32),
        1,
        ((1, 1), ((1, 1), (-1, 1)), (1, 1)),
    ),
    "three axes": ("conv_forward", (8, 8, 16), (3, 3, 16, 32), (8, 8, 32), 1, ONCE),
    "bits of other channels": ("conv_signs", (2, 8, 8, 40), (3, 3, 1, 32), (2, 8, 8, 32), 1, ONCE),
    "bits of fewer features": ("conv_signs", (2, 8, 8, 16), (3, 3, 1, 32), (2, 8, 8, 40), 1, ONCE),
    "signs of nothing": ("conv_signs", (2, 0, 8, 16), (3, 3, 1, 32), (2, 8, 8, 32), 1, ONCE),
}


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
def test_a_batch_of_none_gives_no_logits(kind):
    model = small(kind)
    variables = shapes(model, images(1, 32, 32, 3))
    assert jax.eval_shape(model.apply, variables, images(0, 32, 32, 3)).shape == (0, model.num_classes)


@pytest.mark.parametrize("kind", some_in_full(SMALL, ("vit", "lenet")))
def test_a_batch_of_none_is_computed(kind):
    model = small(kind)
    variables = models.initialize(model, jax.random.key(0), (1, 32, 32, 3))
    none = jnp.zeros((0, 32, 32, 3))
    gradient = jit_once(jax.grad(lambda v: model.apply(v, none).sum()))(variables)
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient))


def test_sentences_of_a_batch_of_none():
    model = models.create("transformer_base", **TRANSFORMER)
    variables = shapes(model, *model.example())
    assert jax.eval_shape(model.apply, variables, *[images(0, 8, dtype="int32")] * 2).shape == (0, 8, 11)


@pytest.mark.parametrize("how", ["auto", "packed"])
def test_binary_layers_of_a_batch_of_none(how):
    model = models.create("resnet8", width=4, conv="xnor")
    variables = shapes(model, images(1, 8, 8, 3))
    with lowering(how):
        assert jax.eval_shape(model.apply, variables, images(0, 8, 8, 3)).shape == (0, 10)


@pytest.mark.parametrize("groups", [1, 16])
def test_gradients_of_no_images_are_zero(groups):
    """In native code as well, which is what a CPU gets for these channels."""
    x, kernel = jnp.zeros((0, 8, 8, 16)), jnp.ones((3, 3, 16 // groups, 16))
    gradient = jax.grad(lambda k: conv.conv2d(x, k, (1, 1), ((1, 1), (1, 1)), groups=groups).sum())(kernel)
    assert gradient.shape == kernel.shape and not gradient.any()
    gradient = jax.grad(lambda k: conv.product(jnp.zeros((0, 5, 16)), k).sum())(jnp.ones((16, 16)))
    assert not gradient.any()


def test_an_exported_program_refuses_no_images_in_words():
    model = small("vit", depth=1)
    variables = models.initialize(model, jax.random.key(0), (1, 32, 32, 3))
    with lowering("plain"):
        program = jax.export.export(jax.jit(lambda x: model.apply(variables, x)))(
            images(*jax.export.symbolic_shape("N, 32, 32, 3"))
        )
    assert program.call(jnp.zeros((2, 32, 32, 3))).shape == (2, 10)
    with pytest.raises(ValueError, match="Expected value >= 1 for dimension variable 'N'"):
        program.call(jnp.zeros((0, 32, 32, 3)))


# -- attention on a GPU that is not here -----------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)


def for_cuda(gradient, *inputs):
    """How many calls of cuDNN's attention a program for NVIDIA's GPUs has."""
    text = jax.jit(gradient).trace(*inputs).lower(lowering_platforms=("cuda",)).as_text()
    return len(re.findall(r"@__cudnn\$fmha", text))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("lengths", [(197, 197), (198, 198), (197, 50), (50, 197), (49, 49), (1, 1)])
@pytest.mark.parametrize("kind", ["none", "mask", "bias", "both"])
def test_gradients_of_attention_are_compiled_for_cuda(gpu, dtype, lengths, kind):
    q, k = (images(2, length, 2, 64, dtype=dtype) for length in lengths)
    given = {"mask": jnp.ones((1, 1, *lengths), bool)} if kind in ("mask", "both") else {}
    given |= {"bias": jnp.ones((1, 2, *lengths))} if kind in ("bias", "both") else {}

    def loss(q, k, v):
        return attention.attend(q, k, v, **given).astype(jnp.float32).sum()

    flash = dtype != "float32" and (kind == "none" or max(length % 2 for length in lengths) == 0)
    assert for_cuda(jax.grad(loss, (0, 1, 2)), q, k, k) == (2 if flash else 0)


FAMILIES = {
    "vit, 17 tokens": ("vit", {}, True),
    "vit, 16 tokens": ("vit", {"pool": "mean"}, True),
    "vit, 5 tokens": ("vit", {"patch_size": 16}, True),
    "vit, remat": ("vit", {"remat": True}, True),
    "vit_c, 65 tokens": ("vit_c", {}, True),
    "swin, 4x4": ("swin", {}, True),
    "swin, 3x3": ("swin", {"window": 3}, False),
}


@pytest.mark.parametrize("dtype", some_in_full(["bfloat16", "float16", "float32"], ("bfloat16",)))
@pytest.mark.parametrize("case", FAMILIES)
def test_networks_with_attention_are_differentiated_for_cuda(gpu, case, dtype):
    kind, fields, flash = FAMILIES[case]
    model = small(kind, dtype=dtype, **fields)
    variables = shapes(model, images(1, 32, 32, 3))
    calls = for_cuda(jax.grad(lambda v, x: model.apply(v, x).sum()), variables, images(2, 32, 32, 3))
    assert (calls > 0) == (flash and dtype != "float32")


@pytest.mark.parametrize("dtype", some_in_full(["bfloat16", "float16", "float32"], ("bfloat16",)))
@pytest.mark.parametrize("lengths", [(8, 8), (7, 7), (7, 8), (6, 5)])
def test_the_transformer_is_differentiated_for_cuda(gpu, dtype, lengths):
    model = models.create("transformer_base", dtype=dtype, **TRANSFORMER)
    variables = shapes(model, *model.example())
    inputs = [images(2, length, dtype="int32") for length in lengths]
    calls = for_cuda(jax.grad(lambda v, *x: model.apply(v, *x).sum()), variables, *inputs)
    assert (calls > 0) == (dtype != "float32" and any(length % 2 == 0 for length in lengths))


@pytest.mark.parametrize("lengths", [(5, 5), (5, 8), (4, 6)])
def test_a_token_that_nothing_attends_to_changes_nothing(lengths):
    q, k, v = (
        jax.random.normal(key, (2, length, 2, 8))
        for key, length in zip(jax.random.split(jax.random.key(0), 3), (*lengths, lengths[1]), strict=True)
    )

    def both(attend):
        y, pull = jax.vjp(attend, q, k, v)
        return y, pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

    even = both(lambda q, k, v: attention._even(q, k, v, None, None, implementation="xla"))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), even, both(jax.nn.dot_product_attention))


# -- forward mode ----------------------------------------------------------------------------------------------------

CURE = r"within `with models.lowering\('forward_mode'\):`"


def training_loss(kind):
    """A function of images, through a training call, and images."""
    model = small(kind)
    x = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    variables = models.initialize(model, jax.random.key(0), x.shape)
    weights = jnp.cos(jnp.arange(2 * model.num_classes)).reshape(2, -1)

    def loss(x):
        logits, _ = model.apply(variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})
        return (logits * weights).sum()

    return loss, x


@pytest.mark.parametrize("kind", some_in_full(SMALL, ("basic", "gated", "dense", "convnext", "swin", "lenet", "vit_c")))
def test_forward_mode_names_its_cure(kind):
    """Every family: refused in one line as it is, compiled within the cure."""
    model = small(kind)
    variables = shapes(model, images(1, 32, 32, 3))

    def derivative(variables, x):
        return jax.jvp(
            lambda x: model.apply(
                variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
            ),
            (x,),
            (x,),
        )[1]

    with pytest.raises(UserError, match=CURE):
        jax.jit(derivative).lower(variables, images(2, 32, 32, 3))
    with models.lowering("forward_mode"):
        jax.jit(derivative).lower(variables, images(2, 32, 32, 3))


@pytest.mark.parametrize("kind", some_in_full(SMALL, ("basic", "alexnet", "vit")))
def test_forward_mode_agrees_with_reverse_mode_within_the_cure(kind):
    loss, x = training_loss(kind)
    direction = jax.random.normal(jax.random.key(2), x.shape)
    reverse = jnp.vdot(jit_once(jax.grad(loss))(x), direction)
    with models.lowering("forward_mode"):
        value, forward = jit_once(lambda x, d: jax.jvp(loss, (x,), (d,)))(x, direction)
    np.testing.assert_allclose(forward, reverse, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(value, jit_once(loss)(x), rtol=1e-4, atol=1e-4)


def test_forward_mode_of_the_transformer():
    model = models.create("transformer_base", **{**TRANSFORMER, "dropout": 0.0})
    tokens = jnp.arange(12).reshape(2, 6) % 11
    params = models.initialize(model, jax.random.key(0), model.example())["params"]
    loss = jax.jit(lambda params: jnp.cos(model.apply({"params": params}, tokens, tokens)).sum())
    with pytest.raises(UserError, match=CURE):
        jax.jvp(loss, (params,), (params,))
    gradient = jax.grad(loss)(params)
    with models.lowering("forward_mode"):
        forward = jax.jvp(loss, (params,), (params,))[1]  # jitted before
    reverse = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, params)))
    np.testing.assert_allclose(forward, reverse, rtol=1e-3)


DERIVATIVES = {
    "jvp": lambda f, x: jax.jvp(f, (x,), (x,)),
    "linearize": lambda f, x: jax.linearize(f, x)[1](x),
    "jacfwd": lambda f, x: jax.jacfwd(f)(x),
    "hessian": lambda f, x: jax.hessian(f)(x),
    "jvp of jit": lambda f, x: jax.jvp(jax.jit(f), (x,), (x,)),
    "jit of jvp": lambda f, x: jax.jit(lambda x: jax.jvp(f, (x,), (x,)))(x),
    "vmap of jvp": lambda f, x: jax.vmap(lambda x: jax.jvp(f, (x,), (x,)))(x[None]),
    "hessian-vector product": lambda f, x: jax.jvp(jax.grad(f), (x,), (x,)),
    "grad of grad": lambda f, x: jax.grad(lambda x: jax.grad(f)(x).sum())(x),
    "jvp of remat": lambda f, x: jax.jvp(jax.checkpoint(f), (x,), (x,)),
    "jvp of scan": lambda f, x: jax.jvp(
        lambda x: jax.lax.scan(lambda total, _: (total + f(x), None), 0.0, None, 2)[0], (x,), (x,)
    ),
}
LAYERS = {
    "conv": lambda x: jnp.sin(conv.Conv(16, 3).apply({"params": {"kernel": jnp.ones((3, 3, 16, 16)) / 50}}, x)).sum(),
    "product": lambda x: jnp.sin(conv.product(x, jnp.ones((16, 16)) / 9)).sum(),
    "norm": lambda x: jnp.sin(
        models.layers.norm.GroupNorm(groups=4).apply({"params": {"scale": jnp.ones(16), "bias": jnp.ones(16)}}, x)
    ).sum(),
    "attention": lambda x: jnp.sin(attention.attend(*[x[:, :, 0, None]] * 3)).sum(),
}


FIRST_ORDER = ("jvp", "linearize", "jacfwd", "jvp of jit", "jit of jvp", "vmap of jvp", "jvp of remat", "jvp of scan")


@pytest.mark.parametrize("way", FIRST_ORDER)
@pytest.mark.parametrize("layer", LAYERS)
def test_forward_mode_of_a_layer_is_refused_in_every_way(layer, way):
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 16))
    with pytest.raises(UserError, match=CURE):
        DERIVATIVES[way](LAYERS[layer], x)


@pytest.mark.parametrize("way", [way for way in DERIVATIVES if way not in FIRST_ORDER])
@pytest.mark.parametrize("layer", LAYERS)
def test_second_order_is_right_or_refused(layer, way):
    x = jax.random.normal(jax.random.key(0), (2, 2, 2, 16))
    with models.lowering("forward_mode"):
        right = DERIVATIVES[way](LAYERS[layer], x)
    try:
        found = DERIVATIVES[way](LAYERS[layer], x)
    except UserError as error:
        assert re.search(CURE, str(error))
    else:
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), found, right)


@pytest.mark.parametrize("layer", LAYERS)
def test_second_derivatives_within_the_cure(layer):
    """By differences of the gradient that reverse mode has outside of it."""
    x, d = jax.random.normal(jax.random.key(0), (2, 2, 2, 2, 16))
    step_size = 1e-2
    gradient = jax.grad(LAYERS[layer])
    differences = (gradient(x + step_size * d) - gradient(x - step_size * d)) / (2 * step_size)
    with models.lowering("forward_mode"):
        product = jax.jvp(jax.grad(LAYERS[layer]), (x,), (d,))[1]
        hessian = jax.hessian(LAYERS[layer])(x)
    np.testing.assert_allclose(product, differences, rtol=2e-2, atol=5e-3)
    np.testing.assert_allclose(jnp.einsum("abcdefgh,efgh->abcd", hessian, d), product, rtol=1e-3, atol=1e-3)


def test_reverse_mode_leaves_nothing_of_the_check_in_a_program():
    model = small("basic")
    variables = shapes(model, images(1, 8, 8, 3))
    text = jax.jit(jax.grad(lambda v, x: model.apply(v, x).sum())).lower(variables, images(2, 8, 8, 3)).as_text()
    assert "reverse_only" not in text
    assert "reverse_only" in str(jax.make_jaxpr(model.apply)(variables, images(2, 8, 8, 3)))
