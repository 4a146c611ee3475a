"""The peer's worker: PyTorch, channels_last, all cores or the GPU. Imports nothing of this project but `serve`.

    python -m experiments.bench.peer '{"case": "steps", "model": "resnet20", "batch": 128, "size": 32}'
"""

import contextlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from experiments.bench.serve import WARM, after_warm_up, serve


class Block(nn.Module):
    """A residual block with shortcut A, as `models.resnet`."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(a, after, 3, s, 1, bias=False) for a, s in ((before, stride), (after, 1)))
        self.norms = nn.ModuleList(nn.BatchNorm2d(after) for _ in range(2))
        self.stride, self.more = stride, after - before

    def forward(self, x):
        y = F.relu(self.norms[0](self.convs[0](x)), inplace=True)
        y = self.norms[1](self.convs[1](y))
        if self.stride > 1 or self.more:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return F.relu(y.add_(x), inplace=True)


def resnet20() -> nn.Module:
    """He 2016, section 4.2."""
    blocks, before = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(True)], 16
    for stage, after in enumerate((16, 32, 64)):
        for block in range(3):
            blocks.append(Block(before, after, 2 if stage and not block else 1))
            before = after
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def network(name: str, size: int) -> nn.Module:
    """ResNet-20 from here, the vision transformer from timm, anything else from torchvision."""
    if name == "resnet20":
        return resnet20()
    with contextlib.suppress(ImportError):
        import torchvision_cpu  # noqa: F401
    if name.startswith("vit"):
        import timm

        return timm.create_model(f"{name}_224", img_size=size)
    import torchvision

    return getattr(torchvision.models, name)()


def steps(case: dict) -> None:
    """Training step (SGD with momentum and decay) and forward pass on one fixed batch."""
    torch.set_num_threads(os.cpu_count())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = network(case["model"], case["size"]).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=1e-4)
    call = torch.compile(net) if case.get("compile") else net
    x = torch.randn(case["batch"], 3, case["size"], case["size"], device=device).to(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (case["batch"],), device=device)
    autocast = torch.autocast(device, torch.bfloat16, enabled=case.get("precision") == "bfloat16")
    finish = torch.cuda.synchronize if device == "cuda" else lambda: None

    def step():
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            loss = F.cross_entropy(call(x), y)
        loss.backward()
        optimizer.step()
        finish()

    def forward():
        net.eval()
        with torch.no_grad(), autocast:
            call(x)
        net.train()
        finish()

    for _ in range(2):
        step()
        forward()
    serve({"step": step, "forward": forward})


def explain(case: dict) -> None:
    """Forward pass and pytorch-grad-cam's Grad-CAM of a batch, and captum's occlusion of its first image."""
    with contextlib.suppress(ImportError):
        import torchvision_cpu  # noqa: F401
    from captum.attr import Occlusion
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    torch.set_num_threads(os.cpu_count())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = network(case["model"], case["size"]).to(device, memory_format=torch.channels_last).eval()
    x = torch.randn(case["batch"], 3, case["size"], case["size"], device=device).to(memory_format=torch.channels_last)
    cam = GradCAM(net, [net[-4] if case["model"] == "resnet20" else net.layer4[-1]])
    sweep, square = Occlusion(net), (3, case["square"], case["square"])
    finish = torch.cuda.synchronize if device == "cuda" else lambda: None

    def forward():
        with torch.no_grad():
            net(x)
        finish()

    def grad_cam():
        cam(x, [ClassifierOutputTarget(0)] * len(x))
        finish()

    def occlusion():
        with torch.no_grad():
            sweep.attribute(x[:1], square, strides=(3, case["stride"], case["stride"]), target=0,
                            perturbations_per_eval=case["batch"])
        finish()

    calls = {"forward": forward, "grad_cam": grad_cam, "occlusion": occlusion}
    for call in calls.values():
        call()
    serve(calls)


def data(case: dict) -> None:
    """A folder of JPEGs: decode, random-resized crop, batch, by torch's DataLoader and Pillow; from the tenth batch."""
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    files = sorted(Path(case["folder"]).rglob("*.jpg"))

    class Images(Dataset):
        def __len__(self):
            return (WARM + case["batches"]) * case["batch"]

        def __getitem__(self, index):  # torchvision.transforms.RandomResizedCrop: area 0.08..1, ratio 3/4..4/3
            rng = np.random.default_rng(index)
            with Image.open(files[index % len(files)]) as opened:
                image = opened.convert("RGB")
            width, height = image.size
            area, ratio = width * height * rng.uniform(0.08, 1), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            w, h = min(width, round((area * ratio) ** 0.5)), min(height, round((area / ratio) ** 0.5))
            x, y = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
            size = case["size"]
            return torch.from_numpy(np.array(image.crop((x, y, x + w, y + h)).resize((size, size), Image.BILINEAR)))

    loader = DataLoader(Images(), case["batch"], num_workers=case["workers"], persistent_workers=True)

    def one_pass():
        return after_warm_up(loader)

    one_pass()
    serve({"pass": one_pass})


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    {"steps": steps, "explain": explain, "data": data}[asked["case"]](asked)
