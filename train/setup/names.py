"""Names that other projects give to config keys, for the question "did you mean …?"."""

from collections.abc import Iterable

from models.errors import nearest

# By last part of a key: the key of configs/base.py, with an example of its value where that differs, too
ALIASES = {
    "act_layer": "model.act",
    "activation": "model.act",
    "amp": "precision='bfloat16'",
    "arch": "model.name",
    "architecture": "model.name",
    "aug": "data.augment",
    "aug_repeats": "data.repeats",
    "augmentation": "data.augment",
    "backbone": "model.name",
    "batch": "batch_size",
    "batchsize": "batch_size",
    "bce_loss": "task.name='classify(loss=bce)'",
    "bs": "batch_size",
    "clip": "optimizer.clip_norm",
    "clip_grad": "optimizer.clip_norm",
    "crop_pct": "data.eval_crop",
    "crop_size": "data.image_size",
    "cutmix": "data.augment='cutmix(1.0)'",
    "data": "data.source",
    "data_dir": "data.dir",
    "data_path": "data.source='folder:PATH'",
    "dataset": "data.source",
    "dtype": "precision",
    "ema": "ema_decay",
    "epochs": "duration='40 epochs'",
    "eval_every": "evaluate_every",
    "fp16": "precision='bfloat16'",
    "gpus": "devices",
    "grad_accum": "accumulate",
    "grad_clip": "optimizer.clip_norm",
    "gradient_accumulation": "accumulate",
    "gradient_clip": "optimizer.clip_norm",
    "img_size": "data.image_size",
    "input_size": "data.image_size",
    "iterations": "duration='1000 steps'",
    "l2": "optimizer.weight_decay",
    "learning_rate_schedule": "optimizer.schedule",
    "lr": "optimizer.learning_rate",
    "lr_schedule": "optimizer.schedule",
    "lr_scheduler": "optimizer.schedule",
    "max_epochs": "duration='40 epochs'",
    "max_steps": "duration='1000 steps'",
    "mixup": "data.augment='mixup(0.2)'",
    "model": "model.name",
    "momentum": "optimizer.name='sgd(momentum=0.9)'",
    "net": "model.name",
    "network": "model.name",
    "norm_layer": "model.norm",
    "normalization": "model.norm",
    "num_epochs": "duration='40 epochs'",
    "num_gpus": "devices",
    "num_steps": "duration='1000 steps'",
    "num_workers": "data.workers",
    "opt": "optimizer.name",
    "optim": "optimizer.name",
    "optimizer": "optimizer.name",
    "pretrained": "init_from",
    "print_freq": "log_every",
    "resolution": "data.image_size",
    "save_every": "checkpoint_every",
    "sched": "optimizer.schedule",
    "scheduler": "optimizer.schedule",
    "size": "data.image_size",
    "smoothing": "task.label_smoothing",
    "steps": "duration='1000 steps'",
    "task": "task.name",
    "total_steps": "duration='1000 steps'",
    "train_batch_size": "batch_size",
    "train_size": "data.resolutions='160'",
    "tta": "task.name='classify(views=mirror)'",
    "warmup_epochs": "optimizer.warmup='5 epochs'",
    "warmup_steps": "optimizer.warmup='500 steps'",
    "wd": "optimizer.weight_decay",
    "weights": "init_from",
}


def hint(key: str, known: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for a config key that does not exist, or "" if nothing is close.

    The key is looked up among the names of other projects, then among the last parts of the known keys. Otherwise the
    most similar known key is meant.

    Args:
      key: the full path, e.g. "optimizer.lr".
      known: full paths of the keys that exist.
    """
    known = list(known)
    last = key.rpartition(".")[2].lower().replace("-", "_")
    meant = ALIASES.get(last, "")
    if meant.partition("=")[0] in known:
        return f"; did you mean {meant if '=' in meant else repr(meant)}?"
    same = [other for other in known if other.rpartition(".")[2] == last]
    return f"; did you mean '{same[0]}'?" if len(same) == 1 else nearest(key, known)
