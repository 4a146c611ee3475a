"""Compression: a trained network pruned, then its weights shared, each in a run that starts from the one before.

    python -m train --config=configs/digits.py --workdir=runs/digits
    python -m train --config=configs/compression.py:from=runs/digits,stage=prune,sparsity=0.9 --workdir=runs/pruned
    python -m train --config=configs/compression.py:from=runs/pruned,stage=share,conv=8,dense=5 --workdir=runs/shared
    python -m train.export --workdir=runs/shared --format=compressed --out=exported/digits

`from` is a run's folder: its data, network and recipe are taken over.

stage=prune    weights go for half of the training, more at first, the rest retrains (Zhu & Gupta 2018, Han 2015);
               score=magnitude | movement | snip | random; by=std (Han 2015's thresholds) | global | layer | a file of
               the hook sensitivity; structure=weights | filters | 2:4; what: expression of the kernels that may go
stage=share    2^conv values a convolution and 2^dense a dense layer, by k-means, then trained (Han 2016)

`epochs` 0: as long as the run before where weights go, a tenth of it where they share; `lr` 0: half of its learning
rate, a hundredth.
Published (Han 2016, table 1): LeNet-300-100 40 times smaller, LeNet-5 39, AlexNet 35, VGG-16 49, without loss.
Cost: `epochs` of the data.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from configs.base import arguments, base

STAGES = ("prune", "share")


def get_config(text: str = ""):
    """Arguments: from, stage (prune | share), sparsity, score, by, structure, what, conv, dense, epochs, lr."""
    a = arguments(
        text,
        **{"from": ""},
        stage="prune",
        sparsity=0.9,
        score="magnitude",
        by="std",
        structure="weights",
        what=".*/kernel",
        conv=8,
        dense=5,
        epochs=0,
        lr=0.0,
    )
    if a.stage not in STAGES:
        raise ValueError(f"unknown stage '{a.stage}'; allowed: {', '.join(STAGES)}")
    folder = Path(a["from"]).expanduser()
    try:
        c = ConfigDict(json.loads((folder / "config.json").read_text()))
        c.optimizer = {**base().optimizer, **c.optimizer}  # runs of earlier versions lack some keys
        rate, duration = c.optimizer.learning_rate, c.duration
    except OSError as error:
        raise ValueError(f"from={a['from']}: want the folder of a run ({error.strerror}: config.json)") from None
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"from={a['from']}: its config.json cannot be read ({error})") from None
    sharing = a.stage == "share"
    c.init_from, c.init_new, c.data_init = a["from"], "", "none"
    c.optimizer.learning_rate = a.lr or rate / (100 if sharing else 2)
    c.duration = f"{a.epochs} epochs" if a.epochs else _tenth(duration) if sharing else duration
    c.optimizer.warmup, c.ema_decay, c.lookahead = "0 steps", 0.0, ""
    c.optimizer.prune, c.optimizer.share = "", ""
    c.hooks = "|".join(hook for hook in c.hooks.split("|") if hook and hook != "sparsity")
    if sharing:
        c.optimizer.share = f"linear(conv={a.conv}, dense={a.dense})"
    else:
        c.optimizer.prune = (
            f"{a.score}({a.sparsity}, end='50%', every='2%', by='{a.by}', structure='{a.structure}', what='{a.what}')"
        )
        c.hooks = "|".join(filter(None, (c.hooks, "sparsity")))
    return c


def _tenth(duration: str) -> str:
    """Of "30 epochs", at least one of whatever it counts."""
    count, _, unit = duration.partition(" ")
    return f"{max(1.0, float(count) / 10):g} {unit}"
