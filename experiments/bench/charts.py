"""Charts of the benchmark: ours beside the fastest peer, and lines over the values of a sweep."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from models.analysis import drawing
from models.analysis.axes import plain
from models.analysis.palette import BLACK, BLUE, GRAY, LIGHT_BLUE

Rows = Sequence[Mapping[str, Any]]
SWEPT = {"batch": "images per step", "resolution": "height and width, pixels", "devices": "devices"}
CALLS = {"step": ("training step", BLUE), "forward": ("forward pass", LIGHT_BLUE)}  # label and color of a call's bars
FAMILIES = {  # beginning of a network's name: the same as papers write it
    "vgg": "VGG-",
    "resnet": "ResNet-",
    "resnext": "ResNeXt-",
    "densenet": "DenseNet-",
    "mobilenet_": "MobileNet ",
    "efficientnet_lite": "EfficientNet-Lite",
    "convnext_": "ConvNeXt ",
    "swin_": "Swin ",
    "vit_": "ViT ",
    "alexnet": "AlexNet",
    "lenet": "LeNet",
}
TICKS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20, 50)
FINE = (0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.5, 1.7, 2, 2.5, 3)  # of ratios that are close to each other
FASTEST = "ratio of the fastest repeats"
BAR = 0.31  # inches per bar


def charts(folder: Path, rows: Rows, device: str) -> list[str]:
    """Draws bench.png, ours against the peer's best, and one chart per sweep; returns the names of the drawn files."""
    names = []
    if labeled(rows):
        with drawing.figure(folder / "bench.png", (8.5, 1.4 + BAR * sum(map(len, labeled(rows).values())))) as figure:
            ratios(figure, rows, device)
        names.append("bench.png")
    for case in dict.fromkeys(row["case"] for row in rows if "sweep" in row and "ms" in row):
        swept = [row for row in rows if row["case"] == case and "ms" in row]
        name = f"{swept[0]['subject'].replace('/', '-')}.png"
        panels = panels_of(swept)
        with drawing.figure(folder / name, (4.4 * len(panels), 3.8)) as figure:
            lines(figure, swept, panels, device)
        names.append(name)
    return names


def words(case: str) -> str:
    """Returns the name of a case as people read it, "ResNet-50, 224 px, batch 16" for "resnet50, 224x224, batch 16"."""
    network, *rest = case.split(", ")
    for start, family in FAMILIES.items():
        if re.match(rf"{start}\d|{start}$|{start}(?<=_)", network):
            network = family + network.removeprefix(start).replace("patch", "patch ").replace("_", " ")
            break
    return ", ".join([network, *(re.sub(r"^(\d+)x\1$", r"\1 px", part) for part in rest if part != "float32")])


