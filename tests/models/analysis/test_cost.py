"""Tests of models/analysis/cost.py and jaxpr.py, against published costs and programs small enough to count by hand."""

import csv
import functools
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

import models
from models.analysis import chart, textbook
from models.analysis.__main__ import main as command_line
from models.analysis.cost import analyze
from models.analysis.jaxpr import View, Walk
from models.errors import UserError
from models.layers.conv import Conv, Dense
from models.layers.endpoint import Endpoint
from tests.networks import PARAMETERS
from tests.tiers import keep

# architectures.csv: convolutions and matrix products at 224 x 224, in 1e9.
MULT_ADDS = {
    "resnet18": 1.814, "resnet34": 3.664, "resnet50": 4.089, "resnet101": 7.801, "resnet152": 11.514,
    "wide_resnet50_2": 11.398, "resnext50_32x4d": 4.230, "resnext101_32x8d": 16.414, "densenet121": 2.834,
    "densenet161": 7.728, "densenet201": 4.291, "convnext_tiny": 4.456, "convnext_base": 15.355, "swin_t": 4.491,
    "swin_b": 15.431, "alexnet": 0.714, "vgg11": 7.609, "vgg16": 15.470, "vgg19": 19.632, "vgg16_bn": 15.470,
    "mobilenet_v1": 0.569, "mobilenet_v1_conv": 4.867, "mobilenet_v2": 0.301, "vit_base_patch16": 17.564,
    "vit_large_patch16": 61.555,
}  # fmt: skip
# Araujo, Norris & Sim 2019, table of the authors' library for resnets with the stride in the first 1x1; the others by
# the same recurrence. One value after each stage, the last one for the whole network.
FIELDS = {
    ("resnet50", "1x1"): (483, (35, 99, 291, 483)),
    ("resnet101", "1x1"): (1027, None),
    ("resnet152", "1x1"): (1507, None),
    ("resnet50", "3x3"): (427, None),
    ("resnet101", "3x3"): (971, None),
    ("resnet152", "3x3"): (1451, None),
    ("resnet18", "3x3"): (435, (43, 99, 211, 435)),
    ("resnet34", "3x3"): (899, None),
}
# The same table by endpoint, the last value for the whole network; mobilenet_v2 and densenet121 by the recurrence.
FIELDS_AT = {
    "alexnet_original": {"conv1": 11, "conv2": 51, "conv3": 99, "conv4": 131, "conv5": 163, "pool5": 195},
    "vgg16": {"stage5": 212},
    "mobilenet_v1": {"stage5": 315},
    "mobilenet_v1_conv": {"stage5": 315},
    "mobilenet_v2": {"stage7": 491},
    "densenet121": {"stage1": 59, "stage2": 255, "stage3": 1031, "stage4": 2071},
}


@functools.cache
def at_224(name, **fields):
    return analyze(models.create(name, **fields), (1, 224, 224, 3))


@pytest.mark.parametrize(
    "name",
    keep(
        ("alexnet", "vgg16", "resnet18", "resnet50", "mobilenet_v1", "mobilenet_v2", "convnext_tiny", "swin_t"),
        MULT_ADDS,
    ),
)
def test_mult_adds_of_the_reference(name):
    cost = at_224(name)
    assert cost.mult_adds / 1e9 == pytest.approx(MULT_ADDS[name], abs=0.0006)
    assert cost.params == PARAMETERS[name]


@pytest.mark.parametrize("name,stride_in", keep((("resnet18", "3x3"), ("resnet50", "1x1")), FIELDS))
def test_receptive_fields_of_araujo(name, stride_in):
    whole, stages = FIELDS[name, stride_in]
    cost = at_224(name, stride_in=stride_in)
    assert cost.receptive_field == (whole, whole) and cost.stride == (32, 32)
    assert [cost.endpoints[f"stage{i}"].stride for i in (1, 2, 3, 4)] == [(s, s) for s in (4, 8, 16, 32)]
    if stages:
        assert [cost.endpoints[f"stage{i}"].receptive_field[0] for i in (1, 2, 3, 4)] == list(stages)
    assert cost.endpoints["pre_logits"].receptive_field is None


