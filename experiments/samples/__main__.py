"""Draws the pictures of this folder. See --help."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from models import command
from train import cli

USAGE = """Draws the pictures of experiments/samples anew: digits as a pen writes them, and two shapes.

    python -m experiments.samples
    python -m experiments.samples --out=samples

digit3.png and its like are light on dark, as the digits of configs/digits.py; paper2.png and its like are dark on
light, as on paper. shapes.png is neither a digit nor square.
"""
SIZE = 128  # pixels of a side
_FINE = 4  # pictures are drawn larger by this factor, which smooths edges
_PEN = 0.125  # width of the pen
_STEPS = 24  # points of a curve between two of its control points
Stroke = Sequence[tuple[float, float]]

# Strokes as points (x, y) in [0, 1], y downward, through which the pen moves
DIGITS: dict[int, Sequence[Stroke]] = {
    0: [[(0.56, 0.07), (0.33, 0.2), (0.26, 0.5), (0.36, 0.86), (0.58, 0.92), (0.72, 0.7), (0.72, 0.3), (0.56, 0.07)]],
    2: [
        [(0.3, 0.25), (0.42, 0.08), (0.6, 0.1), (0.66, 0.3), (0.54, 0.56), (0.36, 0.78), (0.27, 0.91)],
        [(0.27, 0.91), (0.48, 0.92), (0.74, 0.9)],
    ],
    3: [
        [(0.3, 0.13), (0.52, 0.06), (0.68, 0.2), (0.6, 0.38), (0.44, 0.46)],
        [(0.44, 0.46), (0.66, 0.54), (0.7, 0.76), (0.54, 0.92), (0.3, 0.9)],
    ],
    4: [
        [(0.52, 0.06), (0.38, 0.32), (0.25, 0.6)],
        [(0.25, 0.6), (0.5, 0.62), (0.76, 0.58)],
        [(0.6, 0.36), (0.57, 0.66), (0.53, 0.94)],
    ],
    5: [
        [(0.7, 0.08), (0.54, 0.07), (0.36, 0.09)],
        [(0.36, 0.09), (0.34, 0.26), (0.31, 0.46)],
        [(0.31, 0.46), (0.54, 0.4), (0.7, 0.56), (0.68, 0.8), (0.5, 0.93), (0.28, 0.88)],
    ],
    7: [
        [(0.26, 0.12), (0.5, 0.09), (0.74, 0.1)],
        [(0.74, 0.1), (0.6, 0.42), (0.47, 0.93)],
        [(0.4, 0.5), (0.54, 0.49), (0.72, 0.48)],
    ],
}
PICTURES = {"digit0": 0, "digit3": 3, "digit7": 7, "paper2": 2, "paper4": 4, "paper5": 5}


def curve(points: Stroke) -> np.ndarray:
    """Returns points of a smooth curve through the given ones (a Catmull-Rom spline), float [M, 2]."""
    p = np.array([points[0], *points, points[-1]])
    t = np.linspace(0, 1, _STEPS)[:, None]
    parts = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    return np.concatenate(parts)


def digit(value: int, ink: int, paper: int) -> Image.Image:
    """Draws a digit with levels for the ink and the paper, as a gray picture of SIZE x SIZE pixels."""
    side = SIZE * _FINE
    image = Image.new("L", (side, side), paper)
    draw, radius = ImageDraw.Draw(image), _PEN * side / 2
    for stroke in DIGITS[value]:
        for x, y in curve(stroke) * side:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def shapes() -> Image.Image:
    """Draws a disk and a triangle in color, 3 to 2."""
    width, height = 192 * _FINE, 128 * _FINE
    image = Image.new("RGB", (width, height), (250, 247, 240))
    draw = ImageDraw.Draw(image)
    draw.ellipse((0.08 * width, 0.2 * height, 0.48 * width, 0.8 * height), fill=(196, 78, 58))
    draw.polygon(
        [(0.74 * width, 0.16 * height), (0.94 * width, 0.84 * height), (0.54 * width, 0.84 * height)],
        fill=(46, 92, 138),
    )
    return image.resize((width // _FINE, height // _FINE), Image.Resampling.LANCZOS)


def draw_all() -> dict[str, Image.Image]:
    """Returns the pictures by file name."""
    pictures = {
        f"{name}.png": digit(value, *((255, 0) if name.startswith("digit") else (24, 255)))
        for name, value in PICTURES.items()
    }
    return {**pictures, "shapes.png": shapes()}


def main() -> None:
    """Writes the pictures."""
    out = Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    for name, image in draw_all().items():
        image.save(out / name, optimize=True)
    command.console().print(f"written to {out}: {', '.join(draw_all())}", soft_wrap=True)


if __name__ == "__main__":  # only here: absl has one table of flags for the process
    OUT = command.define_path("out", str(Path(__file__).parent), "Folder of the pictures.")
    cli.run(main, USAGE)
