"""Pruning during training, then weight sharing (Han 2016).

    python -m train --config=configs/pruning.py:LeNet-5,stage=dense --workdir=runs/lenet5
    python -m train --config=configs/pruning.py:LeNet-5,stage=prune,from=runs/lenet5 --workdir=runs/pruned
    python -m train --config=configs/pruning.py:LeNet-5,stage=share,from=runs/pruned --workdir=runs/shared
    python -m train.export --workdir=runs/shared --format=compressed --out=exported/lenet5

Or start from any run of yours. Its folder determines the data, the network and the recipe:

    python -m train --config=configs/pruning.py:from=runs/digits,stage=prune,sparsity=0.9 --workdir=runs/pruned
    python -m train --config=configs/pruning.py:from=runs/pruned,stage=share,conv=8,dense=5 --workdir=runs/shared

stage=dense    trains a named network without pruning: LeNet-300-100, LeNet-5 (on digits at 28x28), VGG-11, ResNet-20
stage=prune    prunes weights during the first half of training, most of them early, and then retrains (Zhu & Gupta
               2018, Han 2015). once=true prunes all of them at the beginning. score=magnitude | movement | snip |
               random; by=std (Han 2015's thresholds) | global | layer | a file of the hook sensitivity;
               structure=weights | filters | blocks | 2:4; what=REGEX names the kernels that may be pruned
stage=share    lets the weights of each layer share 2^conv values (convolutions) or 2^dense values (dense layers), which
               come from k-means and are then trained (Han 2016)

Named networks have the recipes of the study of compression (experiments/studies/compression). There, scale=cifar is
cifar10_jpeg, a TFDS set. l1 is the factor of an L1 penalty that replaces weight decay. If you start from a run,
`epochs` 0 means the run's duration for pruning and a tenth of it for sharing. `lr` 0 means half of the run's learning
rate for pruning and a hundredth for sharing.
Published (Han 2016, table 1): files without loss of accuracy that are 40 times smaller (LeNet-300-100), 39 times
(LeNet-5), 35 times (AlexNet) and 49 times (VGG-16).
Cost: `epochs` of the data; on digits, each stage of a LeNet takes a minute on a CPU.
"""

import json
import keyword
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from configs import study
from configs.base import arguments, base


class Recipe(NamedTuple):
    """A network that passes through the three stages of Han 2016; lengths are in epochs.

    Attributes:
      fields: Fields of the model, "name" among them.
      size: Height and width of the images; 0: unchanged.
      rate: Learning rate of the dense stage.
      epochs: Lengths of the stages dense, prune and share; the second half of prune only retrains.
      sparsity: Fraction of the weights that are pruned.
      bits: Bits of the indices of convolutions and of dense layers.
    """

    fields: dict
    size: int
    rate: float
    epochs: tuple[int, int, int]
    sparsity: float
    bits: tuple[int, int]


# The bits and the sparsity of the LeNets are the published ones (sections 4 and 5, tables 2 and 3).
RECIPES = {
    "digits": {
        "LeNet-300-100": Recipe({"name": "lenet_300_100"}, 28, 0.02, (30, 90, 5), 0.92, (6, 6)),
        "LeNet-5": Recipe({"name": "lenet5"}, 28, 0.02, (30, 90, 5), 0.92, (8, 5)),
        "VGG-11": Recipe({"name": "vgg11_cifar", "width": 16}, 32, 0.1, (12, 12, 3), 0.9, (5, 5)),
        "ResNet-20": Recipe({"name": "resnet20", "width": 16}, 0, 0.1, (12, 12, 3), 0.8, (5, 5)),
    },
    "cifar": {
        "VGG-11": Recipe({"name": "vgg11_cifar", "width": 32}, 0, 0.1, (10, 8, 1), 0.86, (5, 5)),
        "ResNet-20": Recipe({"name": "resnet20", "width": 16}, 0, 0.1, (10, 3, 1), 0.8, (5, 5)),
    },
}
STAGES = ("dense", "prune", "share")
KERNELS = ".*/kernel"


