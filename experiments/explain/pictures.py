"""Methods that explain decisions and units, each with its picture."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.explain.subjects import Job, Subject, batches
from models.errors import UserError
from models.explain.names import TITLES
from train.setup import spec

MEANS = {"counterfactual": "evidence against", "attention_rollout": "attention"}  # colors of a method's panels


def drawn(subject: Subject) -> Any:
    """Returns the picture to draw below and beside explanations of a subject: the whole picture if it has one."""
    from experiments.explain import overlays

    if subject.view is None:
        return subject.pixels
    return overlays.placed(subject.view.picture, subject.view.box, subject.pixels.shape[:2])


def attributions(job: Job, calls: Sequence[spec.Call], pairs: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Draws attributions.png, one row per image and class, one column per method.

    Returns:
      A record per row: {"image", "label", "target", "probability", "top1", "top1_probability"}.
    """
    import jax

    from experiments.explain import overlays
    from models.analysis import drawing
    from models.explain import catalogue

    numbers = [number for number, _ in pairs]
    images, target = job.images[np.array(numbers)], np.array([kind for _, kind in pairs], np.int32)
    columns, explanations, size = [], [], job.run.config["eval_batch_size"]
    for call in calls:
        parts = [
            spec.resolve(
                "method", call, catalogue.METHODS, job.model, job.variables, images[i : i + size], target[i : i + size]
            )
            for i in range(0, len(images), size)
        ]
        explanations.append(jax.tree.map(lambda *some: np.concatenate(some), *parts))
        columns.append(TITLES[call.name] + "".join(f"\n{name}={value}" for name, value in call.kwargs.items()))
    probabilities = np.asarray(jax.nn.softmax(explanations[0].logits))
    target, rows, records = np.asarray(explanations[0].target), [], []
    for i, number in enumerate(numbers):
        subject, row = job.subjects[number], probabilities[i]
        caption = caption_of(job.classes, subject.label, target[i], row)
        panels = [
            panel_of(call.name, one.values[i], images.shape[1:3]) for call, one in zip(calls, explanations, strict=True)
        ]
        rows.append(overlays.Row(drawn(subject), subject.name, caption, panels))
        records.append(
            {
                "image": subject.name,
                "label": None if subject.label is None else job.classes[subject.label],
                "target": job.classes[target[i]],
                "probability": float(row[target[i]]),
                "top1": job.classes[row.argmax()],
                "top1_probability": float(row.max()),
            }
        )
    with drawing.figure(job.out / "attributions.png", overlays.size_of(rows, len(columns))) as figure:
        overlays.draw_rows(figure, columns, rows)
    return records


def caption_of(classes: Sequence[str], label: int | None, target: int, probabilities: Any) -> str:
    """Returns lines below an image: its true class, the network's answer, and the explained class."""
    from train.plots.figures import percent

    top = int(probabilities.argmax())
    said = f"predicted {classes[top]} ({percent(probabilities[top])})"
    true = (
        "" if label is None else f"true {classes[label]}, " if len(classes[label]) < 4 else f"true {classes[label]}\n"
    )
    other = "" if top == target else f"\nexplained: {classes[target]} ({percent(probabilities[target])})"
    return f"{true}{said}{other}"


def panel_of(name: str, values: Any, size: tuple[int, int]) -> Any:
    """Returns the panel for a method's values on one image, [h, w] or [H, W, C]."""
    from experiments.explain import overlays
    from models.explain import catalogue

    if name in catalogue.SIGNED:
        return overlays.Panel(np.asarray(values), signed=True)
    return overlays.Panel(
        np.asarray(catalogue.heat(values[None], size)[0]), over=name in catalogue.MAPS, means=MEANS.get(name, "")
    )


def occlusion(
    job: Job, pairs: Sequence[tuple[int, int]], size: int = 0, stride: int = 0, color: float = 0.5, endpoint: str = ""
) -> None:
    """Draws occlusion.png; see the command's help."""
    from experiments.explain import maps
    from models.analysis import drawing
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
    occluded = method.occlusion(
        job.model,
        job.variables,
        job.images[numbers],
        np.array([kind for _, kind in pairs], np.int32),
        size=size,
        stride=stride,
        color=tuple(map(float, painted)),
        endpoint=endpoint or None,
    )
    images = [drawn(job.subjects[n]) for n in numbers]
    with drawing.figure(job.out / "occlusion.png", maps.occlusion_size(images)) as figure:
        maps.draw_occlusion(
            figure,
            images,
            {k: np.asarray(v) for k, v in occluded._asdict().items()},
            (size, size),
            job.classes,
            [job.subjects[n].name for n in numbers],
            np.full(channels, float(color)),
        )


