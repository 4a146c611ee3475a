"""timm's architectures that are networks of this project, by name, and the reasons why others are not.

The architecture is what comes before the dot in a tag: "resnet50" in "resnet50.a1_in1k".
tests/golden/make_tags.py compares every one of them with timm's, array by array.
"""

import re
from typing import Any, NamedTuple

from models.errors import UserError, choice_error

Fields = dict[str, Any]


class Architecture(NamedTuple):
    """A network of this project: the arguments of `models.create`."""

    network: str
    fields: Fields


def _resnets() -> dict[str, Architecture]:
    same = [
        *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
        *(f"wide_resnet{depth}_2" for depth in (50, 101)),
        *("resnext50_32x4d", "resnext101_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
        *(f"resnetv2_{size}_bit" for size in ("50x1", "50x3", "101x1", "101x3", "152x2", "152x4")),
    ]
    return {
        **{name: Architecture(name, {}) for name in same},
        "resnet26": Architecture("resnet50", {"stage_sizes": (2, 2, 2, 2)}),
        "resnet50_gn": Architecture("resnet50", {"norm": "group:32"}),
        **{f"resnext101_32x{width}d": Architecture("resnext101_32x8d", {"base_width": width}) for width in (16, 32)},
    }


def _convnexts() -> dict[str, Architecture]:
    small = {  # timm's own
        "atto": {"stage_sizes": (2, 2, 6, 2), "width": 40},
        "femto": {"stage_sizes": (2, 2, 6, 2), "width": 48},
        "pico": {"stage_sizes": (2, 2, 6, 2), "width": 64},
        "nano": {"stage_sizes": (2, 2, 8, 2), "width": 80},
    }
    return {
        **{f"convnext_{size}": Architecture("convnext_tiny", fields) for size, fields in small.items()},
        **{
            f"convnext_{size}": Architecture(f"convnext_{size}", {})
            for size in ("tiny", "small", "base", "large", "xlarge")
        },
    }


def _swins() -> dict[str, Architecture]:
    return {
        **{
            f"swin_{size}_patch4_window7_224": Architecture(f"swin_{size[0]}", {})
            for size in ("tiny", "small", "base", "large")
        },
        **{
            f"swin_{size}_patch4_window12_384": Architecture(f"swin_{size[0]}", {"window": 12})
            for size in ("base", "large")
        },
    }


def _vits() -> dict[str, Architecture]:
    patches = {  # with a class token, for images of 224 x 224
        "tiny": (16,),
        "small": (8, 16, 32),
        "base": (8, 16, 32),
        "large": (14, 16, 32),
        "huge": (14,),
    }
    larger = (("tiny", 16), ("small", 16), ("small", 32), ("base", 16), ("base", 32), ("large", 16), ("large", 32))
    deit = (("tiny", 224), ("small", 224), ("base", 224), ("base", 384))  # Touvron et al. 2021, arXiv 2012.12877
    giant = {"width": 1408, "mlp_width": 6144, "depth": 40}  # Zhai et al. 2022, arXiv 2106.04560, table 2
    mean = {"pool": "mean"}
    return {
        **{f"vit_{size}_patch{patch}_224": _vit(size, patch) for size in patches for patch in patches[size]},
        **{f"vit_{size}_patch{patch}_384": _vit(size, patch) for size, patch in larger},
        **{f"deit_{size}_patch16_{image}": _vit(size, 16) for size, image in deit},
        "vit_huge_patch14_gap_224": Architecture("vit_huge_patch14", mean),
        "vit_huge_patch16_gap_448": Architecture("vit_huge_patch16", mean),
        "vit_giant_patch16_gap_224": Architecture("vit_huge_patch16", {**giant, **mean}),
    }


def _vit(size: str, patch: int) -> Architecture:
    if patch == 8:
        return Architecture(f"vit_{size}_patch16", {"patch_size": 8})
    return Architecture(f"vit_{size}_patch{patch}", {})


TIMM: dict[str, Architecture] = {
    **_resnets(),
    **{f"densenet{depth}": Architecture(f"densenet{depth}", {}) for depth in (121, 161, 169, 201)},
    "mobilenetv1_100": Architecture("mobilenet_v1", {}),
    "mobilenetv1_125": Architecture("mobilenet_v1", {"width_multiplier": 1.25}),
    "mobilenetv2_100": Architecture("mobilenet_v2", {}),
    **{f"mobilenetv2_{width}": Architecture(f"mobilenet_v2_{width}", {}) for width in ("035", "050", "075", "140")},
    **{f"tf_efficientnet_lite{size}": Architecture(f"efficientnet_lite{size}", {}) for size in range(5)},
    **{
        f"vgg{depth}{norm}": Architecture(f"vgg{depth}{norm}", {}) for depth in (11, 13, 16, 19) for norm in ("", "_bn")
    },
    **_convnexts(),
    **_swins(),
    **_vits(),
}
# (regular expression of architectures, what they have that networks here lack); the first match counts
OTHERS = (
    (r"vit_.*(_reg\d|dinov3|lingbot|sapiens|tipsv2|radio).*", "register tokens"),
    (r"(vit_.*(dinov2|intern300m).*|vit_medium_patch16_gap_.*|deit3_.*)", "layer scale"),
    (r"(vit_base_mci.*|vitamin_.*)", "convolutions in its first stages"),
    (r"vit_.*_r\d*_s\d+.*", "a residual network as its stem"),
    (r"vit_.*clip.*", "normalization before the first block"),
    (r"vit_.*(siglip|pe_).*", "pooling by attention"),
    (r"vit_.*rope.*", "rotary positions"),
    (r"vit_.*relpos.*", "relative positions"),
    (r"vit_.*rpn.*", "normalization after the branches"),
    (r"vit_.*miil.*", "attention without biases"),
    (r"deit_.*distilled.*", "a distillation token and a second head"),
    (r"convnextv2_.*", "global response normalization"),
    (r"convnext_.*_ols.*", "overlapping patches in its stem"),
    (r"convnext_.*_mlp.*", "a hidden layer before its head"),
    (r"convnext_(tiny_hnf|xxlarge|zepto.*)", "other normalization"),
    (r"swin(v2|_s3|v2_cr).*", "windows that differ by stage, or scaled attention"),
    (r"(resnet|resnext|wide_resnet)\d+.*(c|d|s|t|q|ts)(_.*)?", "another stem or other shortcuts"),
    (r"(resnetaa|resnetblur|densenetblur).*", "blurred pooling"),
    (r"(se|eca|gc|sk|bat|lambda|halo|resnetrs|resnest).*", "attention in its blocks"),
    (r"resnet.*_clip.*", "pooling by attention"),
    (r"resnetv2_.*", "another stem than preresnets here"),
    (r"mobilenetv[12]_.*(h|d)", "another stem or head"),
    (r"mobilenetv[345].*|mobilenet_edgetpu.*", "squeeze and excitation, or other blocks"),
)


def find(architecture: str) -> Architecture:
    """Returns the network that timm calls `architecture`.

    Raises:
      UserError: It is not one of ours; the error says why, or names the nearest ones.
    """
    if architecture in TIMM:
        return TIMM[architecture]
    for pattern, what in OTHERS:
        if re.fullmatch(pattern, architecture):
            raise UserError(f"the architecture '{architecture}' is not one of ours: it has {what}")
    raise choice_error("architecture", architecture, TIMM)
