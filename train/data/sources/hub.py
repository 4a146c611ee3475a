"""Image sets of the Hugging Face hub, in the cache of huggingface_hub; their parquet files are read as they are."""

import re

from models.errors import UserError
from models.weights import download
from train.data.options import Options
from train.data.source import Source
from train.data.sources import parquet

_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:/([\w.-]+))?(?:@([\w./-]+))?", re.ASCII)


def source(text: str, split: str, options: Options) -> Source:
    """Returns a split of the set ORGANIZATION/NAME, ORGANIZATION/NAME/CONFIG or ORGANIZATION/NAME@REVISION.

    The hub has every set in parquet on the branch refs/convert/parquet, whatever its authors uploaded.

    Raises:
      UserError: the hub has no such set, cannot be reached, or demands a login; or its files are no image set.
    """
    match = _NAME.fullmatch(text)
    if not match:
        raise UserError(
            f"data.source={options.source}: must be hf:ORGANIZATION/NAME, with /CONFIG or @REVISION after it"
        )
    name, config, revision = match.groups()
    return parquet.in_folder(download.image_set(name, config, revision), {}, split, options)
