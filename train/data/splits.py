"""The training and the test split of a run beside each other: what has to be the same in both."""

from collections.abc import Iterable

import numpy as np

from models.errors import UserError
from train.data.source import Source, Unreadable

_NAMES = 5  # of classes in a line


def compare(train: Source, test: Source, name: str) -> list[str]:
    """Checks that what is learned on `train` can be tested on `test`.

    Args:
      train, test: the splits.
      name: what a user calls the data set, for errors.

    Returns:
      Lines to tell the user: classes that the test split lacks.

    Raises:
      UserError: a single class; images or labels of another shape; test labels that training never has; a split of
        which no image can be decoded, where data.on_error=skip would leave out all of it.
    """
    what = f"data.source={name}"
    if not train.label_shape and len(train.classes) < 2:  # as of an archive that unpacks into a folder of its own
        raise UserError(
            f"{what}: there is one class only, '{train.classes[0]}'; want two or more (a folder of images "
            "has one folder for each class)"
        )
    if train.image_shape != test.image_shape:
        shapes = ["x".join(map(str, source.image_shape)) for source in (train, test)]
        raise UserError(
            f"{what}: its training images are {shapes[0]} and its test images {shapes[1]}: bring them to "
            "one shape by data.image_size with data.crop, and data.channels"
        )
    if train.label_shape != test.label_shape:
        raise UserError(
            f"{what}: labels of training images have the shape {list(train.label_shape)}, those of test "
            f"images {list(test.label_shape)}"
        )
    _check_names(train, test, what)
    seen, tested = _labels(train), _labels(test)
    for split, source in (("training", train), ("test", test)):
        _check_readable(source, f"{what}: none of its {len(source):,} {split} images can be decoded")
    if seen is None or tested is None:
        return []
    if unseen := sorted(tested - seen):
        raise UserError(f"{what}: no training image has these labels of test images: {_some(train, unseen)}")
    missing = sorted(seen - tested)
    return (
        [f"no test image is of these {len(missing):,} of the {len(train.classes):,} classes: {_some(train, missing)}"]
        if missing
        else []
    )


def _check_names(train: Source, test: Source, what: str) -> None:
    """Raises UserError where a label of the test split does not stand for the class that it stands for in training.
    The test split may have fewer classes if these are the first.
    """
    if test.classes == train.classes[: len(test.classes)]:
        return
    known = set(train.classes)
    unknown = [name for name in test.classes if name not in known]
    difference = f"training lacks {_list(unknown)}" if unknown else "the test split numbers them otherwise"
    raise UserError(
        f"{what}: its splits have different classes: {difference} (where data.select names classes, "
        "data.select_test has to name the same)"
    )


def _labels(source: Source) -> set[int] | None:
    """Returns which labels there are, or of several an image which are present; None if all examples would have to be
    read for that.
    """
    labels = source.known_labels()
    if labels is None:
        return None
    return set(np.flatnonzero((labels == 1).any(0)).tolist() if labels.ndim == 2 else np.unique(labels).tolist())


def _check_readable(source: Source, problem: str) -> None:
    """Raises UserError where images are skipped that cannot be decoded, and none can be."""
    first = None
    for index in range(len(source)) if source.on_error == "skip" else ():
        try:
            source.example(index)
            return
        except Unreadable as error:
            first = first or error
    if first:
        raise UserError(f"{problem}; the first: {first}")


def _some(source: Source, labels: list[int]) -> str:
    return _list([source.classes[label] for label in labels])


def _list(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_NAMES]) + f" and {len(names) - _NAMES:,} more" * (len(names) > _NAMES)
