"""Transfer: a pretrained network fine-tuned on another data set, or a network trained from scratch on the same budget.

    python -m train --config=configs/transfer.py:from=runs/x,to=cifar10 --workdir=runs/y
    python -m train --config=configs/transfer.py:from=resnet50.safetensors,to=caltech101,rule=bit --workdir=runs/y
    python -m train --config=configs/transfer.py:from=runs/x,to=cifar10,labels=50,freeze=2 --workdir=runs/y
    python -m train --config=configs/transfer.py:from=runs/x,to=folder:/my/images --workdir=runs/y     your own images
    python -m train --config=configs/transfer.py:model=resnet20,to=cifar10 --workdir=runs/y            from scratch
    python -m train.probe --config=configs/transfer.py:from=runs/x,to=cifar10                 features and classifiers

`from` is the folder of a run or a file of `python -m models.weights import`. Both record the network; a run also
records how its images were normalized. The head gets new weights for the classes of the target.

rule=finetune  SGD with the learning rate `lr` (0 stands for 0.01, or from scratch for 0.1), and a cosine schedule over
               `epochs` (or `steps`)
rule=bit       the BiT hyper-rule (Kolesnikov 2020, section 3.3): SGD with a learning rate of 0.003 at batch size 512,
               for 500, 10,000 or 20,000 steps, depending on the number of examples. The resolution depends on the size
               of the images. With 20,000 examples or more, mixup 0.1

freeze=N       freezes the stem and the first N stages; freeze=all freezes everything except the head
unfreeze=T     unfreezes gradually: at first only the head trains, then one more stage from the top after each T, e.g. 2
               epochs
decay=F        gives each stage F times the learning rate of the one above it, beginning below the head

With freeze or unfreeze, batch norm keeps the statistics of the source everywhere (norm=frozen_batch), because
statistics of frozen parts would drift. The three options need a network of stages; set `stages` if its name does not
determine their number.

Targets: digits, cifar10, cifar10_jpeg, cifar100 and those of the published table: caltech101, voc2007 (multi-label),
cub200, cars, aircraft (a folder of train/VARIANT and test/VARIANT, --config.data.source=folder:PATH). Prepare them by
`python -m train.data.prepare NAME` with caltech101, voc/2007, caltech_birds2011 or cars196. `to` also takes any other
data source, in the form of `data.source`: folder:PATH, arrays:FILE.npz, tfds:NAME, FILE.py:NAME. Its classes are read
when the run starts, and its images are cropped at random to `size`. rule=bit counts the images of a folder; for other
sources, set `examples`.
Published (ImageNet -> target; non-convolutional method, classifier on features, fine-tuned): Caltech-101 84.3, 87.7,
88.4; VOC 2007 61.7, 79.7, 82.4; CUB-200 18.8, 61.0, 70.4; Aircraft 61.0, 45.0, 74.1; Cars 59.2, 36.5, 79.8.
Cost: 30 epochs of the target's images. A forward pass of ResNet-50 at size 224 costs 4.1e9 mult-adds per image, so it
needs an accelerator.
"""

import ast
import csv
import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from configs.base import IMAGENET, arguments, base


class Target(NamedTuple):
    """A data set, as config.data names it.

    Attributes:
      examples: Number of training examples.
      size: Height and width of the images; 0 for photographs of varying size, around 500 pixels.
    """

    source: str
    train: str
    test: str
    examples: int
    classes: int
    size: int
    multi_label: bool = False


