"""Records torchvision's and timm's densely connected networks in densenet.npz; see parity.py."""

from tests.golden.parity import Case, record

if __name__ == "__main__":
    import timm.models.densenet
    import torchvision.models as tv

    sizes = (3, 1, 2)
    small = {"num_classes": 10, "stage_sizes": sizes, "growth": 8, "width": 16}
    record(
        "densenet",
        {
            "torchvision": Case(
                "densenet121",
                {**small, "width": 19, "bottleneck": 2},
                "torchvision",
                lambda: tv.DenseNet(8, sizes, 19, bn_size=2, num_classes=10),
            ),  # odd: rounded down
            "timm": Case(
                "densenet121",
                {**small, "remat": True},
                "timm",
                lambda: timm.models.densenet.DenseNet(8, sizes, num_classes=10),
            ),
        },
        {
            name: ("torchvision", getattr(tv, name))
            for name in ("densenet121", "densenet161", "densenet169", "densenet201")
        },
    )
