"""The peer's worker: PyTorch, channels_last, on all cores or the GPU.

It imports nothing of this project but `serve`, because it runs in its own environment.

    python -m experiments.bench.peer '{"case": "steps", "model": "resnet20", "batch": 128, "size": 32}'
"""

# This module runs in an environment with PyTorch, which ours may lack:
# pyright: reportMissingImports=false

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.bench.worker_side import WARM, Served, after_warm_up, begin, work

if __name__ == "__main__":
    begin(__doc__, "torch")  # before the imports that need it

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Block(nn.Module):
    """A residual block with shortcut A, as in `models.resnet`."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(a, after, 3, s, 1, bias=False) for a, s in ((before, stride), (after, 1)))
        self.norms = nn.ModuleList(nn.BatchNorm2d(after) for _ in range(2))
        self.stride, self.more = stride, after - before

    def forward(self, x):
        y = F.relu(self.norms[0](self.convs[0](x)), inplace=True)
        y = self.norms[1](self.convs[1](y))
        if self.stride > 1 or self.more:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return F.relu(y.add_(x), inplace=True)


def resnet20() -> nn.Module:
    """The ResNet for CIFAR of He 2016, section 4.2."""
    blocks, before = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(True)], 16
    for stage, after in enumerate((16, 32, 64)):
        for block in range(3):
            blocks.append(Block(before, after, 2 if stage and not block else 1))
            before = after
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def network(case: dict) -> nn.Module:
    """Returns timm's network for the case's `create_model` arguments, or our ResNet-20 if there are none."""
    if "timm" not in case:
        return resnet20()
    with contextlib.suppress(ImportError):
        import torchvision_cpu  # noqa: F401
    import timm

    return timm.create_model(**case["timm"])


def prepare_torch() -> None:
    """Uses all cores; lets cuDNN try its algorithms; computes float32 products in TF32 on a GPU, like XLA."""
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")


def finish() -> None:
    """Waits for the device."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def device_peak() -> int | None:
    """Returns the peak bytes of tensors; None on a CPU."""
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None


def autocast(case: dict) -> torch.autocast:
    """Returns the context of a forward pass in the case's precision."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=case.get("precision") == "bfloat16")


def compiled(function: Callable[..., Any], case: dict) -> Callable[..., Any]:
    """Applies torch.compile in the case's mode; returns the function unchanged if the case names none."""
    return torch.compile(function, mode=case["compile"]) if case.get("compile") else function


def steps(case: dict) -> Served:
    """Prepares a training step (SGD with momentum and decay, fused) and a forward pass on one fixed batch."""
    net = network(case).to(DEVICE, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=1e-4, fused=True)
    call = compiled(net, case)
    x = torch.randn(case["batch"], 3, case["size"], case["size"], device=DEVICE).to(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (case["batch"],), device=DEVICE)

    def step():
        for _ in range(case.get("repeat", 1)):
            optimizer.zero_grad(set_to_none=True)
            with autocast(case):
                loss = F.cross_entropy(call(x), y)
            loss.backward()
            optimizer.step()
        finish()

    def forward():
        net.eval()
        with torch.no_grad(), autocast(case):
            for _ in range(case.get("repeat", 1)):
                call(x)
        net.train()
        finish()

    all_calls = {"step": step, "forward": forward}
    calls = {name: all_calls[name] for name in case.get("calls", all_calls)}
    for _ in range(3):
        for one in calls.values():
            one()
    return Served(calls, {"params": sum(p.numel() for p in net.parameters())}, device_peak)


def matmul(case: dict) -> Served:
    """Prepares products of square matrices, one call per size."""
    dtype = getattr(torch, case["precision"])

    def products(size):
        a, b = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))

        def call():
            for _ in range(case["repeat"]):
                a @ b
            finish()

        call()
        return call

    return Served({str(size): products(size) for size in case["sizes"]})


def cifar(case: dict) -> Served:
    """Prepares `steps` steps of ResNet-20 as in configs/cifar10.py: padded crop, flip, normalization, SGD.

    "resident" keeps the images on the device, and crops and flips whole batches there. Otherwise torch's DataLoader
    reads them with torchvision's transforms.
    """
    arrays = np.load(case["arrays"])
    images, labels = arrays["train_image"], torch.from_numpy(arrays["train_label"]).long()
    batches = _resident if case["resident"] else _loaded
    batches = batches(images, labels, case)
    net = resnet20().to(DEVICE, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=1e-4, fused=True)
    call = compiled(net, case)
    totals = torch.zeros(2, device=DEVICE)  # loss and correct predictions, read at the end of a call

    def take(count):
        for _ in range(count):
            x, y = next(batches)
            optimizer.zero_grad(set_to_none=True)
            with autocast(case):
                logits = call(x)
                loss = F.cross_entropy(logits, y)
            loss.backward()
            optimizer.step()
            totals.add_(torch.stack((loss.detach().float(), (logits.argmax(1) == y).float().mean())))
        totals.tolist()

    take(3)
    return Served({"step": lambda: take(case["steps"])}, device_peak=device_peak)