TARGETS = {
    "digits": Target("digits", "train", "test", 1437, 10, 8),
    "cifar10": Target("tfds:cifar10", "train", "test", 50000, 10, 32),
    "cifar10_jpeg": Target("tfds:cifar10_jpeg", "train", "test", 50000, 10, 32),
    "cifar100": Target("tfds:cifar100", "train", "test", 50000, 100, 32),
    "caltech101": Target("tfds:caltech101", "train", "test", 3059, 102, 0),
    "voc2007": Target("tfds:voc/2007", "train+validation", "test", 5011, 20, 0, True),
    "cub200": Target("tfds:caltech_birds2011", "train", "test", 5994, 200, 0),
    "cars": Target("tfds:cars196", "train", "test", 8144, 196, 0),
    "aircraft": Target("folder:fgvc-aircraft-2013b", "train", "test", 6667, 100, 0),
}
SIZES = {**{target.source: target.size for target in TARGETS.values()}, "tfds:tiny_imagenet32": 32}
# Endings of files that count as images of a folder; the count determines the batch size and the length of rule=bit
ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# Regular expression of model names -> number of stages, 0 for networks without stages; the first match counts
STAGES = {
    r"(pre)?resnet(8|14|20|32|38|44|56|74|110|164|1001|1202)": 3,
    r"(convnet_aig|blockdrop)(32|38|74|110)": 3,
    r"early_exit.*": 3,
    r"plain(8|14|20|32|44|56|110)": 3,
    r"wide_resnet(16|28|40|22)_\d+": 3,
    r"densenet(40|100)_k\d+": 3,
    r"densenet_bc.*": 3,
    r"vgg.*": 5,
    r"mobilenet_v1.*": 5,
    r"mobilenet_v2.*": 7,
    r"efficientnet_lite.*": 7,
    r"(alexnet|lenet|vit|msdnet).*": 0,
    r".*": 4,
}
# Families whose default norm is not batch norm
NO_BATCH_NORM = r"(alexnet|lenet|vit|swin|convnext|resnetv2|vgg(?!.*(bn|cifar))).*"


def get_config(text: str = ""):
    """Takes the arguments from or model (from scratch), to, labels, rule (finetune | bit), lr, and the others below.

    `labels` is the number per class; 0 means all. `size` is that of the images; 0 means the size that the network was
    trained on, or the target's. `examples` is the number of training images of a source that is not in TARGETS, for
    rule=bit. `stages` is the number of stages of the network; 0 takes it from its name. The others are epochs (0 means
    30) or steps, batch, freeze, unfreeze, decay and seed.
    """
    a = arguments(
        text,
        **{"from": ""},
        to="cifar10",
        model="",
        labels=0,
        rule="finetune",
        lr=0.0,
        epochs=0,
        steps=0,
        batch=0,
        size=0,
        freeze="0",
        unfreeze="",
        decay=1.0,
        stages=0,
        examples=0,
        seed=0,
    )
    _check(a)
    target, c = target_of(a.to, a.examples), base()
    description = described(a["from"]) if a["from"] else {"model": {"name": a.model}}
    name = description["model"]["name"]
    if a.model and a.model != name:
        raise ValueError(f"from={a['from']} is a {name}, not model={a.model}")
    _start(c, a["from"], description)
    c.seed = a.seed
    c.data.source, c.data.train_split, c.data.test_split = target.source, target.train, target.test
    examples = target.examples
    if a.labels:
        c.data.select = f"per_class({a.labels}, seed={a.seed})"
        examples = min(examples, a.labels * target.classes) if target.classes else examples
    if target.multi_label:
        c.task.name = "multi_label"
        c.hooks = "figures|average_precision"
    c.batch_size = a.batch or (32 if 0 < examples < 1000 else 64)
    c.eval_batch_size = 500 if target.size else 100
    c.log_every, c.evaluate_every, c.checkpoint_every = "50 steps", "10%", "10%"
    c.duration = f"{a.steps} steps" if a.steps else f"{a.epochs or 30} epochs"
    c.optimizer.name, c.optimizer.weight_decay = "sgd(momentum=0.9)", 1e-4
    c.optimizer.learning_rate = a.lr or (0.01 if a["from"] else 0.1)
    c.optimizer.schedule, c.optimizer.warmup = "cosine", "5%"
    images(c, target, a.size or description.get("size", 0) or target.size or 224, description.get("channels", 3))
    if a.to not in TARGETS:
        c.data.channels = description.get("channels", 0)
    if a.rule == "bit":
        if not examples:
            raise ValueError(
                f"rule=bit depends on the number of training images, which to={a.to} does not determine; set examples"
            )
        bit(c, examples, target.size, a.batch or 512)
        c.optimizer.learning_rate = a.lr or c.optimizer.learning_rate
    c.optimizer.groups = groups(a.freeze, a.unfreeze, a.decay, name, a.stages)
    if (a.freeze != "0" or a.unfreeze) and description.get("batch_norm"):
        c.model.norm = "frozen_batch"
    return c


