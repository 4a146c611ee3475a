"""Tests of models/compress/two_four.py against what PyTorch made (tests/golden/make_two_four.py)."""

from pathlib import Path

import numpy as np
import pytest

from models.compress import two_four
from models.weights.foreign import Damaged

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "two_four.npz")


@pytest.mark.parametrize("name", ["dense", "pointwise", "taps"])
def test_values_and_metadata_are_those_of_pytorch(name):
    kernel = GOLDEN[f"{name}/kernel"].astype(np.float32)
    packed = two_four.pack(kernel)
    for ours, theirs in ((packed.values, "values"), (packed.metadata, "metadata")):
        assert ours.dtype == GOLDEN[f"{name}/{theirs}"].dtype
        np.testing.assert_array_equal(ours, GOLDEN[f"{name}/{theirs}"])
    np.testing.assert_array_equal(two_four.unpack(packed, kernel.shape), kernel)


def test_what_fits():
    kernel = GOLDEN["taps/kernel"].astype(np.float32)
    assert two_four.fits(kernel) and not two_four.fits(np.ones_like(kernel)) and not two_four.fits(0 * kernel)
    assert not two_four.fits(kernel[..., :16])  # 32 rows of a tile
    assert not two_four.fits(GOLDEN["dense/kernel"][:48])  # 64 columns
    assert not two_four.fits(kernel[0, 0, 0])
    three = kernel.copy()
    three[0, 0, :3, 0] = 1
    assert not two_four.fits(three)


def test_files_hold_packed_and_other_arrays():
    arrays = {"a/kernel": GOLDEN["taps/kernel"].astype(np.float32), "b/kernel": np.ones((4, 4), np.float32)}
    packed = two_four.dump(arrays)
    assert sorted(packed) == ["a/kernel.metadata", "a/kernel.values", "b/kernel"]
    shapes = {"a/kernel": arrays["a/kernel"].shape}
    for name, array in two_four.load(packed, shapes).items():
        np.testing.assert_array_equal(array, arrays[name])
    with pytest.raises(Damaged, match=r"a/kernel: values \[64, 288\] are not half of a kernel \[3, 3, 64, 32\]"):
        two_four.load(packed, {"a/kernel": (3, 3, 64, 32)})
    packed["a/kernel.metadata"] = 0 * packed["a/kernel.metadata"]
    with pytest.raises(Damaged, match="a/kernel: positions in its metadata are not in ascending order"):
        two_four.load(packed, shapes)


def test_weights_too_large_for_float16():
    assert two_four.half(np.float32([1 / 3]))[0] == np.float32(np.float16(1 / 3))
    with pytest.raises(OverflowError, match="a weight of 1e.05 is too large for float16"):
        two_four.half(np.float32([1e5]))