_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def _resident(images, labels, case):
    """Yields endless batches from tensors on the device."""
    mean, std = (torch.tensor(v, device=DEVICE).view(1, 3, 1, 1) * 255 for v in (_MEAN, _STD))
    pixels = F.pad(torch.from_numpy(images).to(DEVICE), (0, 0, 4, 4, 4, 4))
    labels, offsets = labels.to(DEVICE), torch.arange(32, device=DEVICE)

    def crop_and_flip(index):
        top, left = torch.randint(0, 9, (2, len(index), 1), device=DEVICE)
        columns = left + offsets
        columns = torch.where(torch.rand(len(index), 1, device=DEVICE) < 0.5, columns, columns.flip(1))
        x = pixels[index[:, None, None], (top + offsets)[:, :, None], columns[:, None, :]]
        return (x.permute(0, 3, 1, 2).float() - mean) / std, labels[index]  # channels last in memory

    batch_of = compiled(crop_and_flip, case)
    while True:
        order = torch.randperm(len(labels), device=DEVICE)
        for start in range(0, len(order) - case["batch"] + 1, case["batch"]):
            yield batch_of(order[start : start + case["batch"]])


def _loaded(images, labels, case):
    """Yields endless batches from torch's DataLoader."""
    with contextlib.suppress(ImportError):
        import torchvision_cpu  # noqa: F401
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, 4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(_MEAN, _STD),
        ]
    )

    class Images(Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            return transform(Image.fromarray(images[index])), labels[index]

    workers = case["workers"]
    loader = DataLoader(
        Images(),
        case["batch"],
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=DEVICE == "cuda",
    )
    while True:
        for x, y in loader:
            yield (x.to(DEVICE, non_blocking=True, memory_format=torch.channels_last), y.to(DEVICE, non_blocking=True))


def explain(case: dict) -> Served:
    """Prepares forward pass and pytorch-grad-cam's Grad-CAM of a batch, and captum's occlusion of its first image."""
    with contextlib.suppress(ImportError):
        import torchvision_cpu  # noqa: F401
    from captum.attr import Occlusion
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    net = network(case).to(DEVICE, memory_format=torch.channels_last).eval()
    x = torch.randn(case["batch"], 3, case["size"], case["size"], device=DEVICE).to(memory_format=torch.channels_last)
    cam = GradCAM(net, [net[-4] if case["model"] == "resnet20" else net.layer4[-1]])
    sweep, square = Occlusion(net), (3, case["square"], case["square"])

    def forward():
        with torch.no_grad():
            net(x)
        finish()

    def grad_cam():
        cam(x, [ClassifierOutputTarget(0)] * len(x))
        finish()

    def occlusion():
        with torch.no_grad():
            sweep.attribute(
                x[:1],
                square,
                strides=(3, case["stride"], case["stride"]),
                target=0,
                perturbations_per_eval=case["batch"],
            )
        finish()

    calls = {"forward": forward, "grad_cam": grad_cam, "occlusion": occlusion}
    for call in calls.values():
        call()
    return Served(calls, device_peak=device_peak)


def data(case: dict) -> Served:
    """Prepares decoding a folder of JPEGs, random-resized crops and batches; timed from the tenth batch on.

    It uses torch's DataLoader with torchvision's transforms of Pillow's images.
    """
    with contextlib.suppress(ImportError):
        import torchvision_cpu  # noqa: F401
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    files = sorted(Path(case["folder"]).rglob("*.jpg"))
    transform = transforms.Compose([transforms.RandomResizedCrop(case["size"]), transforms.PILToTensor()])

    class Images(Dataset):
        def __len__(self):
            return (WARM + case["batches"]) * case["batch"]

        def __getitem__(self, index):
            with Image.open(files[index % len(files)]) as opened:
                return transform(opened.convert("RGB"))

    workers = case["workers"]
    if not workers:
        torch.set_num_threads(1)  # Pillow decodes in the thread that requests the batch
    loader = DataLoader(Images(), case["batch"], num_workers=workers, persistent_workers=workers > 0)

    def one_pass():
        return after_warm_up(loader)

    one_pass()
    return Served({"pass": one_pass})


if __name__ == "__main__":
    prepare_torch()
    work({"steps": steps, "matmul": matmul, "cifar": cifar, "explain": explain, "data": data})