def labeled(rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    """Returns the rows that have a peer, by their label: one for each case, with its training step and forward pass.

    Cases of one network are next to each other.
    """
    compared = [row for row in rows if "times_best" in row and "sweep" not in row and row["subject"] != "matmul"]
    networks = list(dict.fromkeys(row["case"].split(",")[0] for row in compared))
    bars: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(compared, key=lambda row: networks.index(row["case"].split(",")[0])):
        variant = ", ".join([*[row["what"]] * (row["what"] not in (*CALLS, "start", "pass")), row["who"]])
        variant = variant.removesuffix("ours").removeprefix("ours").strip(", ").replace("ours, ", "")
        label = f"{words(row['case'])}{': ' * bool(variant)}{variant}"
        bars.setdefault(textwrap.fill(label, 42), []).append(row)
    return bars


def fastest(rows: Rows, row: Mapping[str, Any]) -> float | None:
    """Returns the ratio of the fastest repeats, of the best peer and of a row; None if they are unknown."""
    same = [one for one in rows if (one["case"], one["what"], one.get("side")) == (row["case"], row["what"], "peer")]
    best = min((one for one in same if one.get("ms")), key=lambda one: one["ms"], default={})
    return best["min_ms"] / row["min_ms"] if best.get("min_ms") and row.get("min_ms") else None


def peer_of(rows: Rows, compared: Rows) -> str:
    """Returns the name of the other side: PyTorch, unless a case has another peer, too."""
    cases = {row["case"] for row in compared}
    peers = {row["who"].lower() for row in rows if row["case"] in cases and row.get("side") == "peer"}
    return "PyTorch's best" if all("torch" in peer for peer in peers) else "the fastest peer"


def ratios(figure: Figure, rows: Rows, device: str) -> None:
    """Draws bars from 1, equal speed, to how many times as fast as the peer's best each call is."""
    axes, bars, place, ticks, values = figure.subplots(), labeled(rows), 0.0, [], [1.0]
    for label, group in bars.items():
        places = [place + i for i in range(len(group))]
        for row, at in zip(group, places, strict=True):
            values += _bar(axes, row, at, fastest(rows, row))
        ticks.append((sum(places) / len(places), label))
        place = places[-1] + 1.5
    axes.set_yticks([at for at, _ in ticks], [label for _, label in ticks])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(place - 0.75, -0.75)
    axes.set_xscale("log")
    low, high = min(values), max(values)
    margin = 1.1 * (high / low) ** 0.1  # for the numbers
    axes.set_xlim(low / margin, high * margin)
    shown = [tick for tick in (FINE if high < 3 * low else TICKS) if low / margin <= tick <= high * margin]
    axes.set_xticks(shown, [plain(tick) for tick in shown])
    axes.set_xticks([], minor=True)
    axes.axvline(1.0, color=BLACK, linewidth=1)
    peer = peer_of(rows, [row for group in bars.values() for row in group])
    axes.set_xlabel(f"times as fast as {peer}, logarithmic")
    style = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "fontsize": 8}
    axes.annotate(peer, (1, 1), (3, 2), **style)
    axes.grid(axis="x")
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    names = [name for name in (*(label for label, _ in CALLS.values()), FASTEST) if name in handles]
    figure.legend([handles[name] for name in names], names, loc="outside lower center", ncols=3)
    figure.suptitle(f"Speed beside PyTorch on {device}")


def _bar(axes: Axes, row: Mapping[str, Any], place: float, extreme: float | None) -> list[float]:
    """Draws the bar of a row with its number, and a line to the ratio of the fastest repeats; returns both ratios."""
    value = row["times_best"]
    label, color = CALLS.get(row["what"], (None, GRAY))
    axes.barh(place, value - 1, 0.85, left=1, color=color, label=label)
    ends = [value] if extreme is None else [value, extreme]
    if extreme is not None:
        axes.plot([value, extreme], [place, place], color=BLACK, linewidth=1)
        axes.plot([extreme], [place], "|", color=BLACK, markersize=7, label=FASTEST)
    outer = max(ends) if value >= 1 else min(ends)
    axes.annotate(
        f"{value:.2f}",
        (max(outer, 1) if value >= 1 else min(outer, 1), place),
        (4 if value >= 1 else -4, 0),
        textcoords="offset points",
        ha="left" if value >= 1 else "right",
        va="center",
        fontsize=8,
    )
    return ends


def panels_of(rows: Rows) -> dict[str, str]:
    """Returns {key of a row: label} of a sweep's panels; the accelerator's peak memory is among them if known."""
    panels = {"images_per_second": "images/s", "ms": "ms per call"}
    if any("device_peak_mib" in row for row in rows):
        panels["device_peak_mib"] = "peak memory of the device, MiB"
    return panels


def lines(figure: Figure, rows: Rows, panels: Mapping[str, str], device: str) -> None:
    """Draws the panels of `panels_of` over the values of a sweep."""
    drawn = figure.subplots(1, len(panels))
    for axes, (key, unit) in zip(drawn, panels.items(), strict=True):
        for what, who in dict.fromkeys((row["what"], row["who"]) for row in rows):
            points = [
                (row["value"], row[key]) for row in rows if (row["what"], row["who"]) == (what, who) and key in row
            ]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    marker="o",
                    label=f"{who}, {CALLS.get(what, (what,))[0]}",
                    linestyle="-" if what == "step" else "--",
                )
        values = sorted({row["value"] for row in rows})
        axes.set_xscale("log", base=2)
        axes.set_xticks(values, [str(value) for value in values])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(EngFormatter())
        axes.set_xlabel(SWEPT[rows[0]["sweep"]])
        axes.set_ylabel(unit)
        axes.grid()
    handles, labels = drawn[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    figure.suptitle(f"{words(rows[0]['case'])}, on {device}")
