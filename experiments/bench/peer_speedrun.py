"""The recipe of `configs/cifar10.py:speedrun` in PyTorch, on the same images. Needs PyTorch.

    python -m experiments.bench.peer_speedrun --images=cifar10.npz --epochs=9.9 --width=64

The images are an .npz with train_image, test_image uint8 [N, 32, 32, 3], train_label, test_label, as for
--config.data.source=arrays:cifar10.npz. A GPU computes in bfloat16, a CPU in float32. Prints one line of JSON:
accuracy (averaged over six views), accuracy_one_view, training_seconds, steps, images, device. The time covers the
steps alone, as in a run's summary.json; the published time includes the whitening.

It imports nothing of this project but `serve`, because it runs in its own environment.

Based on Jordan 2024, arXiv 2404.00498 (airbench94), with the differences that the config names.
"""

# This module runs in an environment with PyTorch, which ours may lack:
# pyright: reportMissingImports=false

import argparse
import json
import time

from experiments.bench.worker_side import begin

if __name__ == "__main__":
    begin(__doc__, "torch")  # before the imports that need it

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Scale(nn.Module):
    """Multiplication by a number."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


class Stage(nn.Module):
    """Two convolutions; the map is pooled after the first."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after, eps=1e-12, momentum=0.4)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after, eps=1e-12, momentum=0.4)
        for norm in (self.norm1, self.norm2):
            norm.weight.requires_grad = False
        for conv in (self.conv1, self.conv2):
            nn.init.dirac_(conv.weight.data[: conv.weight.shape[1]])

    def forward(self, x):
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


def network(width: int = 64) -> nn.Sequential:
    """The network of airbench94.py, with its names of parts."""
    net = nn.Sequential(
        nn.Conv2d(3, 24, 2),
        nn.GELU(),
        Stage(24, width),
        Stage(width, 4 * width),
        Stage(4 * width, 4 * width),
        nn.MaxPool2d(3),
        nn.Flatten(),
        nn.Linear(4 * width, 10, bias=False),
        Scale(1 / 9),
    )
    net[0].weight.requires_grad = False
    nn.init.zeros_(net[0].bias)
    return net


def whiten(conv: nn.Conv2d, images: torch.Tensor) -> None:
    """Returns the kernel of `conv`: eigenvectors of the second moments of patches of normalized images [N, C, H, W]."""
    size = conv.kernel_size[0]
    patches = images.unfold(2, size, 1).unfold(3, size, 1).transpose(1, 3).reshape(-1, images.shape[1] * size**2)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    kernel = (vectors / torch.sqrt(values + 5e-4)).T.flip(0).reshape(-1, images.shape[1], size, size)
    conv.weight.data[:] = torch.cat((kernel, -kernel))


def optimizer(net: nn.Module, batch: int) -> torch.optim.Optimizer:
    """SGD on summed losses; all parameters decay alike, biases of norms learn 64 times as fast."""
    scale = 1024 * (1 + 1 / (1 - 0.85))
    rate, decay = 11.5 / scale, 0.0153 * batch / scale
    groups = {rate: [], 64 * rate: []}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            groups[64 * rate if "norm" in name else rate].append(parameter)
    return torch.optim.SGD(
        [{"params": group, "lr": lr, "weight_decay": decay / lr} for lr, group in groups.items()],
        lr=rate,
        momentum=0.85,
        nesterov=True,
    )


