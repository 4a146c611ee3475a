"""From encoded bytes to uint8 pixels of one size: decoding and cropping in one step, on the host.

A JPEG is decoded at the smallest of the scales 1, 1/2, 1/4, 1/8 that still has the pixels needed (its DCT blocks make
that cheap), and only the crop is resampled.
"""

import dataclasses
import io
import math
from pathlib import Path

import numpy as np
from PIL import Image

from models.errors import UserError

CROPS = ("none", "resize", "random_resized", "whole")
Crop = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the original image


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Decodes and crops one image: `decoder(encoded, rng) -> uint8 [H, W, C]`.

    crop: "none" (as it is), "resize" (the evaluation crop, in training too), "random_resized" (Szegedy 2015, in
    training), "whole" (all of the image, squeezed to a square; in training a part of its shape: Kolesnikov 2020, 3.3).
    size: height and width after a crop. channels: 1 or 3. scale: range of the crop's share of the area.
    ratio: range of its width / height. eval_crop: the central crop's share of the shorter side.
    """

    crop: str
    size: int
    channels: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    eval_crop: float = 0.875

    def __call__(self, encoded: bytes | Path | np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """The pixels of a file's bytes, of a file, or of uint8 pixels [H, W, C]; `rng` None is the evaluation crop.

        Raises whatever PIL raises for what it cannot decode. EXIF orientation is not applied (as torchvision).
        """
        if isinstance(encoded, np.ndarray):
            if self.crop == "none" and encoded.shape[-1] == self.channels:
                return encoded
            with Image.fromarray(encoded[..., 0] if encoded.shape[-1] == 1 else encoded) as image:
                return self._pixels(image, rng)
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
            return self._pixels(image, rng)

    def _pixels(self, image: Image.Image, rng: np.random.Generator | None) -> np.ndarray:
        box = None
        if self.crop != "none":
            random = self.crop in ("random_resized", "whole") and rng is not None
            if self.crop == "whole":
                box = part_of_whole(*image.size, rng, self.scale) if random else (0, 0, *image.size)
            else:
                box = (
                    random_box(*image.size, rng, self.scale, self.ratio)
                    if random
                    else central_box(*image.size, self.size, self.eval_crop)
                )
            # Evaluation keeps twice the pixels it needs: ImageNet's are then decoded in full, as published results are.
            box = _scaled_decoding(image, box, self.size if random else 2 * self.size)
        mode = "L" if self.channels == 1 else "RGB"
        if image.mode != mode:
            image = image.convert(mode)
        if box is not None:
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        pixels = np.asarray(image)
        return pixels[..., None] if self.channels == 1 else pixels


def of_file(decoder: Decoder, shape: tuple[int, int, int], path: str | Path) -> np.ndarray:
    """The pixels of a user's file, uint8 of `shape` [H, W, C], as evaluation crops them, or squeezed to that size where
    it crops none.

    Raises:
      UserError: no such file, one that cannot be decoded, or images that are no squares.
    """
    height, width, channels = shape
    if decoder.crop == "none" or height != decoder.size:
        if height != width:
            raise UserError(f"{path}: files are made squares, and this network's images are {height} x {width}")
        decoder = dataclasses.replace(decoder, crop="whole", size=height, channels=channels)
    if not Path(path).is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        return decoder(Path(path))
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error, … for a damaged file
        raise UserError(f"{path}: it cannot be decoded: {error}") from None


def random_box(
    width: int, height: int, rng: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> Crop:
    """A crop of random area and aspect (Szegedy 2015, section 6), with torchvision's ten tries and central fallback."""
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def part_of_whole(width: int, height: int, rng: np.random.Generator, scale: tuple[float, float]) -> Crop:
    """A crop of random area and the image's own aspect: that of a square to which all of it was squeezed."""
    share = math.sqrt(rng.uniform(*scale))
    left, top = ((1 - share) * rng.uniform(0, side) for side in (width, height))
    return left, top, left + share * width, top + share * height


def central_box(width: int, height: int, size: int, eval_crop: float) -> Crop:
    """The box that "resize the shorter side to size / eval_crop, then crop the centre" reads.

    Whole pixels are rounded where torchvision's Resize and CenterCrop round, so the result is theirs (to one level).
    """
    short = int(size / eval_crop)
    if width <= height:
        new_width, new_height = short, int(short * height / width)
    else:
        new_width, new_height = int(short * width / height), short
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    x, y = width / new_width, height / new_height
    return left * x, top * y, min((left + size) * x, width), min((top + size) * y, height)


def _scaled_decoding(image: Image.Image, box: Crop, size: int) -> Crop:
    """Lets a JPEG be decoded at the smallest scale at which `box` still has `size` pixels; the box at that scale."""
    width, height = image.size
    needed = (math.ceil(width * size / (box[2] - box[0])), math.ceil(height * size / (box[3] - box[1])))
    if not hasattr(image, "draft") or image.draft(None, needed) is None or image.size == (width, height):
        return box
    # The scale is a power of two; the last column and row of blocks may be cut, so it is not the ratio of the sizes.
    scale = 2 ** round(math.log2(width / image.size[0]))
    return box[0] / scale, box[1] / scale, min(box[2] / scale, image.size[0]), min(box[3] / scale, image.size[1])
