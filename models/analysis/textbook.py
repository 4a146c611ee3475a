"""Textbook formulas for the costs of convolutional blocks, compared with the counts in networks.

  python -m models.analysis.textbook

On maps of h x w, k is the kernel size, c the input and output channels, d the channels inside a bottleneck, and g the
groups. The convolutions keep the resolution and have no bias. Therefore mult-adds are h w times the parameters, and
outputs are h w times the output channels of all convolutions.
"""

import functools
import sys
from collections.abc import Sequence
from typing import NamedTuple

from absl import flags

import models
from models import command
from models.analysis.cost import Complexity, analyze
from models.analysis.tables import terminal_table
from models.errors import UserError


def plain(k: int, c: int) -> int:
    """Returns the parameters of a k x k convolution: each of c outputs sees k x k positions of c channels."""
    return k**2 * c**2


def bottleneck(c: int, d: int) -> int:
    """Returns the parameters of a bottleneck: 1x1 to d channels, 3x3, and 1x1 back to c."""
    return c * d + 9 * d**2 + d * c


def separable(k: int, c: int) -> int:
    """Returns the parameters of a depthwise k x k convolution and a 1x1 convolution."""
    return k**2 * c + c**2


def grouped(k: int, c: int, g: int) -> int:
    """Returns the parameters of a k x k convolution with g groups, each from c / g to c / g channels."""
    return k**2 * c**2 // g


class Cost(NamedTuple):
    """Cost of the convolutions of a block; outputs are numbers of values."""

    params: int
    mult_adds: int
    outputs: int


class Block(NamedTuple):
    """A block of a network, with formulas for its cost.

    Attributes:
      kind: Kind of block.
      network: Name of a network, at 224 x 224.
      path: Path of the block in the network.
      sizes: Sizes of the map and the block, as text.
      params: Formula for the parameters, as text; mult-adds are h w params.
      channels: Formula for the output channels of all convolutions, as text; outputs are h w channels.
      expected: Cost by the formulas.
    """

    kind: str
    network: str
    path: str
    sizes: str
    params: str
    channels: str
    expected: Cost


def _block(kind, network, path, size, sizes, params, channels, n_params, n_channels):
    sizes = f"h = w = {size}, {', '.join(f'{name} = {value}' for name, value in sizes.items())}"
    expected = Cost(n_params, size**2 * n_params, size**2 * n_channels)
    return Block(kind, network, path, sizes, params, channels, expected)


BLOCKS = (
    _block(
        "plain convolution", "resnet18", "stage1/block1/conv1", 56, {"k": 3, "c": 64}, "k²c²", "c", plain(3, 64), 64
    ),
    _block(
        "bottleneck",
        "resnet50",
        "stage1/block1",
        56,
        {"c": 256, "d": 64},
        "cd + 9d² + dc",
        "2d + c",
        bottleneck(256, 64),
        2 * 64 + 256,
    ),
    _block(
        "depthwise separable",
        "mobilenet_v1",
        "stage4/block1",
        14,
        {"k": 3, "c": 512},
        "k²c + c²",
        "2c",
        separable(3, 512),
        2 * 512,
    ),
    _block(
        "grouped",
        "resnext50_32x4d",
        "stage1/block1/conv2",
        56,
        {"k": 3, "c": 128, "g": 32},
        "k²c²/g",
        "c",
        grouped(3, 128, 32),
        128,
    ),
)


@functools.cache
def _analyzed(network: str) -> Complexity:
    return analyze(models.create(network), (1, 224, 224, 3))


def counted(block: Block) -> Cost:
    """Returns the cost of the block's convolutions in the traced program of the network, whose outputs are float32."""
    convolutions = [
        layer
        for layer in _analyzed(block.network).layers
        if layer.type == "Conv" and f"{layer.path}/".startswith(f"{block.path}/")
    ]
    return Cost(
        sum(layer.params for layer in convolutions),
        sum(layer.mult_adds for layer in convolutions),
        sum(layer.output_bytes for layer in convolutions) // 4,
    )


HEADS = ("block", "sizes", "quantity", "formula", "value", "counted", "in")


def rows() -> list[tuple[str, ...]]:
    """Returns a row for each quantity of every block, with the columns HEADS."""
    return [
        (block.kind, block.sizes, quantity, formula, f"{value:,}", f"{count:,}", f"{block.network} {block.path}")
        for block in BLOCKS
        for quantity, formula, value, count in zip(
            ("parameters", "mult-adds", "outputs"),
            (block.params, f"hw({block.params})", f"hw({block.channels})"),
            block.expected,
            counted(block),
            strict=True,
        )
    ]


def _act(options: flags.FlagValues, arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"unexpected argument '{arguments[0]}'")
    table = terminal_table(HEADS, rows(), "Costs by formula and as counted", texts=len(HEADS))
    for row, cells in zip(table.rows, rows(), strict=True):
        row.end_section = cells[2] == "outputs"
    command.console(width=None if sys.stdout.isatty() else 160).print(table)


def main(argv: Sequence[str]) -> int:
    """Runs the command line and returns the exit code."""
    return command.run_argv(argv, __doc__ or "", lambda options: None, _act)


if __name__ == "__main__":
    command.exit_with(lambda: main(sys.argv))
