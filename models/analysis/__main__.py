"""Prints the cost of a network per layer: parameters, mult-adds, activation memory, receptive fields (cost.py).

python -m models.analysis resnet50 --resolution=224 --set norm=group --csv=cost.csv --chart=cost.png
"""

import sys
from collections.abc import Sequence

from absl import flags

import models
from models import command
from models.analysis.cost import analyze
from models.errors import UserError


def _define(options: flags.FlagValues) -> None:
    flags.DEFINE_integer(
        "resolution",
        None,
        "height and width of the images; default: the size that the network is designed for",
        lower_bound=1,
        flag_values=options,
    )
    flags.DEFINE_integer("channels", 3, "channels of the images", lower_bound=1, flag_values=options)
    command.define_path("csv", None, "file to write the layers to", flag_values=options)
    command.define_path("chart", None, "picture to write (.png, .svg, .pdf): where the cost is", flag_values=options)
    command.define_set(options)


def _act(options: flags.FlagValues, names: list[str]) -> None:
    if len(names) != 1:
        raise UserError(f"expected one model, not {len(names)}: python -m models.analysis NAME")
    fields = command.fields(options) | ({"image_size": options.resolution} if options.resolution else {})
    model = models.create(names[0], **fields)
    is_of_images = "image_size" in models.fields(names[0])
    cost = analyze(model, model.example(channels=options.channels) if is_of_images else model.example())
    if options.csv:
        cost.write_csv(options.csv)
    if options.chart:
        from models.analysis import chart

        chart.draw(cost, options.chart, names[0])
    command.console(width=None if sys.stdout.isatty() else 160).print(cost.table())


def main(argv: Sequence[str]) -> int:
    """Runs the command line and returns the exit code: 0 for success, 2 for a user's mistake."""
    return command.run_argv(argv, __doc__ or "", _define, _act)


if __name__ == "__main__":
    command.exit_with(lambda: main(sys.argv))
