"""Images to explain, and the inputs of every method."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from models.errors import UserError, choice_error
from train import predict
from train.data import background, imagenet, user_image, view
from train.data.view import View

if TYPE_CHECKING:  # training code is imported only when it is needed
    from train.run import Network


MOST = 64  # maximum number of --image files to explain; each is a row of a picture


class Subject(NamedTuple):
    """An image to explain.

    Attributes:
      pixels: The part that the network sees, uint8 [H, W, C].
      name: Its name in pictures and tables.
      label: Its class; None if unknown.
      view: The whole picture, on which explanations are drawn; None if the network sees all of it.
    """

    pixels: np.ndarray
    name: str
    label: int | None
    view: View | None = None


class Job(NamedTuple):
    """The inputs of every method.

    Attributes:
      run: The loaded run, `train.run.Network`.
      variables: Variables of its network, on the device.
      subjects: The images to explain.
      images: The same images as inputs of the network, [N, H, W, C].
      split: Name of a split of the run's data; opened by methods that need more than the subjects.
      out: Folder of the pictures.
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
        return imagenet.shown(self.run.feed.classes)

    @property
    def source(self) -> Any:
        return self.run.images.split(self.split)


def files_of(paths: Sequence[str]) -> list[tuple[str, str]]:
    """Returns (file, name) for each image; a folder contributes its images at any depth, named by their relative paths.

    Raises:
      UserError: A folder holds no images.
    """
    files = []
    for path in paths:
        names = predict.named([path])
        is_folder = Path(path).expanduser().is_dir()
        for file in names:
            files.append((file, str(Path(file).relative_to(Path(path).expanduser())) if is_folder else Path(file).name))
    return files


def from_files(run: "Network", paths: Sequence[str]) -> list[Subject]:
    """Reads the first MOST images of files and folders, cropped and resized as in the evaluation of the run.

    Gray images are inverted if their background differs from that of the training images, as in `train.predict`. See
    `train.data.background.matched`.
    """
    decoder, shape, subjects = run.images.decoder, run.images.image_shape, []
    for file, name in files_of(paths)[:MOST]:
        pixels, inverted = background.matched(user_image.of_file(decoder, shape, file), run.images.background)
        subjects.append(
            Subject(pixels, f"{name}{' (inverted)' * inverted}", None, view.of_file(decoder, shape, Path(file)))
        )
    return subjects


def from_split(source: Any, split: str, indices: Sequence[int]) -> list[Subject]:
    """Returns images of a split.

    Raises:
      UserError: The split has no image with one of the indices.
    """
    subjects = []
    for index in indices:
        if not 0 <= index < len(source):
            raise UserError(f"--indices={index} is out of range: split '{split}' has images 0 to {len(source) - 1}")
        example = source.example(index, None)
        pixels = example["image"]
        subjects.append(Subject(pixels, f"{split} {index}", int(example["label"]), _view_in(source, index, pixels)))
    return subjects


def _view_in(source: Any, index: int, pixels: np.ndarray) -> View | None:
    """Returns the view of an example of a split; None unless its pixels are only a crop of a stored picture."""
    ((stored, _),) = source.fetch([index])
    if isinstance(stored, np.ndarray) or source.decoder.crop == "none":
        return None
    is_crop = np.array_equal(source.decoder(stored), pixels)  # false if `data.select` painted something on it
    return view.of_file(source.decoder, pixels.shape, stored) if is_crop else None


def mistakes(run: "Network", variables: Any, source: Any, count: int = 8) -> tuple[list[int], str]:
    """Returns the indices of the network's most confident errors in a split, as in mistakes.png, and a remark.

    Without errors, the indices are those of its least confident answers, and the remark says so. Otherwise the remark
    is "".
    """
    from train import evaluate
    from train.plots.mistakes import least_confident, most_confident_errors

    logits, labels, index = evaluate.predictions(
        run.task.predict, variables, run.feed.prepare_evaluation, run.images.batches(source)
    )
    rows, remark = [row for row, *_ in most_confident_errors(logits, labels, count)], ""
    if not rows:
        rows = least_confident(logits, count)
        remark = (
            f"--indices=mistakes: the network classifies all {len(labels)} images correctly; these are the {len(rows)} "
            "that it is least confident about"
        )
    return [int(index[row]) for row in rows], remark


def targets(text: str, subjects: Sequence[Subject], classes: Sequence[str]) -> list[tuple[int, int]]:
    """Returns pairs (number of the subject, class or -1 for the most probable), in the order of the subjects.

    Raises:
      UserError: A class is unknown, or "label" is requested for an image without one.
    """
    pairs = []
    for number, subject in enumerate(subjects):
        for name in map(str.strip, text.split(",")):
            if name == "label" and subject.label is None:
                raise UserError(f"--target=label: {subject.name} has no label; name a class, or top1")
            pairs.append(
                (number, -1 if name == "top1" else subject.label if name == "label" else class_of(name, classes))
            )
    return pairs


def class_of(name: str, classes: Sequence[str]) -> int:
    """Returns the index of a class, given by its name or number."""
    for names in (classes, imagenet.shown(classes)):
        if name in names:
            return list(names).index(name)
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    if name.lstrip("-").isdecimal():
        raise UserError(f"--target={name} is out of range: classes are 0 to {len(classes) - 1}")
    raise choice_error("--target", name, (*imagenet.shown(classes), "top1", "label"))


def batches(job: Job) -> Any:
    """Yields batches of a split: images as inputs of the network, their indices in the split, and a mask."""
    start = 0
    for batch in job.run.images.batches(job.source):
        count = len(batch["mask"])
        yield (
            job.run.feed.prepare_evaluation({"image": batch["image"]})["image"],
            np.arange(start, start + count, dtype=np.int32),
            batch["mask"],
        )
        start += count
