"""Sources of labeled images with random access; load.py makes one from `config.data`.

A source decodes example `index` to pixels of one size. It knows nothing of batches, order or devices.
"""

import abc
import concurrent.futures
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from models.errors import UserError
from train.data.decode import Decoder
from train.data.identity import Digest, sample
from train.data.options import Options

Stored = bytes | Path | np.ndarray  # an image before it is decoded: the bytes of a file, a file, or its pixels
Label = int | np.ndarray  # a class, or int32 [num_classes] of several classes per image
Indices = Sequence[int] | np.ndarray
Batch = dict[str, Any]  # see `Source.read`


class Unreadable(UserError):
    """An image that cannot be decoded."""


class Source(Protocol):
    """N labeled images by index, as the pipelines use them.

    To write a source, subclass this class, call its constructor, and implement `fetch` and `name`; everything else is
    implemented here. Override `identity` or `known_labels` where the source knows more about its examples.

    A source is pickled and sent to worker processes. So its pickle must not hold open files, locks, or copies of images
    that are on disk.

    Attributes:
      count: number of examples.
      classes: names of the classes, by label.
      image_shape: (H, W, C) after decoding.
      label_shape: () for one class per image, (num_classes,) for several. Such a label has, for each class, 1 for
        present, 0 for absent, and -1 for not counted, neither in training nor in evaluation (objects that VOC marks as
        difficult).
      decoder: turns what `fetch` returns into pixels.
      on_error: "fail" or "skip", see `Options`.
      fixed_size: True if all stored images have one size.
      random_crop: True if training crops at random while it decodes, so that images cannot be decoded once and kept.
      how: settings, besides `decoder`, that affect the pixels; digests of the source include its `repr`.
      report: one line on the files that were used and left out; "" for none.
      groups: (boundaries, groups per window) where examples are read in groups, see `shuffle.Order`; else None.
    """

    count: int
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    decoder: Decoder
    on_error: str
    fixed_size: bool
    random_crop: bool
    label_shape: tuple[int, ...] = ()
    how: Any = ()
    report: str = ""
    groups: tuple[np.ndarray, int] | None = None

    def __init__(
        self, count: int, classes: Sequence[str], stored: tuple[int | None, int | None, int], options: Options
    ):
        """Checks the sizes of the images against the options.

        Args:
          count: number of examples.
          classes: names of the classes, by label.
          stored: shape (H, W, C) of the stored images; H and W are None where they vary.
          options: how to crop, and what to do about images that cannot be decoded.

        Raises:
          UserError: there are no examples, or the options do not give all images one size.
        """
        height, width, channels = stored
        channels = options.channels or channels
        size, crop, option = options.image_size, options.crop, f"data.source={options.source}"
        if count < 1:
            raise UserError(f"{option}: the split has no examples")
        if not size and (height is None or width is None):
            raise UserError(f"{option}: its images vary in size: set data.image_size, and data.crop to resize them")
        if not size and crop != "none":
            if height != width:
                raise UserError(f"{option}: data.crop={crop} needs data.image_size: its images are {height}x{width}")
            size = height or 0
        if crop == "none" and size and height is not None and (height, width) != (size, size):
            raise UserError(
                f"{option}: data.image_size={size} but its images are {height}x{width}: set data.crop to resize"
            )
        self.count, self.classes, self.on_error = count, tuple(classes), options.on_error
        self.image_shape = (size or height or 0, size or width or 0, channels)  # neither 0: see the checks above
        self.fixed_size = crop == "none" or height is not None
        self.random_crop = crop in ("random_resized", "whole")
        self.decoder = Decoder(
            crop,
            size,
            channels,
            options.crop_scale,
            options.crop_ratio,
            options.eval_crop,
            options.exif,
            options.interpolation,
        )

    def __len__(self) -> int:
        """Returns the number of examples."""
        return self.count

    @abc.abstractmethod
    def fetch(self, indices: Indices) -> Sequence[tuple[Stored, Label]]:
        """Returns the stored images and the labels at `indices`, in that order, without decoding.

        It is called with a whole batch, since reading many examples at once may be faster, and from several threads.
        """
        raise NotImplementedError

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """Returns the name by which a user knows example `index`: a file name or an id."""
        raise NotImplementedError

    def key(self, index: int) -> str:
        """Returns a name of example `index` that is the same wherever the set is stored.

        Examples are held out by it; see hold_out.py. The default is the number of the example.
        """
        return str(index)

    def identity(self) -> dict[str, str | int]:
        """Returns JSON values that change when stored images or labels change.

        Equal values mean that two processes, or a run and its continuation, have the same data. "images" is the number
        of examples. The default adds a digest of 64 evenly spaced examples; of files it uses the sizes and both ends.
        """
        digest = Digest()
        for stored, label in self.fetch(sample(self.count)):
            digest.add(np.asarray(label).tolist())
            if isinstance(stored, Path):
                digest.add_file(stored)
            else:
                digest.add(stored.tobytes() if isinstance(stored, np.ndarray) else stored)
        return {"images": self.count, "content": digest.add(self.how).short()}

    def known_labels(self) -> np.ndarray | None:
        """Returns `all_labels()` if that needs no reading of examples, else None."""
        return None

    def all_labels(self) -> np.ndarray:
        """Returns the labels of all examples, int32 [N, *label_shape], without decoding an image."""
        labels = self.known_labels()
        if labels is not None:
            return labels
        chunks = (range(start, min(start + 4096, self.count)) for start in range(0, self.count, 4096))
        return np.array([label for chunk in chunks for _, label in self.fetch(chunk)], np.int32)

    def decode(self, index: int, stored: Stored, rng: np.random.Generator | None) -> np.ndarray:
        """Returns the pixels of example `index`, uint8 `image_shape`, from what `fetch` returned for it.

        Args:
          index: the example.
          stored: its stored image.
          rng: generator of the training crop; None for the evaluation crop.

        Raises:
          Unreadable: the image cannot be decoded.
        """
        try:
            pixels = self.decoder(stored, rng)
        except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error, … for a damaged file
            raise Unreadable(
                f"cannot decode image {self.name(index)}: {error} (data.on_error=skip leaves such images out)"
            ) from error
        if pixels.shape != self.image_shape:
            raise UserError(
                f"image {self.name(index)} is {'x'.join(map(str, pixels.shape[:2]))}, not "
                f"{'x'.join(map(str, self.image_shape[:2]))}: set data.crop to resize"
            )
        return pixels

    def example(self, index: int, rng: np.random.Generator | None = None) -> Batch:
        """Returns {"image": uint8 [H, W, C], "label": int32 [*label_shape]}, cropped as by `decode`.

        Raises:
          Unreadable: the image cannot be decoded, whatever `on_error` is; `read` replaces or masks such images.
        """
        ((stored, label),) = self.fetch([index])
        return {"image": self.decode(index, stored, rng), "label": np.int32(label)}

    def read(
        self, indices: Indices, rng: Callable[[int], np.random.Generator] | None = None, replace: bool = False
    ) -> Batch:
        """Reads and decodes the examples at `indices`.

        Args:
          indices: B examples.
          rng: maps a row of the batch to the generator of its training crop; None for the evaluation crop.
          replace: with on_error="skip", True puts the next readable example in the place of one that cannot be decoded
            (training). False leaves its image black and its mask 0 (evaluation).

        Returns:
          {"image": uint8 [B, H, W, C], "label": int32 [B, *label_shape], "mask": float32 [B], "skipped": int64 [S]}.
          "skipped" has the indices of images that could not be decoded.
        """
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        labels = np.zeros((len(indices), *self.label_shape), np.int32)
        mask = np.ones(len(indices), np.float32)
        skipped = []
        for row, (index, (stored, label)) in enumerate(zip(indices, self.fetch(indices), strict=True)):
            generator = rng(row) if rng else None
            labels[row] = label
            try:
                images[row] = self.decode(int(index), stored, generator)
            except Unreadable:
                if self.on_error == "fail":
                    raise
                skipped.append(index)
                if replace:
                    other = self._next_readable(int(index), generator)
                    images[row], labels[row] = other["image"], other["label"]
                else:
                    images[row], mask[row] = 0, 0
        return {"image": images, "label": labels, "mask": mask, "skipped": np.array(skipped, np.int64)}

    def arrays(self, threads: int = 4, replace: bool = False) -> Batch:
        """Reads the whole source in order with the evaluation crop, as `read` with B = N, in `threads` threads."""
        chunk = 512
        starts = range(0, self.count, chunk)
        indices = np.arange(self.count)
        batch = {
            "image": np.empty((self.count, *self.image_shape), np.uint8),
            "label": np.empty((self.count, *self.label_shape), np.int32),
            "mask": np.empty(self.count, np.float32),
        }
        skipped = []

        def read(start: int) -> Batch:
            return self.read(indices[start : start + chunk], replace=replace)

        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            for start, part in zip(starts, pool.map(read, starts), strict=True):
                for key in ("image", "label", "mask"):
                    batch[key][start : start + chunk] = part[key]
                skipped.append(part["skipped"])
        return {**batch, "skipped": np.concatenate(skipped)}

    def _next_readable(self, index: int, rng: np.random.Generator | None) -> Batch:
        for step in range(1, self.count):
            try:
                return self.example((index + step) % self.count, rng)
            except Unreadable:
                continue
        raise UserError("none of the images can be decoded")


class Wrapped(Source):
    """A source whose examples are made from those of another source, and decoded as that source decodes them."""

    def __init__(
        self, source: Source, count: int, classes: Sequence[str] = (), image_shape: tuple[int, int, int] | None = None
    ):
        """Takes over the properties of `source`, except for `classes` and `image_shape` where they are given."""
        self.source, self.count = source, count
        self.classes, self.image_shape = tuple(classes) or source.classes, image_shape or source.image_shape
        self.on_error, self.decoder = source.on_error, source.decoder
        self.fixed_size, self.random_crop, self.report = source.fixed_size, source.random_crop, source.report

    def identity(self) -> dict[str, str | int]:
        return {**self.source.identity(), "images": self.count, "made by": Digest().add(self.how).short()}


def groups_within(source: Source, index: np.ndarray) -> tuple[np.ndarray, int] | None:
    """Returns the `groups` of the examples `index` of a source, in increasing order."""
    if source.groups is None or np.any(np.diff(index) < 0):
        return None
    bounds, window = source.groups
    return np.unique(np.searchsorted(index, bounds)), window
