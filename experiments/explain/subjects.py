"""Images to explain, and what every method gets of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from models.errors import UserError, choice_error
from train.data import decode

if TYPE_CHECKING:  # what trains is imported when a measure runs
    from train.run import Network


class Subject(NamedTuple):
    """An image to explain: uint8 [H, W, C], its name, and its class where that is known."""

    pixels: np.ndarray
    name: str
    label: int | None


class Job(NamedTuple):
    """What every method gets.

    Attributes:
      run: `train.run.Network`.
      variables: of its network, on the device.
      subjects: the images.
      images: as the network gets them, [N, H, W, C].
      split: of the run's data; it is opened by methods that need more than the subjects.
      out: folder of the pictures.
    """

    run: "Network"
    variables: Any
    subjects: Sequence[Subject]
    images: Any
    split: str
    out: Path

    @property
    def model(self) -> Any:
        return self.run.task.model

    @property
    def classes(self) -> Sequence[str]:
        return self.run.feed.classes

    @property
    def source(self) -> Any:
        return self.run.images.split(self.split)


def from_files(run: "Network", files: Sequence[str]) -> list[Subject]:
    """Images of files, see `train.data.decode.of_file`."""
    return [
        Subject(decode.of_file(run.images.decoder, run.images.image_shape, file), Path(file).name, None)
        for file in files
    ]


def from_split(source: Any, split: str, indices: Sequence[int]) -> list[Subject]:
    """Images of a split; UserError where it has no such index."""
    found = []
    for index in indices:
        if not 0 <= index < len(source):
            raise UserError(f"--indices={index} is out of range: split '{split}' has images 0 to {len(source) - 1}")
        example = source.example(index, None)
        found.append(Subject(example["image"], f"{split} {index}", int(example["label"])))
    return found


def mistakes(run: "Network", variables: Any, source: Any, count: int = 8) -> list[int]:
    """Indices of the images of a split that the network is most confidently wrong about, as in mistakes.png.

    Raises:
      UserError: it is right about all.
    """
    from train import evaluate
    from train.plots import figures

    logits, labels, index = evaluate.predictions(
        run.task.predict, variables, run.feed.prepare_evaluation, run.images.batches(source)
    )
    found = [int(index[row]) for row, *_ in figures.most_confident_errors(logits, labels, count)]
    if not found:
        raise UserError(f"--indices=mistakes: the network is right about all of the {len(labels)} images")
    return found


def targets(text: str, subjects: Sequence[Subject], classes: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs (number of the subject, class or -1 for the most probable), in the order of the subjects.

    Raises:
      UserError: an unknown class; "label" of an image without one.
    """
    found = []
    for number, subject in enumerate(subjects):
        for name in map(str.strip, text.split(",")):
            if name == "label" and subject.label is None:
                raise UserError(f"--target=label: {subject.name} has no label: name a class, or top1")
            found.append(
                (number, -1 if name == "top1" else subject.label if name == "label" else class_of(name, classes))
            )
    return found


def class_of(name: str, classes: Sequence[str]) -> int:
    """A class by its name or its number."""
    if name in classes:
        return list(classes).index(name)
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    if name.lstrip("-").isdecimal():
        raise UserError(f"--target={name} is out of range: classes are 0 to {len(classes) - 1}")
    raise choice_error("--target", name, (*classes, "top1", "label"))


def batches(job: Job) -> Any:
    """The images of the split as the network gets them, with their places in it and a mask."""
    start = 0
    for batch in job.run.images.batches(job.source):
        count = len(batch["mask"])
        yield (
            job.run.feed.prepare_evaluation({"image": batch["image"]})["image"],
            np.arange(start, start + count, dtype=np.int32),
            batch["mask"],
        )
        start += count
