"""Records the results of PyTorch's normalization layers in norm.npz.

../venv-torch/bin/python -m tests.golden.make_norm        (any environment with torch and numpy)
"""

import pathlib

import numpy as np
import torch

from tests.golden import drawn

SHAPE = (3, 5, 4, 8)  # N, H, W, C
LAYERS = {
    "batch": torch.nn.BatchNorm2d(8),
    "layer": torch.nn.LayerNorm([8, 5, 4]),
    "instance": torch.nn.InstanceNorm2d(8, affine=True),
    "group:4": torch.nn.GroupNorm(4, 8),
    "group:1": torch.nn.GroupNorm(1, 8),
    "channel": torch.nn.LayerNorm(8),
}


def run(name: str, layer: torch.nn.Module) -> dict[str, np.ndarray]:
    channels_last = name == "channel"
    scale, bias = (drawn.weight(f"norm/{kind}", (8,)) for kind in ("scale", "bias"))
    with torch.no_grad():
        for parameter, value in ((layer.weight, scale), (layer.bias, bias)):
            value = value[:, None, None] if parameter.ndim == 3 else value
            parameter.copy_(torch.from_numpy(value).expand(parameter.shape))

    def ours(x):
        return x.detach().numpy() if channels_last else x.detach().permute(0, 2, 3, 1).numpy()

    recorded = {}
    for i in (1, 2):  # two training steps
        x = torch.from_numpy(drawn.images(f"norm/x{i}", SHAPE) + i)
        cotangent = torch.from_numpy(drawn.images(f"norm/dy{i}", SHAPE))
        if not channels_last:
            x, cotangent = x.permute(0, 3, 1, 2), cotangent.permute(0, 3, 1, 2)
        x.requires_grad_()
        layer.zero_grad()
        y = layer(x)
        y.backward(cotangent)
        recorded |= {f"y{i}": ours(y), f"dx{i}": ours(x.grad)}
        for kind, gradient in (("dscale", layer.weight.grad), ("dbias", layer.bias.grad)):
            recorded[f"{kind}{i}"] = (gradient.sum((1, 2)) if gradient.ndim == 3 else gradient).numpy().copy()
    if name == "batch":
        layer.eval()
        recorded |= {"mean": layer.running_mean.numpy(), "var": layer.running_var.numpy(), "y_eval": ours(layer(x))}
    return {f"{name}/{key}": value for key, value in recorded.items()}


if __name__ == "__main__":
    arrays = {}
    for name, layer in LAYERS.items():
        arrays |= run(name, layer)
    np.savez_compressed(pathlib.Path(__file__).with_name("norm.npz"), **arrays)
