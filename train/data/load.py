"""Makes the source that `config.data` names."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

from models import plugins
from models.errors import UserError, choice_error
from train.data import mixture
from train.data.options import Options
from train.data.select import select
from train.data.source import Source
from train.setup import spec

# Module and function of each kind: (split, options) -> Source, or (text after the colon, split, options) -> Source.
# They are imported when needed: scikit-learn and TFDS are slow to import, and a run needs at most one of them.
KINDS = {
    "digits": "train.data.sources.digits:source",
    "tfds:NAME": "train.data.sources.tfds:TfdsSource",
    "folder:PATH": "train.data.sources.folder:FolderSource",
    "arrays:FILE.npz": "train.data.sources.arrays:from_npz",
    "webdataset:SHARDS": "train.data.sources.webdataset:source",
    "tar:PATH": "train.data.sources.tars:source",
    "csv:FILE": "train.data.sources.table:source",
    "parquet:PATH": "train.data.sources.parquet:source",
    "hf:ORGANIZATION/NAME": "train.data.sources.hub:source",
}
TEXT_KINDS = ("grammar", "text:FOLDER")  # see sources/text.py


def load(config: Any, split: str) -> Source:
    """Returns the source that a section `data` of a config describes.

    Args:
      config: has the fields of `Options` as attributes.
      split: "train" or "test", which stand for config.train_split and config.test_split, or the name of a split.

    Raises:
      UserError: the source or the split is unknown, a folder is missing, or a data set is not prepared.
    """
    options = Options.read(config)
    part = {"train": options.select, "test": options.select_test}.get(split, "")
    name = {"train": options.train_split, "test": options.test_split}.get(split, split)
    return select(_load(name, options, split == "train"), part)


def load_test(data: Mapping[str, Any], **changes: Any) -> Source:
    """Returns the test source for a run's section `data`, after `changes` to some of its keys."""
    return load(types.SimpleNamespace(**{**data, **changes}), "test")


def _load(split: str, options: Options, trains: bool) -> Source:
    if options.source.startswith(mixture.PREFIX):
        sets = mixture.parse(options.source)
        sources = [_load(split, dataclasses.replace(options, source=name), trains) for name, _ in sets]
        shares = [share for _, share in sets if share is not None]
        try:
            # A test set has each image once, whatever the shares
            return mixture.Mixture(sources, shares if trains and shares else None)
        except UserError as error:
            raise UserError(f"data.source={options.source}: {error}") from None
    if plugins.split(options.source):
        return spec.resolve_one("data.source", options.source, {}, split, options)
    kind, colon, argument = options.source.partition(":")
    for pattern, where in KINDS.items():
        name, known_colon, _ = pattern.partition(":")
        if (kind, colon, bool(argument)) == (name, known_colon, bool(known_colon)):
            return plugins.imported(where)(*filter(None, [argument]), split, options)
    if kind == "weights":  # see train/published.py
        raise UserError(f"{argument} has no images of its own: name files, or use a run on a data set")
    raise choice_error("data.source", options.source, (*KINDS, "mixture(SOURCE, …)", *TEXT_KINDS), own=True)