@pytest.mark.parametrize("name", FIELDS_AT)
def test_receptive_fields_of_araujo_by_endpoint(name):
    cost, fields = at_224(name), FIELDS_AT[name]
    assert {endpoint: cost.endpoints[endpoint].receptive_field for endpoint in fields} == {
        endpoint: (field, field) for endpoint, field in fields.items()
    }
    assert cost.receptive_field == (max(fields.values()),) * 2 and cost.stride == (32, 32)
    assert cost.endpoints["pre_logits"].receptive_field is None


@pytest.mark.parametrize(
    "fields",
    [
        {"norm": "group"},
        {"norm": "layer"},
        {"norm": "channel"},
        {"norm": "instance"},
        {"remat": True},
        {"sync_norm": True, "dropout": 0.1, "stochastic_depth": 0.1},
    ],
)
def test_numbers_do_not_depend_on_how_it_is_computed(fields):
    base, other = (analyze(models.create("resnet8", **f), (1, 32, 32, 3)) for f in ({}, fields))
    rows = {row.path: row for row in other.layers}
    for row in base.layers:
        if row.type in ("Conv", "Dense"):
            assert (row.mult_adds, row.params, row.output_shape, row.receptive_field) == (
                rows[row.path].mult_adds,
                rows[row.path].params,
                rows[row.path].output_shape,
                rows[row.path].receptive_field,
            )
    assert (other.params, other.mult_adds, other.receptive_field) == (base.params, base.mult_adds, base.receptive_field)


class Known(nn.Module):
    """A network small enough to count by hand."""

    @nn.compact
    def __call__(self, x, train=False):
        x = Conv(4, 3, name="a")(x)  # [1, 8, 6, 2] -> [1, 8, 6, 4]: 8*6*4 * 9*2
        x = Endpoint("a")(nn.relu(x))
        x = Conv(8, (5, 1), strides=2, groups=2, use_bias=True, name="b")(x)  # -> [1, 4, 3, 8]: 4*3*8 * 5*2
        return Dense(3, name="c")(jnp.tanh(x).mean((1, 2)))  # 8 * 3


def test_counts_by_hand():
    cost = analyze(Known(), (1, 8, 6, 2))
    a, b, c = (next(row for row in cost.layers if row.path == path) for path in "abc")
    assert (a.mult_adds, b.mult_adds, c.mult_adds) == (8 * 6 * 4 * 18, 4 * 3 * 8 * 10, 24)
    assert (a.params, b.params, c.params) == (72, 5 * 2 * 8 + 8, 27)
    assert (a.receptive_field, a.stride, a.start) == ((3, 3), (1, 1), (-1, -1))
    assert (b.receptive_field, b.stride, b.start) == ((7, 3), (2, 2), (-3, -1))
    assert (c.receptive_field, c.stride, c.start) == (None, None, None)
    assert (a.output_bytes, b.output_bytes, c.output_bytes) == (4 * 192, 4 * 96, 4 * 3)
    assert cost.endpoints["a"].output_shape == (1, 8, 6, 4)
    # Kept: the image for a's gradient, the ReLU's output for b's and its mask, tanh's output twice (y, and about 1 -
    # y^2), and the mean for c's.
    kept_bytes = sum(row.kept_bytes for row in cost.layers)
    assert 4 * (96 + 192 + 96 + 8) + 192 <= kept_bytes <= 4 * (96 + 192 + 2 * 96 + 8) + 192
    assert (cost.params, cost.mult_adds) == (a.params + b.params + c.params, a.mult_adds + b.mult_adds + c.mult_adds)


