"""Records torchvision's and timm's residual networks in resnet.npz; see parity.py."""

import functools

from tests.golden.parity import Case, record

if __name__ == "__main__":
    import timm
    import torchvision.models as tv
    from timm.layers import StdConv2d
    from timm.models.resnetv2 import ResNetV2
    from torchvision.models.resnet import Bottleneck, ResNet

    def bit(sizes, factor):
        channels = [256 * 2**stage for stage in range(len(sizes))]
        return ResNetV2(
            list(sizes),
            channels,
            num_classes=10,
            width_factor=factor,
            stem_type="fixed",
            conv_layer=functools.partial(StdConv2d, eps=1e-8),
        )

    short = {"num_classes": 10, "stage_sizes": (1, 1, 1, 1)}
    record(
        "resnet",
        {
            "basic": Case("resnet18", {"num_classes": 10}, "torchvision", lambda: tv.resnet18(num_classes=10)),
            "bottleneck": Case(
                "resnet50",
                {"num_classes": 10, "stage_sizes": (2, 1, 1, 1)},
                "torchvision",
                lambda: ResNet(Bottleneck, [2, 1, 1, 1], num_classes=10),
            ),
            "wide": Case(
                "wide_resnet50_2",
                short,
                "torchvision",
                lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10, width_per_group=128),
            ),
            "resnext": Case(
                "resnext50_32x4d",
                short,
                "torchvision",
                lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10, groups=32, width_per_group=4),
            ),
            "bit": Case("resnetv2_50x1_bit", short, "timm", lambda: bit((1, 1, 1, 1), 1)),
            "bit_wide": Case(
                "resnetv2_50x3_bit",
                {"num_classes": 10, "stage_sizes": (2, 1)},
                "timm",
                lambda: bit((2, 1), 3),
                [(2, 64, 64, 3), (2, 49, 80, 3)],
            ),
        },
        {
            **{
                name: ("torchvision", getattr(tv, name))
                for name in (
                    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2",
                    "wide_resnet101_2", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d",
                )
            },
            **{
                name: ("timm", functools.partial(timm.create_model, name))
                for name in (
                    "resnext101_32x4d",
                    "resnetv2_50x1_bit",
                    "resnetv2_50x3_bit",
                    "resnetv2_101x1_bit",
                    "resnetv2_101x3_bit",
                    "resnetv2_152x2_bit",
                    "resnetv2_152x4_bit",
                )
            },
        },
    )  # fmt: skip
