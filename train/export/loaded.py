"""A run, or an exported network of any format, as a function of images."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from models.errors import UserError, choice_error
from train.data.decode import Decoder, of_file
from train.export import card as cards
from train.export import formats
from train.files import expanded


class Loaded(NamedTuple):
    """`run(pixels uint8 [N, H, W, C])` gives probabilities and logits, float32 [N, num_classes]."""

    card: dict[str, Any]
    run: formats.Opened

    def pixels(self, path: str | Path) -> np.ndarray:
        """A file as the network's evaluation crops it, uint8 [H, W, C]; UserError where it is no image."""
        how = self.card["preprocessing"]
        decoder = Decoder(how["crop"], how["size"], how["channels"], eval_crop=how["eval_crop"], exif=how["exif"])
        return of_file(decoder, tuple(how["shape"]), path)


def load(where: str | Path, which: str = "last") -> Loaded:
    """Opens the folder of an exported network, of any format, or that of a run: its "last" or its "best" checkpoint.

    Raises:
      UserError: there is neither, it is damaged, or what the format needs is missing.
    """
    folder = expanded(where)
    if not folder.is_dir():
        raise UserError(f"{where}: there is no such folder; want that of a run or of an exported network")
    if not cards.is_in(folder):
        return of_run(folder, which)
    card = cards.read(folder)
    if card["format"] not in formats.FORMATS:
        raise choice_error(f"format in {folder}/{cards.NAME}", card["format"], formats.FORMATS)
    return Loaded(card, formats.FORMATS[card["format"]].open(folder, card))


def of_run(folder: Path, which: str = "last") -> Loaded:
    """The network of a run's checkpoint, in float32."""
    from train import restore  # and with it the loop
    from train.export import network as networks
    from train.export import write

    run, state = restore.load_network(folder, which)
    network = networks.network(run, state)
    card = {"format": "run", "file": "checkpoints", **write.card_of(run, network, {})}
    return Loaded(card, formats.of_variables(network.create(), network.variables, card))
