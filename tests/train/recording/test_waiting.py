"""Tests of train/recording/waiting.py: how long devices wait for data, and the figure that the progress shows."""

import io
import re
import time

import numpy as np
import pytest
import rich.console

from train.recording.recorder import Recorder
from train.recording.waiting import Waiting


class Outputs:
    """The outputs of a program that takes some seconds from now on."""

    def __init__(self, seconds):
        self._ready = time.perf_counter() + seconds

    def block_until_ready(self):
        time.sleep(max(0, self._ready - time.perf_counter()))


def batches(count, seconds):
    for number in range(count):
        time.sleep(seconds)
        yield number


@pytest.mark.parametrize(("data", "device", "expected"), [(0.15, 0.05, 0.4), (0.05, 0.25, 0.0), (0.0, 0.05, 0.0)])
def test_devices_wait_from_the_end_of_a_dispatch_to_the_next_batch(data, device, expected):
    waiting, outputs = Waiting(), None
    for _ in waiting.fetching(batches(5, data)):
        if outputs:
            outputs.block_until_ready()  # as the loop processes metrics one dispatch late
        outputs = Outputs(device)
        waiting.dispatched(outputs)
    assert waiting.take() == pytest.approx(expected, abs=0.15)  # a busy machine; not the whole time of fetching, 0.75 s
    assert waiting.take() == 0
    waiting.close()


@pytest.mark.parametrize(("seconds", "computing", "shown"), [(0.1, 0.01, True), (0.0, 0.1, False)])
def test_the_progress_shows_the_share_if_it_is_large(seconds, computing, shown):
    text = io.StringIO()
    recorder = Recorder(
        None,
        rich.console.Console(file=text, width=200),
        total=6,
        step=0,
        batch_size=8,
        unit="images",
        peak_mib=lambda: None,
        log_every=6,
        before=None,
    )
    one = (np.ones(1), np.ones(1))
    for _ in recorder.fetching(batches(6, seconds)):
        recorder.add(1, {"loss": one, "gradient_norm": one, "learning_rate": one})
        time.sleep(computing)
    recorder.flush()
    recorder.close()
    assert bool(re.search(r"images/s  data \d+%", text.getvalue())) is shown, text.getvalue()
