"""Records timm's and torchvision's MobileNets in mobilenet.npz; see parity.py."""

import functools

from tests.golden.parity import Case, record

if __name__ == "__main__":
    from timm.models import efficientnet
    from torchvision.models import MobileNetV2

    def v1(width, **kwargs):
        return efficientnet._gen_mobilenet_v1("mobilenetv1_100", width, **kwargs)

    def v2(width, **kwargs):
        return efficientnet._gen_mobilenet_v2("mobilenetv2_100", width, **kwargs)

    def torchvision(width, sizes, **kwargs):
        table = [(1, 16, 1), (6, 24, 2), (6, 32, 2), (6, 64, 2), (6, 96, 1), (6, 160, 2), (6, 320, 1)]
        setting = [[t, c, n, s] for (t, c, s), n in zip(table, sizes, strict=True)]
        return MobileNetV2(width_mult=width, inverted_residual_setting=setting, dropout=0, **kwargs)

    sizes = (1, 2, 1, 1, 1, 1, 1)
    record(
        "mobilenet",
        {
            "v1": Case("mobilenet_v1_025", {"num_classes": 10}, "timm", lambda: v1(0.25, num_classes=10)),
            "v2": Case(
                "mobilenet_v2_035",
                {"num_classes": 10, "stage_sizes": sizes, "dropout": 0.0},
                "torchvision",
                lambda: torchvision(0.35, sizes, num_classes=10),
            ),
            "v2_timm": Case(
                "mobilenet_v2_050",
                {"num_classes": 10, "stage_sizes": (1,) * 7, "dropout": 0.0},
                "timm",
                lambda: v2(0.5, num_classes=10, depth_multiplier=0.1),
                [(2, 64, 64, 3)],
            ),
        },
        {
            "mobilenet_v1": ("timm", functools.partial(v1, 1.0)),
            **{
                f"mobilenet_v1_{end}": ("timm", functools.partial(v1, width))
                for end, width in (("025", 0.25), ("050", 0.5), ("075", 0.75))
            },
            "mobilenet_v2": ("torchvision", MobileNetV2),
            **{
                f"mobilenet_v2_{end}": ("timm", functools.partial(v2, width))
                for end, width in (("035", 0.35), ("050", 0.5), ("075", 0.75), ("130", 1.3), ("140", 1.4))
            },
        },
    )
