"""Sources of labelled images with random access; load.py makes one from `config.data`.

A source decodes example `index` to pixels of one size. It knows nothing of batches, order or devices.
"""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import UserError, choice_error, has_type
from train.data.decode import CROPS, EXIF, Decoder
from train.data.identity import Digest, sample


@dataclasses.dataclass(frozen=True)
class Options:
    """The fields of `config.data` that a source reads.

    The others belong to the pipeline: `workers` (processes that decode; 0: threads), `pipeline` ("auto", "resident",
    "stream": resident.choose), `augment` (augment.build), `mean` and `std` per channel on the scale 0..1.

    source: "digits", "tfds:NAME" (NAME as TFDS has it: name, name/config, name:version), "folder:PATH" or
        "arrays:FILE.npz" (arrays SPLIT_image uint8 [N, H, W, C] and SPLIT_label, for notebooks and tests; labels
        [N, classes] are those of several classes an image); or FILE.py:NAME, with arguments if it has some, a function
        (split, options, ...) -> Source.
    dir: where TFDS sets lie; "" is $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    train_split, test_split: TFDS splits ("train", "train[:90%]", "validation"); digits and folders have "train",
        "test", and "train_fit" and "validation", which part "train" so that choices need not see the test set.
    image_size: height and width after the crop; 0: as the images are, for sources whose images have one size.
    crop: "none", "resize", "random_resized" or "whole" (decode.Decoder). crop_scale, crop_ratio: ranges of the random
        crop's share of the area and of its width / height. eval_crop: the central crop's share of the shorter side.
    on_error: an image that cannot be decoded is named and stops the run ("fail"), or is skipped and counted ("skip").
    select, select_test: what is taken of the training and of the test split (select.py); "" is all.
    channels: 3 repeats gray images as RGB, 1 makes luma of RGB; 0: as they are.
    exif: "apply" turns photographs as their EXIF orientation says, "ignore" takes them as they are stored.
    """

    source: str
    dir: str = ""
    train_split: str = "train"
    test_split: str = "test"
    image_size: int = 0
    crop: str = "none"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    eval_crop: float = 0.875
    on_error: str = "fail"
    select: str = ""
    select_test: str = ""
    channels: int = 0
    exif: str = "apply"

    @classmethod
    def read(cls, config: Any) -> "Options":
        """Reads every field from an attribute-style section and checks what can be checked without the data."""
        values = {field.name: getattr(config, field.name) for field in dataclasses.fields(cls)}
        for name in ("crop_scale", "crop_ratio"):
            limits, most = values[name], 1.0 if name == "crop_scale" else float("inf")
            if not (
                isinstance(limits, (tuple, list))
                and len(limits) == 2
                and all(has_type(v, float) for v in limits)
                and 0 < limits[0] <= limits[1] <= most
            ):
                raise UserError(f"data.{name}={limits}: want (low, high) with 0 < low <= high <= {most}")
            values[name] = tuple(limits)
        options = cls(**values)
        if options.crop not in CROPS:
            raise choice_error("data.crop", options.crop, CROPS)
        if options.on_error not in ("fail", "skip"):
            raise choice_error("data.on_error", options.on_error, ("fail", "skip"))
        if options.exif not in EXIF:
            raise choice_error("data.exif", options.exif, EXIF)
        if options.channels not in (0, 1, 3):
            raise choice_error("data.channels", options.channels, ("0", "1", "3"))
        if options.image_size < 0:
            raise UserError(f"data.image_size={options.image_size}: want a size in pixels, or 0 for as they are")
        if not 0 < options.eval_crop <= 1:
            raise UserError(f"data.eval_crop={options.eval_crop}: want a share of the shorter side in (0, 1]")
        return options


class Unreadable(UserError):
    """An image that cannot be decoded."""


