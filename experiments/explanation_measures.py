"""What the study of explanations measures on trained networks: functions (run, state) -> what JSON can hold.

Methods that a network has not (CAM of networks that end otherwise, rollout without attention) are left out.
"""

import functools
import types
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.measures import png

METHODS = ("cam", "grad_cam", "grad_cam_plus_plus", "attention_rollout", "saliency", "smooth_grad",
           "integrated_gradients", "guided_backprop", "deconvnet", "guided_grad_cam")
OPTIONS = {"smooth_grad": {"samples": 8}, "integrated_gradients": {"steps": 16}}
IMAGES = 96  # of the test set
FEW = 48  # for what costs a sweep an image, or a method a layer
STEPS = 16  # of deletion and insertion
THRESHOLDS = np.linspace(0.05, 0.8, 16)  # of boxes
SMOOTH = 1 / 16  # of the side: the deviation by which heat of single pixels is smoothed before a box is drawn around it


class Examples(NamedTuple):
    """pixels uint8 [N, H, W, C]; images as the network gets them; of each its objects, (label, box) first."""

    pixels: np.ndarray
    images: Any
    objects: list[list[Any]]

    def labels(self, which: int = 0) -> np.ndarray:
        return np.array([things[which].label for things in self.objects], np.int32)

    def boxes(self, which: int = 0) -> np.ndarray:
        return np.array([things[which].box for things in self.objects])


def examples(run: Any, split: str, count: int, objects: int = 1) -> Examples:
    """The first canvases of a split, made as the run's test set with that many objects."""
    from train.data import source

    data = run.config["data"]
    select = data["select_test"] if objects == 1 else data["select_test"].replace(")", f", objects={objects})")
    placed = source.load(types.SimpleNamespace(**{**data, "test_split": data[f"{split}_split"], "select_test": select}),
                         "test")
    count = min(count, len(placed))
    pixels = placed.read(np.arange(count))["image"]
    images = run.feed.prepare_evaluation({"image": pixels})["image"]
    return Examples(pixels, images, [placed.objects(i) for i in range(count)])


def explained(run: Any, variables: Any, images: Any, target: Any, methods: Sequence[str] = ()
              ) -> Iterator[tuple[str, np.ndarray]]:
    """Pairs (method, heat [N, H, W]) of the methods, () for METHODS, that the network has."""
    from models.errors import UserError
    from models.explain import catalogue

    for name in methods or METHODS:
        try:
            heat, _ = catalogue.explain(name, run.task.model, variables, images, target, **OPTIONS.get(name, {}))
        except UserError:
            continue
        yield name, np.asarray(heat)


def localization(run: Any, state: Any) -> dict[str, Any]:
    """Of test images, for their labels: {"right": share that is classified right, method: {"pointing": share whose
    highest place is on the object, "threshold": that of the best boxes on training images, "localized": share with IoU
    0.5, "error": share that is not localized or not classified right, "error_at_0.2": with the threshold of Zhou 2016}}
    """
    import jax
    from scipy import ndimage

    from models.explain import catalogue, faithful

    variables = jax.device_put(state.evaluation_variables())
    test, train = examples(run, "test", IMAGES), examples(run, "train", IMAGES)
    logits = np.asarray(jax.jit(run.task.model.apply)(variables, test.images))
    right = logits.argmax(1) == test.labels()

    def smooth(name, heat):
        if name in catalogue.MAPS:
            return heat
        return np.stack([ndimage.gaussian_filter(one, SMOOTH * heat.shape[1]) for one in heat])

    found: dict[str, Any] = {"right": float(right.mean())}
    fitted = dict(explained(run, variables, train.images, train.labels()))
    for name, heat in explained(run, variables, test.images, test.labels()):
        on_train = smooth(name, fitted[name])
        shares = [faithful.localized(on_train, train.boxes(), t).mean() for t in THRESHOLDS]
        best = float(THRESHOLDS[int(np.argmax(shares))])
        heat = smooth(name, heat)
        there = faithful.localized(heat, test.boxes(), best)
        found[name] = {
            "pointing": float(faithful.pointing(heat, test.boxes()).mean()), "threshold": best,
            "localized": float(there.mean()), "error": float(1 - (there & right).mean()),
            "error_at_0.2": float(1 - (faithful.localized(heat, test.boxes(), 0.2) & right).mean())}
    area = np.array([(b - t) * (r - left) for t, left, b, r in test.boxes()])
    found["chance"] = float((area / np.prod(test.images.shape[1:3])).mean())
    return found


def two_objects(run: Any, state: Any) -> dict[str, Any]:
    """Of images with two objects of different classes: {method: share of (image, object) in which the highest place is
    on the object whose class is asked for}."""
    import jax

    from models.explain import faithful

    variables, both = jax.device_put(state.evaluation_variables()), examples(run, "test", IMAGES, objects=2)
    found: dict[str, list[float]] = {}
    for which in (0, 1):
        for name, heat in explained(run, variables, both.images, both.labels(which)):
            found.setdefault(name, []).append(float(faithful.pointing(heat, both.boxes(which)).mean()))
    return {name: float(np.mean(shares)) for name, shares in found.items()}


