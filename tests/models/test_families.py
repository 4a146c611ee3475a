"""Rules that several families of networks share: errors, stochastic depth, and rematerialization."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.errors import UserError
from models.layers.init import jit_once
from models.layers.regularize import StochasticDepth
from tests.golden import drawn
from tests.golden.make_transformer import TINY as TRANSFORMER
from train.setup import spec

# A network with the fields that each case changes; then, line by line, the changed fields and the start of the error.
MISTAKES = """
resnet20
    shortcut=D                                  => unknown shortcut 'D'
    stem=cfar                                   => unknown stem 'cfar'; did you mean 'cifar'
    dropout=1.0                                 => dropout=1.0 must be at least 0 and below 1
resnet50
    stride_in='2x2'                             => unknown stride_in
resnet18
    groups=2                                    => need bottleneck=True
    stride_in='1x1'                             => need bottleneck=True
plain20
    zero_gamma=True                             => with shortcuts
    stochastic_depth=0.1                        => with shortcuts
resnext50_32x4d
    width=8                                     => leaves no channels
resnetv2_50x1_bit
    preact=False                                => stem='bit' has no normalization of its own and needs preact=True
convnext_tiny
    stage_sizes=3                               => stage_sizes=3 must be
    stage_sizes=(3, 0)                          => stage_sizes
    width=0                                     => width=0 must be at least 1
    kernel_size=4                               => kernel_size=4 must be odd
    layer_scale=-1.0                            => layer_scale=-1.0 must be positive, or 0
    stochastic_depth=1.0                        => stochastic_depth=1.0
convnext_ladder10_gelu
    stage_sizes=()                              => stage_sizes
    width=0                                     => width=0
    kernel_size=2                               => kernel_size=2 must be odd
    stochastic_depth=-0.1                       => stochastic_depth=-0.1
swin_t
    stage_sizes=2                               => stage_sizes=2 must be whole numbers
    heads=(3, 6, 12, 0)                         => heads=.* must be whole numbers
    heads=(3, 6)                                => heads=.* must have as many numbers as stage_sizes
    width=100                                   => the 100 channels of stage 1 are not divisible into 3 heads
    window=0                                    => window=0 must be at least 1
    patch_size=0                                => patch_size=0 must be at least 1
    stochastic_depth=1.0                        => stochastic_depth=1.0
vgg11
    stage_sizes=()                              => must be whole numbers
    stage_sizes=(1, 0)                          => stage_sizes=\\(1, 0\\) must
    classifier=4096                             => classifier=4096 must be whole numbers
    width=0                                     => width=0
    dropout=-0.1                                => dropout=-0.1 must be at least 0
    classifier=()                               => dropout=0.5 has no effect with classifier=
vit_tiny_patch16(patch_size=4, depth=2, width=8, heads=2, mlp_width=16, image_size=16, num_classes=5)
    pool=max                                    => unknown pool 'max'; allowed: token, mean
    positions=sincos                            => unknown positions 'sincos'; did you mean 'sincos2d'
    heads=3                                     => heads=3 must divide width=8
    depth=0                                     => depth=0 must be at least 1
    width=6, positions=sincos2d                 => multiple of 4, not width=6
    image_size=18                               => image_size=18 must be a multiple of patch_size=4
    pool=mean, norm=instance                    => normalizes each channel separately
    pool=mean, norm=group                       => norm='group' normalizes each channel separately
    dropout=1.0                                 => dropout=1.0
    stochastic_depth=-0.1                       => stochastic_depth=-0.1
    stem_norm=batch                             => set stem_channels
    stem_channels=(4, 8, 16)                    => whose product is not patch_size=4
    stem_channels=4                             => stem_channels=4 must be
    stem_channels=(4, 8), stem_norm=grop        => unknown norm
    stem_channels=(4, 8), stem_act=rleu         => unknown act 'rleu'
alexnet_original
    stem=(11, 4)                                => stem=.* must be 3 whole numbers
    stem=(0, 4, 0)                              => stem
    stem=11                                     => stem
    convs=(8, 8, 8, 8, 0)                       => convs=.* must be 5 whole numbers
    classifier=4096                             => classifier=4096
    groups=0                                    => groups=0 must be at least 1
    local_response=(5, 2.0)                     => local_response=.* must be \\(n, k, alpha\\)
    local_response=(5.5, 2.0, 1e-4)             => local_response
    local_response=5                            => local_response=5
    dropout=1.0                                 => dropout=1.0 must be at least 0 and below 1
lenet5
    image_size=12                               => image_size=12 leaves nothing after 2 convolutions
    convs=20                                    => convs=20 must be
lenet_300_100
    hidden=(0,)                                 => hidden=.* must be whole numbers
    norm=instance                               => norm='instance' averages over space