class Source:
    """N labelled images, by index. A kind of source provides `fetch` and `name`; pickling one copies no images.

    classes: names, by label. image_shape: (H, W, C) after decoding. fixed_size: all stored images have that size.
    random_crop: training crops at random while decoding, so the pixels cannot be decoded once and kept.
    label_shape: () for one class an image, (num_classes,) for several; such a label says of every class 1 present,
        0 absent, -1 not counted, neither in training nor in evaluation (VOC: what is there is marked as difficult).
    how: what else the pixels depend on than on what is stored and on `decoder`.
    report: a line on what was found, used and left out; "" where there is nothing to say.
    """

    label_shape: tuple[int, ...] = ()
    how: Any = ()
    report: str = ""

    def __init__(
        self, count: int, classes: Sequence[str], stored: tuple[int | None, int | None, int], options: Options
    ):
        """`stored` is the shape (H, W, C) of the stored images, H and W None where they vary."""
        height, width, channels = stored
        channels = options.channels or channels
        size, crop, what = options.image_size, options.crop, f"data.source={options.source}"
        if count < 1:
            raise UserError(f"{what}: the split has no examples")
        if not size and (height is None or width is None):
            raise UserError(f"{what}: its images vary in size: set data.image_size, and data.crop to resize them")
        if not size and crop != "none":
            if height != width:
                raise UserError(f"{what}: data.crop={crop} needs data.image_size: its images are {height}x{width}")
            size = height
        if crop == "none" and size and height is not None and (height, width) != (size, size):
            raise UserError(
                f"{what}: data.image_size={size} but its images are {height}x{width}: set data.crop to resize"
            )
        self.count, self.classes, self.on_error = count, tuple(classes), options.on_error
        self.image_shape = (size or height, size or width, channels)
        self.fixed_size = crop == "none" or height is not None
        self.random_crop = crop in ("random_resized", "whole")
        self.decoder = Decoder(
            crop, size, channels, options.crop_scale, options.crop_ratio, options.eval_crop, options.exif
        )

    def __len__(self) -> int:
        return self.count

    def fetch(self, indices: Sequence[int]) -> list[tuple[bytes | Path | np.ndarray, int | np.ndarray]]:
        """The stored images (bytes, files or pixels) and labels at `indices`. Reading many at once may be faster."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """What a user calls example `index`: a file name or an id."""
        raise NotImplementedError

    def identity(self) -> dict[str, str | int]:
        """JSON values that change with the stored images or labels, or where there are others: they tell whether two
        processes, or a run and its continuation, have the same data.

        Here the number of examples and a digest of a sample: 64 evenly spaced ones, of files the sizes and both ends.
        Kinds that know more of their examples override it.
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
        """The labels of all examples, as of `all_labels`, where no example has to be read for them, else None."""
        return None

    def all_labels(self) -> np.ndarray:
        """The labels of all examples, int32 [N, *label_shape], without decoding an image."""
        known = self.known_labels()
        if known is not None:
            return known
        chunks = (range(start, min(start + 4096, self.count)) for start in range(0, self.count, 4096))
        return np.array([label for chunk in chunks for _, label in self.fetch(chunk)], np.int32)

    def example(self, index: int, rng: np.random.Generator | None = None) -> dict[str, Any]:
        """{"image": uint8 [H, W, C], "label": int32 [*label_shape]}; with `rng` the training crop, without it that of
        evaluation.

        Raises Unreadable, whatever `on_error` is: to replace or to mask is for `read` to decide.
        """
        ((stored, label),) = self.fetch([index])
        return {"image": self._decode(index, stored, rng), "label": np.int32(label)}

    def read(
        self, indices: Sequence[int], rng: Callable[[int], np.random.Generator] | None = None, replace: bool = False
    ) -> dict[str, Any]:
        """The examples at `indices` as {"image": uint8 [B, H, W, C], "label": int32 [B, *label_shape], "mask":
        float32 [B], "skipped": int64 [S], the indices of images that could not be decoded}.

        `rng(row)` gives the generator of a row's training crop. With on_error="skip", an image that cannot be decoded
        is skipped; with `replace` the next readable example of the source stands in for it (training), else
        its image is black and its mask 0 (evaluation).
        """
        images = np.zeros((len(indices), *self.image_shape), np.uint8)
        labels = np.zeros((len(indices), *self.label_shape), np.int32)
        mask = np.ones(len(indices), np.float32)
        skipped = []
        for row, (index, (stored, label)) in enumerate(zip(indices, self.fetch(indices), strict=True)):
            generator = rng(row) if rng else None
            labels[row] = label
            try:
                images[row] = self._decode(int(index), stored, generator)
            except Unreadable:
                if self.on_error == "fail":
                    raise
                skipped.append(index)
                if replace:
                    other = self._next_readable(int(index), generator)
                    images[row], labels[row] = other["image"], other["label"]
                else:
                    mask[row] = 0
        return {"image": images, "label": labels, "mask": mask, "skipped": np.array(skipped, np.int64)}

    def arrays(self, threads: int = 4, replace: bool = False) -> dict[str, Any]:
        """The whole source with the evaluation crop, in order: as `read`, with B = N. Decodes in `threads` threads."""
        chunk = 512
        starts = range(0, self.count, chunk)
        indices = np.arange(self.count)
        batch = {
            "image": np.empty((self.count, *self.image_shape), np.uint8),
            "label": np.empty((self.count, *self.label_shape), np.int32),
            "mask": np.empty(self.count, np.float32),
        }
        skipped = []

        def read(start: int) -> dict[str, Any]:
            return self.read(indices[start : start + chunk], replace=replace)

        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            for start, part in zip(starts, pool.map(read, starts), strict=True):
                for key in ("image", "label", "mask"):
                    batch[key][start : start + chunk] = part[key]
                skipped.append(part["skipped"])
        return {**batch, "skipped": np.concatenate(skipped)}

    def _decode(self, index: int, stored: bytes | Path | np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
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

    def _next_readable(self, index: int, rng: np.random.Generator | None) -> dict[str, Any]:
        for step in range(1, self.count):
            try:
                return self.example((index + step) % self.count, rng)
            except Unreadable:
                continue
        raise UserError("none of the images can be decoded")


class Wrapped(Source):
    """Examples made of another source's, whose images are decoded as it decodes them.

    classes, image_shape: where they are others than the source's.
    """

    def __init__(self, source: Source, count: int, classes: Sequence[str] = (), image_shape: tuple[int, ...] = ()):
        self.source, self.count = source, count
        self.classes, self.image_shape = tuple(classes) or source.classes, image_shape or source.image_shape
        self.on_error, self.decoder = source.on_error, source.decoder
        self.fixed_size, self.random_crop, self.report = source.fixed_size, source.random_crop, source.report

    def identity(self) -> dict[str, str | int]:
        """Returns the identity of the source with a digest of what is made of it."""
        return {**self.source.identity(), "images": self.count, "made by": Digest().add(self.how).short()}
