"""Records what captum 0.9 and pytorch-grad-cam 1.5 compute for drawn weights in explain.npz; see parity.py.

  PYTHONPATH=../shared/tools ../venv-torch/bin/python -m tests.golden.make_explain

Install captum and grad-cam by `pip install --no-deps`, then ttach, opencv-python-headless, scikit-learn, matplotlib:
the requirements of the first two would replace the CPU build of PyTorch.

To fit float16, each array is divided by its largest value, which is stored beside it. pytorch-grad-cam scales every map
to [0, 1]; only its resizing of the maps is left out here.
"""

import functools
import json
import pathlib

import numpy as np

import models
from models import weights
from tests.golden import drawn, parity  # noqa: F401  parity lets torchvision be imported

SHAPE, TARGET, STEPS, BASELINE = (2, 32, 32, 3), (3, 7), 16, (0.5, -0.25, 0.1)
FIELDS = {
    "resnet": ("resnet18", {"stage_sizes": (1, 1, 1, 1), "num_classes": 10}, "torchvision"),
    "vgg": (
        "vgg11_bn",
        {"stage_sizes": (1, 2, 1, 1, 2), "width": 8, "classifier": (32, 24), "num_classes": 10},
        "torchvision",
    ),
    "vit": (
        "vit_tiny_patch16",
        {"num_classes": 10, "depth": 2, "width": 32, "heads": 4, "mlp_width": 48, "patch_size": 8, "image_size": 32},
        "timm",
    ),
}
MAPS = {  # our endpoints, and the corresponding module of theirs
    "resnet": {"stage1": "layer1"},
    "vgg": {"stage3/conv1": "features.13"},
    "vit": {"block0": "blocks.0"},
}

if __name__ == "__main__":
    import captum.attr
    import pytorch_grad_cam
    import torch
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    from timm.models.vision_transformer import VisionTransformer
    from torch.nn import Dropout, Linear, ReLU, Sequential
    from torchvision.models.resnet import BasicBlock, ResNet
    from torchvision.models.vgg import VGG, make_layers

    def vgg():
        net = VGG(make_layers([8, "M", 16, 16, "M", 32, "M", 64, "M", 64, 64, "M"], True), num_classes=10)
        net.classifier = Sequential(
            Linear(64 * 49, 32), ReLU(), Dropout(0), Linear(32, 24), ReLU(), Dropout(0), Linear(24, 10)
        )
        return net

    theirs = {
        "resnet": functools.partial(ResNet, BasicBlock, [1, 1, 1, 1], num_classes=10),
        "vgg": vgg,
        "vit": functools.partial(
            VisionTransformer, 32, 8, num_classes=10, embed_dim=32, depth=2, num_heads=4, mlp_ratio=1.5
        ),
    }

    def load(kind):
        name, fields, layout = FIELDS[kind]
        model, net = models.create(name, **fields), theirs[kind]()
        state = weights.to_arrays(model, drawn.variables(model), layout)
        net.load_state_dict({key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in state.items()})
        for module in net.modules():
            if isinstance(module, ReLU):
                module.inplace = False  # both libraries put hooks on these
        return net.eval()

    def unresized(method):
        """Returns one of pytorch-grad-cam's methods that gives maps of the layer's size."""
        return type(method.__name__, (method,), {"get_target_width_height": lambda self, images: None})

    def tokens_as_maps(x):  # without the class token
        return x[:, 1:].reshape(len(x), 4, 4, -1).permute(0, 3, 1, 2)

    arrays = {}

    def keep(key, values):
        values = values.detach().permute(0, 2, 3, 1).numpy() if torch.is_tensor(values) else values
        largest = np.abs(values).max()
        arrays[key], arrays[f"{key}|largest"] = (values / largest).astype(np.float16), np.float32(largest)
        print(key, values.shape, largest)

    for kind in FIELDS:
        x = torch.from_numpy(drawn.images(f"explain {kind}", SHAPE)).permute(0, 3, 1, 2).contiguous()
        classes, target = [ClassifierOutputTarget(c) for c in TARGET], torch.tensor(TARGET)
        for endpoint, layer in MAPS[kind].items():
            for ours, method in (
                ("grad_cam", pytorch_grad_cam.GradCAM),
                ("grad_cam_plus_plus", pytorch_grad_cam.GradCAMPlusPlus),
            ):
                net = load(kind)
                with unresized(method)(
                    net, [net.get_submodule(layer)], reshape_transform=tokens_as_maps if kind == "vit" else None
                ) as explain:
                    keep(f"{kind}|{ours}|{endpoint}", explain(x, classes))
        keep(f"{kind}|saliency", captum.attr.Saliency(load(kind)).attribute(x, target, abs=False))
        if kind == "resnet":
            guided = pytorch_grad_cam.GuidedBackpropReLUModel(load(kind), "cpu")
            keep("resnet|guided_backprop", np.stack([guided(x[i : i + 1], c) for i, c in enumerate(TARGET)]))
        if kind == "vgg":  # captum's rules require modules that are called once
            keep("vgg|guided_backprop", captum.attr.GuidedBackprop(load(kind)).attribute(x, target))
            keep("vgg|deconvnet", captum.attr.Deconvolution(load(kind)).attribute(x, target))
            baseline = torch.tensor(BASELINE)[:, None, None].expand(x.shape)
            keep(
                "vgg|integrated_gradients",
                captum.attr.IntegratedGradients(load(kind)).attribute(
                    x, baseline, target, n_steps=STEPS, method="gausslegendre"
                ),
            )
            net = load(kind)
            endpoint, layer = next(iter(MAPS[kind].items()))
            keep(
                f"vgg|guided_grad_cam|{endpoint}",
                captum.attr.GuidedGradCam(net, net.get_submodule(layer)).attribute(
                    x, target, interpolate_mode="bilinear"
                ),
            )
    np.savez_compressed(
        pathlib.Path(__file__).with_name("explain.npz"),
        explained=json.dumps(
            {"fields": FIELDS, "shape": SHAPE, "target": TARGET, "steps": STEPS, "baseline": BASELINE}
        ),
        **arrays,
    )
