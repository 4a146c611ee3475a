"""Records the PyTorch network of airbench94 (see parity.py) and two steps of its optimizer in airbench.npz."""

import functools
import pathlib

import numpy as np

from tests.golden import drawn
from tests.golden.parity import Case, record

FIELDS = {"width": 4}
STEPS, BATCH = 2, 8

if __name__ == "__main__":
    import torch
    import torch.nn.functional as F

    import models
    from experiments.bench import peer_speedrun
    from models import weights
    from models.weights.layouts import flatten

    record(
        "airbench",
        {
            "airbench94": Case(
                "airbench94", FIELDS, "airbench", functools.partial(peer_speedrun.network, 4), [(8, 32, 32, 3)]
            )
        },
        {"airbench94": ("airbench", peer_speedrun.network)},
    )

    model = models.create("airbench94", **FIELDS)
    net = peer_speedrun.network(4).train()
    net.load_state_dict(
        {
            name: torch.from_numpy(np.ascontiguousarray(array))
            for name, array in weights.to_arrays(model, drawn.variables(model), "airbench").items()
        }
    )
    sgd = peer_speedrun.optimizer(net, BATCH)
    for step in range(STEPS):
        images = torch.from_numpy(drawn.images(f"step{step}", (BATCH, 32, 32, 3))).permute(0, 3, 1, 2)
        sgd.zero_grad()
        F.cross_entropy(net(images), torch.arange(BATCH), label_smoothing=0.2, reduction="sum").backward()
        sgd.step()
    after = {name: value.numpy() for name, value in net.state_dict().items()}
    path = pathlib.Path(__file__).with_name("airbench.npz")
    with np.load(path) as stored:
        arrays = dict(stored)
    after_steps = flatten(weights.from_arrays(model, after, "airbench"))
    np.savez_compressed(path, **arrays, **{f"steps/{name}": value for name, value in after_steps.items()})
