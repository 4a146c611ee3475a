"""Makes the source that `config.data` names."""

import types
from collections.abc import Mapping
from typing import Any

from models import plugins
from models.errors import choice_error
from train import spec
from train.data.select import select
from train.data.source import Options, Source

# Module and function of each kind, (split, options) -> Source, or (what follows the colon, split, options). They are
# imported when they are needed: scikit-learn and TFDS are slow to import, and a run needs one of them at most.
KINDS = {
    "digits": "train.data.sources.digits:source",
    "tfds:NAME": "train.data.sources.tfds:TfdsSource",
    "folder:PATH": "train.data.sources.folder:FolderSource",
    "arrays:FILE.npz": "train.data.sources.arrays:from_npz",
}
TEXT_KINDS = ("grammar", "text:FOLDER")  # see sources/text.py


def load(config: Any, split: str) -> Source:
    """The source that `config` (an attribute-style section with the fields of `Options`) describes.

    `split`: "train" and "test" stand for config.train_split and config.test_split; any other is taken as it is.
    Raises UserError for an unknown source or split, a missing folder, and a data set that is not prepared.
    """
    options = Options.read(config)
    part = {"train": options.select, "test": options.select_test}.get(split, "")
    return select(_load({"train": options.train_split, "test": options.test_split}.get(split, split), options), part)


def load_test(data: Mapping[str, Any], **changes: Any) -> Source:
    """The test source of a run's section `data`, with other values for some of its keys."""
    return load(types.SimpleNamespace(**{**data, **changes}), "test")


def _load(split: str, options: Options) -> Source:
    if plugins.split(options.source):
        return spec.resolve_one("data.source", options.source, {}, split, options)
    kind, colon, argument = options.source.partition(":")
    for known, where in KINDS.items():
        name, known_colon, _ = known.partition(":")
        if (kind, colon, bool(argument)) == (name, known_colon, bool(known_colon)):
            return plugins.imported(where)(*filter(None, [argument]), split, options)
    raise choice_error("data.source", options.source, (*KINDS, *TEXT_KINDS))