def _check(a: Any) -> None:
    if a.to not in TARGETS and (":" not in a.to or a.to.startswith("text:")):
        sources = "folder:PATH, arrays:FILE.npz, tfds:NAME, FILE.py:NAME"
        raise ValueError(f"unknown to '{a.to}'; allowed: {', '.join(TARGETS)}, {sources}")
    if a.rule not in ("finetune", "bit"):
        raise ValueError(f"unknown rule '{a.rule}'; allowed: finetune, bit")
    if not a["from"] and not a.model:
        raise ValueError("set from=RUN (or a .safetensors file), or model=NAME to train from scratch")
    for name in ("epochs", "steps", "size") if a.rule == "bit" else ():
        if a[name]:
            raise ValueError(f"{name}={a[name]}: rule=bit sets it; leave it out")


def target_of(name: str, examples: int = 0) -> Target:
    """Returns a target by its name in TARGETS, or by the text of a data source.

    Args:
      name: Such as "cifar10" or "folder:/my/images".
      examples: Number of training images, for a source that does not determine it; 0 if unknown.

    Raises:
      ValueError: The folder does not exist.
    """
    for target in TARGETS.values():
        if name == target.source and not name.startswith("folder:"):
            return target
    if name in TARGETS:
        return TARGETS[name]
    classes = 0
    if name.startswith("folder:"):
        counted, classes = _in_folder(name)
        examples = examples or counted
    return Target(name, "train", "test", examples, classes, SIZES.get(name, 0))


