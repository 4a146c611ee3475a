"""The 1,797 handwritten digits that come with scikit-learn: 8x8 pixels, ten classes, no download.

They are the test set of the UCI "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998).
"""

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from models.errors import choice_error
from train.data.options import Options
from train.data.sources.arrays import ArraySource
from train.data.sources.kept import kept

if TYPE_CHECKING:
    from sklearn.utils import Bunch

# The stratified split does not depend on the seed of a run, so that results of different seeds are comparable
_SPLIT_SEED = 0
_TEST_SHARE = 0.2  # 1,437 to train, 360 to test
_VALIDATION_SHARE = 0.2  # of the training part: 1,149 to fit, 288 for validation


def source(split: str, options: Options) -> ArraySource:
    """Returns the split "train" or "test", or "train_fit" or "validation", which part "train"."""
    splits = ("train", "test", "train_fit", "validation")
    if split not in splits:
        raise choice_error("split of digits", split, splits)
    kind = f"digits-{importlib.metadata.version('scikit-learn')}"  # scikit-learn draws the splits
    arrays = kept(kind, _files(), _read, least=0)
    indices = arrays[split]
    return ArraySource(arrays["images"][indices], arrays["labels"][indices], list(map(str, range(10))), options)


def _files() -> list[Path]:
    """Returns the file of the digits in scikit-learn, whose import takes a second."""
    package = importlib.util.find_spec("sklearn")
    assert package is not None and package.submodule_search_locations
    return [Path(folder, "datasets", "data", "digits.csv.gz") for folder in package.submodule_search_locations]


def _read() -> dict[str, np.ndarray]:
    """Reads images, labels, and the indices of each split by scikit-learn."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = cast("Bunch", load_digits())
    labels = digits.target.astype(np.int32)

    def part(indices: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
        rest, held_out = train_test_split(indices, test_size=share, stratify=labels[indices], random_state=_SPLIT_SEED)
        return np.asarray(rest), np.asarray(held_out)

    train, test = part(np.arange(len(labels)), _TEST_SHARE)
    fit, validation = part(train, _VALIDATION_SHARE)
    # Stored levels are 0..16 (counts of the pixels that are on in a 4x4 block)
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]  # [1797, 8, 8, 1]
    indices = {"train": train, "test": test, "train_fit": fit, "validation": validation}
    return {"images": images, "labels": labels, **indices}
