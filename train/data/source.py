"""Sources of labelled images with random access, and `load`, which makes one from `config.data`.

A source decodes example `index` to pixels of one size. It knows nothing of batches, order or devices.
"""

import concurrent.futures
import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models import own
from models.errors import UserError, choice_error, has_type
from models.weights import npz
from train import calls
from train.data.decode import CROPS, EXIF, MOST_PIXELS, Decoder
from train.data.identity import Digest, sample
from train.files import expanded

# Module and function of each kind, (split, options) -> Source, or (what follows the colon, split, options). They are
# imported when they are needed: scikit-learn and TFDS are slow to import, and a run needs one of them at most.
KINDS = {
    "digits": "train.data.digits:source",
    "tfds:NAME": "train.data.tfds_source:TfdsSource",
    "folder:PATH": "train.data.folder:FolderSource",
    "arrays:FILE.npz": "train.data.source:from_npz",
}
MOST_CLASSES = 1 << 16  # whose names are their numbers; more only where there are more images
TEXT_KINDS = ("grammar", "text:FOLDER")  # see text.py


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
            if not (isinstance(limits, (tuple, list)) and len(limits) == 2 and all(has_type(v, float) for v in limits)
                    and 0 < limits[0] <= limits[1] <= most):
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
        if self.image_shape[0] * self.image_shape[1] > MOST_PIXELS:
            raise UserError(f"{what}: images of {self.image_shape[0]}x{self.image_shape[1]}; allowed: {MOST_PIXELS:,} "
                            "pixels")
        self.fixed_size = crop == "none" or height is not None
        self.random_crop = crop in ("random_resized", "whole")
        self.decoder = Decoder(
            crop, size, channels, options.crop_scale, options.crop_ratio, options.eval_crop, options.exif)

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
        """That of the source, and a digest of what is made of it."""
        return {**self.source.identity(), "images": self.count, "made by": Digest().add(self.how).short()}


class ArraySource(Source):
    """Images that are in memory: uint8 [N, H, W, C], with integer labels [N], or [N, classes] for several an image."""

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        classes: Sequence[str] | None = None,
        options: Options | None = None,
    ):
        """Without `classes`, they are named by their numbers. Raises UserError for the wrong type or shape."""
        options = options or Options(source="arrays")
        whole = np.issubdtype(labels.dtype, np.integer) and (labels.ndim != 2 or np.all((labels >= -1) & (labels <= 1)))
        paired = labels.ndim in (1, 2) and labels.shape[:1] == images.shape[:1]
        if images.dtype != np.uint8 or images.ndim != 4 or not paired or not whole:
            raise UserError(
                f"data.source={options.source}: want images uint8 [N, H, W, C] and labels, whole numbers, [N] or, of "
                f"-1, 0 and 1, [N, classes]; got {images.dtype} {list(images.shape)} and {labels.dtype} "
                f"{list(labels.shape)}"
            )
        if options.crop != "none" and images.shape[3] not in (1, 3):
            raise UserError(f"data.crop={options.crop}: wants images of 1 or 3 channels, not {images.shape[3]}")
        self.label_shape = labels.shape[1:]
        count = _class_count(labels, options.source, len(classes or ()))
        classes = classes or [str(label) for label in range(count)]
        super().__init__(len(images), classes, images.shape[1:], options)
        self.images, self.labels, self.title = images, labels.astype(np.int32), options.source

    def fetch(self, indices: Sequence[int]) -> list[tuple[np.ndarray, int | np.ndarray]]:
        return [(self.images[index], self.labels[index]) for index in indices]

    def name(self, index: int) -> str:
        return f"{self.title} {index}"

    def known_labels(self) -> np.ndarray:
        return self.labels

    def identity(self) -> dict[str, str | int]:
        digest = Digest().add_array(self.images).add_array(self.labels)
        return {"images": self.count, "content": digest.short()}


def _class_count(labels: np.ndarray, source: str, named: int) -> int:
    """Returns the number of classes of labels [N] or [N, classes]; UserError where it is beyond those that are named,
    or where none is, beyond MOST_CLASSES."""
    lowest, highest = int(labels.min(initial=0)), int(labels.max(initial=0))
    count, most = labels.shape[1] if labels.ndim == 2 else highest + 1, named or max(MOST_CLASSES, len(labels))
    if count > most or (labels.ndim == 1 and lowest < 0):
        raise UserError(f"data.source={source}: its labels are {labels.dtype} {list(labels.shape)} from {lowest} to "
                        f"{highest}; allowed: whole numbers from 0, of {most:,} classes at most")
    return count


def load(config: Any, split: str) -> Source:
    """The source that `config` (an attribute-style section with the fields of `Options`) describes.

    `split`: "train" and "test" stand for config.train_split and config.test_split; any other is taken as it is.
    Raises UserError for an unknown source or split, a missing folder, and a data set that is not prepared.
    """
    from train.data.select import select  # it is made of sources

    options = Options.read(config)
    part = {"train": options.select, "test": options.select_test}.get(split, "")
    return select(_load({"train": options.train_split, "test": options.test_split}.get(split, split), options), part)


def load_test(data: Mapping[str, Any], **changes: Any) -> Source:
    """The test source of a run's section `data`, with other values for some of its keys."""
    return load(types.SimpleNamespace(**{**data, **changes}), "test")


def _load(split: str, options: Options) -> Source:
    if own.split(options.source):
        return calls.resolve_one("data.source", options.source, {}, split, options)
    kind, colon, argument = options.source.partition(":")
    for known, where in KINDS.items():
        name, known_colon, _ = known.partition(":")
        if (kind, colon, bool(argument)) == (name, known_colon, bool(known_colon)):
            return own.imported(where)(*filter(None, [argument]), split, options)
    raise choice_error("data.source", options.source, (*KINDS, *TEXT_KINDS))


def from_npz(path: str, split: str, options: Options) -> ArraySource:
    """Returns the arrays of a split; UserError where the file is damaged or lacks them."""
    with npz.opened(expanded(path)) as arrays:
        splits = [key.removesuffix("_image") for key in arrays if key.endswith("_image")]
        if split not in splits:
            if not splits:
                raise UserError(f"{path}: its arrays are {', '.join(arrays) or 'none'}; want {split}_image, uint8 "
                                f"[N, H, W, C], and {split}_label for each split")
            raise choice_error(f"split of {path}", split, splits)
        if f"{split}_label" not in arrays:
            raise UserError(f"data.source={options.source}: there is no array '{split}_label' beside '{split}_image'")
        return ArraySource(arrays[f"{split}_image"], arrays[f"{split}_label"], options=options)
