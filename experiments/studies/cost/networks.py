"""The networks that the study of cost compares, by scale.

tests/experiments/test_cost_study.py checks that costs are equal where they should be.

The stem of MobileNets halves the resolution. Where the stem of the other networks does not, MobileNets get images of
twice the size, so that all blocks see maps of the same size.
"""

from collections.abc import Mapping, Sequence

from experiments.studies.networks import Network

PLAIN, BOTTLENECK, GROUPED, SEPARABLE, INVERTED, DENSE = BLOCKS = (
    "two 3x3",
    "bottleneck",
    "grouped bottleneck",
    "depthwise separable",
    "inverted residual",
    "dense",
)

_BOTTLENECK = {"bottleneck": True, "shortcut": "B"}
_ZERO = {"zero_gamma": True}  # part of Goyal 2017's recipe for ImageNet
# Block -> (the network for equal mult-adds, the network for equal parameters)
EQUAL: Mapping[str, Mapping[str, Sequence[Network]]] = {
    "digits": {
        PLAIN: (Network("resnet8", {"width": 14, "shortcut": "B"}),) * 2,
        BOTTLENECK: (Network("resnet20", {**_BOTTLENECK, "stage_sizes": (1, 1, 1), "width": 11}),) * 2,
        GROUPED: (
            Network("resnet20", {**_BOTTLENECK, "stage_sizes": (1, 1, 1), "width": 12, "groups": 4, "base_width": 20}),
        )
        * 2,
        SEPARABLE: (
            Network("mobilenet_v1", {"stage_sizes": (3, 3, 3), "width_multiplier": 0.5}, 16),
            Network("mobilenet_v1", {"stage_sizes": (1, 3, 3), "width_multiplier": 0.5}, 16),
        ),
        INVERTED: (
            Network("mobilenet_v2", {"stage_sizes": (1, 2, 2), "width_multiplier": 0.75}, 16),
            Network("mobilenet_v2", {"stage_sizes": (1, 3, 3), "width_multiplier": 0.5}, 16),
        ),
        DENSE: (
            Network("densenet_bc100_k12", {"stage_sizes": (3, 3, 3), "growth": 6, "width": 24}),
            Network("densenet_bc100_k12", {"stage_sizes": (3, 3, 3), "growth": 11, "width": 22}),
        ),
    },
    "cifar": {
        PLAIN: (Network("resnet14", {"width": 16, "shortcut": "B"}),) * 2,
        BOTTLENECK: (Network("resnet20", {**_BOTTLENECK, "stage_sizes": (2, 2, 2), "width": 20, "base_width": 32}),)
        * 2,
        GROUPED: (
            Network("resnet20", {**_BOTTLENECK, "stage_sizes": (1, 1, 1), "width": 24, "groups": 4, "base_width": 12}),
        )
        * 2,
        SEPARABLE: (Network("mobilenet_v1", {"stage_sizes": (2, 2, 2), "width_multiplier": 1.125}, 64),) * 2,
        INVERTED: (
            Network("mobilenet_v2", {"stage_sizes": (1, 2, 3), "width_multiplier": 1.5}, 64),
            Network("mobilenet_v2", {"stage_sizes": (1, 2, 3), "width_multiplier": 1.25}, 64),
        ),
        DENSE: (
            Network("densenet_bc100_k12", {"stage_sizes": (5, 5, 5), "growth": 8, "width": 16}),
            Network("densenet_bc100_k12", {"stage_sizes": (4, 4, 4), "growth": 16, "width": 16}),
        ),
    },
    "cifar10": {
        PLAIN: (Network("resnet20", {"width": 22, "shortcut": "B"}),) * 2,
        BOTTLENECK: (Network("resnet20", {**_BOTTLENECK, "width": 20, "base_width": 68}),) * 2,
        GROUPED: (
            Network("resnet20", {**_BOTTLENECK, "width": 22, "groups": 8, "base_width": 12}),
            Network("resnet20", {**_BOTTLENECK, "width": 24, "groups": 4, "base_width": 19}),
        ),
        SEPARABLE: (Network("mobilenet_v1", {"stage_sizes": (3, 3, 3), "width_multiplier": 1.5}, 64),) * 2,
        INVERTED: (
            Network("mobilenet_v2", {"stage_sizes": (1, 5, 6), "width_multiplier": 2.0}, 64),
            Network("mobilenet_v2", {"stage_sizes": (1, 4, 4), "width_multiplier": 2.0}, 64),
        ),
        DENSE: (
            Network("densenet_bc100_k12", {"stage_sizes": (6, 6, 6), "growth": 12, "width": 32}),
            Network("densenet_bc100_k12", {"stage_sizes": (8, 8, 8), "growth": 17, "width": 28}),
        ),
    },
    "imagenet": {
        PLAIN: (Network("resnet34", {**_ZERO, "width": 68}), Network("resnet34", {**_ZERO, "width": 69})),
        BOTTLENECK: (Network("resnet50", _ZERO),) * 2,
        GROUPED: (Network("resnext50_32x4d", _ZERO),) * 2,
        SEPARABLE: (
            Network("mobilenet_v1", {"width_multiplier": 2.75}),
            Network("mobilenet_v1", {"width_multiplier": 2.65}),
        ),
        INVERTED: (
            Network("mobilenet_v2", {"width_multiplier": 3.9}),
            Network("mobilenet_v2", {"width_multiplier": 3.15}),
        ),
        DENSE: (Network("densenet201"), Network("densenet201", {"growth": 36, "width": 72})),
    },
}
SIZES: Mapping[str, Mapping[str, Sequence[Network]]] = {  # ordered from small to large
    "digits": {
        "residual": [Network("resnet8", {"width": width, "shortcut": "B"}) for width in (4, 8, 14)],
        "dense": [
            Network("densenet_bc100_k12", {"stage_sizes": (3, 3, 3), "growth": growth, "width": width})
            for growth, width in ((3, 12), (6, 24), (11, 22))
        ],
    },
    "cifar": {
        "residual": [Network("resnet14", {"width": width, "shortcut": "B"}) for width in (8, 12, 16)],
        "dense": [
            Network("densenet_bc100_k12", {"stage_sizes": (size,) * 3, "growth": growth, "width": 16})
            for size, growth in ((3, 8), (5, 8), (4, 16))
        ],
    },
    "cifar10": {
        "residual": [Network("resnet20", {"width": width, "shortcut": "B"}) for width in (8, 16, 22)],
        "dense": [
            Network("densenet_bc100_k12", {"stage_sizes": (size,) * 3, "growth": growth, "width": width})
            for size, growth, width in ((6, 6, 16), (6, 12, 32), (8, 17, 28))
        ],
    },
    "imagenet": {
        "residual": [Network(f"resnet{depth}", _ZERO) for depth in (50, 101, 152)],
        "dense": [Network(f"densenet{depth}") for depth in (121, 169, 201)],
    },
}
_SEPARABLE = {
    "digits": {"stage_sizes": (1, 3, 3), "width_multiplier": 0.5},
    "cifar": {"stage_sizes": (1, 1, 1)},
    "cifar10": {"stage_sizes": (3, 3, 3), "width_multiplier": 1.5},
    "imagenet": {},
}
PAIRS: Mapping[str, Mapping[str, Mapping[str, Network]]] = {
    scale: {
        "convolution": {
            "separable": Network("mobilenet_v1", _SEPARABLE[scale], doubled),
            "whole": Network("mobilenet_v1_conv", _SEPARABLE[scale], doubled),
        },
        # early: a stem of stride 4, with images of twice the size if they are small; late: a stem without a stride
        "downsampling": {"early": Network(late.name, {**late.fields, "stem": "imagenet"}, doubled), "late": late},
    }
    for scale, doubled, late in (
        ("digits", 16, Network("resnet8", {"width": 14, "shortcut": "B"})),
        ("cifar", 64, Network("resnet14", {"width": 16, "shortcut": "B"})),
        ("cifar10", 64, Network("resnet20", {"width": 22, "shortcut": "B"})),
        ("imagenet", 0, Network("resnet18", {**_ZERO, "stem": "cifar"})),
    )
}
REUSED = {
    "digits": Network("densenet40_k12", {"stage_sizes": (6, 6, 6), "growth": 6}),
    "cifar": Network("densenet40_k12", {"stage_sizes": (6, 6, 6), "growth": 8}),
    "cifar10": Network("densenet40_k12"),
    "imagenet": Network("densenet121"),
}
HOWARD = "Howard 2017, table"
MOBILENETS = (  # (label, network, published millions of mult-adds and of parameters, source)
    ("whole convolutions", Network("mobilenet_v1_conv"), 4866, 29.3, f"{HOWARD} 4"),
    ("MobileNet", Network("mobilenet_v1"), 569, 4.2, f"{HOWARD} 4"),
    ("shallow", Network("mobilenet_v1_shallow"), 307, 2.9, f"{HOWARD} 5"),
    *(
        (f"width {width / 100}", Network(f"mobilenet_v1_{width:03}"), mult_adds, parameters, f"{HOWARD} 6")
        for width, mult_adds, parameters in ((75, 325, 2.6), (50, 149, 1.3), (25, 41, 0.5))
    ),
    *(
        (f"images of {size}", Network("mobilenet_v1", {}, size), mult_adds, 4.2, f"{HOWARD} 7")
        for size, mult_adds in ((192, 418), (160, 290), (128, 186))
    ),
)
