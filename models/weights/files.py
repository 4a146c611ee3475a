"""Files of weights, {name: array}: safetensors, NumPy (.npz) and PyTorch (.pth and other suffixes).

Nothing in a file is executed. Readers compare every size with the file first, and their errors are one line
(foreign.py). Only writing a PyTorch file needs PyTorch.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors
import safetensors.numpy

from models.errors import UserError
from models.weights import npz, torch_file, unwrap
from models.weights.foreign import Damaged, reading

# torch.save writes the same bytes for any suffix; these are common.
TORCH = (".pth", ".pt", ".bin", ".pth.tar", ".ckpt", ".th", ".model")
SUFFIXES = (".safetensors", ".npz", *TORCH)


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the arrays of a file by name; bfloat16 and float16 become float32, and other types are kept.

    The weights are extracted from checkpoints that hold other values as well, and prefixes that wrappers add to every
    name are removed (unwrap.py).

    Raises:
      UserError: The file is missing or damaged, its format does not match its suffix, or it does not hold arrays.
    """
    path, kind = _existing(path)
    with reading(path, kind):
        arrays = _READERS.get(kind, torch_file.read)(path)
        arrays = unwrap.without_prefixes(arrays, unwrap.PARALLEL)
        for name, array in arrays.items():
            if not name.isprintable():
                raise Damaged(f"a name in it is not printable: {name}")
            if array.dtype.name in ("bfloat16", "float16"):
                arrays[name] = array.astype(np.float32)
            elif array.dtype.kind not in "fiub":
                raise Damaged(f"'{name}' holds no real numbers but {array.dtype}")
        if not arrays:
            raise Damaged("there are no arrays in it")
    return arrays


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays, without texts such as names of networks."""
    with npz.opened(path) as members:
        arrays = dict(members)
    numbers = {name: array for name, array in arrays.items() if array.shape or array.dtype.kind not in "US"}
    return numbers or arrays


_READERS = {".safetensors": safetensors.numpy.load_file, ".npz": _read_npz}


def metadata(path: str | os.PathLike) -> dict[str, str]:
    """Returns the metadata that `write` stored with the arrays, or {} for files other than safetensors."""
    path, kind = _existing(path)
    if kind != ".safetensors":
        return {}
    with reading(path, kind), safetensors.safe_open(path, "np") as file:
        return file.metadata() or {}


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes arrays by name, atomically; PyTorch files are written by torch.save, for `load_state_dict`.

    Args:
      path: File; its suffix determines the format.
      arrays: Arrays of any NumPy type, and of bfloat16 in safetensors.
      metadata: Texts to store with them, only in safetensors.

    Raises:
      UserError: The format is unknown or cannot store metadata, or the file cannot be written.
    """
    path, kind = _checked(path)
    if metadata and kind != ".safetensors":
        raise UserError(f"{path}: only .safetensors files can hold metadata")
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    torch = _torch(path) if kind in TORCH else None
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if torch:
            torch.save({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, partial)
        elif kind == ".npz":
            with open(partial, "wb") as file:
                np.savez(file, **cast(dict[str, Any], arrays))  # no array is called allow_pickle
        else:
            safetensors.numpy.save_file(arrays, partial, dict(metadata or {}))
        os.replace(partial, path)
    except (OSError, RuntimeError, TypeError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be written: {error}") from None
    finally:
        partial.unlink(missing_ok=True)


def _checked(path: str | os.PathLike) -> tuple[Path, str]:
    """Returns the path and its suffix in lower case, which determines the format."""
    path = Path(path)
    kind = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)
    if kind is None:
        raise UserError(f"{path}: the name of a weights file must end in one of {', '.join(SUFFIXES)}")
    return path, kind


def _existing(path: str | os.PathLike) -> tuple[Path, str]:
    path, kind = _checked(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    return path, kind


def _torch(path: Path) -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports] (optional)
    except ImportError:
        raise UserError(f"writing {path} needs PyTorch: pip install torch, or write a .safetensors file") from None
    return torch
