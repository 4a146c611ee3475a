"""Measures of the study of cost on a network: functions (run, state) -> JSON values."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # measures import training code only when they run
    from train.run import Run
    from train.state import TrainState


TIMED = 15  # number of training steps that a median is of
REPEATED = 12  # number of medians: the first chooses the networks, and the others are compared


def step_time(run: "Run", state: "TrainState") -> dict[str, Any]:
    """Measures milliseconds per compiled training step, after three steps to warm up.

    Returns:
      "medians": of TIMED steps each, REPEATED times one after another; "milliseconds": their median; "images" of a
      step; "mult_adds" of one image; "parameters"; "device".
    """
    import jax

    from models.analysis.cost import analyze
    from train.recording import summary

    state, seconds = run.parallel.place(state), []
    for _, items in run.feed.calls(0, 3 + TIMED * REPEATED):
        began = time.perf_counter()
        state = jax.block_until_ready(run.train_call(state, run.data, items))[0]
        seconds.append(time.perf_counter() - began)
    cost = analyze(run.task.model, (1, *run.images.image_shape))
    medians = [1000 * statistics.median(seconds[i : i + TIMED]) for i in range(3, len(seconds), TIMED)]
    return {
        "milliseconds": statistics.median(medians),
        "medians": medians,
        "images": run.config["batch_size"],
        "mult_adds": cost.mult_adds,
        "parameters": cost.params,
        "device": summary.device(run.parallel.devices),
    }


def reuse(run: "Run", state: "TrainState") -> dict[str, Any]:
    """Measures the mean absolute weight from each earlier layer to each later one, as in Huang 2017, fig. 5.

    Returns:
      "blocks": for each dense block, `weights[l][s]`, the mean absolute weight of layer l's first convolution over the
      channels from source s. Source 0 is the block's input, and source s > 0 is layer s - 1. The last row is the layer
      after the block: the transition's convolution, or the classifier.
      "moved": the sum of |w - w before training| over those kernels, divided by the sum of |w before training|.
    """
    import numpy as np

    model, blocks, changes, before = run.task.model, [], 0.0, 0.0
    for stage, size in enumerate(model.stage_sizes, 1):
        paths: list[Sequence[str]] = [(f"stage{stage}", f"layer{i}", "conv1") for i in range(size)]
        paths.append((f"transition{stage}", "conv") if stage < len(model.stage_sizes) else ("head",))
        weights, width = [], None
        for path in paths:
            now, first = (np.asarray(_at(s.params, path)["kernel"], np.float64) for s in (state, run.state))
            channels = np.abs(now).reshape(-1, *now.shape[-2:]).mean((0, 2))  # [taps, in, out] -> [in]
            width = width or len(channels)  # number of channels of the block's input
            ends = range(width, len(channels) + 1, model.growth)
            weights.append([float(part.mean()) for part in np.split(channels, ends) if len(part)])
            changes, before = changes + np.abs(now - first).sum(), before + np.abs(first).sum()
        blocks.append(weights)
    return {"blocks": blocks, "moved": float(changes / before)}


def _at(tree: Mapping[str, Any], path: Sequence[str]) -> Any:
    for name in path:
        tree = tree[name]
    return tree
