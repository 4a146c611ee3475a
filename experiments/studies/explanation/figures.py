"""Pictures of the study of explanations."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from experiments.explain import overlays
from experiments.studies.explanation.results import MAPS, NAMES, PIXELS, methods_of
from experiments.studies.measures import from_png
from experiments.study import Outcomes, mean, spread
from experiments.study.figures import band, errorbars, finish, fixed_ticks, legend_below, panels_by
from models.analysis.palette import BLACK, BLUE, BROWN, CYAN, GRAY, GREEN, PINK, PURPLE, RED, YELLOW

NETWORKS = {"ResNet": (BLUE, "o"), "VGG": (RED, "s"), "ViT": (YELLOW, "^")}  # network -> (color, marker)
STYLES = {  # method -> style of its line: maps are solid, gradients dashed, references dotted
    **{name: {"color": color} for name, color in zip(MAPS, (BLUE, RED, GREEN, YELLOW), strict=True)},
    **{
        name: {"color": color, "linestyle": "--"}
        for name, color in zip(PIXELS, (PURPLE, CYAN, BROWN, PINK, BLUE, RED), strict=True)
    },
    "occlusion": {"color": BLACK, "linestyle": ":"},
    "random": {"color": GRAY, "linestyle": ":"},
}


def draw_gallery(outcomes: Outcomes, figure: Any) -> None:
    """Draws the gallery: three rows per network, one column per method."""
    explained = outcomes.where(seed=outcomes.distinct("seed")[0]).having("gallery")
    if not explained:
        return
    columns = [name for name in NAMES if any(name in row["panels"] for o in explained for row in o.measured["gallery"])]
    rows = []
    for outcome in explained:
        for row in outcome.measured["gallery"]:
            panels = [_panel(name, row["panels"].get(name)) for name in columns]
            image = from_png(row["image"])
            image = image[..., None] if image.ndim == 2 else image
            rows.append(
                overlays.Row(image, f"{outcome.labels['network']}: {row['class']}", row["says"], panels, row["boxes"])
            )
    overlays.draw_rows(figure, [NAMES[name].replace(" ", "\n") for name in columns], rows)


def _panel(name: str, picture: str | None) -> overlays.Panel | None:
    from models.explain import catalogue  # imports JAX

    if picture is None:
        return None
    values, silent = from_png(picture) / 255, " "  # the caption says what the colors mean; columns are narrow here
    if name in catalogue.SIGNED:  # gray is 0
        values = values if values.ndim == 3 else values[..., None]
        return overlays.Panel(values - 0.5, signed=True, means=silent)
    return overlays.Panel(values, over=name in catalogue.MAPS, means=silent)


def draw_localization(outcomes: Outcomes, figure: Any) -> None:
    """Draws how often methods point at the object, with one object and with two."""
    networks, panels = outcomes.distinct("network"), figure.subplots(1, 2, sharey=True)
    names = [name for name in methods_of(outcomes, "localization") if name != "middle"]
    for axes, title, measure, path in (
        (panels[0], "one object", "localization", ("pointing",)),
        (panels[1], "two objects: the requested one", "two_objects", ()),
    ):
        middle = outcomes.where(network=networks[0]).measured(measure, "middle")
        axes.axvline(100 * mean(middle), color=GRAY, linestyle=":", label=NAMES["middle"])
        for i, network in enumerate(networks):
            color, marker = NETWORKS.get(network, (GRAY, "D"))
            runs = [outcomes.where(network=network).measured(measure, name, *path) for name in names]
            places = [n + 0.24 * (i - (len(networks) - 1) / 2) for n in range(len(names))]
            style = {"color": color, "marker": marker, "linestyle": "", "label": network}
            errorbars(axes, places, runs, sideways=True, **style)
        finish(axes, title=title, xlabel="maximum is on the object (%)", xlim=(-3, 103))
    fixed_ticks(panels[0].yaxis, range(len(names)), [NAMES[name] for name in names])
    panels[0].set_ylim(max(len(names), 1) - 0.5, -0.5)
    legend_below(figure, panels[0])


def _draw_methods(axes: Axes, measured: Sequence[Any], curve: Callable[[Any], Sequence[float]], percent: bool) -> None:
    """Draws one curve per method with its spread over seeds, in percent of both axes or over 0, 1, 2."""
    for name, style in STYLES.items():
        if runs := [curve(one[name]) for one in measured if name in one]:
            last = len(runs[0]) - 1
            x = [100 * i / last if percent else i for i in range(last + 1)]
            band(axes, x, runs, 100 if percent else 1, label=NAMES[name], **style)


def draw_curves(outcomes: Outcomes, figure: Any) -> None:
    """Draws one row for deletion and one for insertion, with one column per network."""
    networks = outcomes.distinct("network")
    grid = figure.subplots(2, len(networks), sharex=True, sharey=True, squeeze=False)
    for line, kind in zip(grid, ("deletion", "insertion"), strict=True):
        for axes, network in zip(line, networks, strict=True):
            measured = outcomes.where(network=network).results("faithfulness")
            _draw_methods(axes, measured, lambda one, kind=kind: one[f"{kind}_curve"], percent=True)
            finish(axes, title=f"{network}, {kind}", ylim=(-3, 103))
        line[0].set_ylabel("probability of the class (%)")
    for axes in grid[-1]:
        axes.set_xlabel("pixels changed (%)")
    legend_below(figure, *grid.flat, ncols=6)


def draw_sanity(outcomes: Outcomes, figure: Any) -> None:
    """Draws one panel per network: rank correlation against the number of reinitialized layers."""
    networks = outcomes.distinct("network")
    panels = panels_by(figure, len(networks), sharey=True)
    for axes, network in zip(panels, networks, strict=True):
        measured = outcomes.where(network=network).results("sanity")
        _draw_methods(axes, measured, lambda one: [1.0, *one], percent=False)
        finish(axes, title=network, xlabel="reinitialized layers,\nfrom the logits down")
    panels[0].set_ylabel("rank correlation\nwith the trained network's map")
    legend_below(figure, *panels, ncols=5)


def draw_effective(outcomes: Outcomes, figure: Any) -> None:
    """Draws effective receptive fields before and after training, one column per network."""
    measured = outcomes.where(seed=outcomes.distinct("seed")[0]).having("effective")
    if not measured:
        return
    grid, image_artist = figure.subplots(2, len(measured), squeeze=False), None
    for line, when in zip(grid, ("before", "after"), strict=True):
        for axes, outcome in zip(line, measured, strict=True):
            field, network = outcome.measured["effective"], outcome.labels["network"]
            heat = from_png(field[when]["map"]) / 2.55
            image_artist = axes.imshow(heat, cmap="gray", vmin=0, vmax=100, interpolation="nearest")
            if field["box"]:  # within the canvas
                overlays.draw_box(axes, np.clip(field["box"], 0, [*heat.shape, *heat.shape]))
            sizes = spread(outcomes.where(network=network).measured("effective", when, "size"), percent=False)
            size = "the whole image" if field["theoretical"] is None else f"{field['theoretical'][0]} pixels"
            axes.set_title(
                f"{network}, {field['endpoint']}, {when} training\neffective {sizes} pixels,\ntheoretical {size}"
            )
            axes.set(xticks=[], yticks=[])
    figure.colorbar(image_artist, ax=grid, shrink=0.6, label="|gradient| of the unit (% of the largest)")
