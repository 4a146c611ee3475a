"""Pictures of what a trained network sees, and what it bases its decision on. See --help."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rich.table
from absl import flags

from models import command
from models.analysis.tables import terminal_table
from models.errors import UserError, choice_error
from train import cli, spec
from train.data import decode

USAGE = """Looks inside the network of a finished run, and writes pictures.

    python -m experiments.explain --workdir=runs/x --indices=0,5,9 --method="grad_cam|guided_grad_cam"
    python -m experiments.explain --workdir=runs/x --image=cat.jpg --method="occlusion(size=32, stride=8)"
    python -m experiments.explain --workdir=runs/x --image=both.jpg --target=cat,dog --method=grad_cam
    python -m experiments.explain --workdir=runs/x --indices=mistakes --target=top1,label     its most confident errors

--method: one or several with | between them, with arguments as a function has them:

of a decision, all in one picture, attributions.png, a row an image and class:
    cam, attention_rollout, grad_cam(endpoint='stage3'), grad_cam_plus_plus(endpoint=…), counterfactual(endpoint=…),
    saliency, smooth_grad(samples=32, noise=0.15, seed=0), integrated_gradients(steps=64, baseline=0.0),
    guided_backprop, deconvnet, guided_grad_cam(endpoint=…)
with a picture of their own:
    occlusion(size=0, stride=0, color=0.5, endpoint='')      a square over the image: pixels (0: a quarter of the side,
                                                             and an eighth of the square); color 0 black, 1 white
    receptive_field(endpoint='', channel=-1, row=-1, column=-1)     which pixels a unit sees (box), and which matter to
                                                             it; -1: all channels, the middle
    top_patches(endpoint='', channels='0-7', k=9)            what activates channels most, over the whole --split

--target: classes by name or number (several with commas: a row each), "top1" (what the network says), "label". A class
whose name has a comma is named by its number.
A baseline is in the units of the normalized images: 0.0 is the mean color where the run normalizes by it.
Endpoints: `python -m models.analysis NAME` lists them; a layer with a kernel is one by its path, stage2/block0/conv1.
The deconvnet of a network without max-pooling hardly depends on the image.
"""


class Subject(NamedTuple):
    """An image to explain: uint8 [H, W, C], its name, and its class where that is known."""

    pixels: np.ndarray
    name: str
    label: int | None


class Job(NamedTuple):
    """What every method gets.

    Attributes:
      run: `train.Run`.
      variables: of its network, on the device.
      subjects: the images.
      images: as the network gets them, [N, H, W, C].
      split: of the run's data; it is opened by methods that need more than the subjects.
      out: folder of the pictures.
    """

    run: Any
    variables: Any
    subjects: Sequence[Subject]
    images: Any
    split: str
    out: Path

    @property
    def model(self) -> Any:
        return self.run.task.model

    @property
    def classes(self) -> Sequence[str]:
        return self.run.feed.classes

    @property
    def source(self) -> Any:
        return self.run.feed.split(self.split)


# -- images --------------------------------------------------------------------------------------------------------


def from_files(run: Any, files: Sequence[str]) -> list[Subject]:
    """Images of files, see `train.data.decode.of_file`."""
    return [
        Subject(decode.of_file(run.feed.decoder, run.feed.image_shape, file), Path(file).name, None) for file in files
    ]


def from_split(source: Any, split: str, indices: Sequence[int]) -> list[Subject]:
    """Images of a split; UserError where it has no such index."""
    found = []
    for index in indices:
        if not 0 <= index < len(source):
            raise UserError(f"--indices={index} is out of range: split '{split}' has images 0 to {len(source) - 1}")
        example = source.example(index, None)
        found.append(Subject(example["image"], f"{split} {index}", int(example["label"])))
    return found


def mistakes(run: Any, variables: Any, source: Any, count: int = 8) -> list[int]:
    """Indices of the images of a split that the network is most confidently wrong about, as in mistakes.png.

    Raises:
      UserError: it is right about all.
    """
    from train import evaluate
    from train.plots import figures

    logits, labels, index = evaluate.predictions(
        run.task.predict, variables, run.feed.prepare_evaluation, run.feed.batches(source)
    )
    found = [int(index[row]) for row, *_ in figures.most_confident_errors(logits, labels, count)]
    if not found:
        raise UserError(f"--indices=mistakes: the network is right about all of the {len(labels)} images")
    return found


def targets(text: str, subjects: Sequence[Subject], classes: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs (number of the subject, class or -1 for the most probable), in the order of the subjects.

    Raises:
      UserError: an unknown class; "label" of an image without one.
    """
    found = []
    for number, subject in enumerate(subjects):
        for name in map(str.strip, text.split(",")):
            if name == "label" and subject.label is None:
                raise UserError(f"--target=label: {subject.name} has no label: name a class, or top1")
            found.append(
                (number, -1 if name == "top1" else subject.label if name == "label" else class_of(name, classes))
            )
    return found


