"""Evaluates a finished run on corrupted test images. See --help."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from models import command
from models.errors import UserError, choice_error
from train import cli
from train.data.corruptions.severities import COMMON, NAMES

if TYPE_CHECKING:
    from train.data.source import Source
    from train.restore import Network

USAGE = """Measures a finished run's test error under the corruptions of CIFAR-10-C and ImageNet-C, made on the fly.

    python -m experiments.corruptions --workdir=runs/x
    python -m experiments.corruptions --workdir=runs/x --corruptions=fog,snow --severities=1,3,5 --select="share(0.2)"
    python -m experiments.corruptions --workdir=runs/x --corruptions=all --baseline=runs/digits
    python -m experiments.corruptions --workdir=runs/imagenet --baseline=alexnet

Corruptions (Hendrycks 2019, arXiv 1903.12261):
    common    gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur, zoom_blur, snow, frost,
              fog, brightness, contrast, elastic_transform, pixelate, jpeg_compression
    all       these, and speckle_noise, gaussian_blur, spatter, saturate, which do not count in the means

Images of up to 84 pixels are corrupted as in CIFAR-10-C, larger ones as in ImageNet-C, after the evaluation crop. Frost
is drawn, since the photographs of the original are not part of this project. Each image's noise depends only on
--seed, the corruption, the severity and the image's number.

The mean corruption error is the mean over corruptions and severities. --baseline adds the mCE of the paper: the mean
over corruptions of the errors relative to another run's, for which this command has run before, or to AlexNet's.
Writes corruptions.json, .csv, .md and .png, by default to corruptions/ in the run's folder.
"""


def chosen_names(texts: Sequence[str], channels: int) -> list[str]:
    """Returns the corruptions of --corruptions, each once.

    Args:
      texts: Names, "common" or "all".
      channels: Of the images; "all" leaves out what changes only colors if they are gray.

    Raises:
      UserError: A name is unknown, or there is none.
    """
    from train.data.corrupted import IN_COLOR

    fitting = [name for name in NAMES if channels == 3 or name not in IN_COLOR]
    groups = {"common": COMMON, "all": fitting}
    for text in texts:
        if text not in (*groups, *NAMES):
            raise choice_error("corruption", text, (*groups, *NAMES))
    names = [name for text in texts for name in groups.get(text, (text,))]
    if not names:
        raise UserError("--corruptions is empty; allowed: common, all, or names")
    return list(dict.fromkeys(names))


def chosen_severities(texts: Sequence[str]) -> list[int]:
    """Returns the numbers of --severities in ascending order; raises UserError unless they are from 1 to 5."""
    ranges = [re.fullmatch(r"([1-5])(?:-([1-5]))?", text) for text in texts]
    numbers = {number for one in ranges if one for number in range(int(one[1]), int(one[2] or one[1]) + 1)}
    if not all(ranges) or not numbers:
        raise UserError(f"--severities={','.join(texts)}: must be numbers from 1 to 5, e.g. 1-5 or 1,3,5")
    return sorted(numbers)


def chosen_images(network: "Network", text: str) -> "Source":
    """Returns the test images that --select chooses, with the network's own class numbers.

    Raises:
      UserError: The images have another shape than those of the network, or the selection is none.
    """
    from train.data import classes
    from train.data.select import select

    source, known = select(network.images.test, text), network.images.classes
    if source.image_shape != network.images.image_shape:
        shapes = ["x".join(map(str, shape)) for shape in (source.image_shape, network.images.image_shape)]
        raise UserError(f"--select={text}: its images are {shapes[0]}, and the network takes {shapes[1]}")
    if tuple(source.classes) == tuple(known):
        return source
    return classes.Renumbered(source, classes.numbers(source.classes, known, None, "--select"), known)


def main() -> None:
    """Loads the run, measures it on corrupted images, and prints and writes the results."""
    if not WORKDIR.value:
        raise UserError("--workdir is missing, e.g. --workdir=runs/x")
    if "://" in WORKDIR.value and not OUT.value:
        raise UserError(f"--out is missing: results cannot be written to {WORKDIR.value}")
    chosen_names(NAMES_FLAG.value, 3)
    severities, seed = chosen_severities(SEVERITIES_FLAG.value), SEED.value

    import jax

    from experiments.corruptions import measure, output
    from train import restore
    from train.data import corrupted
    from train.recording import summary

    network, state = restore.load_network(WORKDIR.value, CHECKPOINT.value)
    source = chosen_images(network, SELECT.value)
    names = chosen_names(NAMES_FLAG.value, source.image_shape[2])
    for name in names:
        fit(corrupted.check, name, source.image_shape)
    facts = {"identity": source.identity(), "classes": len(network.feed.classes)}
    baseline = measure.read_baseline(BASELINE.value, names, severities, facts) if BASELINE.value else None
    out = Path(OUT.value or f"{WORKDIR.value}/corruptions")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out}: {error.strerror}: must be a folder") from None
    console = command.console()

    def progress(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False)

    measured = measure.measure(network, state, source, names, severities, seed, progress)
    result: dict[str, Any] = {
        "workdir": WORKDIR.value,
        "model": network.config["model"]["name"],
        "data": network.config["data"]["source"],
        "select": SELECT.value,
        "seed": seed,
        **measured,
        **measure.summary(measured, baseline),
        "baseline": baseline.name if baseline else None,
        "identity": facts["identity"],
        **summary.environment(jax.devices()),
        "config": network.config,
    }
    output.write(out, result)
    output.draw(out / "corruptions.png", result, output.examples(source, names, severities, seed))
    console.print(output.table(result))
    for line in (*output.sentences(result), f"written to {out}: corruptions.json, .csv, .md, .png"):
        progress(line)


def fit(check: Any, name: str, shape: Sequence[int]) -> None:
    """Checks that a corruption fits the images of a run; raises UserError if not."""
    try:
        check(name, 1, shape)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"--workdir={WORKDIR.value}: {error}") from None


if __name__ == "__main__":  # absl has one table of flags per process, and tests import this module
    WORKDIR = command.define_path("workdir", None, "Folder of the run.", remote=True)
    CHECKPOINT = flags.DEFINE_string("checkpoint", "last", "Checkpoint of the run: last, or best (on its test set).")
    NAMES_FLAG = flags.DEFINE_list("corruptions", ["common"], "Corruptions: common, all, or names.")
    SEVERITIES_FLAG = flags.DEFINE_list("severities", ["1-5"], "Severities, e.g. 1-5 or 1,3,5.")
    SELECT = flags.DEFINE_string("select", "", "Part of the test images, as in data.select_test: share(0.2).")
    SEED = flags.DEFINE_integer("seed", 0, "Seed of the corruptions.", lower_bound=0)
    BASELINE = command.define_path("baseline", "", "Another run's folder or corruptions.json, or alexnet, for the mCE.")
    OUT = command.define_path("out", "", "Folder of the results; default: corruptions/ in the run's folder.")
    command.define_figures()
    cli.run(main, USAGE)
