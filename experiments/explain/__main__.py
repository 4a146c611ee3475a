"""Explains images with the network of a finished run, and writes pictures. See --help."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.table
from absl import flags

from experiments.explain import pictures
from experiments.explain.pictures import PICTURES
from experiments.explain.subjects import MOST, Job, files_of, from_files, from_split, mistakes, targets
from models import command
from models.analysis.tables import slug, terminal_table
from models.errors import UserError, choice_error
from train import cli
from train.setup import spec

USAGE = """Draws what the network of a finished run sees in images, and what it bases its decisions on.

    python -m experiments.explain --workdir=runs/x --indices=0,5,9 --method="grad_cam|guided_grad_cam"
    python -m experiments.explain --workdir=runs/x --image=cat.jpg --method="occlusion(size=32, stride=8)"
    python -m experiments.explain --workdir=runs/x --image=photos
    python -m experiments.explain --workdir=runs/x --image=both.jpg --target=cat,dog --method=grad_cam
    python -m experiments.explain --workdir=runs/x --indices=mistakes --target=top1,label     the most confident errors
    python -m experiments.explain --workdir=hf:timm/resnet50.a1_in1k --image=cat.jpg          published weights

--method takes one or several methods separated by |, with arguments as in a function call:

Methods that explain a decision. They share one picture, attributions.png, with one row per image and class:
    cam, attention_rollout, grad_cam(endpoint='stage3'), grad_cam_plus_plus(endpoint=…), counterfactual(endpoint=…),
    saliency, smooth_grad(samples=32, noise=0.15, seed=0), integrated_gradients(steps=64, baseline=0.0),
    guided_backprop, deconvnet, guided_grad_cam(endpoint=…)
Methods that each draw their own picture:
    occlusion(size=0, stride=0, color=0.5, endpoint='')      a square moves over the image; size and stride in pixels
                                                             (0: a quarter of the side, an eighth of the square);
                                                             color: 0 black, 1 white
    receptive_field(endpoint='', channel=-1, row=-1, column=-1)     the pixels that a unit sees (box), and those
                                                             that matter to it; -1: all channels, the middle row
                                                             or column
    top_patches(endpoint='', channels='0-7', k=9)            the patches of the --split that activate each
                                                             channel most

