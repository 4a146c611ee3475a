"""Images of users, as files or pixels: cropped as the evaluation of a run crops its own."""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from models.errors import UserError
from train.data import decode


def for_users(decoder: decode.Decoder, shape: tuple[int, ...], name: str) -> decode.Decoder:
    """Returns the evaluation crop of a run, or one that squeezes images to `shape` where evaluation does not crop.

    Raises:
      UserError: the network's images are not square; `name` says what was to be decoded.
    """
    height, width, channels = shape
    if decoder.crop != "none" and height == decoder.size:
        return decoder
    if height != width:
        raise UserError(f"{name}: files are squeezed to squares, but this network takes images of {height} x {width}")
    return dataclasses.replace(decoder, crop="whole", size=height, channels=channels)


def of_pixels(decoder: decode.Decoder, shape: tuple[int, int, int], pixels: np.ndarray) -> np.ndarray:
    """Crops a user's pixels as `of_file` crops a file.

    Args:
      decoder: the decoder of the run.
      shape: (H, W, C) of the network's images.
      pixels: uint8 [H, W], or [H, W, C] with 1 or 3 channels; left as they are where they have this shape already.

    Returns:
      Pixels, uint8 `shape`.

    Raises:
      UserError: the array is something else, or the network's images are not square.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise UserError(f"an image is {pixels.dtype} {list(pixels.shape)}; allowed: uint8 [H, W], [H, W, 1], [H, W, 3]")
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    return pixels if pixels.shape == shape else for_users(decoder, shape, "an image")(pixels)


def of_file(
    decoder: decode.Decoder,
    shape: tuple[int, int, int],
    file: str | Path | bytes,
    accepted: decode.Accepted = decode.PICTURES,
) -> np.ndarray:
    """Decodes a user's file with the evaluation crop, or squeezes it to `shape` where evaluation does not crop.

    Args:
      decoder: the decoder of the run.
      shape: (H, W, C) of the network's images.
      file: the file, or its bytes.
      accepted: the files that are decoded.

    Returns:
      Pixels, uint8 `shape`.

    Raises:
      decode.TooManyPixels: there are more pixels than accepted.
      UserError: there is no such file, it cannot be decoded, or the network's images are not square.
    """
    name = ""
    if not isinstance(file, bytes):
        name, file = f"{file}: ", Path(file)
        if not file.is_file():
            raise UserError(f"{file}: {'this is not a file' if file.exists() else 'there is no such file'}")
    decoder = for_users(decoder, shape, str(file) if name else "an image")
    try:
        return decoder(file, accepted=accepted)
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error, … for a damaged file
        why, kind = error, UserError
        if isinstance(error, Image.UnidentifiedImageError) and not name:  # PIL names the object in memory
            why = f"it is not a picture of the formats {', '.join(accepted.formats or ['that PIL reads'])}"
        elif isinstance(error, (decode.TooManyPixels, Image.DecompressionBombError)):
            kind = decode.TooManyPixels
        raise kind(f"{name}it cannot be decoded: {why}") from None
