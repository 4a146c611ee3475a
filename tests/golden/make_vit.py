"""Records torchvision's and timm's vision transformers in vit.npz, and timm's resized positions; see parity.py."""

import functools
import pathlib

import numpy as np

from models.vit import _EARLY, _SIZES
from tests.golden import drawn
from tests.golden.parity import Case, record

RESIZED = (((4, 4), (7, 5), 1), ((7, 6), (3, 4), 0), ((5, 5), (5, 8), 2))  # old grid, new grid, extra tokens

if __name__ == "__main__":
    import timm
    import torch
    import torchvision.models as tv
    from timm.layers import resample_abs_pos_embed
    from timm.models.vision_transformer import VisionTransformer as Timm
    from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

    tiny = {"num_classes": 10, "depth": 2, "width": 32, "heads": 4, "mlp_width": 48}
    patches = {**tiny, "patch_size": 8}
    convolutions = {**tiny, "patch_size": 4, "stem_channels": [8, 16, 16]}
    cases = {}

    def stem(channels):
        strides = (1 if before == after else 2 for before, after in zip((0, *channels), channels, strict=False))
        return [ConvStemConfig(c, 3, s) for c, s in zip(channels, strides, strict=True)]

    def torchvision(size, patch=8, **kwargs):
        return VisionTransformer(size, patch, 2, 4, 32, 48, num_classes=10, **kwargs)

    for size in (32, 48):
        shapes, sized = ((3, size, size, 3),), {"image_size": size}
        cases[f"torchvision{size}"] = Case(
            "vit_tiny_patch16", {**patches, **sized}, "torchvision", functools.partial(torchvision, size), shapes
        )
        cases[f"convolutions{size}"] = Case(
            "vit_c_1gf",
            {**convolutions, **sized},
            "torchvision",
            functools.partial(torchvision, size, 4, conv_stem_configs=stem((8, 16, 16))),
            shapes,
        )
        theirs = functools.partial(Timm, size, 8, num_classes=10, embed_dim=32, depth=2, num_heads=4, mlp_ratio=1.5)
        cases[f"timm{size}"] = Case("vit_tiny_patch16", {**patches, **sized}, "timm", theirs, shapes)
        cases[f"mean{size}"] = Case(
            "vit_tiny_patch16",
            {**patches, **sized, "pool": "mean", "positions": "sincos2d"},
            "timm",
            functools.partial(theirs, class_token=False, global_pool="avg", fc_norm=False),
            shapes,
        )
    networks = {
        f"vit_{size}_patch{patch}": (
            "timm",
            functools.partial(
                Timm, 224, patch, embed_dim=fields["width"], depth=fields["depth"], num_heads=fields["heads"]
            ),
        )
        for size, fields in _SIZES.items()
        for patch in (32, 16, 14)
    }
    networks |= {
        f"vit_{size}_patch{patch}": ("timm", functools.partial(timm.create_model, f"vit_{size}_patch{patch}_224"))
        for size, patch in (("tiny", 16), ("small", 32), ("small", 16), ("large", 14))
    }
    networks |= {
        f"vit_{size}_patch{patch}": ("torchvision", getattr(tv, f"vit_{size[0]}_{patch}"))
        for size, patch in (("base", 16), ("base", 32), ("large", 16), ("large", 32), ("huge", 14))
    }
    for size, (fields, channels) in _EARLY.items():
        whole = functools.partial(
            VisionTransformer,
            224,
            16,
            num_heads=fields["heads"],
            hidden_dim=fields["width"],
            mlp_dim=fields["mlp_width"],
        )
        networks[f"vit_p_{size}"] = ("torchvision", functools.partial(whole, num_layers=fields["depth"]))
        networks[f"vit_c_{size}"] = (
            "torchvision",
            functools.partial(whole, num_layers=fields["depth"] - 1, conv_stem_configs=stem(channels)),
        )
    record("vit", cases, networks)

    file = pathlib.Path(__file__).with_name("vit.npz")
    resized = {}
    for i, (old, new, prefix) in enumerate(RESIZED):
        positions = torch.from_numpy(drawn.images(f"resized{i}", (1, prefix + old[0] * old[1], 8)))
        resized[f"resized{i}"] = resample_abs_pos_embed(positions, new, old, prefix).numpy()
    np.savez_compressed(file, **np.load(file), **resized)
