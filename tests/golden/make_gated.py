"""Records the outputs and decisions of github.com/andreasveit/convnet-aig in gated.npz.

Needs torch and a checkout of that repository:

  ../venv-torch/bin/python -m tests.golden.make_gated --reference=../convnet-aig
"""

import argparse
import json
import pathlib
import sys

import numpy as np

import models
from models.weights.layouts import DENSE_AS_CONV, Layout, flatten
from tests.golden import drawn

NETWORK = ("convnet_aig38", {"stage_sizes": (2, 2, 2)})
_BLOCK = r"stage(\d)/block(\d+)/"
LAYOUT = Layout(
    rules=[
        ("stem_conv", "conv1"),
        ("stem_norm", "bn1"),
        ("head", "linear"),
        (rf"{_BLOCK}conv(\d)", r"layer\1.\2.conv\3"),
        (rf"{_BLOCK}norm(\d)", r"layer\1.\2.bn\3"),
        (rf"{_BLOCK}downsample_conv", r"layer\1.\2.shortcut.0"),
        (rf"{_BLOCK}downsample_norm", r"layer\1.\2.shortcut.1"),
        (rf"{_BLOCK}gate/dense(\d)", r"layer\1.\2.fc\3", DENSE_AS_CONV),
        (rf"{_BLOCK}gate/norm", r"layer\1.\2.fc1bn"),
    ]
)


def images() -> np.ndarray:
    """Returns images of different colors, because gates see spatial means."""
    return drawn.images("gated", (24, 32, 32, 3)) + 2 * drawn.images("gated colors", (24, 1, 1, 3))


if __name__ == "__main__":
    import torch

    parser = argparse.ArgumentParser()
    parser.add_argument("--reference", type=pathlib.Path, required=True)
    sys.path.insert(0, str(parser.parse_args().reference))

    class Squeezed(torch.nn.BatchNorm1d):
        """A batch norm that accepts [N, C, 1, 1], which the current one refuses."""

        def forward(self, x):
            return super().forward(x[:, :, 0, 0])[:, :, None, None]

    torch.nn.BatchNorm1d = Squeezed
    import convnet_aig
    import gumbelmodule

    margins = []

    def without_noise(self, logits):
        """Returns the larger logit in place of a sample."""
        margins.append((logits[:, 1] - logits[:, 0])[:, 0, 0].numpy())
        return torch.zeros_like(logits)

    gumbelmodule.GumbleSoftmax.sample_gumbel_like = without_noise
    theirs = convnet_aig.ResNet_cifar(convnet_aig.BasicBlock, list(NETWORK[1]["stage_sizes"])).eval()
    arrays = {}
    for path, array in flatten(drawn.variables(models.create(NETWORK[0], **NETWORK[1]))).items():
        name, conversion = LAYOUT.place(path)
        arrays[name] = torch.from_numpy(np.ascontiguousarray(conversion.out(array)))
    arrays |= {name: torch.from_numpy(array) for name, array in LAYOUT.extra(list(arrays)).items()}
    theirs.load_state_dict(arrays, strict=True)
    with torch.no_grad():
        logits, gates = theirs(torch.from_numpy(images()).permute(0, 3, 1, 2))
    gates = np.stack([gate[:, 0, 0].numpy().round().astype(np.int8) for gate in gates], 1)  # [N, blocks]
    margins = np.abs(np.stack(margins, 1))
    print("open", gates.mean(0), "smallest margin", margins.min(), "logits", np.abs(logits.numpy()).max())
    if margins.min() < 2e-3 or not 0 < gates.mean() < 1 or (gates == gates[:1]).all():
        raise SystemExit("gates that are always the same, or too close to both: draw others")
    params = sum(p.numel() for p in convnet_aig.ResNet110_cifar().parameters())
    np.savez_compressed(
        pathlib.Path(__file__).with_name("gated.npz"),
        logits=logits.numpy(),
        gates=gates,
        margin=margins.min(),
        resnet110_params=params,
        network=json.dumps(NETWORK),
    )