def crop(images: torch.Tensor, size: int = 32) -> torch.Tensor:
    """Crops each of the padded images [N, C, H, W] at random."""
    count, _, height, width = images.shape
    top = torch.randint(height - size + 1, (count, 1), device=images.device)
    left = torch.randint(width - size + 1, (count, 1), device=images.device)
    rows = top + torch.arange(size, device=images.device)  # [N, size]
    columns = left + torch.arange(size, device=images.device)
    number = torch.arange(count, device=images.device)[:, None, None]
    return images[number, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def logits(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Averages logits over six views: the image (half), two shifts by a pixel (a quarter each), and all mirrored."""

    def mirrored(x):
        return 0.5 * net(x) + 0.5 * net(x.flip(-1))

    padded = F.pad(images, (1,) * 4, "reflect")
    shifted = [mirrored(padded[:, :, i : i + 32, i : i + 32]) for i in (0, 2)]
    return 0.5 * mirrored(images) + 0.25 * shifted[0] + 0.25 * shifted[1]


def main() -> None:
    """Trains once, evaluates, and prints the result."""
    parser = argparse.ArgumentParser()
    for name, default in (("images", "cifar10.npz"), ("epochs", 9.9), ("width", 64), ("batch", 1024), ("seed", 0)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="default: depends on the device")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.backends.cudnn.benchmark = True
    gpu = torch.cuda.is_available()
    device, finish = ("cuda", torch.cuda.synchronize) if gpu else ("cpu", lambda: None)
    precision = args.precision or ("bfloat16" if gpu else "float32")
    autocast = torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")
    with np.load(args.images) as arrays:
        data = {name: torch.from_numpy(arrays[name]).to(device) for name in arrays.files}
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD))
    images, test = (
        ((data[f"{split}_image"].permute(0, 3, 1, 2).float() / 255 - mean) / std).contiguous(
            memory_format=torch.channels_last
        )
        for split in ("train", "test")
    )
    labels, count = data["train_label"].long(), len(images)
    net = network(args.width).to(device, memory_format=torch.channels_last).train()
    call = torch.compile(net) if args.compile else net
    whiten(net[0], images[:5000])
    for trained in (
        False,
        True,
    ):  # compiles, and tries cuDNN's algorithms, in both states: later the stem's bias is frozen
        net[0].bias.requires_grad = trained
        with autocast:
            call(images[: args.batch]).sum().backward()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    net.zero_grad(set_to_none=True)
    finish()
    began = time.perf_counter()
    steps = round(args.epochs * count / args.batch)
    begin, peak = round(0.303 * steps), round(0.23 * steps)
    sgd = optimizer(net, args.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(sgd, lambda t: float(np.interp(t, (0, peak, steps), (0.2, 1, 0.07))))
    flip = torch.rand(count, device=device) < 0.5
    slow, queue, epoch = None, torch.empty(0, dtype=torch.long, device=device), -1
    for step in range(1, steps + 1):
        take, need = [], args.batch
        while need:  # a batch may span two epochs
            if not len(queue):
                queue, epoch = torch.randperm(count, device=device), epoch + 1
            take.append((queue[:need], epoch % 2))
            need, queue = need - len(queue[:need]), queue[need:]
        index = torch.cat([part for part, _ in take])
        mirrored = torch.cat([flip[part] ^ bool(odd) for part, odd in take])
        x = images[index]
        x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
        x = crop(F.pad(x, (2,) * 4, "reflect")).contiguous(memory_format=torch.channels_last)
        net[0].bias.requires_grad = step <= begin
        with autocast:
            outputs = call(x)
        F.cross_entropy(outputs.float(), labels[index], label_smoothing=0.2, reduction="sum").backward()
        sgd.step()
        sgd.zero_grad(set_to_none=True)
        schedule.step()
        if step > begin and step % 5 == 0:
            state = {name: value for name, value in net.state_dict().items() if value.is_floating_point()}
            if slow is None:
                slow = {name: value.clone() for name, value in state.items()}
            else:
                rate = 0.95**5 * (step / steps) ** 3
                for name, value in state.items():
                    slow[name].lerp_(value, 1 - rate)
                    value.copy_(slow[name])
    if slow:
        net.load_state_dict(slow, strict=False)
    finish()
    seconds = time.perf_counter() - began
    net.eval()
    with torch.no_grad(), autocast:
        parts = [(logits(net, part), net(part)) for part in test.split(2000)]
    right = [
        float((torch.cat(outputs).argmax(1) == data["test_label"]).float().mean())
        for outputs in zip(*parts, strict=True)
    ]
    print(
        json.dumps(
            {
                "accuracy": right[0],
                "accuracy_one_view": right[1],
                "training_seconds": seconds,
                "steps": steps,
                "images": count,
                "device": torch.cuda.get_device_name() if gpu else "cpu",
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
