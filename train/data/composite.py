"""Images placed on a larger canvas at known positions: data with boxes, to test whether explanations find the object.

The canvas is smooth gray noise. Fragments of images of other classes are pasted onto it as distractors, so that not
everything that stands out from the noise is the object. One object is pasted on top, or two objects of different
classes, side by side or one above the other. All positions depend only on the seed and the example's number.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from models.errors import UserError
from train.data.source import Indices, Label, Source, Stored, Wrapped

NOISE = 4  # random levels along a side; the noise is smooth between them
Box = tuple[int, int, int, int]  # top, left, bottom, right: the pixels [top:bottom, left:right]


class Object(NamedTuple):
    """An object on a canvas: the number of its image in the source, its class, and its place."""

    image: int
    label: int
    box: Box


class Placed(Wrapped):
    """Canvases with objects; example i shows image i modulo the number of images, and has its label."""

    def __init__(
        self,
        source: Source,
        canvas: int,
        size: tuple[float, float] = (0.3, 0.5),
        objects: int = 1,
        clutter: int = 4,
        copies: int = 1,
        seed: int = 0,
    ):
        """Checks that the objects fit, and that there are classes enough.

        Args:
          source: the images, with one class each.
          canvas: height and width of a canvas, in pixels.
          size: range of an object's side, as a share of the canvas' side.
          objects: objects per canvas, 1 or 2.
          clutter: fragments per canvas, each half as large as an object.
          copies: canvases per image.
          seed: decides all positions.

        Raises:
          ValueError: an argument is out of range, or there are too few classes.
          UserError: images have several classes each.
        """
        if objects not in (1, 2):
            raise ValueError(f"objects={objects} must be 1 or 2")
        if not 0 < size[0] <= size[1] <= 1 / objects:
            raise ValueError(f"size={size[0]}-{size[1]} must be within 0 and {1 / objects:g} of the canvas")
        if round(size[0] * canvas) < 2 or min(clutter, seed) < 0 or copies < 1:
            raise ValueError(
                f"canvas={canvas}, clutter={clutter}, copies={copies}, seed={seed}: objects must have at "
                "least 2 pixels, there must be at least 1 copy, and nothing may be negative"
            )
        if source.label_shape != ():
            raise UserError("data.select: place needs a data set with one label per image")
        self.labels = source.all_labels()
        kinds, needed = len(np.unique(self.labels)), objects + (clutter > 0)
        if kinds < needed:
            raise ValueError(f"objects={objects} and clutter={clutter} need images of {needed} classes, not {kinds}")
        super().__init__(source, copies * len(source), image_shape=(canvas, canvas, source.image_shape[2]))
        self.canvas, self.size, self.number, self.clutter, self.seed = canvas, size, objects, clutter, seed

    def fetch(self, indices: Indices) -> Sequence[tuple[Stored, Label]]:
        return self.source.fetch([int(i) % len(self.source) for i in indices])

    def name(self, index: int) -> str:
        return self.source.name(int(index) % len(self.source))

    @property
    def how(self) -> Any:
        return self.canvas, self.size, self.number, self.clutter, self.seed, self.source.how

    def known_labels(self) -> np.ndarray:
        return np.tile(self.labels, self.count // len(self.source))

    def objects(self, index: int) -> list[Object]:
        """Returns the objects on canvas `index`."""
        return self._objects(index, self._rng(index))

    def _rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, 73, int(index)])

    def _objects(self, index: int, rng: np.random.Generator) -> list[Object]:
        images = [int(index) % len(self.source)]
        if self.number == 2:
            images.append(int(rng.choice(np.flatnonzero(self.labels != self.labels[images[0]]))))
        across, order = int(rng.integers(2)), rng.permutation(self.number)  # each in its half of the canvas
        boxes = []
        for place in order:
            side = round(self.canvas * rng.uniform(*self.size))
            room, corner = [self.canvas, self.canvas], [0, 0]
            if self.number == 2:
                room[across] //= 2
                corner[across] = place * room[across]
            side = min(side, *room)
            top, left = (int(c + rng.integers(r - side + 1)) for c, r in zip(corner, room, strict=True))
            boxes.append((top, left, top + side, left + side))
        return [Object(i, int(self.labels[i]), box) for i, box in zip(images, boxes, strict=True)]

    def decode(self, index: int, stored: Stored, rng: np.random.Generator | None) -> np.ndarray:
        own = self._rng(index)
        objects = self._objects(index, own)
        levels = own.integers(0, 256, (NOISE, NOISE, 1), np.uint8)
        canvas = np.repeat(_resized(levels, (self.canvas, self.canvas)), self.image_shape[2], 2)
        others = np.flatnonzero(~np.isin(self.labels, [thing.label for thing in objects]))
        for i in own.choice(others, self.clutter) if self.clutter else ():
            pixels = self._pixels(int(i))
            height, width = half = [side // 2 for side in pixels.shape[:2]]
            top, left = (int(own.integers(side - part + 1)) for side, part in zip(pixels.shape[:2], half, strict=True))
            side = max(1, round(self.canvas * own.uniform(*self.size) / 2))
            y, x = own.integers(self.canvas - side + 1, size=2)
            _paste(canvas, pixels[top : top + height, left : left + width], (y, x, y + side, x + side))
        for thing in objects[::-1]:
            is_own = thing.image == int(index) % len(self.source)
            pixels = self.source.decode(thing.image, stored, rng) if is_own else self._pixels(thing.image)
            _paste(canvas, pixels, thing.box)
        return canvas

    def _pixels(self, index: int) -> np.ndarray:
        return self.source.example(index)["image"]


def _paste(canvas: np.ndarray, pixels: np.ndarray, box: Box) -> None:
    top, left, bottom, right = box
    canvas[top:bottom, left:right] = _resized(pixels, (bottom - top, right - left))


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return np.array(image.resize((size[1], size[0]), Image.Resampling.BILINEAR)).reshape(*size, pixels.shape[2])
