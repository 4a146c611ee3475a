"""Predicts the classes of image files with a trained network. See --help."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rich.table
from absl import flags
from rich.text import Text

from models import command
from models.errors import UserError
from train import cli

if TYPE_CHECKING:  # imports Orbax, which --help does not need
    from train.export.loaded import Loaded

USAGE = """Prints the most probable classes of image files, predicted by a run, an exported network of any format, or
published weights (python -m models.weights list).

    python -m train.predict runs/digits experiments/samples/*.png
    python -m train.predict runs/x cat.jpg dog.png
    python -m train.predict hf:timm/resnet50.a1_in1k cat.jpg
    python -m train.predict runs/x ~/photos
    python -m train.predict exported/x_onnx *.jpg --top=3 --out=predictions.png
    python -m train.predict exported/x_hlo cat.jpg --json

A folder stands for the images in it, at any depth. Files are cropped and resized as in the evaluation of the run; if it
does not crop, they are resized without keeping their aspect ratio. If the network takes gray images, and was trained on
light ones on dark, those that are dark on light are inverted, and the reverse; a line names them. The network sees one
view of each image, even if the run's evaluation averages over several. A file that cannot be decoded is reported among
the results of the others, and the exit code is 2."""

BATCH = 32


def predict(network: "Loaded", files: Sequence[str], top: int) -> list[dict[str, Any]]:
    """Predicts the classes of image files.

    Args:
      network: the network.
      files: paths of the images.
      top: number of classes per file.

    Returns:
      One row per file: {"file", "pixels" (as the network sees them), "inverted", "classes": [(label, probability), …],
      most probable first}, or {"file", "error"} for a file that cannot be decoded.
    """
    rows = []
    for start in range(0, len(files), BATCH):
        part = [_decoded(network, name) for name in files[start : start + BATCH]]
        readable = [row for row in part if "pixels" in row]
        if readable:
            probabilities, _ = network.run(np.stack([row["pixels"] for row in readable]))
            for row, shares in zip(readable, probabilities, strict=True):
                row["classes"] = network.ranked(shares, top)
        rows += part
    return rows


def _decoded(network: "Loaded", name: str) -> dict[str, Any]:
    try:
        pixels, inverted = network.prepared(name)
        return {"file": name, "pixels": pixels, "inverted": inverted}
    except UserError as error:
        return {"file": name, "error": str(error).removeprefix(f"{name}: ")}


def named(paths: Sequence[str]) -> list[str]:
    """Returns the files that paths stand for: a folder stands for the images in it, at any depth, sorted by name.

    Raises:
      UserError: a folder holds no images.
    """
    from train.data.sources.folder import images_in
    from train.storage.remote import fetched

    names = []
    for path in (str(fetched(path)) for path in paths):
        inside = [str(file) for file in images_in(Path(path))] if os.path.isdir(path) else [path]
        if not inside:
            raise UserError(f"{path}: there are no images in this folder")
        names += inside
    return names


def main(argv: list[str]) -> int:
    """Predicts, prints and draws what the command line asks for."""
    if len(argv) < 3:
        raise UserError("name a MODEL (a run, an exported network, or published weights) and image files; see --help")
    if OUT.value and (Path(OUT.value).suffix != ".png" or not Path(OUT.value).absolute().parent.is_dir()):
        raise UserError(f"--out={OUT.value}: must be a .png file in an existing folder")
    from train.export import loaded  # imports Orbax, which --help does not need

    network = loaded.load(argv[1], CHECKPOINT.value if CHECKPOINT.present else None)
    rows = predict(network, named(argv[2:]), TOP.value)
    if JSON.value:
        for row in rows:
            print(_json_line(row))
    else:
        command.console().print(table(rows))
        if inverted := [row["file"] for row in rows if row.get("inverted")]:
            background = network.card["preprocessing"]["background"]
            print(f"inverted, because the training images have a {background} background: {', '.join(inverted)}")
    readable = [row for row in rows if "error" not in row]
    if OUT.value and readable:
        from train.plots import figures

        figures.predictions([(row["pixels"], Path(row["file"]).name, row["classes"]) for row in readable], OUT.value)
    if len(readable) < len(rows):
        bad = [row for row in rows if "error" in row]
        raise UserError(
            f"{bad[0]['file']}: {bad[0]['error']}" + (f" ({len(bad)} of {len(rows)} files)" if len(rows) > 1 else "")
        )
    return 0


def _json_line(row: dict[str, Any]) -> str:
    answer = {"error": row["error"]} if "error" in row else as_json(row["classes"], row["inverted"])
    return json.dumps({"file": row["file"], **answer})


def as_json(classes: Sequence[tuple[str, float]], inverted: bool) -> dict[str, Any]:
    """Returns the classes of an image as commands print them and `train.serve` answers them."""
    rows = [{"label": label, "probability": round(share, 6)} for label, share in classes]
    return {"classes": rows, **({"inverted": True} if inverted else {})}


def table(rows: Sequence[dict[str, Any]]) -> rich.table.Table:
    """Returns a table with one row per class; the first row of each file names the file."""
    table = rich.table.Table()
    table.add_column("file")
    table.add_column("class")
    table.add_column("probability", justify="right")
    for row in rows:
        if "error" in row:
            table.add_row(Text(row["file"]), Text(row["error"]), "", end_section=True)
        for i, (label, share) in enumerate(row.get("classes", ())):
            table.add_row(
                "" if i else Text(row["file"]), Text(label), f"{share:.1%}", end_section=i == len(row["classes"]) - 1
            )
    return table


if __name__ == "__main__":  # only here: absl has one table of flags for the process
    TOP = flags.DEFINE_integer("top", 5, "Number of classes per file.", lower_bound=1)
    CHECKPOINT = flags.DEFINE_string("checkpoint", "last", "Checkpoint of a run: last, or best (on its test set).")
    OUT = command.define_path("out", None, "Figure to write (.png) that shows each file with its classes.")
    JSON = flags.DEFINE_bool("json", False, "Print one line of JSON per file instead of a table.")
    cli.run(main, USAGE, positional=True)
