"""Records captum's Occlusion of a torchvision VGG with drawn weights in occlusion.npz. Needs PyTorch and captum 0.9.

PYTHONPATH=../shared/tools ../venv-torch/bin/python -m tests.golden.make_occlusion
"""

import json
import pathlib

import numpy as np

import models
from models import weights
from tests.golden import drawn, parity  # noqa: F401  (which lets torchvision be imported)

FIELDS = {"stage_sizes": (1, 2, 1, 1, 2), "width": 8, "classifier": (32, 24), "num_classes": 10}
SIZE, SHAPE, TARGET, COLOR = 8, (2, 32, 32, 3), [3, 7], 0.3
STRIDES = (8, 4)

if __name__ == "__main__":
    import torch
    from captum.attr import Occlusion
    from torch.nn import Dropout, Linear, ReLU, Sequential
    from torchvision.models.vgg import VGG, make_layers

    net = VGG(make_layers([8, "M", 16, 16, "M", 32, "M", 64, "M", 64, 64, "M"]), num_classes=10)
    net.classifier = Sequential(
        Linear(64 * 49, 32), ReLU(), Dropout(0), Linear(32, 24), ReLU(), Dropout(0), Linear(24, 10)
    )
    model = models.create("vgg11", **FIELDS)
    state = weights.to_arrays(model, drawn.variables(model), "torchvision")
    net.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in state.items()}, strict=True)
    images = torch.from_numpy(drawn.images("occlusion", SHAPE)).permute(0, 3, 1, 2)
    scores = {}
    for stride in STRIDES:
        with torch.no_grad():
            scores[f"stride{stride}"] = (
                Occlusion(net.eval())
                .attribute(images, (3, SIZE, SIZE), (3, stride, stride), COLOR, TARGET, perturbations_per_eval=4)[:, 0]
                .numpy()
            )
    settings = {"fields": FIELDS, "size": SIZE, "shape": SHAPE, "target": TARGET, "color": COLOR, "strides": STRIDES}
    np.savez_compressed(pathlib.Path(__file__).with_name("occlusion.npz"), occluded=json.dumps(settings), **scores)
