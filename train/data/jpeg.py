"""Crops of JPEGs by native code (jpeg.cc): only what lies under the crop is decoded, and it is resampled at once.

It needs a C++ compiler and the headers of libjpeg-turbo, which `libjpeg-dev` installs on Debian and Ubuntu. PIL decodes
everything else: damaged and unusual files (CMYK, arithmetic coding), and all files where native code is missing. Both
give the same bits, so a run may move between machines: native code is used only if it agrees with PIL on two pictures.
"""

import ctypes
import dataclasses
import functools
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, JpegImagePlugin

from models.kernels import build
from train.data.crops import Crop

_SOURCE = Path(__file__).with_name("jpeg.cc")
# Pillow's weights are products without fused additions
_OPTIONS = ("-ffp-contract=off", "-ljpeg")
# Since version 13, PIL resamples columns before rows if that is less work. The order changes the rounding
_DOWN_FIRST = int(PIL.__version__.split(".")[0]) >= 13
_LOCK = threading.Lock()


class _Request(ctypes.Structure):
    """The arguments of `ablate_jpeg`; jpeg.cc has the same fields."""

    _fields_ = (
        ("data", ctypes.c_char_p),
        ("size", ctypes.c_uint64),
        ("decoded", ctypes.c_int32 * 2),
        ("scale", ctypes.c_int32),
        ("box", ctypes.c_float * 4),
        ("resized", ctypes.c_int32 * 2),
        ("window", ctypes.c_int32 * 4),
        ("bicubic", ctypes.c_int32),
        ("down_first", ctypes.c_int32),
        ("channels", ctypes.c_int32),
        ("out", ctypes.c_void_p),
    )


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a picture, and the pixels to make of it.

    Attributes:
      scale: the picture is decoded at 1 / scale: 1, 2, 4 or 8.
      box: the part, in pixels of the decoded picture.
      resized: width and height to which the part is resized.
      window: left, top, width and height of the crop of the resized part.
      bicubic: the filter: bicubic, or bilinear.
      channels: 1 or 3.
    """

    scale: int
    box: Crop
    resized: tuple[int, int]
    window: tuple[int, int, int, int]
    bicubic: bool
    channels: int


def pixels(image: Image.Image, part: Part) -> np.ndarray | None:
    """Decodes and resizes a part of an opened file as PIL would.

    Args:
      image: the file, not yet decoded; its size is that of the decoded picture (`draft`).
      part: the part.

    Returns:
      Pixels, uint8 [height, width, channels] of the window, or None: PIL must decode the file.
    """
    function = _function() if image.format == "JPEG" else None
    return _called(function, image, part) if function else None


def available() -> bool:
    """Returns whether JPEGs are decoded by native code; the first call on a machine compiles it (2 s)."""
    return _function() is not None


def _function() -> Any:
    with _LOCK:  # threads that decode the first images wait for one compiler
        return _agreeing()


@functools.cache
def _agreeing() -> Any:
    """Returns the library's function; None if there is no library, or if its bits are not PIL's."""
    library = build.library("jpeg", [_SOURCE], _OPTIONS)
    function = getattr(library, "ablate_jpeg", None)
    if function and _agrees(function, (150, 120), 1) and _agrees(function, (60, 150), 2, progressive=True):
        return function
    return None


def _agrees(function: Any, sides: tuple[int, int], scale: int, **options: Any) -> bool:
    """Returns whether native code gives PIL's bits for a part of a picture whose colors are subsampled.

    Args:
      function: of the library.
      sides: width and height of the picture. PIL resamples columns before rows if it is high.
      scale: of the decoding.
      **options: of PIL, for writing the picture.
    """
    levels, file = np.random.default_rng(0).integers(0, 256, (12, 15, 3), np.uint8), io.BytesIO()
    Image.fromarray(levels).resize(sides).save(file, "jpeg", **options)
    file.seek(0)
    box = (0.125 * sides[0] / scale, 20.5 / scale, 0.75 * sides[0] / scale, 100 / scale)
    with JpegImagePlugin.JpegImageFile(file) as image:
        image.draft(None, (sides[0] // scale, sides[1] // scale))
        native = _called(function, image, Part(scale, box, (32, 24), (0, 0, 32, 24), bicubic=True, channels=3))
        expected = np.asarray(image.resize((32, 24), Image.Resampling.BICUBIC, box=box))
        return native is not None and np.array_equal(native, expected)


def _called(function: Any, image: Image.Image, part: Part) -> np.ndarray | None:
    file = getattr(image, "fp", None)
    if file is None:
        return None
    if isinstance(file, io.BytesIO):
        encoded = file.getvalue()  # no copy
    else:
        file.seek(0)
        encoded = file.read()
    width, height = image.size
    out = np.empty((part.window[3], part.window[2], part.channels), np.uint8)
    request = _Request(
        encoded,
        len(encoded),
        image.size,
        part.scale,
        part.box,
        part.resized,
        part.window,
        part.bicubic,
        _DOWN_FIRST and height > part.resized[1] and height - part.resized[1] > 2 * (width - part.resized[0]),
        part.channels,
        out.ctypes.data,
    )
    return out if function(ctypes.byref(request)) else None
