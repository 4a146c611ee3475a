"""Records torchvision's residual networks in resnet.npz; see parity.py."""

from tests.golden.parity import Case, record

if __name__ == "__main__":
    import torchvision.models as tv
    from torchvision.models.resnet import Bottleneck, ResNet

    short = {"num_classes": 10, "stage_sizes": (1, 1, 1, 1)}
    record("resnet", {
        "basic": Case("resnet18", {"num_classes": 10}, "torchvision", lambda: tv.resnet18(num_classes=10)),
        "bottleneck": Case("resnet50", {"num_classes": 10, "stage_sizes": (2, 1, 1, 1)}, "torchvision",
                           lambda: ResNet(Bottleneck, [2, 1, 1, 1], num_classes=10)),
        "wide": Case("wide_resnet50_2", short, "torchvision",
                     lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10, width_per_group=128)),
        "resnext": Case("resnext50_32x4d", short, "torchvision",
                        lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10, groups=32, width_per_group=4)),
    }, {name: ("torchvision", getattr(tv, name)) for name in (
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2",
        "resnext50_32x4d", "resnext101_32x8d")})
