"""The order of examples is a pure function of (seed, position)."""

import numpy as np
import pytest

from models.errors import UserError
from train.data.shuffle import Order, philox, process_rows


def test_every_epoch_has_every_example_once_across_batches_that_straddle_epochs():
    order = Order(10, seed=3)
    run = np.concatenate([order.indices(step * 4, 4) for step in range(10)])  # 4 epochs, 10 batches
    epochs = run.reshape(4, 10)
    assert (np.sort(epochs, 1) == np.arange(10)).all()
    assert len({epoch.tobytes() for epoch in epochs}) == 4
    assert run.dtype == np.int64


def test_order_only_depends_on_seed_and_position():
    run = Order(100, seed=1).indices(0, 1000)
    other = Order(100, seed=1)
    for position, count in ((730, 41), (5, 300), (999, 1), (98, 4), (0, 1000)):  # in any sequence
        np.testing.assert_array_equal(other.indices(position, count), run[position : position + count])
    assert (Order(100, seed=2).indices(0, 100) != run[:100]).any()
    assert (Order(100, seed=-1).indices(0, 100) != run[:100]).any()


def test_mirrored_alternates_and_depends_on_seed_and_position_alone():
    order, first = Order(50, seed=3), {}
    for epoch in range(4):
        seen = dict(zip(order.indices(50 * epoch, 50), order.mirrored(50 * epoch, 50), strict=True))
        first = first or seen
        assert seen == {index: flag ^ bool(epoch % 2) for index, flag in first.items()}
    assert 10 < sum(first.values()) < 40
    whole = order.mirrored(0, 200)
    for position, count in ((130, 41), (5, 100), (48, 4)):
        np.testing.assert_array_equal(Order(50, seed=3).mirrored(position, count), whole[position : position + count])
    assert (Order(50, seed=4).mirrored(0, 50) != whole[:50]).any()


@pytest.mark.parametrize(("batch", "repeats"), [(8, 4), (8, 3), (6, 6)])
def test_repeats_show_an_image_several_times_in_a_batch_and_as_often_as_others(batch, repeats):
    order, distinct = Order(24, seed=3, repeats=repeats, batch_size=batch), -(-batch // repeats)
    run = order.indices(0, 24 * repeats * batch).reshape(-1, batch)  # each image in `batch` batches, or more
    for rows in run:
        assert len(set(rows)) == distinct
        assert (rows[distinct:] == rows[:-distinct]).all()  # copies are apart: in other pairs, on other devices
    # Without repeats of an incomplete last copy, each image is in as many rows as any other
    if batch % repeats == 0:
        assert set(np.bincount(run.ravel())) == {repeats * batch}
    plain = Order(24, seed=3)
    np.testing.assert_array_equal(run[:, :distinct].ravel(), plain.indices(0, run.shape[0] * distinct))
    again = Order(24, seed=3, repeats=repeats, batch_size=batch)
    for position, count in ((17, 9), (3, 1), (5, 64)):  # in any sequence
        np.testing.assert_array_equal(again.indices(position, count), run.ravel()[position : position + count])


def test_copies_of_an_image_are_mirrored_alternately():
    order = Order(12, seed=3, repeats=2, batch_size=6)
    indices, mirrored = order.indices(0, 48), order.mirrored(0, 48)
    for index in range(12):
        flags = mirrored[indices == index]
        assert len(flags) == 4 and (flags[1:] != flags[:-1]).all()


def test_repeats_fit_the_batch():
    for repeats in (0, -1, 9):
        with pytest.raises(UserError, match=rf"data.repeats={repeats} must be in \[1, 8\]"):
            Order(24, 3, repeats=repeats, batch_size=8)


def test_order_is_recorded():
    # A change here changes the training order of every published seed.
    np.testing.assert_array_equal(Order(8, seed=42).indices(0, 16), [7, 0, 4, 2, 1, 3, 5, 6, 5, 1, 4, 7, 3, 0, 2, 6])


def test_far_positions():
    assert len(set(Order(7, 0).indices(7 * 10**12, 7))) == 7
    with pytest.raises(ValueError, match="at least one example"):
        Order(0, 0)


def test_streams_of_philox_are_independent():
    draws = [philox(s, n, u).integers(2**62) for s in (0, 1) for n in (0, 1) for u in (0, 1)]
    assert len(set(draws)) == 8


def test_processes_have_parts_of_a_batch_in_order():
    assert [process_rows(12, (process, 3)) for process in range(3)] == [range(4), range(4, 8), range(8, 12)]
    with pytest.raises(UserError, match="batch size 12 is not divisible by the 5 processes"):
        process_rows(12, (0, 5))
