"""The peer's worker: PyTorch, channels_last, all cores or the GPU. Imports nothing of this project but `serve`.

    python -m experiments.bench.peer '{"case": "steps", "model": "resnet20", "batch": 128, "size": 32}'
"""

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
    """A residual block: two 3x3 convolutions with shortcut A, or a bottleneck with shortcut B, as `models.resnet`."""

    def __init__(self, before: int, inner: int, stride: int, bottleneck: bool):
        super().__init__()
        after = inner * 4 if bottleneck else inner
        shapes = [(before, inner, 1, 1), (inner, inner, 3, stride), (inner, after, 1, 1)] if bottleneck else [
            (before, inner, 3, stride), (inner, after, 3, 1)]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, k, s, k // 2, bias=False) for a, b, k, s in shapes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b, _, _ in shapes)
        self.stride, self.more, self.projection = stride, after - before, None
        if bottleneck and (stride > 1 or self.more):
            self.projection = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x):
        y = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True), 1):
            y = norm(conv(y))
            y = F.relu(y, inplace=True) if i < len(self.convs) else y
        if self.projection is not None:
            x = self.projection(x)
        elif self.stride > 1 or self.more:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return F.relu(y.add_(x), inplace=True)


def resnet(name: str) -> nn.Module:
    """ResNet-20 for CIFAR, or ResNet-50: timm's where timm is installed, else the same layers from here."""
    if name != "resnet20":
        try:
            import timm

            return timm.create_model(name)
        except (ImportError, RuntimeError):  # timm needs a torchvision that fits this build of PyTorch
            pass
    cifar = name == "resnet20"
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(True)] if cifar else [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(True), nn.MaxPool2d(3, 2, 1)]
    stages = ((16, 3), (32, 3), (64, 3)) if cifar else ((64, 3), (128, 4), (256, 6), (512, 3))
    blocks, channels = [], stages[0][0]
    for stage, (inner, count) in enumerate(stages):
        for block in range(count):
            blocks.append(Block(channels, inner, 2 if stage and not block else 1, bottleneck=not cifar))
            channels = inner if cifar else inner * 4
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10 if cifar else 1000)]
    return nn.Sequential(*stem, *blocks, *head)


def steps(case: dict) -> None:
    """Training step (SGD with momentum and decay) and forward pass on one fixed batch."""
    torch.set_num_threads(os.cpu_count())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = resnet(case["model"]).to(device, memory_format=torch.channels_last).train()
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
    {"steps": steps, "data": data}[asked["case"]](asked)