def get_config(text: str = ""):
    """Takes the arguments network, from, stage (dense | prune | share), and options of the stage.

    The options are sparsity, score, by, structure, what and once (prune); conv and dense (share); epochs and lr; for
    named networks also l1, scale and seed. 0 stands for the value of the recipe.
    """
    a = arguments(
        text,
        network="",
        **{"from": ""},
        stage="prune",
        sparsity=0.0,
        score="magnitude",
        by="std",
        structure="weights",
        what=KERNELS,
        once=False,
        conv=0,
        dense=0,
        epochs=0,
        lr=0.0,
        l1=0.0,
        scale="digits",
        seed=0,
    )
    if a.stage not in STAGES:
        raise ValueError(f"unknown stage '{a.stage}'; allowed: {', '.join(STAGES)}")
    return _by_name(a) if a.network else _of_run(a)


def _by_name(a):
    """Returns the recipe of a named network for one stage."""
    if a.scale not in RECIPES:
        raise ValueError(f"unknown scale '{a.scale}'; allowed: {', '.join(RECIPES)}")
    if a.network not in RECIPES[a.scale]:
        raise ValueError(f"unknown network '{a.network}'; allowed: {', '.join(RECIPES[a.scale])}")
    recipe, stage = RECIPES[a.scale][a.network], STAGES.index(a.stage)
    c = study.get_config(f"{a.scale},seed={a.seed},epochs={a.epochs or recipe.epochs[stage]},size={recipe.size}")
    c.model, c.data.resolutions = ConfigDict(recipe.fields), ""  # VGG's pooling needs the full size
    if a.l1:
        c.optimizer.l1, c.optimizer.weight_decay = a.l1, 0.0
    c.optimizer.learning_rate = a.lr or (recipe.rate, recipe.rate / 2, 1e-3)[stage]
    if a.stage != "dense":
        c.init_from, c.init_new, c.optimizer.warmup = a["from"], "", "0 steps"
    _set_stage(c, a, recipe.sparsity, recipe.bits)
    return c


def _of_run(a):
    """Returns the config of an existing run, changed for a stage that starts from that run."""
    if a.stage == "dense":
        raise ValueError("stage=dense needs a named network; set network=NAME")
    folder = Path(a["from"]).expanduser()
    try:
        c = ConfigDict(json.loads((folder / "config.json").read_text()))
        c.optimizer = {**base().optimizer, **c.optimizer}  # runs of earlier versions lack some keys
        rate, duration = c.optimizer.learning_rate, c.duration
    except OSError as error:
        raise ValueError(f"from={a['from']}: must be the folder of a run (config.json: {error.strerror})") from None
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"from={a['from']}: its config.json cannot be read ({error})") from None
    is_share = a.stage == "share"
    c.init_from, c.init_new, c.data_init = a["from"], "", "none"
    c.optimizer.learning_rate = a.lr or rate / (100 if is_share else 2)
    c.duration = f"{a.epochs} epochs" if a.epochs else _tenth(duration) if is_share else duration
    c.optimizer.warmup, c.ema_decay, c.lookahead = "0 steps", 0.0, ""
    c.hooks = "|".join(hook for hook in c.hooks.split("|") if hook and hook != "sparsity")
    if not is_share:
        c.hooks = "|".join(filter(None, (c.hooks, "sparsity")))
    _set_stage(c, a, 0.9, (8, 5))
    return c


def _set_stage(c, a, sparsity, bits):
    """Sets what is pruned or shared; arguments take precedence over the defaults."""
    c.optimizer.prune, c.optimizer.share = "", ""
    if a.stage == "share":
        c.optimizer.share = f"linear(conv={a.conv or bits[0]}, dense={a.dense or bits[1]})"
    if a.stage == "prune":
        schedule = "" if a.once else ", end='50%', every='2%'"
        c.optimizer.prune = f"{a.score}({a.sparsity or sparsity}{schedule}, by={_argument(a.by)}"
        if a.structure != "weights":
            c.optimizer.prune += f", structure={_argument(a.structure)}"
        c.optimizer.prune += f", what='{a.what}')" if a.what != KERNELS else ")"


def _argument(text):
    return text if text.isidentifier() and not keyword.iskeyword(text) else f"'{text}'"  # "global" is a keyword


def _tenth(duration: str) -> str:
    """Returns a tenth of a duration such as "30 epochs", but at least one of its unit."""
    count, _, unit = duration.partition(" ")
    return f"{max(1.0, float(count) / 10):g} {unit}"
