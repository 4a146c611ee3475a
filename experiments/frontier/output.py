"""Table, files and the picture of a frontier."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.frontier import order, points
from experiments.frontier.estimates import MEASURES
from experiments.frontier.methods import DENSE
from experiments.frontier.search import Search
from models.analysis.tables import markdown_table
from train.storage.files import write_atomically, write_json

COLUMNS = ("network", "test %", "lost [95%]", "held-out %", "ms", "faster", "bytes", "smaller", "mult-adds", "folder")
NARROW = (0, 1, 2, 4, 5, 7, 8)  # columns for the terminal


class Words(NamedTuple):
    """The words of a measure: the key of its ratio in rows, and the texts of the ratio, of more, and of the best."""

    key: str
    times: str
    more: str
    most: str


WORDS = {
    "time": Words("times_faster", "times faster", "is faster", "the fastest"),
    "bytes": Words("times_smaller", "times smaller", "is smaller", "the smallest"),
    "mult_adds": Words(
        "times_fewer", "times fewer mult-adds", "has fewer mult-adds", "the one with the fewest mult-adds"
    ),
}


def measured(search: Search, result: Any) -> dict[str, Any]:
    """Measures the time of all points side by side, and the test accuracy of those on the front.

    Returns:
      {"front": names by cost, "chosen": the cheapest that loses little enough by held-out images, or "", "rows"}: a row
      per point, the dense network first.
    """
    every = [result.dense, *result.points.values()]
    times = points.milliseconds(search.dense, every)

    def cost(point: points.Point) -> float:
        return times[point.name] if search.measure == "time" else point.facts[search.measure]

    places = {point.name: (cost(point), point.facts["held_out"]) for point in every}
    front = order.front(places)
    chosen = order.chosen(places, search.lose)
    test = search.dense.network.images.test
    right = {point.name: points.right(point, test) for point in every if point.name in (DENSE, *front)}
    rows = []
    for point in every:
        row = {
            "name": point.name,
            "held_out": point.facts["held_out"],
            "milliseconds": times[point.name],
            **{name: point.facts[name] for name in ("bytes", "mult_adds", "format", "folder", "trial")},
            "times_faster": times[DENSE] / times[point.name],
            "times_smaller": search.estimates[DENSE].bytes / point.facts["bytes"],
            "times_fewer": result.dense.facts["mult_adds"] / point.facts["mult_adds"],
            "on_front": point.name in front,
            "training_seconds": result.outcomes[point.name].seconds,
        }
        if point.name in right:
            row["test"] = float(right[point.name].mean())
        if point.name in right and point.name != DENSE:
            loss = points.difference(right[point.name], right[DENSE])
            row |= dict(zip(("lost", "low", "high"), loss, strict=True))
        rows.append(row)
    return {"front": front, "chosen": "" if chosen == DENSE else chosen, "test_images": len(test), "rows": rows}


def cells(row: Mapping[str, Any], chosen: str = "") -> list[str]:
    """Returns a row of the table as strings."""
    return [
        row["name"] + " ←" * (row["name"] == chosen),
        f"{100 * row['test']:.2f}" if "test" in row else "—",
        _lost(row) if "lost" in row else "—",
        f"{100 * row['held_out']:.2f}",
        f"{row['milliseconds']:.3f}",
        f"{row['times_faster']:.2f}",
        f"{row['bytes']:,}",
        f"{row['times_smaller']:.1f}",
        f"1/{row['times_fewer']:.2f}",
        row["folder"],
    ]


def _lost(row: Mapping[str, Any]) -> str:
    return f"{row['lost']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"


def table(content: Mapping[str, Any]) -> list[list[str]]:
    """Returns the rows of the table: the dense network, and the points on the front, the cheapest first."""
    rows = {row["name"]: row for row in content["rows"]}
    names = [DENSE, *(name for name in content["front"] if name != DENSE)]
    return [cells(rows[name], content["chosen"]) for name in names]


def narrow(cells: Sequence[str]) -> list[str]:
    """Returns the cells of the columns for the terminal."""
    return [cells[i] for i in NARROW]


def others(content: Mapping[str, Any]) -> list[list[str]]:
    """Returns the rows of the candidates that are not on the front."""
    return [cells(row) for row in content["rows"] if not row["on_front"] and row["name"] != DENSE]


def sentences(content: Mapping[str, Any]) -> list[str]:
    """Returns the result in words, one sentence a line."""
    rows = {row["name"]: row for row in content["rows"]}
    words, whole, lose = WORDS[content["measure"]], rows[DENSE]["held_out"], content["lose"]
    little = [name for name, row in rows.items() if order.loses_little(row["held_out"], whole, lose)]
    lines = []
    if best := rows.get(content["chosen"]):
        lines.append(
            f"{best['name']}: {best[words.key]:.1f} {words.times}, {_lost(best)} points of test accuracy lost; chosen "
            f"on held-out images as {words.most} that loses at most {lose:g}"
        )
    elif little == [DENSE]:
        lines.append(f"no candidate that was tried loses at most {lose:g} points on the held-out images")
    else:
        lines.append(f"no candidate that loses at most {lose:g} points on the held-out images {words.more} than dense")
    if content["left"]:
        lines.append(f"not tried within the budget: {len(content['left'])} candidates; the same command goes on")
    return lines


def page(content: Mapping[str, Any]) -> str:
    """Returns the results as a page in Markdown."""
    blocks = [
        f"# Frontier of {content['model']} on {content['data']}",
        f"    {content['command']}",
        "\n".join(f"- {line}" for line in sentences(content)),
        f"`dense` is the run after {content['steps']:,} more steps. Each candidate took as many from the run's "
        f"weights, and those from scratch {content['before']:,} in addition. They were chosen on held-out training "
        f"images. Test accuracy is on {content['test_images']:,} test images, with 95% intervals of paired "
        "differences (Agresti and Min 2005). Times are medians for one image, of programs that took turns; `faster`, "
        "`smaller` and `mult-adds` are relative to `dense`, with 4 bytes per number. Formats: "
        f"{', '.join(content['formats'])}. Commit {content['commit']}, {content['device']}, {content['cores']} cores, "
        f"seed {content['seed']}.",
        markdown_table(COLUMNS, table(content)),
        f"![Accuracy by {content['measure']}](frontier.png)",
    ]
    if rest := others(content):
        blocks += ["## Not on the front", markdown_table(COLUMNS, rest)]
    if content["refused"]:
        blocks += ["## Refused", "\n".join(f"- {name}: {reason}" for name, reason in content["refused"].items())]
    if content["left"]:
        blocks += ["## Not tried", "\n".join(f"- {name}" for name in content["left"])]
    return "\n\n".join(blocks) + "\n"


def write(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes frontier.json, .md, .csv and .png."""
    write_json(folder / "frontier.json", content)
    write_atomically(folder / "frontier.md", page(content))
    names = list(dict.fromkeys(name for row in content["rows"] for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(content["rows"])
    write_atomically(folder / "frontier.csv", text.getvalue())
    draw(folder / "frontier.png", content)


def draw(path: Path, content: Mapping[str, Any]) -> None:
    """Draws held-out accuracy against the measure: every point, the front, and what may be lost."""
    from matplotlib.ticker import FuncFormatter

    from models.analysis import drawing
    from models.analysis.axes import is_wide, logarithmic, percent_limits, plain
    from models.analysis.palette import BLUE, GRAY, RED

    key = "milliseconds" if content["measure"] == "time" else str(content["measure"])
    rows: Sequence[Mapping[str, Any]] = content["rows"]
    dense, on = rows[0], [row for name in content["front"] for row in rows if row["name"] == name]
    with drawing.figure(path, (7.5, 4.6)) as figure:
        axes = figure.subplots()
        limit = f"{content['lose']:g} points below the dense network"
        axes.axhline(100 * dense["held_out"] - content["lose"], color=GRAY, linestyle=":", linewidth=1, label=limit)
        axes.plot([row[key] for row in rows], [100 * row["held_out"] for row in rows], "o", color=GRAY, label="tried")
        axes.plot([row[key] for row in on], [100 * row["held_out"] for row in on], "o-", color=BLUE, label="front")
        for row in (row for row in on if row["name"] == content["chosen"]):
            place, label = (row[key], 100 * row["held_out"]), f"{WORDS[content['measure']].most} within the limit"
            axes.plot(*place, "o", color=BLUE, markersize=12, fillstyle="none", label=label)
        axes.plot(dense[key], 100 * dense["held_out"], "s", color=RED, label="dense, trained as long")
        for number, row in enumerate(row for row in on if row["name"] != DENSE):
            place, below = (row[key], 100 * row["held_out"]), -9 if number % 2 else -16  # neighbors at two heights
            axes.annotate(row["name"], place, (4, below), textcoords="offset points", fontsize=7)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
        if is_wide([row[key] for row in rows]):
            logarithmic(axes, "x")
        axes.set_ylim(percent_limits([100 * row["held_out"] for row in rows]))
        axes.set(xlabel=MEASURES[content["measure"]], ylabel="accuracy on held-out images (%)")
        axes.legend()
