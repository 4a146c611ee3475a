"""Opens a run, or an exported network of any format, as a function of images."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from models.errors import UserError, choice_error
from train.data.decode import Decoder, of_file
from train.export import card as cards
from train.export import formats
from train.files import expanded


class Loaded(NamedTuple):
    """An opened network.

    Attributes:
      card: its description, see `train.export.card.read`.
      run: maps pixels, uint8 [N, H, W, C], to probabilities and logits, float32 [N, num_classes].
    """

    card: dict[str, Any]
    run: formats.Opened

    def pixels(self, path: str | Path) -> np.ndarray:
        """Decodes a file with the evaluation crop, uint8 [H, W, C]; raises UserError if it is not an image."""
        facts = self.card["preprocessing"]
        decoder = Decoder(
            facts["crop"], facts["size"], facts["channels"], eval_crop=facts["eval_crop"], exif=facts["exif"]
        )
        return of_file(decoder, tuple(facts["shape"]), path)


def load(where: str | Path, which: str = "last") -> Loaded:
    """Opens the folder of an exported network or of a run.

    Args:
      where: the folder.
      which: the checkpoint of a run, "last" or "best".

    Raises:
      UserError: the folder holds neither, it is damaged, or a library that the format needs is missing.
    """
    folder = expanded(where)
    if not folder.is_dir():
        raise UserError(f"{where}: there is no such folder; give that of a run or of an exported network")
    if not cards.is_in(folder):
        return of_run(folder, which)
    card = cards.read(folder)
    if card["format"] not in formats.FORMATS:
        raise choice_error(f"format in {folder}/{cards.NAME}", card["format"], formats.FORMATS)
    return Loaded(card, formats.FORMATS[card["format"]].open(folder, card))


def of_run(folder: Path, which: str = "last") -> Loaded:
    """Opens a checkpoint of a run, in float32."""
    from train import restore  # imports the loop, which exported networks do not need
    from train.export import network as networks
    from train.export import write

    run, state = restore.load_network(folder, which)
    network = networks.network(run, state)
    card = {"format": "run", "file": "checkpoints", **write.card_of(run, network, {})}
    return Loaded(card, formats.of_variables(network.create(), network.variables, card))
