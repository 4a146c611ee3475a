"""Files of weights: {name: array}, of safetensors, NumPy (.npz) and PyTorch (.pth, .pt, .bin).

Nothing that a file says is executed: pickled objects other than tensors are refused.
"""

import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from models.errors import UserError

TORCH = (".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", ".npz", *TORCH)
# Where checkpoints of training scripts keep the weights; of several, the first here: averaged ones are what is tested.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")  # of networks that torch's DataParallel or compile had wrapped


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a file by name: bfloat16 and float16 as float32, other types as they are.

    A checkpoint that holds the weights among other things gives the weights; prefixes that wrappers put before every
    name are taken off.

    Raises:
      UserError: no such file, of another kind than its name says, damaged, or with other things than arrays in it.
    """
    path = _existing(path)
    load = {".safetensors": _load_safetensors, ".npz": _load_npz}.get(path.suffix, _load_torch)
    arrays = load(path)
    for prefix in PREFIXES:
        if arrays and all(name.startswith(prefix) for name in arrays):
            arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    for name, array in arrays.items():
        if array.dtype.name in ("bfloat16", "float16"):
            arrays[name] = array.astype(np.float32)
        elif array.dtype.kind not in "fiub":
            raise UserError(f"{path}: '{name}' holds no numbers but {array.dtype}")
    if not arrays:
        raise UserError(f"{path}: there are no arrays in it")
    return arrays


def metadata(path: str | os.PathLike) -> dict[str, str]:
    """What `write` was given with the arrays; {} for files of another kind than safetensors."""
    path = _existing(path)
    if path.suffix != ".safetensors":
        return {}
    try:
        with safetensors.safe_open(path, "np") as file:
            return file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise _unreadable(path, error) from None


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes arrays by name, the whole file or nothing; torch's with torch.save, for `load_state_dict`.

    Args:
      path: its suffix says which kind.
      arrays: any that NumPy knows, and bfloat16 in safetensors.
      metadata: texts to keep with them; of safetensors only.

    Raises:
      UserError: the kind is unknown, has no place for metadata, or the file cannot be written.
    """
    path = _checked(path)
    if metadata and path.suffix != ".safetensors":
        raise UserError(f"{path}: metadata is for .safetensors")
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    torch = _torch(path) if path.suffix in TORCH else None
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if torch:
            torch.save({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, partial)
        elif path.suffix == ".npz":
            with open(partial, "wb") as file:
                np.savez(file, **arrays)
        else:
            safetensors.numpy.save_file(arrays, partial, dict(metadata or {}))
        os.replace(partial, path)
    except (OSError, RuntimeError, TypeError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be written: {error}") from None
    finally:
        partial.unlink(missing_ok=True)


def _checked(path: str | os.PathLike) -> Path:
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: weights are in files that end in {', '.join(SUFFIXES)}")
    return path


def _existing(path: str | os.PathLike) -> Path:
    path = _checked(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    return path


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: damaged, or no {path.suffix} file ({type(error).__name__}: {error})".replace("\n", " "))


def _load_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, TypeError, KeyError) as error:  # the last two: types NumPy lacks
        raise _unreadable(path, error) from None


def _load_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        archive = np.load(path, allow_pickle=False)
        return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(path, error) from None


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(f"{path} needs PyTorch: pip install torch, or use a .safetensors file") from None
    return torch


def _load_torch(path: Path) -> dict[str, np.ndarray]:
    torch = _torch(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler stumbles over in bytes that are no checkpoint
        if found := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
            raise UserError(f"{path}: refused for the objects in it ({found[1]}); save its state_dict alone") from None
        raise _unreadable(path, type(error)(*str(error).splitlines()[:1])) from None
    while isinstance(found, Mapping) and (inside := [key for key in WRAPPERS if isinstance(found.get(key), Mapping)]):
        found = found[inside[0]]
    if not isinstance(found, Mapping):
        raise UserError(f"{path}: a {type(found).__name__} instead of arrays by name")
    for name, value in found.items():
        if not isinstance(value, torch.Tensor) or not isinstance(name, str):
            raise UserError(f"{path}: '{name}' is a {type(value).__name__}, not an array")
    return {name: _array(path, name, value) for name, value in found.items()}


def _array(path: Path, name: str, tensor: Any) -> np.ndarray:
    """A tensor as NumPy has it, half precision widened; UserError where NumPy has nothing like it."""
    try:
        return (tensor.float() if tensor.dtype.itemsize == 2 and tensor.is_floating_point() else tensor).numpy()
    except (TypeError, RuntimeError) as error:
        raise UserError(f"{path}: '{name}' is no plain array ({error})") from None
