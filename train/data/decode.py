"""Decoding and cropping on the host, in one step: from encoded bytes to uint8 pixels of one size.

A JPEG is decoded at the smallest of the scales 1, 1/2, 1/4, 1/8 that still has the pixels needed (its DCT blocks make
that cheap), and only the crop is resampled. The bicubic evaluation crop does neither: it equals Resize and CenterCrop
of torchvision, and thus timm's preprocessing, to the bit.

All encodings of a picture give the same levels (`levels`). A file with several frames or pages (GIF, APNG, WebP, TIFF)
stands for its first one. A picture of more than MOST_PIXELS pixels is refused, and `Accepted` can narrow that.
"""

import dataclasses
import functools
import io
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from models.errors import UserError
from train.data import crops, jpeg
from train.data.crops import Crop, Range

CROPS = ("none", "resize", "random_resized", "whole")
EXIF = ("apply", "ignore")
MOST_PIXELS = 89_478_485  # PIL's own limit, above which it warns of a decompression bomb
BACKGROUND = (255, 255, 255)  # behind transparent pixels: drawings and cut-outs are made for white pages
INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# Formats that PIL opens although they are documents, films or tables of measurements
_NOT_PICTURES = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"})
_NUMBERS = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # PIL's modes with more than eight bits per pixel
_ORIENTATION = 0x0112  # tag of EXIF
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_WHITE_IS_ZERO, _SIGNED = 0, 2  # their values
_ROWS = 64  # that are converted at a time
_Turn = Image.Transpose
# By EXIF orientation: how to turn the stored picture, and whether that swaps the axes, mirrors x, mirrors y
_TURNS = {
    2: (_Turn.FLIP_LEFT_RIGHT, False, True, False),
    3: (_Turn.ROTATE_180, False, True, True),
    4: (_Turn.FLIP_TOP_BOTTOM, False, False, True),
    5: (_Turn.TRANSPOSE, True, False, False),
    6: (_Turn.ROTATE_270, True, False, True),
    7: (_Turn.TRANSVERSE, True, True, True),
    8: (_Turn.ROTATE_90, True, True, False),
}
# PIL's warnings name no file. They are about damaged tags, which it skips, and too many pixels, which `_check` refuses
warnings.filterwarnings("ignore", module=r"PIL\.")


class TooManyPixels(UserError):
    """A picture that claims more pixels than are accepted."""


class Accepted(NamedTuple):
    """The files that are decoded; others are refused before their pixels are.

    Attributes:
      pixels: largest number of pixels.
      formats: PIL's names of formats, such as "JPEG"; None accepts every format of pictures.
    """

    pixels: int = MOST_PIXELS
    formats: tuple[str, ...] | None = None