def receptive_field(
    job: Job, pairs: Sequence[tuple[int, int]], endpoint: str = "", channel: int = -1, row: int = -1, column: int = -1
) -> None:
    """Draws receptive_field.png; see the command's help.

    The mean is over the first 64 images of the split, or over the files of --image.
    """
    from experiments.explain import maps
    from models.analysis import drawing
    from models.explain import method, receptive

    for option, value in (("channel", channel), ("row", row), ("column", column)):
        if value < -1:
            raise ValueError(f"{option}={value} must be at least 0, or -1 for the default")
    images = job.images
    outline = method.outline(job.model, job.variables, images)
    name = method.map_endpoint(outline, endpoint or None)
    height, width, _ = method.grid(outline.shape(name)) or (1, 1, 0)  # the endpoint is a map, so it has a grid
    place = (height // 2 if row < 0 else row, width // 2 if column < 0 else column)
    options = {"endpoint": name, "channel": None if channel < 0 else channel, "place": place}
    field = receptive.theoretical(job.model, job.run.feed.inputs, name)
    numbers = list(dict.fromkeys(number for number, _ in pairs))[:4]
    fields = [receptive.effective(job.model, job.variables, images[n : n + 1], **options) for n in numbers]
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
    says += f"\nthe effective size is {receptive.effective_size(mean):.1f} pixels (mean of {len(many)} images)"
    pixels = [drawn(job.subjects[n]) for n in numbers]
    with drawing.figure(job.out / "receptive_field.png", maps.receptive_size(pixels)) as figure:
        maps.draw_receptive(
            figure,
            pixels,
            [job.subjects[n].name for n in numbers],
            None if field is None else field.clipped(*place, images.shape[1:3]),
            fields,
            mean,
            says,
        )


def top_patches(
    job: Job, pairs: Sequence[tuple[int, int]], endpoint: str = "", channels: str = "0-7", k: int = 9
) -> None:
    """Draws top_patches.png: one row per channel with its patches and their projections; see the command's help."""
    from experiments.explain import maps
    from models.analysis import drawing

    name, rows = patches_of(job, endpoint, channels, k)
    columns = (f"images that activate {name} most", TITLES["deconvnet"], TITLES["guided_backprop"])
    with drawing.figure(job.out / "top_patches.png", (9.5, 3.1 * len(rows) + 0.4)) as figure:
        maps.draw_patches(figure, columns, rows)


def patches_of(job: Job, endpoint: str, channels: str, k: int) -> tuple[str, list[tuple[str, list[np.ndarray]]]]:
    """Returns the endpoint, and for each channel its name and montages of its k patches and their two projections."""
    import jax

    from experiments.explain import maps, overlays
    from models.explain import method, patches, receptive

    outline = method.outline(job.model, job.variables, job.images[:1])
    name = method.map_endpoint(outline, endpoint or None)
    numbers = numbers_of(channels, outline.shape(name)[-1])
    if not 0 < k <= len(job.source):
        raise ValueError(f"k={k} must be 1 to {len(job.source)}, the images of the split")
    best = patches.top_patches(job.model, job.variables, batches(job), endpoint=name, channels=numbers, k=k)
    best = type(best)(*map(jax.device_get, best))
    if (best.index < 0).any():
        raise UserError(f"endpoint={name}: its values are finite for fewer than k={k} images of the split")
    field = receptive.theoretical(job.model, job.run.feed.inputs, name)
    height, width = job.run.images.image_shape[:2]
    rows = []
    for c, channel in enumerate(numbers):
        pixels = np.stack([job.source.example(int(i))["image"] for i in best.index[c]])
        images = job.run.feed.prepare_evaluation({"image": pixels})["image"]
        where = list(zip(best.row[c].tolist(), best.column[c].tolist(), strict=True))
        boxes = [
            (0, 0, height, width) if field is None or min(field.size) >= max(height, width) else field.box(*place)
            for place in where
        ]
        tiles = [patches.crop(pixels, boxes)]
        for rule in ("deconvnet", "guided"):
            projections = patches.projections(
                job.model,
                job.variables,
                images,
                endpoint=name,
                channels=np.full(k, channel),
                rows=best.row[c],
                columns=best.column[c],
                rule=rule,
            )
            tiles.append(patches.crop(np.stack([overlays.around_gray(one) for one in np.asarray(projections)]), boxes))
        side = int(np.ceil(np.sqrt(k)))
        rows.append(
            (
                f"channel {channel}\nactivation {best.values[c, 0]:.3g} to {best.values[c, -1]:.3g}",
                [maps.montage(list(some), side) for some in tiles],
            )
        )
    return name, rows


def numbers_of(text: str, count: int) -> tuple[int, ...]:
    """Parses channels such as "3", "0-7", "0-3 9"."""
    numbers = []
    for part in text.replace(",", " ").split():
        low, _, high = part.partition("-")
        if not low.isdecimal() or not (high or low).isdecimal() or not int(low) <= int(high or low) < count:
            raise ValueError(
                f"channels='{text}': must be numbers or ranges between 0 and {count - 1}, e.g. '0-7' or '3 9'"
            )
        numbers += range(int(low), int(high or low) + 1)
    if not numbers:
        raise ValueError(f"channels='{text}' names no channel; allowed: 0 to {count - 1}")
    return tuple(dict.fromkeys(numbers))


PICTURES: Mapping[str, Callable] = {
    "occlusion": occlusion,
    "receptive_field": receptive_field,
    "top_patches": top_patches,
}
