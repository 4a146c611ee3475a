"""Initialization: a plain or residual network, with or without normalization, from any initial weights.

    python -m train --config=configs/initialization.py:plain20,init=xavier_normal --workdir=runs/x
    python -m train --config=configs/initialization.py:plain20,init=orthogonal,data_init=lsuv --workdir=runs/y

This is the recipe of the study of initialization (experiments/studies/initialization): SGD with a warm-up of one
epoch, and a low learning rate for networks without normalization. The scales are those of configs/study.py. On digits,
a deep network without normalization needs a thousand steps before it begins to learn. It also needs more channels than
the networks of other studies have.

Expected: plain networks of 20 layers learn with MSRA and stall with Xavier; batch norm makes up for a bad scale.
Published (He 2015, figures 2 and 3): 22 layers converge with both, 30 layers with MSRA alone.
Cost: half a minute on one core (digits), minutes on a GPU (cifar10).
"""

from configs import study
from configs.base import arguments


def get_config(text: str = ""):
    """Takes the arguments model, init and data_init (see configs/base.py), norm, scale (see configs/study.py), seed."""
    a = arguments(text, model="plain20", init="msra_fan_in", data_init="none", norm="none", scale="digits", seed=0)
    c = study.get_config(f"{a.scale},model={a.model},norm={a.norm},init={a.init},seed={a.seed}")
    c.data_init = a.data_init
    c.optimizer.learning_rate, c.optimizer.warmup = 0.02 if a.norm == "none" else 0.1, "1 epoch"
    if a.scale == "digits":
        c.model.width, c.batch_size, c.duration = 16, 32, "24 epochs"
    return c
