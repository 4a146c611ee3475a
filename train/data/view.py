"""A user's picture as it is, and the part of it that a network sees."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from train.data import decode, user_image

LARGEST = 1024  # pixels per side of a picture that is kept to be drawn


class View(NamedTuple):
    """A picture, and the crop of it that is resized to the network's input.

    Attributes:
      picture: upright, uint8 [h, w, 3], in its own aspect ratio; larger pictures are made smaller.
      box: (left, top, right, bottom) of the crop, as shares of the picture's width and height.
    """

    picture: np.ndarray
    box: tuple[float, float, float, float]


def of_file(
    decoder: decode.Decoder, shape: tuple[int, ...], stored: bytes | Path, accepted: decode.Accepted = decode.PICTURES
) -> View:
    """Returns the view of a file, or of its bytes, of which `train.data.user_image.of_file` returns the pixels.

    Args:
      decoder: the decoder of the run.
      shape: (H, W, C) of the network's images.
      stored: the file, which can be decoded, or its bytes.
      accepted: the files that are decoded.

    Raises:
      UserError: the network's images are not square.
    """
    whole = dataclasses.replace(decoder, crop="none", channels=3)(stored, accepted=accepted)
    height, width = whole.shape[:2]
    left, top, right, bottom = user_image.for_users(decoder, shape, "an image").box(width, height)
    scale = min(1.0, LARGEST / max(height, width))
    if scale < 1:
        size = max(1, round(scale * width)), max(1, round(scale * height))
        whole = np.asarray(Image.fromarray(whole).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))
    return View(whole, (left / width, top / height, right / width, bottom / height))