def faithfulness(run: Any, state: Any) -> dict[str, Any]:
    """Of test images, for the most probable class: {method: {"deletion", "insertion": area under the curve,
    "deletion_curve", "insertion_curve", "occlusion": rank correlation with what squares cost, over their positions}};
    "random": pixels in random order; "occlusion": in that of what squares over them cost."""
    import jax

    from models.explain import faithful
    from models.explain.occlusion import occlusion

    model, variables = run.task.model, jax.device_put(state.evaluation_variables())
    test = examples(run, "test", FEW)
    height, width = test.images.shape[1:3]
    square = height // 4
    swept = occlusion(model, variables, test.images, size=square, stride=square // 2)
    cost = np.take_along_axis(np.asarray(swept.logits), np.asarray(swept.target)[:, None], 1)[:, :, None] - np.asarray(
        swept.score)  # [N, R, S]
    rows, columns = np.asarray(swept.rows), np.asarray(swept.columns)

    def in_squares(heat):
        return np.stack([[heat[:, r:r + square, c:c + square].mean((1, 2)) for c in columns] for r in rows]
                        ).transpose(2, 0, 1)

    def spread(values):  # over the pixels of its squares
        total, times = np.zeros((len(values), height, width)), np.zeros((height, width))
        for i, r in enumerate(rows):
            for j, c in enumerate(columns):
                total[:, r:r + square, c:c + square] += values[:, i, j, None, None]
                times[r:r + square, c:c + square] += 1
        return total / times

    target = np.asarray(swept.target)
    heats = {**dict(explained(run, variables, test.images, target)), "occlusion": spread(cost),
             "random": np.random.default_rng(0).random((len(target), height, width))}
    found = {}
    for name, heat in heats.items():
        deleted = faithful.deletion(model, variables, test.images, heat, target, steps=STEPS)
        inserted = faithful.insertion(model, variables, test.images, heat, target, steps=STEPS)
        found[name] = {
            "deletion": float(deleted.area.mean()), "insertion": float(inserted.area.mean()),
            "deletion_curve": np.asarray(deleted.probability).mean(0).tolist(),
            "insertion_curve": np.asarray(inserted.probability).mean(0).tolist(),
            "occlusion": float(faithful.rank_correlation(in_squares(heat), cost).mean())}
    return found


def sanity(run: Any, state: Any) -> dict[str, Any]:
    """{"layers": from the logits down, method: rank correlation of the map with that of the trained network as all
    layers down to each are drawn anew, mean over images}."""
    import jax

    from models.explain import faithful

    trained, test = state.evaluation_variables(), examples(run, "test", FEW)
    explain = functools.partial(explained, run, images=test.images, target=test.labels(),
                                methods=[name for name in METHODS if name != "smooth_grad"])
    whole = dict(explain(jax.device_put(trained)))
    found: dict[str, Any] = {"layers": [], **{name: [] for name in whole}}
    for layer, variables in faithful.randomized(run.task.model, trained, run.feed.inputs, seed=1):
        found["layers"].append(layer)
        for name, heat in explain(jax.device_put(variables)):
            found[name].append(float(faithful.rank_correlation(whole[name], heat).mean()))
    return found


def effective(run: Any, state: Any) -> dict[str, Any]:
    """Of the middle unit of the last map: {"theoretical": size or None, "box", "before" and "after" training: {"size",
    "map": PNG}}."""
    import jax

    from models.explain import method, receptive

    model, test = run.task.model, examples(run, "test", IMAGES)
    name = method.map_endpoint(method.outline(model, state.evaluation_variables(), test.images))
    field = receptive.theoretical(model, run.feed.inputs, name)
    height, width, _ = method.grid(method.outline(model, state.evaluation_variables(), test.images).endpoints[name])
    found: dict[str, Any] = {"theoretical": None if field is None else list(field.size), "endpoint": name,
                             "box": None if field is None else list(field.box(height // 2, width // 2))}
    for when, one in (("before", run.state), ("after", state)):
        values = np.asarray(receptive.effective(model, jax.device_put(one.evaluation_variables()), test.images,
                                                endpoint=name))
        found[when] = {"size": receptive.effective_size(values), "map": png(values / values.max())}
    return found


def gallery(run: Any, state: Any) -> list[dict[str, Any]]:
    """Rows of the gallery: an image of one object, and one of two, for each of its classes: [{"image": PNG, "says",
    "boxes", "panels": {method: PNG}}]. With CIFAR's classes the second is a cat and a dog."""
    import jax

    from experiments.overlays import around_gray, share_of_largest
    from models.errors import UserError
    from models.explain import catalogue

    model, variables, classes = run.task.model, jax.device_put(state.evaluation_variables()), run.feed.classes
    one, two = examples(run, "test", FEW), examples(run, "test", 2000 if "cat" in classes else FEW, objects=2)
    wanted = {classes.index("cat"), classes.index("dog")} if "cat" in classes else None
    pair = next(i for i, things in enumerate(two.objects)
                if wanted in (None, {thing.label for thing in things}))
    rows = []
    for some, i, which in ((one, 1, 0), (two, pair, 0), (two, pair, 1)):
        thing, image = some.objects[i][which], some.images[i:i + 1]
        target, panels = np.array([thing.label], np.int32), {}
        for name in METHODS:
            try:
                values = catalogue.METHODS[name](model, variables, image, target, **OPTIONS.get(name, {}))
            except UserError:
                continue
            heat = np.asarray(catalogue.heat(values.values, image.shape[1:3])[0])
            picture = around_gray(np.asarray(values.values[0])) if values.values.ndim == 4 else share_of_largest(heat)
            panels[name] = png(picture)
        probability = np.asarray(jax.nn.softmax(values.logits))[0]
        top = int(probability.argmax())
        says = f"{classes[thing.label]}: {probability[thing.label]:.0%}"
        says += "" if top == thing.label else f"\ntop {classes[top]} {probability[top]:.0%}"
        rows.append({"image": png(some.pixels[i]), "says": says, "boxes": [list(map(int, thing.box))],
                     "class": classes[thing.label], "panels": panels})
    return rows

