"""Points of the frontier: trained candidates as exported folders, measured as they will be run."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.frontier.dense import Dense
from experiments.frontier.methods import Candidate
from models.analysis import timing
from models.analysis.tables import slug
from models.errors import UserError
from train.storage.files import read_json, write_json

NAME = "point.json"  # beside each exported folder
ROUNDS = 30  # calls of each program
IMAGES = 256  # held-out images on which each export is verified
BATCH = 250  # images at once where accuracy is measured
SCHEMA = {
    "type": "object",
    "required": ["trial", "code", "held_out", "bytes", "mult_adds", "folder", "format", "options"],
    "properties": {
        "trial": {"type": "string"},
        "code": {"type": "string"},
        "held_out": {"type": "number", "minimum": 0, "maximum": 1},
        "bytes": {"type": "integer", "minimum": 0},
        "mult_adds": {"type": "number", "minimum": 0},
        "folder": {"type": "string"},
        "format": {"type": "string"},
        "options": {"type": "object"},
    },
}


class Point(NamedTuple):
    """A trained and exported candidate.

    Attributes:
      name: The candidate's name.
      folder: The exported folder.
      facts: Content of point.json: "trial" (its address), "code" (the digest of the code that trained it), "held_out"
        (accuracy on held-out images), "bytes", "mult_adds" (of the average image), "format", "options" of the export;
        with exits also "left", the share of the images at each exit.
    """

    name: str
    folder: Path
    facts: Mapping[str, Any]

    def opened(self, thresholds: Sequence[float] | None = None) -> Callable[[np.ndarray], np.ndarray]:
        """Returns the network as a function from pixels, uint8 [N, H, W, C], to logits.

        Args:
          thresholds: For networks with exits, thresholds that replace those of the export.
        """
        from train.export import formats, loaded

        network = loaded.load(self.folder)
        run = network.run
        if thresholds is not None:
            exits = {**network.card["exits"], "thresholds": list(thresholds)}
            run = formats.of_variables(*network.network(), {**network.card, "exits": exits})
        return lambda pixels: run(pixels)[1]


def usual_format(measure: str) -> str:
    """Returns the format in which points are exported: the smallest file, or the fastest program that can be run."""
    import importlib.util

    if measure != "time":
        return "compressed"
    is_there = all(importlib.util.find_spec(name) for name in ("jax2onnx", "onnx", "onnxruntime"))
    return "onnx" if is_there else "stablehlo"


def export(candidate: Candidate, run: Path, trial: Mapping[str, str], out: Path, measure: str, lose: float) -> Point:
    """Exports the trained network of a candidate and measures it, unless this has been done.

    Args:
      candidate: The candidate.
      run: Folder of its training.
      trial: "trial", the address of its training, and "code", the digest of the code that trained it.
      out: Folder of all exported folders.
      measure: The measure, which determines the format.
      lose: Points of accuracy that an int8 network may lose on training images.

    Raises:
      UserError: It cannot be exported.
    """
    from train import adaptive, restore
    from train.export import network as portable
    from train.export import verify, write

    folder, facts_file = out / slug(candidate.name), out / f"{slug(candidate.name)}.{NAME}"
    how, options = candidate.format or usual_format(measure), dict(candidate.options)
    if "quantize" in options:
        options["lose"] = lose
    made = {**trial, "format": how, "options": options}
    if facts_file.exists():
        facts = read_json(facts_file, SCHEMA)
        if made.items() <= facts.items() and folder.exists():
            return Point(candidate.name, folder, facts)
    network, state = restore.load_network(run)
    small = portable.network(network, state)
    if candidate.share:
        small = portable.shared(small, candidate.share)
    out.mkdir(parents=True, exist_ok=True)
    folds = write.named_format(how).folds
    facts_file.unlink(missing_ok=True)  # a kill must not leave it beside another network
    leaving = portable.replaced(network, state, small)
    exits = adaptive.entry(*leaving, candidate.exits, network.feed.test_batches()) if candidate.exits else {}
    try:
        card = write.export(network, small, how, folder, {}, folds=folds, images=IMAGES, exits=exits or None, **options)
    except verify.Failed as error:
        raise UserError(f"{candidate.name}: its export failed: {error}") from None
    facts = {
        **made,
        "folder": folder.name,
        "bytes": sum(path.stat().st_size for path in folder.iterdir() if path.name.startswith(card["file"])),
        "mult_adds": card["mult_adds"],
        **{name: exits[name] for name in ("mult_adds", "left") if exits},
        "held_out": 0.0,
    }
    facts["held_out"] = float(right(Point(candidate.name, folder, facts), network.images.test).mean())
    write_json(facts_file, facts)
    return Point(candidate.name, folder, json.loads(json.dumps(facts)))


def right(point: Point, source: Any) -> np.ndarray:
    """Returns for each image of a source whether a point predicts its class, bool [N]."""
    opened, parts = point.opened(), []
    for start in range(0, len(source), BATCH):
        batch = source.read(np.arange(start, min(start + BATCH, len(source))))
        parts.append(opened(batch["image"]).argmax(1) == batch["label"])
    return np.concatenate(parts)


def milliseconds(dense: Dense, points: Sequence[Point]) -> dict[str, float]:
    """Returns the median time of each point for one image; the programs take turns.

    With exits, it is the mean over exits, weighted by the share of the images that leave there.
    """
    image = np.asarray(dense.network.images.test.read(np.arange(1))["image"])
    calls, weights = {}, {}
    for point in points:
        left = point.facts.get("left")
        for number in range(len(left or [1.0])):
            thresholds = None if left is None else [2.0] * number + [-1.0] * (len(left) - 1 - number)
            call = point.opened(thresholds)
            calls[point.name, number] = lambda call=call: call(image)
            weights[point.name, number] = (left or [1.0])[number]
    seconds = timing.medians(calls, ROUNDS, warm_up=2, pause=timing.SPINNING)
    totals = dict.fromkeys((point.name for point in points), 0.0)
    for (name, number), value in seconds.items():
        totals[name] += 1000 * weights[name, number] * value
    return totals


def difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Returns how many points of accuracy a loses against b on the same images, and the ends of its 95% interval.

    The interval is that of Agresti and Min 2005 (Simple improved confidence intervals for comparing matched
    proportions, Statistics in Medicine 24): Wald's after 1/2 is added to each cell of the 2x2 table. So it has a width
    also where no image differs, and its center is slightly closer to 0 than the loss.

    Args:
      a: Whether each image is right, bool [N].
      b: The same for the other network.
    """
    only_a, only_b, count = int((a & ~b).sum()), int((b & ~a).sum()), len(a) + 2
    center = (only_b - only_a) / count
    half = 1.96 * math.sqrt(((only_a + only_b + 1) / count - center**2) / count)
    return 100 * (only_b - only_a) / len(a), 100 * (center - half), 100 * (center + half)
