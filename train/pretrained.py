"""Networks that were trained before, to start from: those of runs here, and imported weights of other libraries."""

import hashlib
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from models import weights
from models.compress import file
from models.errors import UserError
from models.layers import low_bit
from train import checkpoint, workdir
from train.export import card
from train.files import expanded

SHOWN = 5  # arrays that do not fit, in an error


class Pretrained(NamedTuple):
    """Where it was found, the name of the network (None where a file does not say), and its arrays by our paths."""

    where: str
    name: str | None
    arrays: dict[str, np.ndarray]

    def digest(self) -> str:
        """Of names and bits."""
        digest = hashlib.sha256()
        for name, leaf in sorted(self.arrays.items()):
            digest.update(name.encode() + np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()[:16]


def load(where: str | Path) -> Pretrained:
    """Reads a run's folder, that of an exported network (`python -m train.export`, a format of weights), or a file:
    .safetensors (`python -m models.weights import`) or compressed.

    Of a run it is the newest checkpoint, there the averaged weights where it has them: what the run evaluates.

    Raises:
      UserError: there is nothing, or it is damaged.
    """
    path = expanded(where)
    if path.is_dir():
        return _of_export(path) if card.is_in(path) else _of_run(path)
    if not path.exists():
        raise UserError(f"init_from={where}: there is no such run or file")
    if path.suffix.lower() == file.SUFFIX:
        return _of_file(path)
    if path.suffix.lower() != ".safetensors":
        raise UserError(
            f"init_from={where}: want the folder of a run or of an exported network, a {file.SUFFIX} or a "
            ".safetensors file; other files become one by python -m models.weights import"
        )
    return Pretrained(str(where), weights.about(path).get("model"), weights.read(path))


def _of_export(folder: Path) -> Pretrained:
    try:
        about = card.read(folder)
        arrays = weights.flatten(card.network(folder, about)[1])
    except UserError as error:
        raise UserError(f"init_from={error}") from None
    return Pretrained(str(folder), about["architecture"], arrays)


def _of_file(path: Path) -> Pretrained:
    data = file.read(path)
    try:
        arrays = file.load(data, path)[1]
    except UserError as error:
        raise UserError(f"init_from={error}") from None
    return Pretrained(str(path), file.about(data)["model"], weights.flatten(arrays))


def _of_run(folder: Path) -> Pretrained:
    try:
        name, leaves = workdir.read_config(folder).get("model", {}).get("name"), checkpoint.read(folder)[0]
    except UserError as error:
        raise UserError(f"init_from={error}") from None
    start = "ema/" if any(path.startswith("ema/") for path in leaves) else ""
    arrays = {}
    for part in ("params/", "model_state/"):
        # from_arrays knows them without the collection: "stem_norm/mean"
        arrays |= {
            path.removeprefix(start + part): leaf for path, leaf in leaves.items() if path.startswith(start + part)
        }
    return Pretrained(str(folder), name, {path.removeprefix("batch_stats/"): leaf for path, leaf in arrays.items()})


def _check_head(pretrained: Pretrained, model: nn.Module, error: weights.Mismatch) -> None:
    """Raises UserError where the number of classes is all that does not fit."""
    heads = [re.match(r"! (exit\d+/)?head/", line) for line in error.lines]
    kernel = pretrained.arrays.get("head/kernel", pretrained.arrays.get("exit1/head/kernel"))  # not all have a bias
    if kernel is not None and all(heads):
        new = "|".join(sorted({"*/head" if head[1] else "head" for head in heads}, reverse=True))
        what = "its head" if new == "head" else "its heads"
        raise UserError(
            f"init_from={pretrained.where} is of {kernel.shape[-1]} classes, the data have "
            f"{model.num_classes}: init_new={new} draws {what} anew"
        ) from None


def start(model: nn.Module, variables: Any, pretrained: Pretrained, new: Collection[str]) -> Any:
    """Variables to start from: the pretrained ones, but for the parts `new`, which stay as in `variables`. Ternary
    layers take the kernels of full ones, and make their scales of them.

    Args:
      model: the network that they are for.
      variables: its own, as drawn.
      pretrained: see `load`.
      new: beginnings of paths, e.g. "head" where there are other classes.

    Raises:
      UserError: the arrays are of another network; some of those that are missing (-), unexpected (+) or of another
        shape (!) are named. Or `new` names no part of the network.
    """
    arrays = low_bit.with_scales(pretrained.arrays, weights.flatten(variables))
    try:
        return weights.from_arrays(model, arrays, "ablate", new=new, drawn=variables)
    except weights.Mismatch as error:
        _check_head(pretrained, model, error)
        more = f" and {len(error.lines) - SHOWN} more" if len(error.lines) > SHOWN else ""
        raise UserError(
            f"init_from={pretrained.where}, a {pretrained.name or 'network'}, does not fit this {type(model).__name__}"
            f": {'; '.join(error.lines[:SHOWN])}{more} (parts of init_new are drawn anew)"
        ) from None
