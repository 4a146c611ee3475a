"""Winners of the ImageNet challenge (ILSVRC) in classification, 2010 to 2017, from published numbers alone.

Errors are top-5 on the test set, of the best entry trained only on the challenge's own data. The organizers publish
them on each year's results page, image-net.org/challenges/LSVRC/YEAR/results. Those pages were read in transcriptions
that agree with each other; for 2014, 2015 and 2017 abstracts of papers have the numbers, too. `read` names the source.
"""

from pathlib import Path
from typing import NamedTuple

from experiments.study import Table
from models.analysis.palette import BLUE, RED

HUMAN = (
    5.1  # Russakovsky 2015, section 6.4: one annotator, trained on 500 images, tested on 1,500 images of the test set
)
CAPTION = (
    "Top-5 error of each year's winner on the challenge's test set, without data from elsewhere (with it: SuperVision "
    "15.3 %, Clarifai 11.2 %). All from 2012 on are ensembles of convolutional networks. The line is one trained "
    "person (annotator A1 of Russakovsky 2015, section 6.4)."
)


class Winner(NamedTuple):
    """A year's winner: the team, its entry, its top-5 error in percent, and the source of that number."""

    year: int
    team: str
    system: str
    error: float
    read: str


TRANSCRIBED = "transcriptions of the year's results page"
WINNERS = (
    Winner(2010, "NEC-UIUC", "SIFT, LBP, SVM", 28.19, TRANSCRIBED),
    Winner(2011, "XRCE", "Fisher vectors", 25.77, TRANSCRIBED),
    Winner(2012, "SuperVision", "AlexNet", 16.42, TRANSCRIBED),
    Winner(2013, "Clarifai", "ConvNets", 11.74, TRANSCRIBED),
    Winner(2014, "GoogLeNet", "Inception", 6.66, "a quotation of the abstract of He 2015 (arXiv 1502.01852)"),
    Winner(2015, "MSRA", "ResNet", 3.57, "He 2016 (arXiv 1512.03385), abstract"),
    Winner(2016, "Trimps-Soushen", "ensemble", 2.99, TRANSCRIBED),
    Winner(2017, "WMW", "SENet", 2.25, "Hu 2018 (arXiv 1709.01507), abstract"),
)


def table() -> Table:
    """Returns the numbers of the figure with their sources."""
    rows = [
        [
            winner.year,
            winner.team,
            winner.system,
            f"{winner.error:.2f}",
            f"ILSVRC {winner.year} results; read in: {winner.read}",
        ]
        for winner in WINNERS
    ]
    return Table("Winners of the classification task", ["year", "team", "system", "top-5 error, %", "source"], rows)


def draw(path: Path) -> None:
    """Draws the figure and writes it as a PNG."""
    from models.analysis import drawing
    from train.plots.figures import tidy

    with drawing.figure(path, (8.5, 4.2)) as figure:
        axes = figure.subplots()
        colors = ["#9aa3ad" if winner.year < 2012 else BLUE for winner in WINNERS]
        bars = axes.bar(range(len(WINNERS)), [winner.error for winner in WINNERS], 0.7, color=colors, zorder=2)
        axes.bar_label(
            bars,
            [f"{winner.error:.2f}" for winner in WINNERS],
            padding=2,
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )
        axes.axhline(HUMAN, color=RED, linestyle="--", linewidth=1.3, zorder=1)
        axes.annotate(
            f"one trained person: {HUMAN}%",
            (len(WINNERS) - 0.6, HUMAN),
            (0, 4),
            textcoords="offset points",
            ha="right",
            va="bottom",
            color=RED,
            fontsize=9,
        )
        axes.set_xticks(
            range(len(WINNERS)), [f"{winner.year}\n{winner.team}\n{winner.system}" for winner in WINNERS], fontsize=8
        )
        axes.set(ylabel="top-5 error (%)")
        axes.margins(y=0.1)
        tidy(axes)
        axes.grid(visible=False, axis="x")
