"""Records torchvision's and timm's ConvNeXt in convnext.npz; see parity.py."""

from tests.golden.parity import Case, record

if __name__ == "__main__":
    import timm
    import torchvision.models as tv
    from timm.models.convnext import ConvNeXt as TimmConvNeXt
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    fields = {"num_classes": 10, "stage_sizes": (2, 1, 1, 1), "width": 16}
    setting = [
        CNBlockConfig(16, 32, 2),
        CNBlockConfig(32, 64, 1),
        CNBlockConfig(64, 128, 1),
        CNBlockConfig(128, None, 1),
    ]
    record(
        "convnext",
        {
            "torchvision": Case("convnext_tiny", fields, "torchvision", lambda: ConvNeXt(setting, num_classes=10)),
            "timm": Case(
                "convnext_tiny",
                fields,
                "timm",
                lambda: TimmConvNeXt(num_classes=10, depths=(2, 1, 1, 1), dims=(16, 32, 64, 128)),
            ),
            "unscaled": Case(
                "convnext_tiny",
                {**fields, "stage_sizes": (1, 1, 1, 1), "layer_scale": 0.0, "kernel_size": 5},
                "timm",
                lambda: TimmConvNeXt(
                    num_classes=10, depths=(1, 1, 1, 1), dims=(16, 32, 64, 128), ls_init_value=None, kernel_sizes=5
                ),
            ),
        },
        {
            **{
                name: ("torchvision", getattr(tv, name))
                for name in ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large")
            },
            "convnext_xlarge": ("timm", lambda: timm.create_model("convnext_xlarge")),
        },
    )