def test_remat_keeps_less_and_bfloat16_half():
    base, remat, half = (
        analyze(models.create("resnet20", **fields), (1, 32, 32, 3))
        for fields in ({}, {"remat": True}, {"dtype": "bfloat16"})
    )
    assert remat.kept_bytes < 0.4 * base.kept_bytes
    assert 0.5 <= half.kept_bytes / base.kept_bytes < 0.62  # masks stay bytes, and the image stays float32
    assert half.output_bytes < 0.51 * base.output_bytes


def walked(function, *args, image=0):
    """Returns the mult-adds of `function` and the view of its (first) output.

    Argument number `image` is the image [N, H, W, C].
    """
    walk = Walk({()})
    views = walk.run(jax.make_jaxpr(function)(*args), [View((1, 2)) if i == image else None for i in range(len(args))])
    return walk.mult_adds[()], views[0]


X, W = jnp.zeros((1, 16, 16, 4)), jnp.zeros((4, 4))
K = jnp.zeros((3, 3, 4, 4))


def conv(x, k=K, strides=(1, 1), **kwargs):
    return lax.conv_general_dilated(x, k, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **kwargs)


@jax.custom_vjp
def own_gradient(x):
    return conv(x)


own_gradient.defvjp(lambda x: (conv(x), None), lambda residuals, dy: (dy,))
ONE = 16 * 16 * 4 * 36  # one such convolution


@pytest.mark.parametrize(
    "function,mult_adds,view",
    [
        (lambda x: conv(conv(x)), 2 * ONE, View((1, 2), (5, 5), start=(-2, -2))),
        (jax.jit(conv), ONE, View((1, 2), (3, 3), start=(-1, -1))),
        (jax.checkpoint(conv), ONE, View((1, 2), (3, 3), start=(-1, -1))),
        (own_gradient, ONE, View((1, 2), (3, 3), start=(-1, -1))),
        (lambda x: conv(x, rhs_dilation=(2, 2)), ONE, View((1, 2), (5, 5), start=(-2, -2))),
        (
            lambda x: lax.scan(lambda c, _: (conv(c), None), x, length=5)[0],
            5 * ONE,
            View((1, 2), (11, 11), start=(-5, -5)),
        ),
        (
            lambda x: lax.scan(lambda c, row: (c, conv(row)), 0, x[None])[1][0],
            ONE,
            View((1, 2), (3, 3), start=(-1, -1)),
        ),
        (
            lambda x: lax.fori_loop(0, x.shape[0] + 6, lambda i, c: conv(c), x),
            7 * ONE,
            View((1, 2), (15, 15), start=(-7, -7)),
        ),
        (lambda x: lax.while_loop(lambda c: c.sum() < 9, conv, x), ONE, View((1, 2), (3, 3), start=(-1, -1))),
        (
            lambda x: lax.cond(x.sum() > 0, lambda x: conv(conv(x)), jnp.sin, x),
            2 * ONE,
            View((1, 2), (5, 5), start=(-2, -2)),
        ),
        (lambda x: x @ W, 16 * 16 * 4 * 4, View((1, 2))),
        (lambda x: conv(x).transpose(0, 3, 1, 2), ONE, View((2, 3), (3, 3), start=(-1, -1))),
        (lambda x: conv(x.reshape(1, 16, 16, 2, 2).reshape(1, 16, 16, 4)), ONE, View((1, 2), (3, 3), start=(-1, -1))),
        (lambda x: conv(x)[:, ::2, 1::4], ONE, View((1, 2), (3, 3), (2, 4), (-1, 0))),
        (
            lambda x: nn.avg_pool(nn.max_pool(x, (3, 3), (2, 2), "SAME"), (2, 2), (2, 2)),
            0,
            View((1, 2), (5, 5), (4, 4)),
        ),
        (lambda x: x + jnp.pad(conv(x), ((0, 0), (0, 0), (0, 0), (0, 0))), ONE, View((1, 2), (3, 3), start=(-1, -1))),
        (lambda x: jnp.concatenate([x, conv(x)], -1), ONE, View((1, 2), (3, 3), start=(-1, -1))),
        (lambda x: x * nn.sigmoid(conv(x).mean((1, 2), keepdims=True)), ONE, View((1, 2))),  # squeeze and excite
        (lambda x: x - x.mean((1, 2, 3), keepdims=True), 0, View((1, 2))),  # layer normalization
        (lambda x: x.mean((1, 2)), 0, View()),
        (lambda x: x.reshape(1, 256, 4), 0, View()),
        (lambda x: jnp.einsum("nhwc,nijc->nhwij", x, x).mean((1, 2, 3)), 16**4 * 4, View()),  # attention
        (
            lambda x: lax.conv_transpose(x, jnp.zeros((4, 4, 4, 4)), (2, 2), "SAME"),
            32 * 32 * 4 * 64 // 4,
            View((1, 2), (2.5, 2.5), (0.5, 0.5), (-1, -1)),
        ),
        (lambda x: jnp.zeros(3), 0, None),
        (lambda x: x[:, 3:13:2, ::-1][:, 1:, ::-1], 0, View()),
        (lambda x: x[:, 3:13:2, 5:][:, 1:], 0, View((1, 2), (1, 1), (2, 1), (5, 5))),
        (
            lambda x: lax.pad(x, 0.0, ((0, 0, 0), (2, 0, 1), (-3, 4, 0), (0, 0, 0))),
            0,
            View((1, 2), (1, 1), (0.5, 1), (-1, 3)),
        ),
        (lambda x: x[:, 1:9] + x[:, 4:12], 0, View((1, 2), (4, 1), (1, 1), (1, 0))),  # a union
        (lambda x: x + jnp.roll(x, 1, 1), 0, View()),
        (lambda x: lax.dynamic_slice(x, (0, 2, 0, 1), (1, 8, 16, 2)), 0, View()),
        (lambda x: lax.dynamic_slice(x, (0, 0, 0, 1), (1, 16, 16, 2)), 0, View((1, 2))),
        (lambda x: x + jnp.cumsum(x.reshape(1, 256, 4), 1).reshape(x.shape), 0, View()),  # reads all positions
        (lambda x: jnp.where(x.mean() > 0, x, 2 * x), 0, View((1, 2))),  # a gate
    ],
)
def test_walk(function, mult_adds, view):
    assert walked(function, X) == (mult_adds, view)


