"""Grad-CAM over the picture that a client sent, as a JPEG."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from PIL import Image

from models.errors import UserError
from models.explain import cam, catalogue
from train.data import view
from train.data.decode import Accepted
from train.export import graph

if TYPE_CHECKING:
    from train.export.loaded import Loaded

SIDE = 320  # pixels to which a smaller picture is enlarged, so that the heat over it can be seen
OPACITY, DARKEST = 0.6, 0.5  # of the heat, and of the gray picture under it


class Evidence:
    """Grad-CAM of an opened network. The methods that compute are not for several threads at a time.

    Attributes:
      missing: why there is none, as one line; "" if there is.
    """

    def __init__(self, network: "Loaded"):
        self._network, self.missing = network, ""
        if "exits" in network.card:  # and the maps would be those of the last one
            self.missing = "images leave this network at several exits"
            return
        try:
            self._model, variables = network.network()
            self._variables = jax.device_put(variables)
            self.heat(np.zeros(network.shape, np.uint8), 0)  # compiles it
        except UserError as error:  # a program has no gradients; some networks have no maps
            self.missing = str(error)

    def heat(self, pixels: np.ndarray, target: int) -> np.ndarray:
        """Returns Grad-CAM of a class for one image, uint8 [H, W, C]: float32 [H, W], between 0 and 1."""
        images = graph.normalized(pixels[None], self._network.card["preprocessing"])
        values = cam.grad_cam(self._model, self._variables, images, target).values
        heat = np.asarray(catalogue.heat(values, pixels.shape[:2]))[0]
        return heat / heat.max() if heat.max() > 0 else heat

    def drawn(self, stored: bytes, accepted: Accepted, heat: np.ndarray) -> bytes:
        """Returns a JPEG: the upright picture in gray, the heat over what the network sees of it, the rest darker.

        Args:
          stored: the picture as it was sent.
          accepted: the files that are decoded.
          heat: float [H, W] between 0 and 1.
        """
        from matplotlib import colormaps

        seen = view.of_file(self._network.decoder, self._network.shape, stored, accepted)
        height, width = seen.picture.shape[:2]
        scale = max(1, -(-SIDE // max(height, width)))
        size = width * scale, height * scale
        picture = Image.fromarray(seen.picture).convert("L").resize(size, Image.Resampling.NEAREST)
        gray = np.asarray(picture, np.float32)[..., None] / 255
        whole = np.repeat(gray * DARKEST, 3, 2)
        left, right = _pixels_of(seen.box[::2], size[0])
        top, bottom = _pixels_of(seen.box[1::2], size[1])
        smooth = Image.fromarray(heat.astype(np.float32)).resize(
            (right - left, bottom - top), Image.Resampling.BILINEAR
        )
        colors = np.asarray(colormaps["plasma"](np.asarray(smooth)), np.float32)[..., :3]
        ground = DARKEST + (1 - DARKEST) * gray[top:bottom, left:right]
        whole[top:bottom, left:right] = (1 - OPACITY) * ground + OPACITY * colors
        file = io.BytesIO()
        Image.fromarray((whole * 255).round().astype(np.uint8)).save(file, "JPEG", quality=85)
        return file.getvalue()


def _pixels_of(shares: Sequence[float], size: int) -> tuple[int, int]:
    """Returns the first pixel of a part of a side, and the one after its last; at least one pixel is in it."""
    first = min(round(shares[0] * size), size - 1)
    return first, max(round(shares[1] * size), first + 1)
