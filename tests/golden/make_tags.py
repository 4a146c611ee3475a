"""Writes models/weights/tags.csv and imagenet1k.txt from the metadata of timm and torchvision. Needs PyTorch.

  PYTHONPATH=../shared/tools ../venv-torch/bin/python -m tests.golden.make_tags

See parity.py for the environment. Every architecture in models/weights/architectures.py is compared with timm's, array
by array. Accuracies are torchvision's own (of the same file, also where timm has it), and those of timm's
results-imagenet.csv that are in PUBLISHED; every other cell is empty.
"""

import contextlib
import csv
import json
import pathlib
from typing import Any

import models
from models import weights
from models.weights import architectures, torch_names
from tests.golden.parity import shapes_of

with contextlib.suppress(ImportError):
    import torchvision_cpu  # noqa: F401

FOLDER = pathlib.Path(weights.__file__).parent
COLUMNS = (
    "tag", "network", "fields", "classes", "license", "top1", "by",
    "size", "mean", "std", "crop", "share", "interpolation", "file",
)  # fmt: skip
TIMM_TOP1 = {
    "resnet18.tv_in1k": 69.75, "resnet34.tv_in1k": 73.30, "resnet50.tv_in1k": 76.16, "resnet101.tv_in1k": 77.40,
    "densenet121.tv_in1k": 74.75, "densenet169.tv_in1k": 75.92, "densenet201.tv_in1k": 77.28,
    "mobilenetv2_100.ra_in1k": 72.91, "mobilenetv2_140.ra_in1k": 76.53,
    "convnext_tiny.fb_in1k": 82.07, "convnext_small.fb_in1k": 83.14, "convnext_base.fb_in1k": 83.84,
    "convnext_large.fb_in1k": 84.30,
    "swin_tiny_patch4_window7_224.ms_in1k": 81.39, "swin_small_patch4_window7_224.ms_in1k": 83.23,
    "swin_base_patch4_window7_224.ms_in1k": 83.60,
    "deit_tiny_patch16_224.fb_in1k": 72.19, "deit_small_patch16_224.fb_in1k": 79.86,
    "deit_base_patch16_224.fb_in1k": 81.98,
    "resnetv2_50x1_bit.goog_in21k_ft_in1k": 80.39, "resnetv2_50x3_bit.goog_in21k_ft_in1k": 83.98,
    "resnetv2_101x1_bit.goog_in21k_ft_in1k": 82.33, "resnetv2_101x3_bit.goog_in21k_ft_in1k": 84.43,
    "resnetv2_152x2_bit.goog_in21k_ft_in1k": 84.47, "resnetv2_152x4_bit.goog_in21k_ft_in1k": 84.94,
}  # fmt: skip
SWAG = "https://github.com/facebookresearch/SWAG/blob/main/LICENSE"
LICENSES = {SWAG: "cc-by-nc-4.0"}


def spaced(numbers: Any) -> str:
    return " ".join(f"{number:g}" if number == round(number, 6) else repr(number) for number in numbers)


def compare(architecture: str) -> None:
    """Raises SystemExit unless timm's network has the arrays of ours."""
    import timm
    import torch

    with torch.device("meta"):
        theirs = timm.create_model(architecture, num_classes=10).state_dict()
    network, fields = architectures.TIMM[architecture]
    size = timm.get_pretrained_cfg(architecture).input_size[1]
    fields = {"num_classes": 10, "image_size": size, **fields}
    ours = shapes_of(models.create(network, **fields), "timm")

    def without_ones(shapes):  # convolutions of 1 x 1 for dense layers
        return {name: tuple(length for length in shape if length != 1) for name, shape in shapes.items()}

    if without_ones(ours) != without_ones({name: array.shape for name, array in theirs.items()}):
        raise SystemExit(f"{architecture} is not {network} with {fields}")


def of_timm(top1: dict[str, float]) -> list[dict[str, Any]]:
    """Returns a row for each tag of timm on the hub; `top1` is torchvision's accuracy by URL."""
    import timm

    rows = []
    for name in timm.list_models(pretrained=True):
        architecture = name.partition(".")[0]
        config = timm.get_pretrained_cfg(name)
        # 640 classes are the features of CLIP, which are not logits
        if architecture not in architectures.TIMM or not config.hf_hub_id or config.num_classes == 640:
            continue
        network, fields = architectures.TIMM[architecture]
        known = TIMM_TOP1.get(name, top1.get(config.url, ""))
        rows.append(
            {
                "tag": f"hf:{config.hf_hub_id}",
                "network": network,
                "fields": json.dumps(fields) if fields else "",
                "classes": config.num_classes,
                "license": config.license or "",
                "top1": known,
                "by": ("timm" if name in TIMM_TOP1 else "torchvision") if known else "",
                "size": config.input_size[1],
                "mean": spaced(config.mean),
                "std": spaced(config.std),
                "crop": "whole" if config.crop_mode == "squash" else "resize",
                "share": config.crop_pct,
                "interpolation": config.interpolation,
            }
        )
        if config.url.endswith(".npz"):
            rows.append({**rows[-1], "tag": config.url})
    return rows


def of_torchvision() -> list[dict[str, Any]]:
    """Returns a row for each of torchvision's weights of networks that are ours."""
    import torchvision.models as tv

    rows, ours = [], {theirs: name for name, theirs in torch_names.TORCHVISION.items()}
    for theirs in tv.list_models(module=tv):
        network = ours.get(theirs, theirs)
        if network not in models.list_models() or "torchvision" not in weights.layouts(models.create(network)):
            continue
        for entry in tv.get_model_weights(theirs):
            if entry.meta["categories"] is None:  # vgg16/IMAGENET1K_FEATURES, which has no head
                continue
            crop = entry.transforms.keywords
            size, resized = crop["crop_size"], crop.get("resize_size", 256)
            rows.append(
                {
                    "tag": f"torchvision:{theirs}/{entry.name}",
                    "network": network,
                    "classes": len(entry.meta["categories"]),
                    "license": LICENSES[entry.meta["license"]] if "license" in entry.meta else "",
                    "top1": entry.meta["_metrics"]["ImageNet-1K"]["acc@1"],
                    "by": "torchvision",
                    "size": size,
                    "mean": spaced(crop.get("mean", (0.485, 0.456, 0.406))),
                    "std": spaced(crop.get("std", (0.229, 0.224, 0.225))),
                    "crop": "resize",
                    "share": f"{size}/{resized}",
                    "interpolation": crop["interpolation"].value if "interpolation" in crop else "bilinear",
                    "file": entry.url,
                }
            )
    return rows


if __name__ == "__main__":
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    for name in architectures.TIMM:
        compare(name)
    torchvision = of_torchvision()
    rows = of_timm({row["file"]: row["top1"] for row in torchvision}) + torchvision
    with (FOLDER / "tags.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["tag"]))
    (FOLDER / "imagenet1k.txt").write_text("".join(f"{name}\n" for name in _IMAGENET_CATEGORIES))
    print(f"{len(rows)} tags")
