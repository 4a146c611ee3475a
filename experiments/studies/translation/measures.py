"""Measures of the study of translation on a trained network: functions (run, state) -> JSON values."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # measures import training code only when they run
    from train.run import Run
    from train.state import TrainState


SAMPLES = 4  # number of test sentences whose attention is drawn


def attention(run: "Run", state: "TrainState") -> list[dict[str, Any]]:
    """Measures the last decoder block's attention to the source, averaged over heads, for the first test sentences."""
    from train.hooks import translation

    return [
        {**one, "weights": one["weights"].mean(0, keepdims=True).round(4).tolist()}
        for one in translation.attention(run, state, range(SAMPLES))
    ]
