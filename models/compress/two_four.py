"""Weights with two zeros in each four neighbors, in the form that sparse tensor cores take.

  Mishra et al. 2021    Accelerating sparse deep neural networks, arXiv 2104.08378
  CUTLASS               tools/util/include/cutlass/util/host_reorder.h, layout ColumnMajorInterleaved<2>

A kernel [kh, kw, C, D] or [C, D] is stored as a matrix [D, K] with K = kh kw C: a row per output feature, taps before
inputs (CUTLASS's filters KRSC). Of each four neighbors in a row, `values` keeps two, float16, and `metadata` has their
positions, two bits each, the first in the lower bits, four pairs in an int16, in CUTLASS's order of words. PyTorch's
SparseSemiStructuredTensorCUTLASS holds the same arrays. cuSPARSELt compresses the dense matrix into its own form.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from models.weights.foreign import Damaged

ROWS, COLUMNS = 32, 64  # of a matrix: must be multiples, for CUTLASS's kernels in float16
_GROUP, _PAIRS = 4, 4  # neighbors of which two stay; their positions in a word of metadata
VALUES, METADATA = ".values", ".metadata"  # after the name of a kernel in a file


class TwoFour(NamedTuple):
    """A matrix [D, K] of which two of each four neighbors are stored.

    Attributes:
      values: float16 [D, K / 2].
      metadata: int16 [D, K / 16].
    """

    values: np.ndarray
    metadata: np.ndarray


def matrix(kernel: np.ndarray) -> np.ndarray:
    """Returns a kernel [..., C, D] as a matrix [D, K]."""
    return kernel.reshape(-1, kernel.shape[-1]).T


def fits(kernel: Any) -> bool:
    """Returns whether a kernel [kh, kw, C, D] or [C, D] can be packed: its sizes, and two zeros in each four inputs."""
    shape = np.shape(kernel)
    if len(shape) not in (2, 4) or shape[-2] % _GROUP or shape[-1] % ROWS or np.size(kernel) // shape[-1] % COLUMNS:
        return False
    nonzero = matrix(np.asarray(kernel)).reshape(-1, _GROUP) != 0
    return bool(nonzero.any() and (nonzero.sum(1) <= 2).all())


def half(kernel: Any) -> np.ndarray:
    """Rounds a kernel to float16, and returns it in float32; raises OverflowError if a weight is too large for it."""
    with np.errstate(over="ignore"):
        rounded = np.asarray(kernel).astype(np.float16)
    if not np.isfinite(rounded).all():
        raise OverflowError(f"a weight of {np.abs(kernel).max():.3g} is too large for float16")
    return rounded.astype(np.float32)


def pack(kernel: np.ndarray) -> TwoFour:
    """Packs a kernel that `fits`; positions of zeros among fewer than two nonzero weights are those of PyTorch."""
    fours = matrix(kernel).astype(np.float16)
    rows, columns = fours.shape
    fours = fours.reshape(rows, columns // _GROUP, _GROUP)
    stays = fours != 0
    first = np.where(stays[..., 0], 0, np.where(stays[..., 1], 1, 2))
    is_last = stays[..., 3] | ~(stays[..., 0] | stays[..., 1])
    second = np.where(stays[..., 0] & stays[..., 1], 1, np.where(is_last, 3, 2))
    positions = np.stack([first, second], -1)
    values = np.take_along_axis(fours, positions, -1).reshape(rows, columns // 2)
    pairs = (first | second << 2).reshape(rows, -1, _PAIRS).astype(np.uint16)
    words = np.bitwise_or.reduce(pairs << (4 * np.arange(_PAIRS, dtype=np.uint16)), -1)
    metadata = np.empty(words.size, np.uint16)
    metadata[_order(*words.shape)] = words.ravel()
    return TwoFour(values, metadata.view(np.int16).reshape(words.shape))


def unpack(packed: TwoFour, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the kernel of this shape, float32.

    Raises:
      Damaged: The arrays are not those of a kernel of this shape.
    """
    rows, columns = shape[-1], int(np.prod(shape[:-1]))
    values, metadata = packed
    if rows % ROWS or columns % COLUMNS or values.shape != (rows, columns // 2):
        raise Damaged(f"values {[*values.shape]} are not half of a kernel {[*shape]}")
    if metadata.shape != (rows, columns // 16) or metadata.dtype != np.int16:
        raise Damaged(f"metadata {metadata.dtype} {[*metadata.shape]} are not those of a kernel {[*shape]}")
    words = np.ravel(metadata).view(np.uint16)[_order(*metadata.shape)].reshape(metadata.shape)
    pairs = words[..., None] >> (4 * np.arange(_PAIRS, dtype=np.uint16)) & 15
    positions = np.stack([pairs & 3, pairs >> 2], -1).reshape(rows, columns // _GROUP, 2)
    if (positions[..., 0] >= positions[..., 1]).any():
        raise Damaged("positions in its metadata are not in ascending order")
    fours = np.zeros((rows, columns // _GROUP, _GROUP), np.float32)
    np.put_along_axis(fours, positions.astype(np.int64), values.reshape(rows, -1, 2).astype(np.float32), -1)
    return np.ascontiguousarray(fours.reshape(rows, columns).T).reshape(shape)


def _order(rows: int, columns: int) -> np.ndarray:
    """Returns the place of each word of metadata [rows, columns] in CUTLASS's order, int [rows columns].

    In each 32 rows, those 8 apart become neighbors. In each 2 x 2 words, the second of the first row and the first of
    the second row change places. Then pairs of columns are stored one after the other.
    """
    row, column = np.indices((rows, columns))
    row = row // 32 * 32 + row % 8 * 4 + row % 32 // 8
    swap = row % 2 != column % 2
    row, column = np.where(swap, row // 2 * 2 + column % 2, row), np.where(swap, column // 2 * 2 + row % 2, column)
    return (column // 2 * rows * 2 + row * 2 + column % 2).ravel()


def dump(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays of a file: those that fit are packed, under NAME.values and NAME.metadata."""
    result = {}
    for name, array in arrays.items():
        if fits(array):
            result[name + VALUES], result[name + METADATA] = pack(array)
        else:
            result[name] = array
    return result


def load(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Returns the arrays that `dump` was given, except that packed ones are rounded to float16.

    Args:
      arrays: The arrays of a file.
      shapes: Shapes of the network's arrays by name.

    Raises:
      Damaged: Packed arrays are not those of their shape.
    """
    result = {}
    for name, array in arrays.items():
        kernel = name.removesuffix(VALUES)
        if name.endswith(VALUES) and kernel in shapes and kernel + METADATA in arrays:
            try:
                result[kernel] = unpack(TwoFour(array, arrays[kernel + METADATA]), shapes[kernel])
            except Damaged as error:
                raise Damaged(f"{kernel}: {error}") from None
        elif not (name.endswith(METADATA) and name.removesuffix(METADATA) + VALUES in arrays):
            result[name] = array
    return result