densenet121
    stem=cfar                                   => unknown stem 'cfar'; did you mean 'cifar'
    stage_sizes=(6, 0)                          => stage_sizes
    stage_sizes=6                               => stage_sizes=6 must be
    growth=0                                    => growth=0 must be at least 1
    width=0                                     => width=0 must be at least 1
    bottleneck=-1                               => bottleneck=-1 must be at least 0
    compression=0.0                             => compression=0.0 must be above 0
    compression=1.5                             => compression=1.5 must be .* at most 1
    compression=0.001                           => compression=0.001 leaves no channels
    dropout=1.0                                 => dropout=1.0 must be at least 0 and below 1
mobilenet_v1
    stage_sizes=(1, 0)                          => stage_sizes=\\(1, 0\\) must be whole numbers
    width_multiplier=0.0                        => width_multiplier=0.0 must be above 0
    padding=same                                => unknown padding 'same'
    norm_epsilon=0.0                            => norm_epsilon=0.0 must be a number above 0
    expansion=2                                 => unknown field of mobilenet_v1 'expansion'
mobilenet_v2
    dropout=1.0                                 => dropout=1.0 must be at least 0 and below 1
    expansion=0                                 => expansion=0 must be at least 1
    stage_sizes=(1, 1, 1, 1, 1, 1, 1, 1)        => at most 7 stages
efficientnet_lite0
    stage_sizes=(1, 1, 1, 1, 1, 1, 1, 1)        => at most 7 stages
    kernel_sizes=(3, 4, 3, 3, 3, 3, 3)          => kernel_sizes=\\(3, 4, 3, 3, 3, 3, 3\\) must be an odd number
    kernel_sizes=(3, 3)                         => kernel_sizes=\\(3, 3\\) must be an odd number for each of the 7
msdnet_cifar_anytime(num_exits=3, base=2, step=1, width=4, growth=2, growth_factors=(1, 2), bottleneck_factors=(1, 2))
    stem=cfar                                   => unknown stem 'cfar'; did you mean 'cifar'
    step_mode=odd                               => unknown step_mode 'odd'
    prune=mix                                   => unknown prune 'mix'
    num_exits=0                                 => num_exits=0 must be at least 1
    base=0                                      => base=0 must be at least 1
    step=0                                      => step=0 must be at least 1
    width=0                                     => width=0 must be at least 1
    growth=0                                    => growth=0 must be at least 1
    exit_width=-1                               => exit_width=-1 must be at least 0
    growth_factors=()                           => growth_factors=\\(\\) must be whole numbers
    growth_factors=(1, 2, 4)                    => bottleneck_factors=\\(1, 2\\) must be 3 whole numbers
    bottleneck_factors=(1, 0)                   => bottleneck_factors=\\(1, 0\\) must be 2 whole numbers of at least 1
    reduction=1.5                               => reduction=1.5 must be at least 0 and at most 1
    reduction=0.01                              => reduction=0.01 leaves no channels
    growth=3, growth_factors=(1, 1)             => new channels must be even
convnet_aig38(stage_sizes=(1, 1), width=4)
    rates=(1.5, 0.5)                            => in \\[0, 1\\], not 1.5
    rates=(-0.1, 0.5)                           => in \\[0, 1\\], not -0.1
    rates=('half', 0.5)                         => in \\[0, 1\\], not half
    rates=(True, 0.5)                           => in \\[0, 1\\], not True
    target=1.01                                 => in \\[0, 1\\], not 1.01
    target=most                                 => target='most' must be of type float
    rates=(0.5,)                                => rates=\\(0.5,\\) must have one rate for each of the 2 blocks
    rates=ab                                    => must have one rate for each of the 2 blocks
    rates=0.5                                   => must have one rate for each of the 2 blocks
    rates=(1, 1.0)                              => rates are all 1, so no block has a gate
    target=1.0                                  => no block has a gate
    norm=instance                               => norm='instance' normalizes each of the gate_width=
    norm=group                                  => norm='group' normalizes each of the gate_width=
    norm='group:16'                             => norm='group:16' normalizes each of the gate_width=
    shortcut=none                               => shortcut='none' does not work with skipped blocks
    temperature=0.0                             => temperature=0.0 must be above 0
    gate_width=0                                => gate_width=0 must be at least 1
blockdrop32(stage_sizes=(1, 1), width=4, policy_sizes=(1,), policy_width=4)
    policy_pool=99                              => policy_pool=99 must be at most image_size=32
    shortcut=none                               => shortcut='none' does not work with skipped blocks
    remat=True                                  => remat=True does not work with networks that skip blocks
    policy_sizes=()                             => policy_sizes=\\(\\) must be whole numbers
    policy_pool=0                               => policy_pool=0 must be at least 1
