"""What a trained network says of image files. See --help."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
import rich.table
from absl import flags
from rich.text import Text

from models.errors import UserError
from train import cli

USAGE = """The most probable classes of image files, by a run or an exported network of any format.

    python -m train.predict runs/x cat.jpg dog.png
    python -m train.predict exported/x_onnx *.jpg --top=3 --out=predictions.png
    python -m train.predict exported/x_hlo cat.jpg --json

Files are cropped and resized as the evaluation of the run does it; those of a run that crops none are squeezed. The
network sees each once, also where the run's evaluation averages over views."""

BATCH = 32


def predict(network: Any, files: list[str], top: int) -> list[dict]:
    """What a `train.export.loaded.Loaded` says of each file: {"file", "pixels" (as the network sees it), "classes":
    [(label, probability), …] by probability}."""
    labels, found = network.card["labels"], []
    for start in range(0, len(files), BATCH):
        names = files[start:start + BATCH]
        pixels = np.stack([network.pixels(name) for name in names])
        probabilities, _ = network.run(pixels)
        for name, image, row in zip(names, pixels, probabilities, strict=True):
            best = np.argsort(-row, kind="stable")[:top]
            found.append({"file": name, "pixels": image, "classes": [(labels[i], float(row[i])) for i in best]})
    return found


def main(argv: list[str]) -> None:
    """Prints what is asked for."""
    if len(argv) < 3:
        raise UserError("want a MODEL (the folder of a run or of an exported network) and image files, see --help")
    if OUT.value and (Path(OUT.value).suffix != ".png" or not Path(OUT.value).absolute().parent.is_dir()):
        raise UserError(f"--out={OUT.value}: want a .png in a folder that is there")
    from train.export import loaded  # not for --help: with it comes Orbax

    found = predict(loaded.load(argv[1], CHECKPOINT.value), argv[2:], TOP.value)
    if JSON.value:
        for row in found:
            print(json.dumps({"file": row["file"], "classes": [
                {"label": label, "probability": round(share, 6)} for label, share in row["classes"]]}))
    else:
        rich.console.Console().print(table(found))
    if OUT.value:
        from train import figures

        figures.predictions([(row["pixels"], Path(row["file"]).name, row["classes"]) for row in found], OUT.value)


def table(found: list[dict]) -> rich.table.Table:
    """A row a class, the file beside its first."""
    made = rich.table.Table()
    for column, justify in (("file", "left"), ("class", "left"), ("probability", "right")):
        made.add_column(column, justify=justify)
    for row in found:
        for i, (label, share) in enumerate(row["classes"]):
            made.add_row("" if i else Text(row["file"]), Text(label), f"{share:.1%}",
                         end_section=i == len(row["classes"]) - 1)
    return made


if __name__ == "__main__":  # only here: absl has one table of flags for the process
    TOP = flags.DEFINE_integer("top", 5, "Classes of each file.", lower_bound=1)
    CHECKPOINT = flags.DEFINE_string("checkpoint", "last", "Of a run: last, or best (on its test set).")
    OUT = flags.DEFINE_string("out", None, "A picture to write, .png: each file with its classes.")
    JSON = flags.DEFINE_bool("json", False, "Print a line of JSON for each file instead of a table.")
    cli.run(main, USAGE, positional=True)
