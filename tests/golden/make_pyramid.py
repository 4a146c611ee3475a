"""Records timm's feature_info, channels and reductions of the maps of its networks, in pyramid.json.

    PYTHONPATH=.:../shared/tools VENV/bin/python -m tests.golden.make_pyramid

The names are ours; timm's are beside them.
"""

import json
from pathlib import Path

NAMES = {
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "wide_resnet50_2": "wide_resnet50_2",
    "resnext50_32x4d": "resnext50_32x4d",
    "resnetv2_50x1_bit": "resnetv2_50x1_bit",
    "vgg11": "vgg11",
    "vgg16_bn": "vgg16_bn",
    "densenet121": "densenet121",
    "densenet161": "densenet161",
    "mobilenet_v1": "mobilenetv1_100",
    "mobilenet_v2": "mobilenetv2_100",
    "mobilenet_v2_140": "mobilenetv2_140",
    "efficientnet_lite0": "tf_efficientnet_lite0",
    "convnext_tiny": "convnext_tiny",
    "swin_t": "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16": "vit_tiny_patch16_224",
}

if __name__ == "__main__":
    import torchvision_cpu  # noqa: F401  lets timm be imported beside the CPU build of PyTorch

    import timm  # isort: skip

    infos = {
        ours: [
            [info["reduction"], info["num_chs"]]
            for info in timm.create_model(theirs, features_only=True).feature_info.get_dicts()
        ]
        for ours, theirs in NAMES.items()
    }
    content = ",\n".join(f'  "{name}": {json.dumps(info)}' for name, info in infos.items())
    Path(__file__).with_name("pyramid.json").write_text(f"{{\n{content}\n}}\n")
