"""Opens a run, or an exported network of any format, as a function of images."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from models.errors import UserError, choice_error
from models.weights import hub
from train import published
from train.data import background
from train.data.decode import PICTURES, Accepted, Decoder
from train.data.source import Source
from train.data.user_image import of_file, of_pixels
from train.export import cards, formats
from train.storage.remote import fetched


def _no_split(name: str) -> Source:
    raise UserError(f"an exported network has no split '{name}': open the run that was exported")


class Loaded(NamedTuple):
    """An opened network.

    Attributes:
      card: its description, see `train.export.cards.read`.
      run: maps pixels, uint8 [N, H, W, C], to probabilities and logits, float32 [N, num_classes].
      network: returns the flax module and its variables; raises UserError where the file holds a program.
      split: opens a split of the data of a run by its name; raises UserError for an exported network.
    """

    card: dict[str, Any]
    run: formats.Opened
    network: Callable[[], tuple[nn.Module, dict[str, Any]]]
    split: Callable[[str], Source] = _no_split

    def pixels(self, image: str | Path | np.ndarray) -> np.ndarray:
        """Returns a file, or uint8 pixels [H, W, C] of any size, as `prepared` does; pixels are never inverted."""
        if isinstance(image, np.ndarray):
            return of_pixels(self.decoder, self.shape, image)
        return self.prepared(image)[0]

    def prepared(self, file: str | Path | bytes, accepted: Accepted = PICTURES) -> tuple[np.ndarray, bool]:
        """Returns a file with the evaluation crop, uint8 [H, W, C], and whether it was inverted.

        A gray image that is dark on light is inverted where the training images are light on dark, and the reverse
        (`train.data.background`).

        Args:
          file: the file, or its bytes.
          accepted: the files that are decoded.

        Raises:
          UserError: it is not an image; `train.data.decode.TooManyPixels` if it is too large.
        """
        pixels = of_file(self.decoder, self.shape, file, accepted)
        return background.matched(pixels, self.card["preprocessing"].get("background", ""))

    def ranked(self, probabilities: np.ndarray, top: int) -> list[tuple[str, float]]:
        """Returns (label, probability) of the `top` most probable classes of one image, most probable first.

        Raises:
          UserError: a probability is not a number, or the card names another number of classes.
        """
        labels = self.card["labels"]
        if len(labels) != len(probabilities):
            raise UserError(f"the card names {len(labels)} classes, but the network has {len(probabilities)}")
        if not np.isfinite(probabilities).all():
            raise UserError("the network's probabilities are not numbers (NaN): its training has diverged")
        best = np.argsort(-probabilities, kind="stable")[:top]
        return [(labels[i], float(probabilities[i])) for i in best]

    @property
    def shape(self) -> tuple[int, int, int]:
        """The (H, W, C) of the images that the network takes."""
        height, width, channels = self.card["preprocessing"]["shape"]
        return height, width, channels

    @property
    def decoder(self) -> Decoder:
        """The decoder of the run's evaluation."""
        facts = self.card["preprocessing"]
        return Decoder(
            facts["crop"],
            facts["size"],
            facts["channels"],
            eval_crop=facts["eval_crop"],
            exif=facts["exif"],
            interpolation=facts.get("interpolation", "bilinear"),  # cards of earlier versions have none
            exact=facts.get("exact", False),
        )


def load(where: str | Path, which: str | None = None) -> Loaded:
    """Opens the folder of an exported network or of a run, or published weights.

    Args:
      where: the folder, or weights as `models.load` takes them.
      which: the checkpoint of a run, "last" (also for None) or "best"; None for an exported network.

    Raises:
      UserError: the folder holds neither, it is damaged, or a library that the format needs is missing; or `which` is
        given for an exported network.
    """
    if published.is_published(where):
        if which is not None:
            raise UserError(f"{where} has no checkpoints; leave --checkpoint={which} out")
        return of_run(where)
    folder = fetched(where)
    if not folder.is_dir():
        raise UserError(
            f"{where}: there is no such folder; give that of a run or of an exported network, a "
            f".safetensors file, or published weights ({hub.FORMS})"
        )
    if not cards.is_in(folder):
        return of_run(folder, which or "last")
    if which is not None:
        raise UserError(f"{where} is an exported network, which has no checkpoints; leave --checkpoint={which} out")
    card = cards.read(folder)
    if card["format"] not in formats.FORMATS:
        raise choice_error(f"format in {folder}/{cards.NAME}", card["format"], formats.FORMATS)
    opened = formats.FORMATS[card["format"]].open(folder, card)
    return Loaded(card, opened, functools.partial(cards.network, folder, card))


def of_run(folder: str | Path, which: str = "last") -> Loaded:
    """Opens a checkpoint of a run, in float32."""
    from train import restore  # imports the loop, which exported networks do not need
    from train.export import network, write

    run, state = restore.load_network(folder, which)
    portable = network.network(run, state)
    card = {"format": "run", "file": "checkpoints", **write.card_of(run, portable, {})}
    model = portable.create()
    opened = formats.of_variables(model, portable.variables, card)
    return Loaded(card, opened, lambda: (model, portable.variables), run.images.split)
