"""Records torchvision's and timm's Swin transformers in swin.npz; see parity.py."""

from tests.golden.parity import Case, record

if __name__ == "__main__":
    import timm
    import torchvision.models as tv
    from timm.models.swin_transformer import SwinTransformer as TimmSwin
    from torchvision.models.swin_transformer import SwinTransformer

    def fields(stage_sizes, heads, window=7):
        return {"num_classes": 10, "stage_sizes": stage_sizes, "heads": heads, "width": 16, "window": window}

    def torchvision(stage_sizes, heads, window=7):
        return lambda: SwinTransformer([4, 4], 16, list(stage_sizes), list(heads), [window, window], num_classes=10)

    def of_timm(height, width):
        return lambda: TimmSwin((height, width), 4, num_classes=10, embed_dim=16, depths=(2, 2), num_heads=(2, 4))

    three, two = ((2, 2, 1), (2, 4, 4)), ((2, 2), (2, 4))
    record(
        "swin",
        {
            # Maps of 16x16, 8x8, 4x4, all padded; 18x22, 9x11 with merging of odd sizes, 5x6; 16x7 shifted along one
            # axis.
            "padded": Case(
                "swin_t",
                fields(*three),
                "torchvision",
                torchvision(*three),
                ((2, 64, 64, 3), (3, 72, 88, 3), (1, 64, 28, 3)),
            ),
            "even": Case(
                "swin_t", fields(*two, 4), "torchvision", torchvision(*two, 4), ((2, 64, 64, 3), (3, 96, 80, 3))
            ),
            # timm shrinks windows to small maps and pads after shifting: no difference where windows divide the maps.
            "timm": Case("swin_t", fields(*two), "timm", of_timm(56, 56), ((2, 56, 56, 3),)),
            "timm_tall": Case("swin_t", fields(*two), "timm", of_timm(112, 56), ((2, 112, 56, 3),)),
        },
        {
            **{name: ("torchvision", getattr(tv, name)) for name in ("swin_t", "swin_s", "swin_b")},
            "swin_l": ("timm", lambda: timm.create_model("swin_large_patch4_window7_224")),
        },
    )
