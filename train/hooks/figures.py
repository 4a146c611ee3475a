"""Figures of a run, drawn when it ends."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from train import workdir
from train.data.image_feed import ImageFeed
from train.data.text_feed import TextFeed
from train.hooks.translation import attention
from train.run import Hook, Run
from train.state import TrainState


@contextlib.contextmanager
def picture(path: Path) -> Iterator[None]:
    """Turns any failure to draw a picture into a warning: the run that it shows has ended well."""
    try:
        yield
    except Exception as error:  # whatever Matplotlib, fonts or the file system come up with
        print(f"warning: {path} was not drawn: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)


class Figures(Hook):
    """Draws curves.png, and one more figure by kind of data.

    mistakes.png has the confusion matrix and the most confident errors, where each image has one class. attention.png
    shows what the decoder looks at for the first test sentences.
    """

    def finished(self, run: Run, state: TrainState, folder: Path) -> None:
        # Matplotlib is needed at the end alone, and the first step should not wait for it
        from train.plots import figures

        with picture(folder / "curves.png"):
            figures.curves(workdir.read_metrics(folder / "metrics.jsonl"), folder / "curves.png")
        if isinstance(run.feed, TextFeed):
            with picture(folder / "attention.png"):
                maps = attention(run, state, range(min(4, run.feed.test_size())))
                figures.attention(maps, folder / "attention.png")
        elif isinstance(run.feed, ImageFeed) and not run.feed.label_shape:
            test = run.feed.test
            with picture(folder / "mistakes.png"):
                logits, labels, index = run.predictions(state.evaluation_variables(), run.feed.test_batches())
                figures.mistakes(
                    logits,
                    labels,
                    run.feed.classes,
                    folder / "mistakes.png",
                    image=lambda place: test.example(place, None)["image"],
                    index=index,
                )