def test_nothing_is_allocated():
    class Huge(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return Dense(10**7, name="d")(Dense(10**7, name="c")(x.mean((1, 2))))

    assert analyze(Huge(), (1, 8, 8, 3)).params == 4 * 10**7 + (10**7 + 1) * 10**7


def test_input_is_one_example():
    with pytest.raises(UserError, match="batch of one"):
        analyze(models.create("resnet8"), (8, 32, 32, 3))


def test_table_and_csv(tmp_path):
    cost = analyze(models.create("resnet8"), (1, 32, 32, 3))
    assert len(cost.table().rows) == len(cost.layers)
    assert cost.summary.startswith("ResNet at 32 x 32 x 3: 75,290 parameters, 12.")
    cost.write_csv(tmp_path / "cost.csv")
    with open(tmp_path / "cost.csv") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["params"]) for row in rows) == 75_290
    assert rows[0]["path"] == "stem_conv" and rows[0]["receptive_field"] == "3x3"
    assert rows[0]["start"] == "-1x-1"


@pytest.mark.parametrize("block", textbook.BLOCKS, ids=lambda block: block.kind)
def test_formulas_equal_the_counts(block):
    assert textbook.counted(block) == block.expected


def test_formulas_of_known_sizes():
    """Compares He 2016's bottleneck with Xie 2017's aggregated one: about 70k parameters each (fig. 1 and eq. 4)."""
    assert textbook.bottleneck(256, 64) == 69_632 and textbook.plain(3, 256) == 589_824
    assert 2 * 256 * 128 + textbook.grouped(3, 128, 32) == 70_144
    assert textbook.grouped(3, 64, 1) == textbook.plain(3, 64) == 36_864
    assert textbook.separable(3, 64) == textbook.grouped(3, 64, 64) + textbook.plain(1, 64) == 4_672


