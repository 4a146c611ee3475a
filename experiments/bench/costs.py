"""Accuracy against cost: published ImageNet top-1 beside the counted costs of our networks. See --help."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from models import command
from models.analysis.palette import BLACK, BLUE, BROWN, CYAN, GREEN, PINK, PURPLE, RED, YELLOW
from models.analysis.tables import markdown_table
from models.errors import UserError
from train import cli

USAGE = """Writes costs.md, costs.json and pictures: accuracy against mult-adds, parameters and activation memory;
savings by early downsampling; the textbook's formulas beside the counts.

    python -m experiments.bench.costs --out=experiments/results/costs

Costs are counted in the traced programs. This needs no weights and no images, and takes about two minutes.
"""

SIZE = 224
TORCHVISION = "torchvision 0.28, IMAGENET1K_V1"
HOWARD_4, HOWARD_6 = "Howard 2017, table 4", "Howard 2017, table 6"


class Published(NamedTuple):
    """Top-1 accuracy in percent on ImageNet's validation images, one crop of 224 x 224.

    `modern` marks recipes with strong augmentation and regularization: those of DeiT and Swin, and torchvision's "new"
    one, according to the descriptions of the weights. The others are "simple" or older. Compare accuracies within each
    kind only.
    """

    family: str
    label: str
    top1: float
    source: str = TORCHVISION
    modern: bool = False


PUBLISHED = {
    "alexnet": Published("AlexNet", "", 56.522),
    "vgg11": Published("VGG", "11", 69.020),
    "vgg13": Published("VGG", "13", 69.928),
    "vgg16": Published("VGG", "16", 71.592),
    "vgg19": Published("VGG", "19", 72.376),
    "vgg11_bn": Published("VGG", "11 bn", 70.370),
    "vgg13_bn": Published("VGG", "13 bn", 71.586),
    "vgg16_bn": Published("VGG", "16 bn", 73.360),
    "vgg19_bn": Published("VGG", "19 bn", 74.218),
    "resnet18": Published("ResNet", "18", 69.758),
    "resnet34": Published("ResNet", "34", 73.314),
    "resnet50": Published("ResNet", "50", 76.130),
    "resnet101": Published("ResNet", "101", 77.374),
    "resnet152": Published("ResNet", "152", 78.312),
    "wide_resnet50_2": Published("ResNet", "wide 50", 78.468),
    "wide_resnet101_2": Published("ResNet", "wide 101", 78.848),
    "resnext50_32x4d": Published("ResNeXt", "50 32x4d", 77.618),
    "resnext101_32x8d": Published("ResNeXt", "101 32x8d", 79.312),
    "resnext101_64x4d": Published("ResNeXt", "101 64x4d", 83.246, modern=True),
    "densenet121": Published("DenseNet", "121", 74.434),
    "densenet169": Published("DenseNet", "169", 75.600),
    "densenet201": Published("DenseNet", "201", 76.896),
    "densenet161": Published("DenseNet", "161", 77.138),
    "mobilenet_v1_025": Published("MobileNet", "v1 0.25", 50.6, HOWARD_6),
    "mobilenet_v1_050": Published("MobileNet", "v1 0.5", 63.7, HOWARD_6),
    "mobilenet_v1_075": Published("MobileNet", "v1 0.75", 68.4, HOWARD_6),
    "mobilenet_v1": Published("MobileNet", "v1", 70.6, HOWARD_4),
    "mobilenet_v1_conv": Published("MobileNet", "v1, full convolutions", 71.7, HOWARD_4),
    "mobilenet_v2": Published("MobileNet", "v2", 71.878),
    "vit_base_patch32": Published("ViT", "B/32", 75.912, modern=True),
    "vit_base_patch16": Published("ViT", "B/16", 81.072, modern=True),
    "vit_large_patch32": Published("ViT", "L/32", 76.972, modern=True),
    "vit_large_patch16": Published("ViT", "L/16", 79.662, modern=True),
    "swin_t": Published("Swin", "T", 81.474, modern=True),
    "swin_s": Published("Swin", "S", 83.196, modern=True),
    "swin_b": Published("Swin", "B", 83.582, modern=True),
    "convnext_tiny": Published("ConvNeXt", "T", 82.520, modern=True),
    "convnext_small": Published("ConvNeXt", "S", 83.616, modern=True),
    "convnext_base": Published("ConvNeXt", "B", 84.062, modern=True),
    "convnext_large": Published("ConvNeXt", "L", 84.414, modern=True),
}
COLORS = {
    "AlexNet": BLACK,
    "VGG": RED,
    "ResNet": BLUE,
    "ResNeXt": PURPLE,
    "DenseNet": GREEN,
    "MobileNet": YELLOW,
    "ViT": BROWN,
    "Swin": PINK,
    "ConvNeXt": CYAN,
}
SHORT = ("ViT", "Swin", "ConvNeXt")  # families whose labels are a letter, so that their name stands before it
COSTS = {  # field of cost.Layer and cost.Complexity: (title, unit)
    "mult_adds": ("mult-adds", ""),
    "params": ("parameters", ""),
    "output_bytes": ("memory of layers' outputs", "B"),
    "kept_bytes": ("activation memory kept for backward", "B"),
}
# Networks that show what early downsampling saves: two to draw, and ResNet-50 without the two halvings of its stem
EARLY = {
    "VGG-16": ("vgg16", {}),
    "ResNet-50": ("resnet50", {}),
    "VGG-19 with batch norm": ("vgg19_bn", {}),
    "ResNet-34": ("resnet34", {}),
    "ResNet-50, stem without stride": ("resnet50", {"stem": "cifar"}),
}


def count(name: str, fields: Mapping[str, Any] | None = None) -> Any:
    """Returns the costs of a network for one image of SIZE x SIZE."""
    import models
    from models.analysis.cost import analyze

    model = models.create(name, **(fields or {}))
    return analyze(model, model.example(size=SIZE))


def by_resolution(cost: Any, field: str) -> dict[int, int]:
    """Returns {output height: sum of the layers' `field`}; vectors have height 1, the network itself its image's."""
    sums: dict[int, int] = dict.fromkeys((SIZE, SIZE // 2, SIZE // 4, SIZE // 8, SIZE // 16, SIZE // 32, 1), 0)
    for layer in cost.layers:
        height = layer.output_shape[1] if len(layer.output_shape) == 4 else 1
        height = cost.input_shape[1] if layer.path == "" else height
        sums[height] = sums.get(height, 0) + getattr(layer, field)
    return sums


def draw_tradeoff(costs: Mapping[str, Any], field: str, path: Path) -> None:
    """Draws the published top-1 of every network against one of its costs, on a logarithmic axis."""
    from matplotlib.ticker import EngFormatter

    from experiments.bench.labels import label
    from models.analysis import drawing
    from train.plots.figures import tidy

    title, unit = COSTS[field]
    with drawing.figure(path, (8.5, 5.6)) as figure:
        axes = figure.subplots()
        points = []
        for name, entry in PUBLISHED.items():
            x, y, color = getattr(costs[name], field), entry.top1, COLORS[entry.family]
            axes.plot(x, y, "o", color=color, markersize=5, markerfacecolor="white" if entry.modern else color)
            text = f"{entry.family} {entry.label}" if entry.family in SHORT else entry.label
            points.append((x, y, text, color))
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter(unit))
        axes.set(
            xlabel=title if field == "params" else f"{title}, one image of {SIZE} x {SIZE}",
            ylabel="published top-1 accuracy (%)",
        )
        axes.margins(x=0.08)
        tidy(axes)
        handles = [axes.plot([], [], "o", color=color, label=family)[0] for family, color in COLORS.items()]
        handles += axes.plot([], [], "o", color=BLACK, markerfacecolor="white", label="modern recipe")
        figure.legend(handles=handles, loc="outside lower center", ncols=5)
        label(axes, points, size=7.5)


def _percent(share: float) -> str:
    """Returns the label of a bar; "" where it is too small to be seen."""
    return f"{share:.0%}" if share >= 0.005 else ""


def draw_early(costs: Mapping[str, Any], path: Path) -> None:
    """Draws costs by the resolution at which they arise, VGG-16 and ResNet-50 side by side."""
    from matplotlib.ticker import EngFormatter

    from models.analysis import drawing
    from models.analysis.cost import short

    shown = list(EARLY)[:2]
    with drawing.figure(path, (9.5, 6.2)) as figure:
        for axes, (field, (title, unit)) in zip(figure.subplots(2, 2).flat, COSTS.items(), strict=True):
            both = [by_resolution(costs[name], field) for name in shown]
            for i, (name, sums, color) in enumerate(zip(shown, both, (COLORS["VGG"], COLORS["ResNet"]), strict=True)):
                bars = axes.bar(
                    [x + 0.4 * i - 0.2 for x in range(len(sums))],
                    sums.values(),
                    0.38,
                    color=color,
                    label=f"{name}: {short(sum(sums.values()))}{unit}",
                )
                axes.bar_label(
                    bars, [_percent(value / sum(sums.values())) for value in sums.values()], fontsize=7.5, padding=1
                )
            axes.set_xticks(range(len(both[0])), ["vector" if height == 1 else f"{height}²" for height in both[0]])
            axes.yaxis.set_major_formatter(EngFormatter(unit))
            axes.set_title(title)
            axes.margins(y=0.12)
            axes.legend()
        figure.supxlabel("resolution of the layer's output")


def markdown(costs: Mapping[str, Any], early: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    """Returns the page as Markdown."""
    from models.analysis import textbook
    from models.analysis.cost import short

    def cells(cost):
        return [
            f"{cost.params:,}",
            *(short(getattr(cost, field)) + unit for field, (_, unit) in COSTS.items() if field != "params"),
        ]

    columns = ["parameters", "mult-adds", "outputs", "kept for backward"]
    networks = [
        [name, entry.top1, *cells(costs[name]), entry.source, "modern" if entry.modern else ""]
        for name, entry in PUBLISHED.items()
    ]
    shares = {
        name: [
            f"{sum(v for height, v in sums.items() if height >= SIZE // 2) / sum(sums.values()):.0%}"
            for field in ("kept_bytes", "mult_adds")
            if (sums := by_resolution(cost, field))
        ]
        for name, cost in early.items()
    }
    (vgg_kept, vgg_work), (resnet_kept, resnet_work) = shares["VGG-16"], shares["ResNet-50"]
    downsampling = [[name, *cells(cost), *shares[name]] for name, cost in early.items()]
    resnet, late = early["ResNet-50"], early["ResNet-50, stem without stride"]
    work, memory = late.mult_adds / resnet.mult_adds, late.kept_bytes / resnet.kept_bytes
    pictures = "\n\n".join(
        f"![top-1 against {COSTS[field][0]}](tradeoff_{field}.png)" for field in ("mult_adds", "params", "kept_bytes")
    )
    columns_early = ["network", *columns, f"kept at {SIZE // 2}² and up", f"mult-adds at {SIZE // 2}² and up"]
    return f"""# What accuracy costs

{environment["device"]}, {environment["commit"]}. Written by `python -m experiments.bench.costs`.

Costs are counted in the traced programs of our networks, for one image of {SIZE} x {SIZE} in float32. A multiply-add
counts as 1; "outputs" are those of the layers in the forward pass; "kept for backward" is what training keeps of them
and of what is between them. Accuracies are not ours but published, by the sources named, of one crop. Modern
recipes have strong augmentation and regularization (DeiT's, Swin's, torchvision's "new" one, by the descriptions of the
weights); compare these among themselves, and the others among themselves.

{pictures}

{markdown_table(["network", "top-1 %", *columns, "source", "recipe"], networks)}

## Early downsampling

![costs by resolution](early.png)

Feature maps at high resolution take the memory. VGG-16 computes at full resolution: {vgg_kept} of what it keeps for the
gradient, and {vgg_work} of its mult-adds, are of maps of {SIZE // 2} x {SIZE // 2} and larger. ResNet-50 divides the
resolution by 4 before its first block, which leaves {resnet_kept} and {resnet_work} there. Without the two halvings of
its stem it would need {work:.1f} times the mult-adds and {memory:.1f} times the memory. At about equal depth, both with
batch norm, the ResNet keeps less: VGG-19 and ResNet-34.

{markdown_table(columns_early, downsampling)}

## Formulas and counts

Of the convolutions of a block on h x w maps: kernel size k, c channels, d of them inside a bottleneck, g groups.

{markdown_table(textbook.HEADS, textbook.rows())}
"""


def write(out: Path) -> None:
    """Counts, draws, and writes the page into an existing folder."""
    import jax

    from train.recording import summary
    from train.storage.files import write_atomically, write_json

    costs = {name: count(name) for name in PUBLISHED}
    early = {name: count(*arguments) for name, arguments in EARLY.items()}
    for field in ("mult_adds", "params", "kept_bytes"):
        draw_tradeoff(costs, field, out / f"tradeoff_{field}.png")
    draw_early(early, out / "early.png")
    environment = summary.environment(jax.devices())
    write_json(
        out / "costs.json",
        {
            "networks": {
                name: {**entry._asdict(), **{field: getattr(costs[name], field) for field in COSTS}}
                for name, entry in PUBLISHED.items()
            },
            "early": {name: {field: by_resolution(cost, field) for field in COSTS} for name, cost in early.items()},
            "image_size": SIZE,
            **environment,
        },
    )
    write_atomically(out / "costs.md", markdown(costs, early, environment))


def main() -> None:
    """Writes the page into the folder of --out."""
    if not OUT.value:
        raise UserError("--out is missing")
    out, console = Path(OUT.value), command.console()
    out.mkdir(parents=True, exist_ok=True)
    with console.status("counting"):
        write(out)
    console.print(f"written to {out}")


if __name__ == "__main__":  # only here: absl has one table of flags for the process, and tests import this module
    command.define_figures()
    OUT = command.define_path("out", None, "Folder to write to.")
    cli.run(main, USAGE)
