"""Figures of a run, drawn at its end."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from models import command
from train.data import imagenet
from train.data.image_feed import ImageFeed
from train.data.text_feed import TextFeed
from train.hooks.translation import attention
from train.run import Hook, Run
from train.state import TrainState
from train.storage import workdir


@contextlib.contextmanager
def picture(path: Path) -> Iterator[None]:
    """Turns any failure to draw a figure into a warning, because the run itself has succeeded."""
    try:
        yield
    except Exception as error:  # Matplotlib, fonts and the file system raise many types
        print(f"warning: {path} was not drawn: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)


class Figures(Hook):
    """The figure curves.png, and a second one that depends on the data.

    For images with one class each, mistakes.png shows the confusion matrix and the most confident errors. For text,
    attention.png shows the decoder's attention for the first test sentences.

    Args:
      formats: formats of files beside each PNG, separated by commas, e.g. "pdf,svg".
    """

    def __init__(self, formats: str = ""):
        self._formats = command.formats(formats)

    def finished(self, run: Run, state: TrainState, folder: Path) -> None:
        # Imported here, so that the first training step does not wait for Matplotlib.
        from models.analysis import drawing

        with drawing.formats(self._formats):
            self._draw(run, state, folder)

    def _draw(self, run: Run, state: TrainState, folder: Path) -> None:
        from train.plots import figures
        from train.plots.curves import curves
        from train.plots.mistakes import mistakes

        with picture(folder / "curves.png"):
            curves(
                workdir.read_metrics(folder / "metrics.jsonl"),
                folder / "curves.png",
                examples=run.feed.test_count(),
                epoch=run.feed.train_count / run.config["batch_size"],
            )
        if isinstance(run.feed, TextFeed):
            with picture(folder / "attention.png"):
                maps = attention(run, state, range(min(4, run.feed.test_size())))
                figures.attention(maps, folder / "attention.png")
        elif isinstance(run.feed, ImageFeed) and not run.feed.label_shape:
            test = run.feed.test
            with picture(folder / "mistakes.png"):
                logits, labels, indices = run.predictions(state.evaluation_variables(), run.feed.test_batches())
                mistakes(
                    logits,
                    labels,
                    imagenet.shown(run.feed.classes),
                    folder / "mistakes.png",
                    image=lambda place: test.example(place, None)["image"],
                    index=indices.tolist(),
                )