def test_command_line_of_formulas(capsys):
    assert textbook.main(["formulas"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("218,365,952") == 2 and "cd + 9d² + dc" in shown
    assert textbook.main(["formulas", "x"]) == 2
    assert capsys.readouterr().err == "error: unexpected argument 'x'\n"


class Between(nn.Module):
    """A network with an activation and pooling that belong to no layer."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.max_pool(nn.relu(Conv(4, 3, name="a")(x)), (2, 2), (2, 2))
        return Dense(3, name="b")(jnp.tanh(x).mean((1, 2)))


def test_operations_between_layers_count_toward_the_preceding_layer():
    kept_bytes = {row.path: row.kept_bytes for row in analyze(Between(), (1, 8, 6, 2)).layers}
    assert set(kept_bytes) == {"", "a", "b"}
    assert kept_bytes[""] == 4 * 96 and kept_bytes["b"] == 0  # the image; nothing follows b
    assert kept_bytes["a"] >= 4 * (192 + 48 + 4)  # the input of pooling, and the outputs of tanh and of the mean


def test_chart_has_all_costs_in_the_order_of_the_computation(tmp_path):
    cost = analyze(models.create("resnet8"), (1, 32, 32, 3))
    bars = chart.groups(cost.layers)
    assert list(bars)[:3] == ["", "stem_conv", "stem_norm"] and list(bars)[-1] == "head"
    assert sum(len(layers) for layers in bars.values()) == len(cost.layers)
    deep = chart.groups(analyze(models.create("resnet110"), (1, 32, 32, 3)).layers)
    assert "stage3/block17" in deep and "stage3/block17/conv1" not in deep and len(deep) <= chart.BARS
    chart.draw(cost, tmp_path / "cost.png", "resnet8")
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")


def test_command_line(tmp_path, capsys):
    assert command_line(["complexity", "resnet20", "--set=norm=group:8", f"--csv={tmp_path}/cost.csv"]) == 0
    shown = capsys.readouterr().out
    assert "stage3/block2/conv2" in shown and "GroupNorm" in shown and "269,722" in shown
    assert (tmp_path / "cost.csv").exists()
    set_it = ["--set", "norm=none", "--set", "num_classes=3", "--set=stage_sizes=(1, 1)"]
    assert command_line(["complexity", "resnet20", f"--chart={tmp_path}/cost.svg", *set_it]) == 0
    shown = capsys.readouterr().out
    assert "stage2/block0/conv2" in shown and "stage2/block1" not in shown and "Norm" not in shown and " 3 " in shown
    assert "<svg" in (tmp_path / "cost.svg").read_text()
    for argv, message in (
        (["resnet5"], "unknown model 'resnet5'"),
        ([], "expected one model, not 0"),
        (["resnet8", "x"], "not 2"),
        (["resnet8", "--set=norm=grop"], "did you mean 'group'"),
        (["resnet8", "--resolution=0"], "resolution"),
        (["resnet8", "--nrom=batch"], "nrom"),
        (["resnet8", "--set=norm=group:7"], "16 channels"),
        (["resnet8", f"--csv={tmp_path}/no/where"], "No such file"),
        (["resnet8", f"--chart={tmp_path}/no/where.png"], "No such file"),
        (["resnet8", f"--chart={tmp_path}/cost.xyz"], "xyz"),
        (["resnet8", "--set", "norm"], "--set norm: write FIELD=VALUE"),
        (["resnet8", "--set", "depth=3"], "unknown field of resnet8 'depth'"),
        (["resnet8", "--set", "width=wide"], "width='wide' must be of type int"),
    ):
        assert command_line(["complexity", *argv]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert command_line(["complexity", "--help"]) == 0
    assert "--resolution" in capsys.readouterr().out


def test_module_runs_as_a_program():
    command = [sys.executable, "-m", "models.analysis", "resnet8"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0 and "75,290" in done.stdout, done.stderr
    assert not done.stderr