--target takes "top1" (the network's answer), "label", or classes by name or number. Several, separated by commas, get
one row each. Use the number of a class that has a comma in its name.
The baseline is in units of normalized images: 0.0 is the mean color if the run normalizes by the mean.
`python -m models.analysis NAME` lists the endpoints. The path of a layer with a kernel, such as stage2/block0/conv1, is
an endpoint, too.
The deconvnet of a network without max-pooling hardly depends on the image.
"""


def table(rows: Sequence[Mapping[str, Any]]) -> rich.table.Table:
    """Returns a table for the terminal, with the network's answer for each image."""
    return terminal_table(
        ("image", "label", "explained", "most probable"),
        [
            (
                row["image"],
                row["label"] or "",
                f"{row['target']} {row['probability']:.1%}",
                f"{row['top1']} {row['top1_probability']:.1%}",
            )
            for row in rows
        ],
        texts=4,
    )


def parsed_methods(catalogue: Mapping[str, Callable[..., Any]]) -> Sequence[spec.Call]:
    """Parses the calls of --method.

    Raises:
      UserError: A method is unknown or missing, or one with its own picture is named twice.
    """
    calls = spec.parse("method", METHOD.value)
    allowed = (*catalogue, *PICTURES)
    if not calls:
        raise UserError(f"--method is empty; allowed: {', '.join(allowed)}")
    for call in calls:
        if call.name not in allowed:
            raise choice_error("method", call.name, allowed)
    pictures_named = [call.name for call in calls if call.name in PICTURES]
    if len(set(pictures_named)) < len(pictures_named):
        raise UserError(f"--method={METHOD.value}: each of {', '.join(PICTURES)} draws one picture; name it once")
    return calls


def parsed_indices() -> list[int] | None:
    """Returns the numbers of --indices; None for "mistakes"."""
    if IMAGE.value and INDICES.value:
        raise UserError("--image and --indices exclude each other; set only one of them")
    if INDICES.value == ["mistakes"]:
        return None
    try:
        return [int(text) for text in INDICES.value or ["0"]]
    except ValueError:
        raise UserError(f"--indices={','.join(INDICES.value)}: must be numbers, e.g. 0,5,9, or mistakes") from None


def check_inputs(feed: Any) -> None:
    """Raises UserError unless a run's inputs are images of 1 or 3 channels with one class each."""
    from train.data.image_feed import as_images

    channels = as_images(feed, f"explain needs a network of images, not of {feed.unit}").image_shape[2]
    if feed.label_shape:
        raise UserError("explain needs a data set with one class per image")
    if channels not in (1, 3):
        raise UserError(f"explain draws images of 1 or 3 channels, not {channels}")


def main() -> None:
    """Loads the run, draws the explanations, and writes and prints the results."""
    if not WORKDIR.value:
        raise UserError("--workdir is missing, e.g. --workdir=runs/x")
    if "://" in WORKDIR.value and not OUT.value:
        raise UserError(f"--out is missing: pictures cannot be written to {WORKDIR.value}")
    from models.explain import catalogue

    calls, indices = parsed_methods(catalogue.METHODS), parsed_indices()

    import jax

    from models.weights import hub
    from train import restore
    from train.recording import summary
    from train.storage.files import write_json

    out = Path(OUT.value or f"{slug(WORKDIR.value) if hub.is_name(WORKDIR.value) else WORKDIR.value}/explain")
    run, state = restore.load_network(WORKDIR.value, CHECKPOINT.value)
    check_inputs(run.feed)
    feed: Any = run.feed  # batches of images
    variables = jax.device_put(state.evaluation_variables())
    console, rows, written = command.console(), [], []
    if indices is None:
        indices, remark = mistakes(run, variables, feed.split(SPLIT.value))
        if remark:
            console.print(remark, soft_wrap=True, highlight=False)
    if (count := len(files_of(IMAGE.value))) > MOST:
        console.print(f"--image: {count:,} images; the first {MOST} are explained", soft_wrap=True, highlight=False)
    subjects = (
        from_files(run, IMAGE.value) if IMAGE.value else from_split(feed.split(SPLIT.value), SPLIT.value, indices)
    )
    pairs = targets(TARGET.value, subjects, feed.classes)
    images = feed.prepare_evaluation({"image": np.stack([subject.pixels for subject in subjects])})["image"]
    job = Job(run, variables, subjects, images, SPLIT.value, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out}: {error.strerror}: must be a folder") from None
    decisions = [call for call in calls if call.name in catalogue.METHODS]
    if decisions:
        rows = pictures.attributions(job, decisions, pairs)
        written.append("attributions.png")
        console.print(table(rows))
    for call in calls:
        if call.name in PICTURES:
            spec.resolve("method", call, PICTURES, job, pairs)
            written.append(f"{call.name}.png")
    write_json(
        out / "explain.json",
        {
            "workdir": WORKDIR.value,
            "model": run.config["model"]["name"],
            "methods": METHOD.value,
            "images": rows,
            "pictures": written,
            **summary.environment(jax.devices()),
        },
    )
    console.print(f"written to {out}: {', '.join(written)}, explain.json", soft_wrap=True, highlight=False)


if __name__ == "__main__":  # absl has one table of flags per process, and tests import this module
    WORKDIR = command.define_path("workdir", None, "Folder of the run, or published weights.", remote=True)
    CHECKPOINT = flags.DEFINE_string("checkpoint", "last", "Checkpoint of the run: last, or best (on its test set).")
    IMAGE = command.define_paths("image", [], "Image files and folders of images, separated by commas.")
    SPLIT = flags.DEFINE_string("split", "test", "Split of the run's data, for --indices and top_patches.")
    INDICES = flags.DEFINE_list(
        "indices",
        [],
        "Indices of images in the split, or mistakes: the network's 8 most confident errors, or, without errors, its "
        "least confident answers; default 0.",
    )
    METHOD = flags.DEFINE_string("method", "grad_cam", "Methods; see above.")
    TARGET = flags.DEFINE_string("target", "top1", "Classes to explain; see above.")
    command.define_figures()
    OUT = command.define_path("out", "", "Folder for the pictures; default: explain/ in the run's folder.")
    cli.run(main, USAGE)