PICTURES = Accepted()


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A function that decodes and crops one image: `decoder(encoded, rng) -> uint8 [H, W, C]`.

    Attributes:
      crop: "none" keeps the image. "resize" is the evaluation crop, in training too. "random_resized" is random in
        training (Szegedy 2015). "whole" squeezes the whole image to a square, in training a random part of the same
        shape (Kolesnikov 2020, section 3.3).
      size: height and width after a crop.
      channels: 1 or 3.
      scale: range of the random crop's share of the area.
      ratio: range of the random crop's width / height.
      eval_crop: side of the central crop, as a share of the shorter side.
      exif: "apply" turns a photograph as its EXIF orientation says, before the crop; "ignore" takes it as stored. (PIL
        always applies the orientation tag of a TIFF.)
      interpolation: filter of the resampling, "bilinear" or "bicubic"; both are antialiased.
      exact: whether the evaluation crop resizes the whole picture first, to the bit as torchvision, also if bilinear.
    """

    crop: str
    size: int
    channels: int
    scale: Range = (0.08, 1.0)
    ratio: Range = (3 / 4, 4 / 3)
    eval_crop: float = 0.875
    exif: str = "apply"
    interpolation: str = "bilinear"
    exact: bool = False

    def __call__(
        self, encoded: bytes | Path | np.ndarray, rng: np.random.Generator | None = None, accepted: Accepted = PICTURES
    ) -> np.ndarray:
        """Returns the pixels of one image, uint8 [H, W, C].

        Args:
          encoded: the bytes of a file, a file, or uint8 pixels [H, W, C].
          rng: generator of the training crop; None for the evaluation crop.
          accepted: the files that are decoded.

        Raises:
          TooManyPixels: there are more pixels than accepted.
          ValueError: the levels have no meaning (see `levels`).
          Exception: whatever PIL raises for a file that it cannot decode.
        """
        if isinstance(encoded, np.ndarray):
            if self.crop == "none" and encoded.shape[-1] == self.channels:
                return encoded
            with Image.fromarray(encoded[..., 0] if encoded.shape[-1] == 1 else encoded) as image:
                return self._pixels(image, rng)
        file = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
        with Image.open(file, formats=accepted.formats) as image:
            _check(image, accepted.pixels)
            _mend_transparency(image)
            return self._pixels(image, rng, orientation(image) if self.exif == "apply" else 1)

    def _pixels(self, image: Image.Image, rng: np.random.Generator | None, turned: int = 1) -> np.ndarray:
        if self.crop == "none":
            return _turned(_array(levels(image, self.channels)), turned)
        rng = None if self.crop == "resize" else rng
        whole = rng is None and self._resizes_whole(image.size)
        return self._resized_whole(image, turned) if whole else self._cropped_first(image, rng, turned)

    def _resizes_whole(self, sides: tuple[int, int]) -> bool:
        """Decides whether evaluation resizes a whole picture of (width, height): not if a very long one became huge."""
        if not (self.exact or self.interpolation == "bicubic"):
            return False
        return self.crop == "whole" or math.prod(crops.resized(*sides, self.size, self.eval_crop)) <= MOST_PIXELS

    def _cropped_first(self, image: Image.Image, rng: np.random.Generator | None, turned: int) -> np.ndarray:
        """Crops first and turns by the EXIF orientation `turned` last, so that a JPEG can still be decoded scaled."""
        _, swaps, *_ = _TURNS.get(turned, (None, False))
        width, height = image.size[::-1] if swaps else image.size
        box = _stored(self.box(width, height, rng), image.size, turned)
        # Evaluation decodes at a scale that leaves at least twice the needed pixels per side. Typical ImageNet
        # images are then decoded in full, as for published results.
        scale, box = _scaled_decoding(image, box, 2 * self.size if rng is None else self.size)
        return _turned(self._resampled(image, box, (self.size, self.size), (0, 0), scale), turned)

    def _resized_whole(self, image: Image.Image, turned: int) -> np.ndarray:
        """Resizes the whole upright picture, and crops the center of the result, as torchvision does.

        Resampling the crop alone differs in the last bits of the filter's positions, which is up to 12 levels of a
        bicubic pixel at an edge.
        """
        method, *_ = _TURNS.get(turned, (None,))
        image = image if method is None else levels(image, self.channels).transpose(method)
        resized = (self.size, self.size)
        if self.crop != "whole":
            resized = crops.resized(*image.size, self.size, self.eval_crop)
        return self._resampled(image, (0, 0, *image.size), resized, crops.center(resized, self.size))

    def _resampled(
        self, image: Image.Image, box: Crop, resized: tuple[int, int], corner: tuple[int, int], scale: int = 1
    ) -> np.ndarray:
        """Resizes the box to (width, height), and crops a square at `corner`, by native code if it can, or by PIL."""
        window = (*corner, self.size, self.size)
        part = jpeg.Part(scale, box, resized, window, self.interpolation == "bicubic", self.channels)
        pixels = jpeg.pixels(image, part)
        if pixels is not None:
            return pixels
        image = levels(image, self.channels).resize(resized, INTERPOLATIONS[self.interpolation], box=box)
        return _array(image)[corner[1] : corner[1] + self.size, corner[0] : corner[0] + self.size]

    def box(self, width: int, height: int, rng: np.random.Generator | None = None) -> Crop:
        """Returns the crop of an upright picture, random with `rng`."""
        if self.crop == "whole":
            return (0, 0, width, height) if rng is None else crops.part_of_whole(width, height, rng, self.scale)
        if rng is None:
            return crops.central_box(width, height, self.size, self.eval_crop)
        return crops.random_box(width, height, rng, self.scale, self.ratio)


@functools.cache
def endings() -> frozenset[str]:
    """Returns the file endings, in lower case (".jpg", ".jfif", …), that the installed PIL reads as pictures."""
    Image.init()
    readable = {*Image.OPEN, "MPO"} - _NOT_PICTURES  # PIL's opener for JPEG also opens MPO, a JPEG with further views
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in readable)


def _check(image: Image.Image, most: int) -> None:
    """Raises ValueError for an opened file that is not a picture, or that claims too many pixels."""
    if image.format in _NOT_PICTURES:
        raise ValueError(f"{image.format} is not a format for pictures")
    if image.width * image.height > most:
        raise TooManyPixels(f"{image.width}x{image.height} pixels are more than {most:,}")


def _mend_transparency(image: Image.Image) -> None:
    """Scales the transparent color of a PNG to the eight bits of its pixels; PIL leaves it in the file's bits."""
    color, tiles = image.info.get("transparency"), getattr(image, "tile", ())
    if color is None or image.format != "PNG" or not tiles:
        return
    raw = tiles[0][3]
    if raw in ("L;2", "L;4"):
        image.info["transparency"] = color * (85 if raw == "L;2" else 17)
    elif raw == "RGB;16B":
        image.info["transparency"] = tuple(part >> 8 for part in color)


def orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation of an opened image, 2 to 8, or 1 if there is none that can be read."""
    if image.format not in ("JPEG", "MPO"):
        image.load()  # PIL turns a TIFF while it loads it, and a PNG may have the tag after its pixels
    elif not {"exif", "xmp"} & image.info.keys():
        return 1  # reading the tags would cost as much as decoding a small image
    try:
        turned = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # PIL raises SyntaxError, struct.error, … for damaged tags, which viewers skip, too
        return 1
    return turned if turned in _TURNS else 1


def _stored(box: Crop, size: tuple[int, int], turned: int) -> Crop:
    """Returns the box in the stored picture, of width and height `size`, for a box in the upright picture."""
    _, swaps, mirrors_x, mirrors_y = _TURNS.get(turned, (None, False, False, False))
    left, top, right, bottom = (box[1], box[0], box[3], box[2]) if swaps else box
    if mirrors_x:
        left, right = size[0] - right, size[0] - left
    if mirrors_y:
        top, bottom = size[1] - bottom, size[1] - top
    return left, top, right, bottom


def _turned(pixels: np.ndarray, turned: int) -> np.ndarray:
    """Turns stored pixels [H, W, C] upright."""
    _, swaps, mirrors_x, mirrors_y = _TURNS.get(turned, (None, False, False, False))
    pixels = pixels[:: -1 if mirrors_y else 1, :: -1 if mirrors_x else 1]
    return np.ascontiguousarray(pixels.swapaxes(0, 1) if swaps else pixels)


def _array(image: Image.Image) -> np.ndarray:
    """Returns the pixels of an image of mode "L" or "RGB", uint8 [H, W, C]."""
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def levels(image: Image.Image, channels: int) -> Image.Image:
    """Returns an opened image of any encoding as uint8 levels, in mode "L" for 1 channel, "RGB" for 3.

    Integers of more than eight bits are scaled by the range that their file declares, signed integers by the positive
    half of it. Floating-point values are levels in [0, 1]. Transparent pixels are composited over BACKGROUND.

    Raises:
      ValueError: integers are negative, floating-point values are outside of [0, 1], or all values are so small that
        they would become black.
    """
    image.load()  # the palette is unknown before
    if image.mode in _NUMBERS:
        image = _scaled(image)
    elif image.has_transparency_data:
        image = _composited(image)
    elif image.mode not in ("1", "L", "P"):
        image = image if image.mode == "RGB" else image.convert("RGB")
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _scaled(image: Image.Image) -> Image.Image:
    """Converts an image with one number of more than eight bits per pixel to mode "L"."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    values = np.asarray(image)
    if image.mode == "F":
        top, kind = 1, "floating-point"
    else:
        bits, signed = _integers(image, tags)
        values = values.view(np.uint32) if bits == 32 and not signed else values
        top, kind = 2 ** (bits - signed) - 1, f"{bits}-bit"
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= top):  # so written that it refuses NaN, too
        raise ValueError(f"its {kind} values reach from {low:g} to {high:g}; allowed: 0 to {top}")
    scaled, kind_of = np.empty(values.shape, np.uint8), np.float32 if top < 2**16 else np.float64
    for row in range(0, len(values), _ROWS):  # a copy of the whole picture would take eight bytes per pixel
        scaled[row : row + _ROWS] = np.rint(values[row : row + _ROWS].astype(kind_of) * (255 / top))
    if high > 0 and not scaled.any():
        raise ValueError(f"its {kind} values reach only {high:g} of {top}, so all of it would be black: rescale them")
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        scaled = 255 - scaled
    if "transparency" in image.info:  # a level that a PNG declares transparent
        scaled = np.where(values == image.info["transparency"], np.uint8(255), scaled)
    return Image.fromarray(scaled)


def _integers(image: Image.Image, tags: Mapping[int, Any]) -> tuple[int, bool]:
    """Returns the number of bits of the file's integers, and True if they are signed."""
    if tags:
        return tags[_BITS_PER_SAMPLE][0], tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED
    # PIL has scaled a PNG or PPM of mode "I" to sixteen bits
    return (32, True) if image.mode == "I" and image.format not in ("PNG", "PPM") else (16, False)


def _composited(image: Image.Image) -> Image.Image:
    """Composites an image with transparency over BACKGROUND; returns mode "RGB"."""
    if image.mode == "La":
        image = image.convert("LA")  # the only mode to which PIL converts it
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*BACKGROUND, 255)), image).convert("RGB")


def _scaled_decoding(image: Image.Image, box: Crop, size: int) -> tuple[int, Crop]:
    """Makes PIL decode a JPEG at the smallest of the scales 1, 1/2, 1/4, 1/8 that leaves `size` pixels of `box`.

    Returns:
      1 / scale, and the box in the scaled picture.
    """
    width, height = image.size
    needed = (math.ceil(width * size / (box[2] - box[0])), math.ceil(height * size / (box[3] - box[1])))
    if not hasattr(image, "draft") or image.draft(None, needed) is None or image.size == (width, height):
        return 1, box
    # The scale is a power of two. It is not the ratio of the sizes, since the last column or row of blocks may be cut
    scale = 2 ** round(math.log2(width / image.size[0]))
    return scale, (
        box[0] / scale,
        box[1] / scale,
        min(box[2] / scale, image.size[0]),
        min(box[3] / scale, image.size[1]),
    )
