"""Evaluation of a finished run on other test sets with its classes: `python -m train --evaluate=SOURCE`."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.table

from models.analysis.tables import slug
from models.errors import UserError, choice_error
from train.data import classes, load
from train.data.source import Source
from train.recording import summary
from train.restore import load_network
from train.run import Network
from train.setup import sizes
from train.state import TrainState
from train.storage.files import write_json
from train.tasks.classify import Classify
from train.tasks.views import VIEWS

FOLDER = "evaluations"  # in the folder of the run
VARIANTS = {  # source and split of ImageNet's other test sets, by name
    "imagenet-v2": ("tfds:imagenet_v2", "test"),
    "imagenet-a": ("tfds:imagenet_a", "test"),
    "imagenet-r": ("tfds:imagenet_r", "test"),
    "imagenet-sketch": ("tfds:imagenet_sketch", "test"),
    "imagenet-real": ("tfds:imagenet2012_real", "validation"),
}
CORRUPTED = "imagenet-c/"  # imagenet-c/fog/3


def evaluate(folder: str, text: str, split: str = "", class_map: str = "", views: str = "") -> dict[str, Any]:
    """Evaluates a run on another set, and writes the results into its folder.

    Args:
      folder: the run, or published weights.
      text: a source as in data.source, or a name of VARIANTS.
      split: the split to evaluate; "" for "test", or the split of a variant.
      class_map: CSV file that maps the set's classes to the network's; see `train.data.classes`.
      views: the views over which predictions are averaged (train/tasks/views.py); "" for those of the run.

    Returns:
      "source", "split", "images", "classes" (number of the network's classes that occur in the set), the metrics of the
      run's task, and the environment. With fewer classes than the network has, "accuracy_among_classes" is the accuracy
      if only they can be predicted (Hendrycks 2021, for ImageNet-A and -R). If images have several right classes, a
      prediction is right if it is one of them, and images without one are left out (Beyer 2020, ReaL).

    Raises:
      UserError: the set does not exist, or does not fit the network.
    """
    network, state = load_network(folder)
    network = _with_views(network, views) if views else network
    source, split = opened(network, text, split, class_map)
    if source.label_shape and not network.feed.label_shape:
        results = _of_several(network, state, source, f"--evaluate={text}")
    else:
        network.images.replace_test(source)
        results = network.evaluate(network.parallel.place(state))
        results |= {"images": network.feed.test_count(), **_among_classes(network, state, source, results)}
    results = {
        "source": text,
        "split": split,
        **({"views": views} if views else {}),
        "identity": source.identity(),
        **results,
        **summary.environment(jax.local_devices()),
    }
    if Path(folder, "config.json").is_file():
        path = Path(folder, FOLDER, f"{slug(f'{text} {split} {views}'.strip())}.json")
        path.parent.mkdir(exist_ok=True)
        write_json(path, results)
    return results


def _with_views(network: Network, views: str) -> Network:
    """Returns a network that averages its predictions over other views.

    Raises:
      UserError: there are no such views, or the task or the network does not support them.
    """
    task, title = copy.copy(network.task), f"--views={views}"
    if views not in VIEWS:
        raise choice_error("--views", views, VIEWS)
    if not isinstance(task, Classify) or type(task).evaluate is not Classify.evaluate:
        raise UserError(f"{title}: the run's task.name={network.config['task']['name']} does not average over views")
    sides = sizes.of_views(views, network.images.image_shape[0])
    if reason := sizes.refusal(task, network.shapes[0], network.feed.inputs, sides):
        raise UserError(f"{title}: model.name={network.config['model']['name']} does not take {reason}")
    task.views = views
    return dataclasses.replace(network, task=task)


def opened(network: Network, text: str, split: str, class_map: str) -> tuple[Source, str]:
    """Opens a set with the labels of a network; returns it, and its split."""
    text, usual = VARIANTS.get(text, (text, "test"))
    if text.startswith(CORRUPTED):
        text, usual = f"tfds:imagenet2012_corrupted/{text.removeprefix(CORRUPTED).replace('/', '_')}", "validation"
    split = split or usual
    feed, title = network.images, f"--evaluate={text}"
    height, width, channels = feed.image_shape
    data = {**network.config["data"], "select_test": "", "source": text}
    # A set of files has no size and number of channels of its own; the run's set may have had them
    data["image_size"] = data["image_size"] or (height if height == width else 0)
    data["channels"] = channels if channels in (1, 3) else data["channels"]
    source = load.load_test(data, test_split=split)
    table = classes.read_table(class_map) if class_map else None
    numbers = classes.numbers(source.classes, feed.classes, table, title)
    try:
        renumbered = classes.Renumbered(source, numbers, feed.classes)
    except UserError as error:
        raise UserError(f"{title}: {error}") from None
    if renumbered.image_shape != feed.image_shape:
        shapes = ["x".join(map(str, shape)) for shape in (renumbered.image_shape, feed.image_shape)]
        raise UserError(f"{title}: its images are {shapes[0]}, and the network takes {shapes[1]}")
    if feed.label_shape and not renumbered.label_shape:
        raise UserError(f"{title}: its images have one class each, and the network predicts several")
    return renumbered, split


def _outputs(network: Network, state: TrainState, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits [N, classes] and labels [N, *label_shape]."""
    logits, labels, _ = network.predictions(state.evaluation_variables(), network.images.batches(source))
    return logits, labels


def _among_classes(network: Network, state: TrainState, source: Source, results: dict[str, Any]) -> dict[str, Any]:
    """Returns the number of classes that occur, and the accuracy among them if they are not all."""
    shares = results.get("accuracy_by_class", [])
    present = np.array([number for number, share in enumerate(shares) if share is not None])
    if len(present) == len(shares):
        return {"classes": len(source.classes)}
    logits, labels = _outputs(network, state, source)
    right = present[logits[:, present].argmax(1)] == labels
    return {"classes": len(present), "accuracy_among_classes": float(right.mean())}


def _of_several(network: Network, state: TrainState, source: Source, title: str) -> dict[str, Any]:
    """Returns metrics of images with several right classes each."""
    logits, labels = _outputs(network, state, source)
    counted = (labels > 0).any(1)
    if not counted.any():
        raise UserError(f"{title}: none of its images has a label")
    right = labels[np.arange(len(labels)), logits.argmax(1)] > 0
    return {
        "images": int(counted.sum()),
        "classes": int((labels > 0).any(0).sum()),
        "without_label": int((~counted).sum()),
        "accuracy": float(right[counted].mean()),
    }


def table(results: dict[str, Any], folder: str) -> rich.table.Table:
    """Returns the results as a table for the terminal."""
    table = rich.table.Table(title=f"{folder} on {results['source']}", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    for name, value in results.items():
        if isinstance(value, int):
            table.add_row(name.replace("_", " "), f"{value:,}")
        elif isinstance(value, float):
            is_share = name.startswith(("accuracy", "top5", "mean_class_accuracy"))
            table.add_row(name.replace("_", " "), f"{value:.2%}" if is_share else f"{value:.4f}")
    return table