transformer_base
    width=18, heads=4                           => width=18 must be even and a multiple of heads=4
    width=15, heads=3                           => width=15 must be even
    dropout=1.0                                 => dropout=1.0
    layers=0                                    => layers=0 must be at least 1
    positions=sin                               => unknown positions 'sin'; did you mean 'sine'
    norm='group:2'                              => norm 'group:2' averages .*allowed here: channel, batch, none
    norm=grop                                   => unknown norm 'grop'
    conv=standard                               => unknown field
"""


def call(text):
    return spec.parse("a table of the tests", text)[0]


def mistakes():
    """Yields (network, changed fields, message), as texts."""
    network = ""
    for line in MISTAKES.strip().splitlines():
        if line.startswith(" "):
            yield network, *(part.strip() for part in line.split("=>"))
        else:
            network = line


@pytest.mark.parametrize("network,changes,message", [*mistakes()])
def test_mistakes_are_one_line(network, changes, message):
    name, _, fields = call(network)
    own = TRANSFORMER if name == "transformer_base" else {}
    with pytest.raises(UserError, match=message) as error:
        models.create(name, **{**own, **fields, **call(f"fields({changes})").kwargs})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fields", [{"rates": (float("nan"), 0.5)}, {"target": float("nan")}])
def test_a_rate_is_a_number(fields):
    with pytest.raises(UserError, match=r"in \[0, 1\], not nan"):
        models.create("convnet_aig38", stage_sizes=(1, 1), width=4, **fields)


@pytest.mark.parametrize(
    "network,rates",
    [
        ("resnet50(stochastic_depth=0.2, stage_sizes=(1, 2, 1))", [0.05, 0.1, 0.15, 0.2]),
        ("convnext_tiny(stochastic_depth=0.3, stage_sizes=(1, 2, 1), width=8)", [0, 0.1, 0.2, 0.3]),
        ("convnext_ladder07_depthwise_first(stochastic_depth=0.3, stage_sizes=(1, 2, 1), width=8)", [0, 0.1, 0.2, 0.3]),
        (
            "swin_t(stochastic_depth=0.2, stage_sizes=(2, 1), heads=(2, 4), width=8, window=4)",
            [0, 0, 0.1, 0.1, 0.2, 0.2],
        ),
        ("vit_tiny_patch16(stochastic_depth=0.2, depth=3, width=8, heads=2)", [0, 0, 0.1, 0.1, 0.2, 0.2]),
    ],
)
def test_stochastic_depth_grows_linearly_to_the_last_block(network, rates):
    """Checks linear growth from the first block that can be dropped; in Swin and ViT, on both branches of a block."""
    seen = []

    def read(method, args, kwargs, context):
        if isinstance(context.module, StochasticDepth):
            seen.append(context.module.rate)
        return method(*args, **kwargs)

    name, _, fields = call(network)
    with nn.intercept_methods(read):
        drawn.abstract(models.create(name, **fields))
    assert seen == pytest.approx(rates)


def relative(*case):
    return pytest.param(*case, marks=pytest.mark.full)


@pytest.mark.parametrize(
    "network,side,share",
    [
        ("resnet8(width=4, act=silu, dropout=0.3, stage_sizes=(1, 1))", 8, 0.6),
        relative("convnext_tiny(stochastic_depth=0.5, stage_sizes=(1, 1), width=8, num_classes=10)", 32, 0.6),
        relative("swin_t(stochastic_depth=0.5, stage_sizes=(2, 1), heads=(2, 4), width=8, window=4)", 32, 0.6),
        relative("vit_tiny_patch16(dropout=0.3, stochastic_depth=0.2, patch_size=4, depth=2, width=8, heads=2, "
                 "mlp_width=16, image_size=16)", 16, 0.8),
        relative("densenet_bc100_k12(stage_sizes=(4, 2), growth=4, dropout=0.3)", 8, 1),
        relative("densenet_bc100_k12(stage_sizes=(4, 2), growth=4, dropout=0.3, bottleneck=0, compression=1.0)", 8, 1),
    ],
)  # fmt: skip
def test_remat_only_changes_the_memory_that_is_kept(network, side, share):
    """Checks the same loss, statistics and gradients; the backward pass keeps less than this share of the memory."""
    name, _, fields = call(network)
    images = jnp.asarray(drawn.images("remat", (2, side, side, 3)))

    def gradient(remat):
        model = models.create(name, remat=remat, **fields)
        state = drawn.variables(model)

        def loss(params):
            rngs = {"dropout": jax.random.key(0)}
            variables = {**state, "params": params}
            logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
            return jnp.square(logits).mean(), updated

        residuals = jax.eval_shape(lambda params: jax.vjp(loss, params, has_aux=True)[1], state["params"])
        kept_size = sum(leaf.size for leaf in jax.tree.leaves(residuals))
        return jit_once(jax.value_and_grad(loss, has_aux=True))(state["params"]), kept_size

    (result, kept_size), (again, kept_less) = gradient(False), gradient(True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), result, again)
    assert kept_less < share * kept_size
