"""Images in memory or in an .npz file."""

from collections.abc import Sequence

import numpy as np

from models.errors import UserError
from models.weights import npz
from train.data import hold_out
from train.data.identity import Digest
from train.data.options import Options
from train.data.source import Indices, Label, Source
from train.storage.remote import fetched

MOST_CLASSES = 1 << 16  # allowed for classes without names; more only if there are more images


class ArraySource(Source):
    """A source of images in memory."""

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        classes: Sequence[str] | None = None,
        options: Options | None = None,
    ):
        """Checks types and shapes.

        Args:
          images: uint8 [N, H, W, C].
          labels: integers [N], or, for several classes per image, -1, 0 and 1 [N, classes].
          classes: names by label; None names classes by their numbers.
          options: see `Options`.

        Raises:
          UserError: a type or shape is wrong, or the options do not fit the images.
        """
        options = options or Options(source="arrays")
        valid = np.issubdtype(labels.dtype, np.integer) and (labels.ndim != 2 or np.all((labels >= -1) & (labels <= 1)))
        paired = labels.ndim in (1, 2) and labels.shape[:1] == images.shape[:1]
        if images.dtype != np.uint8 or images.ndim != 4 or not paired or not valid:
            raise UserError(
                f"data.source={options.source}: images must be uint8 [N, H, W, C], and labels integers [N], or -1, 0 "
                f"and 1 [N, classes]; got {images.dtype} {list(images.shape)} and {labels.dtype} {list(labels.shape)}"
            )
        _, height, width, channels = images.shape
        if height in (1, 3) and width == channels > 4:
            raise UserError(
                f"data.source={options.source}: images {list(images.shape)} look like [N, C, H, W]; bring "
                "them to [N, H, W, C] by np.moveaxis(images, 1, 3)"
            )
        if options.crop != "none" and images.shape[3] not in (1, 3):
            raise UserError(f"data.crop={options.crop}: needs images with 1 or 3 channels, not {images.shape[3]}")
        self.label_shape = labels.shape[1:]
        count = _class_count(labels, options.source, len(classes or ()))
        classes = classes or [str(label) for label in range(count)]
        super().__init__(len(images), classes, (height, width, channels), options)
        self.images, self.labels, self.title = images, labels.astype(np.int32), options.source

    def fetch(self, indices: Indices) -> list[tuple[np.ndarray, Label]]:
        return [(self.images[index], self.labels[index]) for index in indices]

    def name(self, index: int) -> str:
        return f"{self.title} {index}"

    def known_labels(self) -> np.ndarray:
        return self.labels

    def identity(self) -> dict[str, str | int]:
        digest = Digest().add_array(self.images).add_array(self.labels)
        return {"images": self.count, "content": digest.short()}


def _class_count(labels: np.ndarray, source: str, named: int) -> int:
    """Returns the number of classes of labels [N] or [N, classes].

    Raises:
      UserError: there are more classes than names or, without names (`named` is 0), more than MOST_CLASSES.
    """
    lowest, highest = int(labels.min(initial=0)), int(labels.max(initial=0))
    count, most = labels.shape[1] if labels.ndim == 2 else highest + 1, named or max(MOST_CLASSES, len(labels))
    if count > most or (labels.ndim == 1 and lowest < 0):
        raise UserError(
            f"data.source={source}: its labels are {labels.dtype} {list(labels.shape)} from {lowest} to "
            f"{highest}; allowed: integers from 0, at most {most:,} classes"
        )
    return count


def from_npz(path: str, split: str, options: Options) -> Source:
    """Returns a split of an .npz file, see `hold_out.opened`; raises UserError if the file is damaged or lacks it."""
    with npz.opened(fetched(path)) as arrays:
        splits = [key.removesuffix("_image") for key in arrays if key.endswith("_image")]
        if not splits:
            raise UserError(
                f"{path}: its arrays are {', '.join(arrays) or 'none'}; it must have {split}_image, "
                f"uint8 [N, H, W, C], and {split}_label for each split"
            )

        def open_split(name: str) -> ArraySource:
            if f"{name}_label" not in arrays:
                raise UserError(f"data.source={options.source}: there is no array '{name}_label' beside '{name}_image'")
            return ArraySource(arrays[f"{name}_image"], arrays[f"{name}_label"], options=options)

        return hold_out.opened(split, splits, open_split, path)
