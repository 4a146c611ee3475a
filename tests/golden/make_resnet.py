"""Records logits and running statistics of torchvision's ResNets with drawn weights, in resnet.npz.

  PYTHONPATH=../shared/tools ../venv-torch/bin/python -m tests.golden.make_resnet
  (torch 2.13 and torchvision 0.28; torchvision_cpu is needed beside a CPU build of torch only)
"""

import contextlib
import pathlib
import re

import numpy as np
import torch

from tests.golden import drawn

with contextlib.suppress(ImportError):
    import torchvision_cpu  # noqa: F401
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

CASES = {
    "resnet18": (BasicBlock, [2, 2, 2, 2], {}),
    "resnet50": (Bottleneck, [3, 4, 6, 3], {}),
    "wide_resnet50_2": (Bottleneck, [1, 1, 1, 1], {"width_per_group": 128}),
    "resnext50_32x4d": (Bottleneck, [1, 1, 1, 1], {"groups": 32, "width_per_group": 4}),
}
SIZES = {"resnet18": ((2, 64, 64, 3), (3, 96, 80, 3)), "resnet50": ((4, 96, 96, 3),)}
NORMS = {
    "stem_norm": "bn1",
    "stage2/block0/downsample_norm": "layer2.0.downsample.1",
    "stage4/block0/norm2": "layer4.0.bn2",
}


def our_path(name: str) -> str:
    """Ours for a name of torchvision's: layer2.0.downsample.1.running_var -> stage2/block0/downsample_norm/var."""
    name = re.sub(r"^conv1\.", "stem_conv.", name)
    name = re.sub(r"^bn1\.", "stem_norm.", name)
    name = re.sub(r"^layer(\d)\.(\d+)\.", r"stage\1.block\2.", name)
    name = name.replace("downsample.0", "downsample_conv").replace("downsample.1", "downsample_norm")
    name = name.replace(".bn", ".norm").replace("running_", "").replace("fc.", "head.")
    is_norm = "norm" in name
    return name.replace("weight", "scale" if is_norm else "kernel").replace(".", "/")


def fill(model: torch.nn.Module) -> None:
    state = model.state_dict()
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        shape = tuple(value.shape)
        if value.ndim == 4:  # ours is HWIO, theirs OIHW
            array = drawn.weight(our_path(name), (*shape[2:], shape[1], shape[0])).transpose(3, 2, 0, 1)
        else:
            array = drawn.weight(our_path(name), shape[::-1]).T
        state[name] = torch.from_numpy(np.ascontiguousarray(array))
    model.load_state_dict(state)


if __name__ == "__main__":
    arrays = {}
    for name, (block, sizes, fields) in CASES.items():
        for shape in SIZES.get(name, ((4, 64, 64, 3),)):
            model = ResNet(block, sizes, num_classes=10, **fields)
            fill(model)
            images = torch.from_numpy(drawn.images(f"{shape}", shape)).permute(0, 3, 1, 2)
            key = f"{name}/{'x'.join(map(str, shape))}"
            with torch.no_grad():
                arrays[f"{key}/eval"] = model.eval()(images).numpy()
                arrays[f"{key}/train"] = model.train()(images).numpy()
            for ours, theirs in NORMS.items():
                layer = model.get_submodule(theirs)
                arrays[f"{key}/{ours}/mean"] = layer.running_mean.numpy()
                arrays[f"{key}/{ours}/var"] = layer.running_var.numpy()
    np.savez_compressed(pathlib.Path(__file__).with_name("resnet.npz"), **arrays)
