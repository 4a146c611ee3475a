"""The textbook's costs of convolutional blocks, beside what is counted in networks that have them.

  python -m models.analysis.textbook

On maps of h x w: k is the kernel size, c the channels in and out, d those inside a bottleneck, g the groups. The
convolutions keep the resolution and have no bias, so that mult-adds are h w times the parameters, and outputs h w times
the channels that each convolution makes.
"""

import functools
import sys
from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table

import models
from models import command
from models.analysis.cost import Complexity, analyze
from models.errors import UserError


def plain(k: int, c: int) -> int:
    """Parameters of a k x k convolution: each of c outputs sees k x k places of c channels."""
    return k**2 * c**2


def bottleneck(c: int, d: int) -> int:
    """Parameters of 1x1 to d channels, 3x3, and 1x1 back to c."""
    return c * d + 9 * d**2 + d * c


def separable(k: int, c: int) -> int:
    """Parameters of k x k on each channel by itself, then 1x1."""
    return k**2 * c + c**2


def grouped(k: int, c: int, g: int) -> int:
    """Parameters of a k x k convolution in g groups, each from c / g to c / g channels."""
    return k**2 * c**2 // g


class Cost(NamedTuple):
    """Of the convolutions of a block; outputs in values."""

    params: int
    mult_adds: int
    outputs: int


class Block(NamedTuple):
    """A block of a network: where it is, its formulas and what these give.

    Attributes:
      kind: what it is.
      network, path: a registered network at 224 x 224, and the place in it.
      sizes: of the map and of the block.
      params, channels: the formulas as text; mult-adds are h w params, outputs h w channels.
      expected: by the formulas.
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
    """What the traced program of the network has for the block's convolutions; outputs are float32 there."""
    found = [
        layer
        for layer in _analyzed(block.network).layers
        if layer.type == "Conv" and f"{layer.path}/".startswith(f"{block.path}/")
    ]
    return Cost(
        sum(layer.params for layer in found),
        sum(layer.mult_adds for layer in found),
        sum(layer.output_bytes for layer in found) // 4,
    )


HEADS = ("block", "sizes", "quantity", "formula", "value", "counted", "in")


def rows() -> list[tuple[str, ...]]:
    """A row a quantity of every block, in the columns HEADS."""
    return [
        (block.kind, block.sizes, quantity, formula, f"{value:,}", f"{found:,}", f"{block.network} {block.path}")
        for block in BLOCKS
        for quantity, formula, value, found in zip(
            ("parameters", "mult-adds", "outputs"),
            (block.params, f"hw({block.params})", f"hw({block.channels})"),
            block.expected,
            counted(block),
            strict=True,
        )
    ]


def _act(options, others):
    if others:
        raise UserError(f"unexpected argument '{others[0]}'")
    table = Table(*HEADS, title="Costs by formula and as counted", title_justify="left")
    for row in rows():
        table.add_row(*row, end_section=row[2] == "outputs")
    command.console(width=None if sys.stdout.isatty() else 160).print(table)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    return command.run_argv(argv, __doc__, lambda options: None, _act)


if __name__ == "__main__":
    command.exit_with(lambda: main(sys.argv))