def _in_folder(source: str) -> tuple[int, int]:
    """Returns the number of training images in a folder, counted by their file endings, and its number of classes."""
    root = Path(source.removeprefix("folder:")).expanduser()
    if not root.is_dir():
        raise ValueError(f"to={source}: there is no such folder")
    inside = [folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    training = [folder for folder in inside if folder.name.casefold() in ("train", "training")]
    folders = [folder for folder in training[0].iterdir() if folder.is_dir()] if training else inside
    count = sum(file.suffix.lower() in ENDINGS for folder in folders for file in folder.rglob("*"))
    if not count:
        raise ValueError(f"to={source}: there are no images in its folders; each class needs a folder of images")
    return count if training else count - round(count / 5), len(folders)  # a fifth is held out for testing


def _start(c: Any, start: str, description: Mapping[str, Any]) -> None:
    """Sets the network, its task, its new heads, and the normalization of its images."""
    for name in set(c.model) - set(description["model"]):
        del c.model[name]  # fields that the network does not have, or that its config does not set
    c.model.update(description["model"])
    c.init_from = start
    for name in ("mean", "std"):
        c.data[name] = tuple(description.get(name) or IMAGENET[name])
    c.data.interpolation = description.get("interpolation", "bilinear")
    for beginning, task, heads in (
        ("msdnet", "multi_exit", "*/head"),
        ("early_exit", "multi_exit", "head|*/head"),
        ("convnet_aig", "gated", "head"),
        ("blockdrop", "policy(joint=True)", "head"),
    ):
        if c.model.name.startswith(beginning):
            c.task.name, c.init_new = task, heads


def images(c: Any, target: Target, size: int, channels: int) -> None:
    """Brings images to the size of the network: crops photographs at random, and resizes small images if needed."""
    gray = target.source == "digits"
    c.data.channels = channels if gray and channels == 3 else 0
    if not target.size:
        c.data.image_size, c.data.crop, c.data.crop_scale = size, "random_resized", (0.25, 1.0)
        c.data.augment = "flip"
        return
    if size != target.size:
        c.data.image_size, c.data.crop, c.data.eval_crop = size, "resize", 1.0
    c.data.augment = f"crop({max(1, size // 8)})" + ("" if gray else "|flip")


def bit(c: Any, examples: int, size: int, batch: int = 512) -> None:
    """Sets the BiT hyper-rule (Kolesnikov 2020, section 3.3; schedules as in the authors' bit_hyperrule.py).

    Args:
      c: Config to change.
      examples: Number of training examples.
      size: Height and width of the images; 0 if they vary and are large.
      batch: Images per step.
    """
    if examples < 20_000:
        warmup, first, second, third, total = 100, 200, 300, 400, 500
    elif examples < 500_000:
        warmup, first, second, third, total = 500, 3000, 6000, 9000, 10_000
    else:
        warmup, first, second, third, total = 500, 6000, 12_000, 18_000, 20_000
    c.batch_size = batch
    c.duration = f"{total} steps"
    c.optimizer.name = "sgd(momentum=0.9)"
    c.optimizer.learning_rate = 0.003 * batch / 512
    c.optimizer.weight_decay = 0.0
    c.optimizer.warmup = f"{warmup} steps"
    c.optimizer.schedule = f"step(0.1, '{first} steps', '{second} steps', '{third} steps')"
    # Images below 96 x 96 pixels are resized to 160 and cropped to 128; others to 512 and 480, as in the code (448 and
    # 384 in the paper).
    before, after = (160, 128) if size and size * size < 96 * 96 else (512, 480)
    c.data.image_size, c.data.crop = after, "whole"
    c.data.crop_scale = ((after / before) ** 2,) * 2
    c.data.augment = "" if c.data.source == "digits" else "flip"
    if examples >= 20_000:
        c.data.augment += ("|" if c.data.augment else "") + "mixup(0.1)"


def groups(frozen: str, unfreeze: str, decay: float, model: str, stages: int) -> tuple[tuple[Any, ...], ...]:
    """Returns config.optimizer.groups for frozen stages, gradual unfreezing, and learning rates that decay by stage.

    `frozen` is the number of stages that are frozen together with the stem; "all" freezes everything except the head.
    The beginning of a parameter's path tells its stage: "stem…", "stage1/…" (with "transition1/…"), …. Everything else
    belongs to the head.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay={decay} must be in (0, 1]")
    if frozen == "all":
        if unfreeze or decay != 1:
            raise ValueError("freeze=all leaves no stage for unfreeze and decay")
        return ("head/.*", 1.0), (".*", 0.0)
    if frozen == "0" and not unfreeze and decay == 1:
        return ((".*", 1.0),)
    stages = stages or next(count for name, count in STAGES.items() if re.fullmatch(name, model))
    if not stages:
        raise ValueError(
            f"freeze, unfreeze and decay need a network of stages, unlike {model}; use freeze=all, or "
            "--config.optimizer.groups, instead"
        )
    if not (frozen.isdecimal() and int(frozen) <= stages):
        raise ValueError(f"freeze={frozen} must be 0 to {stages}, or all")
    interval, unit = (unfreeze[:-1], "%") if unfreeze.endswith("%") else (unfreeze.split() + ["", ""])[:2]
    rows = []
    stem = () if model.startswith("vgg") else ("stem.*",)
    for i, level in enumerate((*stem, *(f"(stage|transition){i}/.*" for i in range(1, stages + 1))), 1 - len(stem)):
        depth = stages + 1 - i  # number of stages from the head down
        try:
            start = (f"{depth * float(interval):g}{'' if unit == '%' else ' '}{unit}",) if unfreeze else ()
        except ValueError:
            raise ValueError(f"unfreeze={unfreeze}: must be a duration, e.g. '2 epochs' or '10%'") from None
        rows.append((level, 0.0) if frozen != "0" and i <= int(frozen) else (level, decay**depth, *start))
    return (*rows, (".*", 1.0))


def read_run(folder: Path) -> tuple[dict[str, Any], list[int]]:
    """Returns the config of a run and the shape [H, W, C] of its images, or [] if the run did not record it.

    Args:
      folder: Folder of the run, or of an exported network (`python -m train.export`). The config of the latter has the
        fields of the exported network.
    """
    if (folder / "card.json").is_file():
        card = json.loads((folder / "card.json").read_text())
        fields = {name: value for name, value in card["fields"].items() if name not in ("num_classes", "image_size")}
        return {**card["config"], "model": {"name": card["architecture"], **fields}}, card["inputs"][1:]
    data = folder / "data.json"
    shape = json.loads(data.read_text())["image_shape"] if data.is_file() else []
    return json.loads((folder / "config.json").read_text()), shape


_OF_IMAGES = ("mean", "std", "size", "channels", "interpolation")


def _tag(where: str) -> dict[str, Any]:
    """Describes published weights by the table models/weights/tags.csv, as `described` does.

    Raises:
      ValueError: The table does not have them.
    """
    name = where.partition("@")[0] if where.startswith("hf:") else where
    with (Path(__file__).parents[1] / "models" / "weights" / "tags.csv").open(newline="") as file:
        row = next((row for row in csv.DictReader(file) if row["tag"] == name), None)
    if row is None:
        raise ValueError(
            f"from={where}: models/weights/tags.csv does not have these weights; import them by python -m "
            "models.weights import, and name the file"
        )
    norm = {**json.loads(row["fields"] or "{}")}.get("norm", "batch")
    return {
        "model": {"name": row["network"], **json.loads(row["fields"] or "{}")},
        "batch_norm": norm == "batch" and not re.fullmatch(NO_BATCH_NORM, row["network"]),
        "mean": tuple(map(float, row["mean"].split())),
        "std": tuple(map(float, row["std"].split())),
        "size": int(row["size"]),
        "channels": 3,
        "interpolation": row["interpolation"],
    }


def described(where: str) -> dict[str, Any]:
    """Describes the network of a run or of a file, as recorded there.

    Returns:
      {"model": section of the config, "batch_norm": whether it has any}; also "mean", "std", "size", "channels" and
      "interpolation" of its images, as far as they are recorded.

    Raises:
      ValueError: The file or folder cannot be read.
    """
    if where.lower().startswith(("hf:", "torchvision:", "https:", "http:")):
        return _tag(where)
    path = Path(where).expanduser()
    try:
        if path.is_dir():
            config, shape = read_run(path)
            data, description = config["data"], {"model": config["model"]}
            description |= {name: data[name] for name in ("mean", "std", "interpolation") if name in data}
            description["size"] = shape[0] if shape else data["image_size"] or SIZES.get(data["source"], 0)
            default_norm = "none" if re.fullmatch(NO_BATCH_NORM, config["model"]["name"]) else "batch"
            norm = config["model"].get("norm", default_norm)
            description["batch_norm"] = norm == "batch"
            description["channels"] = (
                shape[2] if shape else data.get("channels") or (1 if data["source"] == "digits" else 3)
            )
            return description
        with path.open("rb") as file:  # a .safetensors file starts with the length of its JSON header
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, path.stat().st_size)))
        metadata = ast.literal_eval(header["__metadata__"]["ablate"])
        fields = {k: value for k, value in metadata.get("fields", {}).items() if k not in ("num_classes", "image_size")}
        facts = metadata.get("preprocessing", {})
        images = {name: facts[name] for name in _OF_IMAGES if name in facts}
        batch_norm = any(name.endswith("/var") for name in header)
        return {"model": {"name": metadata["model"], **fields}, "batch_norm": batch_norm, **images}
    except OSError as error:
        raise ValueError(
            f"from={where}: {error.strerror}; must be the folder of a run or of an exported network, or a "
            ".safetensors file"
        ) from None
    except Exception:  # parsers of a damaged header raise any error, even RecursionError
        raise ValueError(
            f"from={where}: it does not record its network; name the folder of a run or a .safetensors "
            "file of python -m models.weights import"
        ) from None
