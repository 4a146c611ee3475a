"""Expected properties of the registered networks; tests/models/test_registry.py reads them."""

import csv
import re
from pathlib import Path

import pytest

from train.setup import spec

# Trained parameters. Where the reference names no paper, the counts are equal; papers round them. Networks without a
# reference are listed to guard against changes.
with open(Path(__file__).parent / "data" / "parameters.csv") as _file:
    PARAMETERS = {row["network"]: int(row["parameters"]) for row in csv.DictReader(_file)}


def _table(text):
    """Returns {key: (name, fields)} for lines "key: name(field=value, …)"; indented lines continue the previous one."""
    lines = (line.split(": ", 1) for line in re.sub(r"\n +", " ", text).strip().splitlines())
    calls = {kind: spec.parse("a table of the tests", call)[0] for kind, call in lines}
    return {kind: (call.name, dict(call.kwargs)) for kind, call in calls.items()}


# One small network of each kind of block, for images of 32 x 32.
SMALL = _table("""
basic: resnet8(stage_sizes=(1, 1), width=8)
bottleneck: resnext50_32x4d(stage_sizes=(1, 1), width=8, groups=4, base_width=16, num_classes=10)
preact: wide_resnet16_4(stage_sizes=(1, 1), width=4, widen=2, shortcut='A')
bit: resnetv2_50x1_bit(stage_sizes=(1, 1), width=8, norm='group:4', num_classes=10)
gated: convnet_aig50(stage_sizes=(1, 1), width=8, stem='cifar', rates=(None, 0.5), gate_width=6, num_classes=10)
blockdrop: blockdrop101(stage_sizes=(2, 1), width=8, stem='cifar', policy_sizes=(1, 1), policy_width=4, num_classes=10)
early_exit: early_exit_resnet62(stage_sizes=(2, 1), width=8, bottleneck=True, exits=(1,), exit_width=6)
dense: densenet_bc100_k12(stage_sizes=(2, 1), growth=4, width=8, bottleneck=2)
dense_imagenet: densenet121(stage_sizes=(1, 1), growth=4, width=8, bottleneck=0, compression=1.0, num_classes=10)
multi_scale: msdnet_cifar_anytime(num_exits=2, base=2, step=1, width=4, growth=2, growth_factors=(1, 2),
    bottleneck_factors=(1, 2), exit_width=8)
convnext: convnext_tiny(stage_sizes=(1, 1), width=8, layer_scale=0.5, num_classes=10)
ladder_start: convnext_ladder00_resnet50(stage_sizes=(1, 1), width=8, num_classes=10)
ladder_inverted: convnext_ladder12_fewer_norms(stage_sizes=(1, 1), width=8, num_classes=10)
ladder_end: convnext_ladder14_separate_downsampling(stage_sizes=(1, 1), width=8, num_classes=10)
swin: swin_t(stage_sizes=(2, 1), heads=(2, 2), width=8, window=4, init='msra', num_classes=10)
lenet: lenet5(convs=(4, 6), hidden=(16,), image_size=32, norm='layer')
alexnet: alexnet_original(stem=(3, 1, 1), convs=(8, 8, 8, 8, 8), classifier=(16,), norm='layer', num_classes=10)
vgg: vgg11(stage_sizes=(1, 2), width=4, classifier=(16,), norm='layer', num_classes=10)
airbench: airbench94(width=4)
separable: mobilenet_v1(stage_sizes=(1, 2), width_multiplier=0.25, num_classes=10)
inverted: mobilenet_v2(stage_sizes=(1, 2), width_multiplier=0.25, num_classes=10)
lite: efficientnet_lite0(stage_sizes=(1, 2, 1), width_multiplier=0.25, num_classes=10)
vit: vit_tiny_patch16(patch_size=8, depth=2, width=16, heads=2, mlp_width=24, init='msra', image_size=32,
    num_classes=10)
vit_c: vit_c_1gf(stem_channels=(4, 8, 8), patch_size=4, stem_norm=None, stem_act=None, depth=1, width=16, heads=2,
    mlp_width=24, init='msra', image_size=32, num_classes=10)
""")


