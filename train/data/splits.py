"""Checks that the training and the test split of a run fit each other."""

from collections.abc import Iterable

import numpy as np

from models.errors import UserError
from train.data.source import Source, Unreadable

_NAMES = 5  # most names of classes in a line


def compare(train: Source, test: Source, name: str) -> list[str]:
    """Checks that a network trained on `train` can be tested on `test`.

    Args:
      train: the training split.
      test: the test split.
      name: the data set's name in errors.

    Returns:
      Lines to tell the user: the classes that the test split lacks.

    Raises:
      UserError: there is a single class; shapes of images or labels differ; the test split has labels that training
        lacks; or data.on_error=skip would leave out all images of a split.
    """
    option = f"data.source={name}"
    if not train.label_shape and len(train.classes) < 2:  # such as an archive that unpacked into a folder of its own
        raise UserError(
            f"{option}: there is only one class, '{', '.join(train.classes)}'; two or more are needed (a folder of "
            "images has one folder for each class)"
        )
    if train.image_shape != test.image_shape:
        shapes = ["x".join(map(str, source.image_shape)) for source in (train, test)]
        raise UserError(
            f"{option}: its training images are {shapes[0]} and its test images {shapes[1]}: bring them to "
            "one shape by data.image_size with data.crop, and data.channels"
        )
    if train.label_shape != test.label_shape:
        raise UserError(
            f"{option}: labels of training images have the shape {list(train.label_shape)}, those of test "
            f"images {list(test.label_shape)}"
        )
    _check_names(train, test, option)
    trained, tested = _labels(train), _labels(test)
    for split, source in (("training", train), ("test", test)):
        _check_readable(source, f"{option}: none of its {len(source):,} {split} images can be decoded")
    if trained is None or tested is None:
        return []
    if unseen := sorted(tested - trained):
        raise UserError(f"{option}: no training image has these labels of test images: {_some(train, unseen)}")
    missing = sorted(trained - tested)
    return (
        [f"{len(missing):,} of the {len(train.classes):,} classes have no test images: {_some(train, missing)}"]
        if missing
        else []
    )


def _check_names(train: Source, test: Source, option: str) -> None:
    """Raises UserError where a label means one class in training and another in the test split.

    The test split may have fewer classes if they are the first ones.
    """
    if test.classes == train.classes[: len(test.classes)]:
        return
    trained_classes = set(train.classes)
    unknown = [name for name in test.classes if name not in trained_classes]
    difference = f"training lacks {_list(unknown)}" if unknown else "the test split numbers them differently"
    raise UserError(
        f"{option}: its splits have different classes: {difference} (where data.select names classes, "
        "data.select_test has to name the same)"
    )


def _labels(source: Source) -> set[int] | None:
    """Returns the labels that a source has, or None if that needs reading all examples.

    Of several labels per image, the labels that are present in some image count.
    """
    labels = source.known_labels()
    if labels is None:
        return None
    return set(np.flatnonzero((labels == 1).any(0)).tolist() if labels.ndim == 2 else np.unique(labels).tolist())


def _check_readable(source: Source, problem: str) -> None:
    """Raises UserError if unreadable images are skipped and no image can be decoded."""
    first = None
    for index in range(len(source)) if source.on_error == "skip" else ():
        try:
            source.example(index)
            return
        except Unreadable as error:
            first = first or error
    if first:
        raise UserError(f"{problem}; the first error: {first}")


def _some(source: Source, labels: list[int]) -> str:
    return _list([source.classes[label] for label in labels])


def _list(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_NAMES]) + f" and {len(names) - _NAMES:,} more" * (len(names) > _NAMES)
