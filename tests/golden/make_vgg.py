"""Records torchvision's and timm's VGG in vgg.npz; see parity.py."""

import functools

from tests.golden.parity import Case, record

if __name__ == "__main__":
    import timm.models.vgg as timm_vgg
    import torchvision.models as tv
    from timm.layers import ClassifierHead
    from torch.nn import BatchNorm2d, Dropout, Linear, ReLU, Sequential
    from torchvision.models.vgg import VGG, make_layers

    plan = [8, "M", 16, 16, "M", 32, "M", 64, "M", 64, 64, "M"]
    fields = {"stage_sizes": (1, 2, 1, 1, 2), "width": 8, "classifier": (32, 24), "num_classes": 10}

    def torchvision(batch_norm):
        net = VGG(make_layers(plan, batch_norm), num_classes=10)
        net.classifier = Sequential(
            Linear(64 * 49, 32), ReLU(), Dropout(0), Linear(32, 24), ReLU(), Dropout(0), Linear(24, 10)
        )
        return net

    def timm():
        net = timm_vgg.VGG(plan, num_classes=10, norm_layer=BatchNorm2d)
        net.pre_logits = timm_vgg.ConvMlp(64, 24, 7, mlp_ratio=32 / 24, drop_rate=0)
        net.head = ClassifierHead(24, 10)
        return net

    still = {**fields, "norm": "batch", "dropout": 0.0}  # training is compared, too
    record(
        "vgg",
        {
            "plain": Case("vgg11", fields, "torchvision", functools.partial(torchvision, False)),
            "bn": Case(
                "vgg11_bn",
                still,
                "torchvision",
                functools.partial(torchvision, True),
                [(2, 64, 64, 3), (3, 256, 240, 3)],
            ),
            "timm": Case("vgg11_bn", still, "timm", timm),
        },
        {
            f"vgg{depth}{end}": ("torchvision", getattr(tv, f"vgg{depth}{end}"))
            for depth in (11, 13, 16, 19)
            for end in ("", "_bn")
        },
    )
