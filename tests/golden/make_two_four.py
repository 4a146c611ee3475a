"""Records PyTorch's form of matrices with two zeros in each four neighbors in two_four.npz.

../venv-torch/bin/python -m tests.golden.make_two_four        (any environment with torch and numpy)
"""

import pathlib

import numpy as np
import torch
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

SHAPES = {"dense": (128, 32), "pointwise": (1, 1, 64, 96), "taps": (3, 3, 64, 64)}  # [..., inputs, outputs]


def kernel(name: str) -> np.ndarray:
    """Returns a kernel with at most two nonzero weights in each four neighbors, also none and one; every pattern."""
    rng = np.random.default_rng(len(name))
    *before, inputs, outputs = SHAPES[name]
    fours = rng.integers(1, 100, (*before, inputs // 4, 4, outputs)).astype(np.float16) / 64
    order = np.argsort(rng.random(fours.shape), -2)
    stays = order < rng.integers(0, 3, (*before, inputs // 4, 1, outputs))
    return np.where(stays, fours, 0).reshape(SHAPES[name]).astype(np.float16)


def main() -> None:
    arrays = {}
    for name in SHAPES:
        dense = torch.from_numpy(kernel(name).reshape(-1, SHAPES[name][-1]).T.copy())
        values, metadata = sparse_semi_structured_from_dense_cutlass(dense)
        assert torch.equal(sparse_semi_structured_to_dense_cutlass(values, metadata), dense)
        arrays |= {
            f"{name}/kernel": kernel(name),
            f"{name}/values": values.numpy(),
            f"{name}/metadata": metadata.numpy(),
        }
    np.savez_compressed(pathlib.Path(__file__).with_name("two_four.npz"), **arrays)


if __name__ == "__main__":
    main()
