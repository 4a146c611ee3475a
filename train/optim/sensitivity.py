"""The file of the hook `sensitivity`, which pruning can use to distribute sparsity over the layers."""

from typing import Any

from models.errors import UserError
from train.storage.files import read_json
from train.storage.remote import fetched

_NUMBERS = {"type": "array", "items": {"type": "number"}}
SCHEMA = {
    "type": "object",
    "required": ["whole", "layers"],
    "properties": {
        "whole": {"type": "number"},
        "layers": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["sparsity", "accuracy"],
                "properties": {"sparsity": _NUMBERS, "accuracy": _NUMBERS},
            },
        },
    },
}


def read(path: str) -> dict[str, Any]:
    """Returns the content of a file of the hook sensitivity; raises UserError if it is damaged or another file."""
    try:
        return read_json(fetched(path), SCHEMA)
    except UserError as error:
        raise UserError(f"optimizer.prune: by='{path}' is not a file of the hook sensitivity: {error}") from None