# For each class of networks: the kind of SMALL to try it on, and values for the fields that not every family has.
_OTHERS = _table("""
ResNet: basic(stage_sizes=(1, 2), bottleneck=True, stem=imagenet, width=4, widen=2, groups=('bottleneck', 2),
    base_width=('bottleneck', 32), stride_in=('bottleneck', '1x1'), shortcut=B, preact=True, zero_gamma=True,
    stochastic_depth=0.5, dropout=0.5)
ConvNeXt: convnext(norm=batch, act=relu, init=msra, widths='stage1/block0/expand:9', stage_sizes=(1, 2), width=4,
    kernel_size=3, layer_scale=0.1, stochastic_depth=0.5)
Ladder: ladder_start(stage_sizes=(1, 2), patchify=True, depthwise=True, width=4, inverted=True, moved_up=True,
    kernel_size=5, fewer_acts=True, fewer_norms=True, separate_downsampling=True, stochastic_depth=0.5)
Swin: swin(norm=batch, act=relu, widths='stage1/block0/expand:9', stage_sizes=(1, 2), heads=(1, 2), width=4,
    patch_size=2, window=2, stochastic_depth=0.5)
LeNet: lenet(norm=batch, widths='conv1:3', convs=(4,), hidden=(16, 8))
AlexNet: alexnet(norm=batch, widths='conv3:6', stem=(5, 1, 2), convs=(8, 8, 8, 8, 4), groups=4, local_response=None,
    classifier=(16, 8), dropout=0.2)
VGG: vgg(norm=batch, widths='stage1/conv1:3', stage_sizes=(1, 1), width=2, classifier=(16, 8), dropout=0.2)
Airbench: airbench(widths='stage1/conv1:3', patch_size=3, width=6, scale=1.0)
MobileNetV1: separable(widths='stage1/block0/pointwise:9', stage_sizes=(1, 1), width_multiplier=0.5, dropout=0.5,
    separable=False, padding=tf, norm_epsilon=0.5)
MobileNetV2: inverted(widths='stage2/block0/expand:9', stage_sizes=(1, 1), width_multiplier=0.5, dropout=0.5,
    expansion=3, linear=False, shortcut=False, padding=tf, norm_epsilon=0.5)
EfficientNetLite: lite(widths='stage2/block0/expand:9', stage_sizes=(1, 1), width_multiplier=0.5, dropout=0.5,
    expansion=3, linear=False, shortcut=False, padding=symmetric, norm_epsilon=0.5, kernel_sizes=(3, 5, 3))
ViT: vit(norm=batch, act=relu, widths='block0/expand:9', patch_size=16, width=8, depth=1, heads=4, mlp_width=16,
    pool=mean, positions=sincos2d, stem_channels=('vit_c', (4, 8)), stem_norm=('vit_c', 'batch'),
    stem_act=('vit_c', 'relu'), dropout=0.5, stochastic_depth=0.5)
DenseNet: dense(widths='stage1/layer0/conv1:5', stage_sizes=(1, 2), growth=2, stem=imagenet, width=4, bottleneck=0,
    compression=0.75, dropout=0.5)
MSDNet: multi_scale(norm='group:1', widths='block1/layer0/same1/conv1:1', stem=imagenet, num_exits=3, base=1, step=2,
    step_mode=lin_grow, width=6, growth=4, growth_factors=(1, 1), bottleneck_factors=(1, 1), reduction=0.0, prune=min,
    exit_width=0)
GatedResNet: gated(stage_sizes=(2,), shortcut=A, target=1.0, rates=(0.5, 1), gate_width=4)
BlockDrop: blockdrop(shortcut=A, policy_sizes=(1, 2), policy_width=8, policy_pool=4)
EarlyExitResNet: early_exit(exits=(1, 2), exit_width=0)
""")
# Fields of every family. The tests replace "spy" by the spy for that field.
_COMMON = {
    "num_classes": 7, "norm": "group:2", "act": "silu", "widths": "stage1/block0/conv1:5", "init": "xavier_normal",
    "conv": "standardized", "dense": "spy", "dtype": "bfloat16",
}  # fmt: skip
# Residual networks with additional fields; their kinds consist of bottlenecks.
_RESIDUAL = dict(_OTHERS["ResNet"][1], bottleneck=False, groups=2, base_width=32, stride_in="1x1")


def _perturbed(family):
    """Returns {field: (kind, value)}."""
    kind, fields = _OTHERS[family]
    extra = _RESIDUAL if family in ("GatedResNet", "BlockDrop", "EarlyExitResNet") else {}
    values = {**_COMMON, **extra, **fields}
    path, width = values["widths"].split(":")
    values["widths"] = ((path, int(width)),)
    here = {field: isinstance(value, tuple) and value[0] in SMALL for field, value in values.items()}
    return {field: value if here[field] else (kind, value) for field, value in values.items()}


# Each value must change the parameters' shapes, their values or the output in training.
PERTURBED = {family: _perturbed(family) for family in _OTHERS}
# Kernels that start as in their paper, whatever `init` is: those that produce the logits of a gate.
OWN_START = re.compile("gate/dense2/kernel")
# Parameters that only learn by a task of their own, because a threshold has no gradient (test_adaptive_tasks).
NO_GRADIENT = re.compile("policy/")
# Fields that change neither of them on one device. They affect several devices (test_norm), memory, or gradients
# (test_gated); image_size matters only where a family's parameters depend on it.
ELSEWHERE = {"sync_norm", "remat", "temperature", "image_size"}
# Deeper variants of others in PARAMETERS, which take long to trace: only for `make test-all`.
DEEP = re.compile(
    "101|152|200|201|264|161|1202|1001|164|_bc(250|190)|large|huge|swin_[bl]|(18|36)gf|ladder(0[5-9]|1[0-2])|"
    "msdnet_imagenet_step[67]"
)


def deep_in_full(names):
    """Returns test parameters: the names, with those of deep networks marked `full`."""
    return [pytest.param(name, marks=[pytest.mark.full] * bool(DEEP.search(name))) for name in names]