def class_of(name: str, classes: Sequence[str]) -> int:
    """A class by its name or its number."""
    if name in classes:
        return list(classes).index(name)
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    if name.lstrip("-").isdecimal():
        raise UserError(f"--target={name} is out of range: classes are 0 to {len(classes) - 1}")
    raise choice_error("--target", name, (*classes, "top1", "label"))


# -- methods -------------------------------------------------------------------------------------------------------


def attributions(job: Job, wanted: Sequence[spec.Call], pairs: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """attributions.png: a row an image and class, a column a method.

    Returns:
      Of each row {"image", "label", "target", "probability", "top1", "top1_probability"}.
    """
    import jax
    from matplotlib.figure import Figure

    from experiments import overlays
    from models.analysis.chart import save
    from models.explain import catalogue

    numbers = [number for number, _ in pairs]
    images, target = job.images[np.array(numbers)], np.array([kind for _, kind in pairs], np.int32)
    columns, found, size = [], [], job.run.config["eval_batch_size"]
    for call in wanted:
        parts = [
            spec.resolve(
                "method", call, catalogue.METHODS, job.model, job.variables, images[i : i + size], target[i : i + size]
            )
            for i in range(0, len(images), size)
        ]
        found.append(jax.tree.map(lambda *some: np.concatenate(some), *parts))
        columns.append(call.name.replace("_", " ") + "".join(f"\n{value}" for value in call.kwargs.values()))
    probabilities = np.asarray(jax.nn.softmax(found[0].logits))
    target, rows, told = np.asarray(found[0].target), [], []
    for i, number in enumerate(numbers):
        subject, row = job.subjects[number], probabilities[i]
        says = "" if subject.label is None else f"label: {job.classes[subject.label]}"
        says += f"\n{job.classes[target[i]]} {row[target[i]]:.0%}"
        if target[i] != row.argmax():
            says += f", top {job.classes[row.argmax()]} {row.max():.0%}"
        panels = [
            panel_of(call.name, one.values[i], images.shape[1:3]) for call, one in zip(wanted, found, strict=True)
        ]
        rows.append(overlays.Row(subject.pixels, subject.name, says.strip(), panels))
        told.append(
            {
                "image": subject.name,
                "label": None if subject.label is None else job.classes[subject.label],
                "target": job.classes[target[i]],
                "probability": float(row[target[i]]),
                "top1": job.classes[row.argmax()],
                "top1_probability": float(row.max()),
            }
        )
    figure = Figure(figsize=overlays.size_of(len(rows), len(columns)), layout="constrained", dpi=120)
    overlays.draw_rows(figure, columns, rows)
    save(figure, job.out / "attributions.png")
    return told


def panel_of(name: str, values: Any, size: tuple[int, int]) -> Any:
    """How a method's finding of one image, [h, w] or [H, W, C], is drawn."""
    from experiments import overlays
    from models.explain import catalogue

    if name in catalogue.SIGNED:
        return overlays.Panel(np.asarray(values), signed=True)
    return overlays.Panel(np.asarray(catalogue.heat(values[None], size)[0]), over=name in catalogue.MAPS)


def occlusion(
    job: Job, pairs: Sequence[tuple[int, int]], size: int = 0, stride: int = 0, color: float = 0.5, endpoint: str = ""
) -> None:
    """occlusion.png; see the module's help."""
    from matplotlib.figure import Figure

    from experiments import overlays
    from models.analysis.chart import save
    from models.explain import occlusion as method

    if not 0 <= color <= 1:
        raise ValueError(f"color={color} must be from 0, black, to 1, white")
    if size < 0 or stride < 0:
        raise ValueError(f"size={size} and stride={stride} must be at least 1, or 0 for the default")
    size = size or max(1, min(job.images.shape[1:3]) // 4)
    stride = stride or max(1, size // 8)
    channels = job.images.shape[-1]
    square = np.full((1, 1, 1, channels), round(255 * color), np.uint8)
    painted = np.asarray(job.run.feed.prepare_evaluation({"image": square})["image"]).ravel()
    numbers = np.array([number for number, _ in pairs])
    found = method.occlusion(
        job.model,
        job.variables,
        job.images[numbers],
        np.array([kind for _, kind in pairs], np.int32),
        size=size,
        stride=stride,
        color=tuple(map(float, painted)),
        endpoint=endpoint or None,
    )
    figure = Figure(figsize=(11.5, 2.5 * len(pairs) + 0.6), layout="constrained", dpi=120)
    overlays.draw_occlusion(
        figure,
        [job.subjects[n].pixels for n in numbers],
        {k: np.asarray(v) for k, v in found._asdict().items()},
        (size, size),
        job.classes,
        [job.subjects[n].name for n in numbers],
        np.full(channels, float(color)),
    )
    save(figure, job.out / "occlusion.png")


def receptive_field(
    job: Job, pairs: Sequence[tuple[int, int]], endpoint: str = "", channel: int = -1, row: int = -1, column: int = -1
) -> None:
    """Draws receptive_field.png; see the module's help. The mean is over the first 64 images of the split, or
    over the files of --image.
    """
    from matplotlib.figure import Figure

    from experiments import overlays
    from models.analysis.chart import save
    from models.explain import method, receptive

    for option, value in (("channel", channel), ("row", row), ("column", column)):
        if value < -1:
            raise ValueError(f"{option}={value} must be at least 0, or -1 for the default")
    images = job.images
    about = method.outline(job.model, job.variables, images)
    name = method.map_endpoint(about, endpoint or None)
    height, width, _ = method.grid(about.shape(name))
    place = (height // 2 if row < 0 else row, width // 2 if column < 0 else column)
    options = {"endpoint": name, "channel": None if channel < 0 else channel, "place": place}
    field = receptive.theoretical(job.model, job.run.feed.inputs, name)
    numbers = list(dict.fromkeys(number for number, _ in pairs))[:4]
    own = [receptive.effective(job.model, job.variables, images[n : n + 1], **options) for n in numbers]
    many = images[:64]
    if job.subjects[0].label is not None:
        batch, _, mask = next(batches(job))
        many = batch[np.flatnonzero(mask)[:64]]
    mean = np.asarray(receptive.effective(job.model, job.variables, many, **options))
    unit = f"{name}, {'all channels' if channel < 0 else f'channel {channel}'}, unit {place} of {height} x {width}"
    says = (
        f"{unit}: sees the whole image"
        if field is None
        else f"{unit}: sees {field.size[0]} x {field.size[1]} pixels (box), stride {field.stride[0]}"
    )
    says += f"\nthe effective size is {receptive.effective_size(mean):.1f} (mean of {len(many)} images)"
    figure = Figure(figsize=(max(8.0, 2.0 * (2 * len(numbers) + 1)), 2.8), layout="constrained", dpi=120)
    overlays.draw_receptive(
        figure,
        [job.subjects[n].pixels for n in numbers],
        [job.subjects[n].name for n in numbers],
        None if field is None else field.clipped(*place, images.shape[1:3]),
        own,
        mean,
        says,
    )
    save(figure, job.out / "receptive_field.png")


def top_patches(
    job: Job, pairs: Sequence[tuple[int, int]], endpoint: str = "", channels: str = "0-7", k: int = 9
) -> None:
    """top_patches.png: a row a channel, patches and their projections; see the module's help."""
    from matplotlib.figure import Figure

    from experiments import overlays
    from models.analysis.chart import save

    name, rows = patches_of(job, endpoint, channels, k)
    columns = (f"images that activate {name} most", "deconvnet", "guided backprop")
    figure = Figure(figsize=(9.5, 3.1 * len(rows) + 0.4), layout="constrained", dpi=100)
    overlays.draw_patches(figure, columns, rows)
    save(figure, job.out / "top_patches.png")


def patches_of(job: Job, endpoint: str, channels: str, k: int) -> tuple[str, list[tuple[str, list[np.ndarray]]]]:
    """The endpoint, and for each channel (its name, montages of the k patches and of their two projections)."""
    from experiments import overlays
    from models.explain import method, patches, receptive

    about = method.outline(job.model, job.variables, job.images[:1])
    name = method.map_endpoint(about, endpoint or None)
    wanted = numbers_of(channels, about.shape(name)[-1])
    if not 0 < k <= len(job.source):
        raise ValueError(f"k={k} must be 1 to {len(job.source)}, the images of the split")
    best = patches.top_patches(job.model, job.variables, batches(job), endpoint=name, channels=wanted, k=k)
    best = type(best)(*map(np.asarray, best))
    if (best.index < 0).any():
        raise UserError(f"{name}: fewer than {k} images of the split give it a finite value")
    field = receptive.theoretical(job.model, job.run.feed.inputs, name)
    height, width = job.run.feed.image_shape[:2]
    rows = []
    for c, channel in enumerate(wanted):
        pixels = np.stack([job.source.example(int(i))["image"] for i in best.index[c]])
        images = job.run.feed.prepare_evaluation({"image": pixels})["image"]
        where = list(zip(best.row[c].tolist(), best.column[c].tolist(), strict=True))
        boxes = [
            (0, 0, height, width) if field is None or min(field.size) >= max(height, width) else field.box(*place)
            for place in where
        ]
        shown = [patches.crop(pixels, boxes)]
        for rule in ("deconvnet", "guided"):
            found = patches.projections(
                job.model,
                job.variables,
                images,
                endpoint=name,
                channels=np.full(k, channel),
                rows=best.row[c],
                columns=best.column[c],
                rule=rule,
            )
            shown.append(patches.crop(np.stack([overlays.around_gray(one) for one in np.asarray(found)]), boxes))
        side = int(np.ceil(np.sqrt(k)))
        rows.append(
            (
                f"channel {channel}\n{best.values[c, 0]:.2f} … {best.values[c, -1]:.2f}",
                [overlays.montage(list(some), side) for some in shown],
            )
        )
    return name, rows


def batches(job: Job) -> Any:
    """The images of the split as the network gets them, with their places in it and a mask."""
    start = 0
    for batch in job.run.feed.batches(job.source):
        count = len(batch["mask"])
        yield (
            job.run.feed.prepare_evaluation({"image": batch["image"]})["image"],
            np.arange(start, start + count, dtype=np.int32),
            batch["mask"],
        )
        start += count


def numbers_of(text: str, count: int) -> tuple[int, ...]:
    """Channels of "3", "0-7", "0-3 9"."""
    found = []
    for part in text.replace(",", " ").split():
        low, _, high = part.partition("-")
        if not low.isdecimal() or not (high or low).isdecimal() or not int(low) <= int(high or low) < count:
            raise ValueError(f"channels='{text}': want numbers or ranges of 0 to {count - 1}, as '0-7' or '3 9'")
        found += range(int(low), int(high or low) + 1)
    if not found:
        raise ValueError(f"channels='{text}' names none of 0 to {count - 1}")
    return tuple(dict.fromkeys(found))


PICTURES: Mapping[str, Callable] = {
    "occlusion": occlusion,
    "receptive_field": receptive_field,
    "top_patches": top_patches,
}


def table(rows: Sequence[Mapping[str, Any]]) -> rich.table.Table:
    """What the network says of each image, for the terminal."""
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


def main() -> None:
    """Loads the run, explains, writes, prints."""
    if not WORKDIR.value:
        raise UserError("--workdir is missing, e.g. --workdir=runs/x")
    from models.explain import catalogue

    wanted = spec.parse("method", METHOD.value)
    known = (*catalogue.METHODS, *PICTURES)
    if not wanted:
        raise UserError(f"--method is empty; allowed: {', '.join(known)}")
    for call in wanted:
        if call.name not in known:
            raise choice_error("method", call.name, known)
    if IMAGE.value and INDICES.value:
        raise UserError("--image and --indices: want one of them")
    wrong = INDICES.value == ["mistakes"]
    try:
        indices = [] if wrong else [int(text) for text in INDICES.value or ["0"]]
    except ValueError:
        raise UserError(f"--indices={','.join(INDICES.value)}: want numbers, e.g. 0,5,9, or mistakes") from None
    own = [call.name for call in wanted if call.name in PICTURES]
    if len(set(own)) < len(own):
        raise UserError(f"--method={METHOD.value}: {', '.join(PICTURES)} have a picture each: name them once")
    out = Path(OUT.value or f"{WORKDIR.value}/explain")

    import jax

    from train import restore, summary
    from train.data.image_feed import as_images
    from train.files import write_json

    run, state = restore.load_network(WORKDIR.value, CHECKPOINT.value)
    as_images(run.feed, f"explain is for networks that take images, not {run.feed.unit}")
    if run.feed.label_shape:
        raise UserError("explain is for sets of one class an image")
    if run.feed.image_shape[2] not in (1, 3):
        raise UserError(f"explain draws images of 1 or 3 channels, not {run.feed.image_shape[2]}")
    variables = jax.device_put(state.evaluation_variables())
    if wrong:
        indices = mistakes(run, variables, run.feed.split(SPLIT.value))
    subjects = (
        from_files(run, IMAGE.value) if IMAGE.value else from_split(run.feed.split(SPLIT.value), SPLIT.value, indices)
    )
    pairs = targets(TARGET.value, subjects, run.feed.classes)
    images = run.feed.prepare_evaluation({"image": np.stack([subject.pixels for subject in subjects])})["image"]
    job = Job(run, variables, subjects, images, SPLIT.value, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out}: {error.strerror}: want a folder") from None
    console, told, written = command.console(), [], []
    decisions = [call for call in wanted if call.name in catalogue.METHODS]
    if decisions:
        told = attributions(job, decisions, pairs)
        written.append("attributions.png")
        console.print(table(told))
    for call in wanted:
        if call.name in PICTURES:
            spec.resolve("method", call, PICTURES, job, pairs)
            written.append(f"{call.name}.png")
    write_json(
        out / "explain.json",
        {
            "workdir": WORKDIR.value,
            "model": run.config["model"]["name"],
            "methods": METHOD.value,
            "images": told,
            "pictures": written,
            **summary.environment(jax.devices()),
        },
    )
    console.print(f"written to {out}: {', '.join(written)}, explain.json", soft_wrap=True, highlight=False)


if __name__ == "__main__":  # only here: absl has one table of flags for the process, and tests import this module
    WORKDIR = command.define_path("workdir", None, "Folder of the run.")
    CHECKPOINT = flags.DEFINE_string("checkpoint", "last", "Of the run: last, or best (on its test set).")
    IMAGE = command.define_paths("image", [], "Files of images, with commas between.")
    SPLIT = flags.DEFINE_string("split", "test", "Split of the run's data, for --indices and top_patches.")
    INDICES = flags.DEFINE_list(
        "indices",
        [],
        "Which images of the split, or mistakes: the 8 that the network is most confidently wrong about; default 0.",
    )
    METHOD = flags.DEFINE_string("method", "grad_cam", "Methods, see above.")
    TARGET = flags.DEFINE_string("target", "top1", "Classes that are explained, see above.")
    OUT = command.define_path("out", "", "Folder for the pictures; default: explain in that of the run.")
    cli.run(main, USAGE)
