"""Tables, files and the picture of the errors under corruptions."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.analysis.tables import markdown_table, terminal_table
from train.data.corruptions.severities import COMMON, EXTRA
from train.storage.files import write_atomically, write_json

if TYPE_CHECKING:
    import rich.table

    from train.data.source import Source

FROST = "Frost is drawn here instead of photographed, so its errors are not comparable with published ones."
MEANS = {
    "mean_corruption_error": "mean corruption error (mean of the errors)",
    "mCE": "mCE (errors relative to the baseline's)",
    "relative_mCE": "relative mCE (errors added, relative to the baseline's)",
}
LARGEST_EXAMPLE = 96  # pixels of an example's side in the picture


def title(name: str) -> str:
    """Returns the name of a corruption for people."""
    return name.replace("_", " ").replace("jpeg", "JPEG")


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Returns the rows of the table: name, one error per severity, and their mean."""
    return [
        [title(name), *(f"{value:.2f}%" for value in values), f"{statistics.fmean(values):.2f}%"]
        for name, values in result["errors"].items()
    ]


def columns(result: Mapping[str, Any]) -> list[str]:
    """Returns the headers of the table."""
    return ["corruption", *map(str, result["severities"]), "mean"]


def table(result: Mapping[str, Any]) -> "rich.table.Table":
    """Returns the errors as a table for the terminal."""
    return terminal_table(columns(result), rows(result), title=f"test error of {result['model']} by severity")


def sentences(result: Mapping[str, Any]) -> list[str]:
    """Returns the clean error and the means, one per line."""
    count = sum(name in COMMON for name in result["errors"])
    lines = [
        f"clean test error: {result['clean_error']:.2f}% of {result['images']:,} images",
        f"standard error of an error on these images: at most {50 / result['images'] ** 0.5:.1f} points",
    ]
    lines += [
        f"{text}: {result[key]:.2f}%, over {count} of the {len(COMMON)} common corruptions"
        for key, text in MEANS.items()
        if key in result
    ]
    if result["baseline"]:
        lines.append(f"baseline: {result['baseline']}")
    extra = [title(name) for name in result["errors"] if name in EXTRA]
    if extra:
        lines.append(f"not in the means: {', '.join(extra)}")
    return lines + [FROST] * ("frost" in result["errors"])


def write(folder: Path, result: Mapping[str, Any]) -> None:
    """Writes corruptions.json, corruptions.csv and corruptions.md."""
    write_json(folder / "corruptions.json", result)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["corruption", "severity", "error_percent", "images"])
    writer.writerow(["", 0, f"{result['clean_error']:.4f}", result["images"]])
    for name, values in result["errors"].items():
        for severity, value in zip(result["severities"], values, strict=True):
            writer.writerow([name, severity, f"{value:.4f}", result["images"]])
    write_atomically(folder / "corruptions.csv", file.getvalue())
    write_atomically(folder / "corruptions.md", page(result))


def page(result: Mapping[str, Any]) -> str:
    """Returns the results as a page in Markdown."""
    speeds = [[title(name), f"{value:,.0f}"] for name, value in result["images_per_second"].items()]
    selected = f", {result['select']}" if result["select"] else ""
    return (
        "\n\n".join(
            [
                f"# {result['model']} on corrupted images of {result['data']}",
                f"Test error by corruption and severity; {result['images']:,} test images{selected}. "
                f"The run trained for {result['config']['duration']}. Commit {result['commit']}, {result['device']}, "
                f"seed {result['seed']} of the corruptions.",
                "\n".join(f"- {line}" for line in sentences(result)),
                markdown_table(columns(result), rows(result)),
                "![Errors, and one image under each corruption](corruptions.png)",
                "Images per second, with decoding and the network:",
                markdown_table(["corruption", "images/s"], speeds),
            ]
        )
        + "\n"
    )


def examples(source: "Source", names: Sequence[str], severities: Sequence[int], seed: int) -> np.ndarray:
    """Returns the first image under each corruption and severity, uint8 [names, severities, H, W, 3]."""
    from train.data.corrupted import Corrupted, numbers_of

    numbers = numbers_of(source)
    return np.stack(
        [
            np.stack(
                [small(Corrupted(source, name, severity, seed, numbers).example(0)["image"]) for severity in severities]
            )
            for name in names
        ]
    )


def small(pixels: np.ndarray) -> np.ndarray:
    """Returns pixels as an example in the picture: in color, of at most LARGEST_EXAMPLE pixels a side."""
    step = -(-max(pixels.shape[:2]) // LARGEST_EXAMPLE)
    return np.repeat(pixels, 3, 2)[::step, ::step] if pixels.shape[2] == 1 else pixels[::step, ::step]


def draw(path: Path, result: Mapping[str, Any], pictures: np.ndarray) -> None:
    """Draws an image under each corruption beside the errors, one row per corruption.

    Args:
      path: File.
      result: The errors.
      pictures: From `examples`.
    """
    from models.analysis import drawing

    names, severities = list(result["errors"]), [str(severity) for severity in result["severities"]]
    _, _, height, width, _ = pictures.shape
    errors = np.array([result["errors"][name] for name in names])
    with drawing.figure(path, (2.2 + 1.0 * len(severities), 1.2 + 0.5 * height / width * len(names))) as figure:
        left, right = figure.subplots(1, 2)
        mosaic = pictures.transpose(0, 2, 1, 3, 4).reshape(len(names) * height, len(severities) * width, 3)
        left.imshow(mosaic, extent=(-0.5, len(severities) - 0.5, len(names) - 0.5, -0.5), interpolation="nearest")
        left.set_title("one test image")
        right.imshow(errors, cmap="Blues", vmin=0, vmax=100)
        for (y, x), value in np.ndenumerate(errors):
            right.text(x, y, f"{value:.0f}", ha="center", va="center", color="white" if value > 60 else "black")
        right.set_title(f"test error in %; clean {result['clean_error']:.1f}%")
        for axes in (left, right):
            axes.set(xlabel="severity", xticks=range(len(severities)), aspect="auto")
            axes.set_xticklabels(severities)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
        left.set_yticks(range(len(names)), [title(name) for name in names])
        right.set_yticks([])
        figure.suptitle(f"{result['model']} on {result['data']}, {result['images']:,} images")
