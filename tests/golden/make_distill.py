"""Records PyTorch's distillation losses in distill.npz: formulas of the authors of attention transfer.

    PYTHONPATH=. VENV/bin/python -m tests.golden.make_distill

`distillation` and `at_loss` are those of szagoruyko/attention-transfer (utils.py), except that KLDivLoss has the
reduction "batchmean", which its name stood for in 2017; the weights of both terms are ours. The hard loss is that of
facebookresearch/deit (losses.py).
"""

from pathlib import Path

import numpy as np

from tests.golden import drawn

TEMPERATURE, WEIGHT, CLASSES, IMAGES = 3.0, 0.7, 10, 6
MAPS = {"ours": (IMAGES, 4, 4, 5), "theirs": (IMAGES, 4, 4, 7)}

if __name__ == "__main__":
    import torch
    import torch.nn.functional as F

    def at(x):
        return F.normalize(x.pow(2).mean(1).view(x.size(0), -1))

    student, teacher = (torch.tensor(4 * drawn.images(name, (IMAGES, CLASSES))) for name in ("student", "teacher"))
    labels = torch.arange(IMAGES) % CLASSES
    ours, theirs = (torch.tensor(drawn.images(name, shape)).permute(0, 3, 1, 2) for name, shape in MAPS.items())
    cross_entropy = F.cross_entropy(student, labels)
    soft = F.kl_div(F.log_softmax(student / TEMPERATURE, 1), F.softmax(teacher / TEMPERATURE, 1), reduction="batchmean")
    hard = F.cross_entropy(student, teacher.argmax(1))
    results = {
        "soft": (1 - WEIGHT) * cross_entropy + WEIGHT * TEMPERATURE**2 * soft,
        "hard": (1 - WEIGHT) * cross_entropy + WEIGHT * hard,
        "attention": (at(ours) - at(theirs)).pow(2).mean(),
    }
    np.savez(Path(__file__).with_name("distill.npz"), **{name: x.numpy() for name, x in results.items()})
