"""The options of a source: the keys of `config.data` that it reads."""

import dataclasses
from typing import Any

from models.errors import UserError, choice_error, has_type
from train.data.decode import CROPS, EXIF, INTERPOLATIONS


@dataclasses.dataclass(frozen=True)
class Options:
    """The keys of `config.data` that a source reads.

    The pipeline reads the other keys: `workers` (processes that decode; 0: threads), `pipeline` ("auto", "resident",
    "stream": resident.choose), `augment` (augment/), `mean` and `std` per channel on the scale 0..1.

    Attributes:
      source: a form of load.KINDS, mixture(…) or FILE.py:NAME; docs/data.md describes each. The last names a function
        (split, options, ...) -> Source in a user's file; further arguments follow in parentheses, as in
        FILE.py:NAME(x=1). For TFDS, NAME is name, name/config or name:version. An .npz file
        has the arrays SPLIT_image, uint8 [N, H, W, C], and SPLIT_label, [N] or, for several classes per image,
        [N, classes].
      dir: folder of the TFDS sets; "" means $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      train_split, test_split: of TFDS sets, in its notation ("train", "train[:90%]", "validation"). Other sets have
        "train" and "test", and part "train" into "train_fit" and "validation"; see hold_out.py.
      image_size: height and width after the crop; 0 keeps the size of sources whose images all have one size.
      crop: "none", "resize", "random_resized" or "whole" (decode.Decoder).
      crop_scale: range of the random crop's share of the area.
      crop_ratio: range of the random crop's width / height.
      eval_crop: side of the central crop, as a share of the shorter side.
      on_error: "fail" stops the run at an image that cannot be decoded, and names it; "skip" leaves such images out and
        counts them.
      select, select_test: parts of the training and the test split to use (select.py); "" means all.
      channels: 3 repeats gray images as RGB, 1 converts RGB to luma, 0 keeps the channels.
      exif: "apply" turns photographs as their EXIF orientation says, "ignore" takes them as stored.
      interpolation: filter of resizing, "bilinear" or "bicubic".
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
    interpolation: str = "bilinear"

    @classmethod
    def read(cls, config: Any) -> "Options":
        """Reads each field from an attribute-style section, and checks what can be checked without the data."""
        values = {field.name: getattr(config, field.name) for field in dataclasses.fields(cls)}
        for name in ("crop_scale", "crop_ratio"):
            limits, largest = values[name], 1.0 if name == "crop_scale" else float("inf")
            if not (
                isinstance(limits, (tuple, list))
                and len(limits) == 2
                and all(has_type(v, float) for v in limits)
                and 0 < limits[0] <= limits[1] <= largest
            ):
                raise UserError(f"data.{name}={limits}: must be (low, high) with 0 < low <= high <= {largest}")
            values[name] = tuple(limits)
        options = cls(**values)
        if options.crop not in CROPS:
            raise choice_error("data.crop", options.crop, CROPS)
        if options.on_error not in ("fail", "skip"):
            raise choice_error("data.on_error", options.on_error, ("fail", "skip"))
        if options.exif not in EXIF:
            raise choice_error("data.exif", options.exif, EXIF)
        if options.interpolation not in INTERPOLATIONS:
            raise choice_error("data.interpolation", options.interpolation, INTERPOLATIONS)
        if options.channels not in (0, 1, 3):
            raise choice_error("data.channels", options.channels, ("0", "1", "3"))
        if options.image_size < 0:
            raise UserError(
                f"data.image_size={options.image_size}: must be a size in pixels, or 0 to keep the size of the images"
            )
        if not 0 < options.eval_crop <= 1:
            raise UserError(f"data.eval_crop={options.eval_crop}: must be a share of the shorter side, in (0, 1]")
        return options
