"""Measures of the study of explanations on trained networks: functions (run, state) -> JSON values.

Methods that do not apply to a network are left out: CAM unless it ends in the mean of a map, rollout without attention.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.studies.measures import png

if TYPE_CHECKING:  # measures import training code only when they run
    from train.run import Run
    from train.state import TrainState


METHODS = (
    "cam",
    "grad_cam",
    "grad_cam_plus_plus",
    "attention_rollout",
    "saliency",
    "smooth_grad",
    "integrated_gradients",
    "guided_backprop",
    "deconvnet",
    "guided_grad_cam",
)
SOME_HAVE = ("cam", "attention_rollout")  # methods that apply to some networks only
OPTIONS = {"smooth_grad": {"samples": 8}, "integrated_gradients": {"steps": 16}}
IMAGES = 96  # images of the test set
MANY = {48: 500}  # the same for the pointing game and localization, by the side of a canvas, where there are more
BATCH = 100  # images that are explained at once
FEW = 48  # images for slow measures, which sweep over each image or explain once per layer
STEPS = 16  # steps of deletion and insertion
BLUR = 1 / 8  # blur where insertion starts, as a fraction of the side; through the paper's blur, digits are legible
THRESHOLDS = np.linspace(0.05, 0.8, 16)  # thresholds of boxes
SMOOTH = 1 / 16  # standard deviation, as a fraction of the side, of the blur of pixel-wise heat before a box is drawn


class Examples(NamedTuple):
    """Canvases and their objects.

    Attributes:
      pixels: uint8 [N, H, W, C].
      images: The canvases as inputs of the network.
      objects: For each canvas, its objects (label, box), the labeled one first.
    """

    pixels: np.ndarray
    images: Any
    objects: list[list[Any]]

    def labels(self, which: int = 0) -> np.ndarray:
        return np.array([things[which].label for things in self.objects], np.int32)

    def boxes(self, which: int = 0) -> list[tuple[int, int, int, int]]:
        return [tuple(things[which].box) for things in self.objects]


def examples(run: "Run", split: str, count: int, objects: int = 1) -> Examples:
    """Returns the first canvases of a split, composed like the run's test set, but with `objects` objects each."""
    from train.data import load

    data = run.config["data"]
    select = data["select_test"] if objects == 1 else data["select_test"].replace(")", f", objects={objects})")
    placed: Any = load.load_test(data, test_split=data[f"{split}_split"], select_test=select)
    count = min(count, len(placed))
    pixels = placed.read(np.arange(count))["image"]
    images = run.feed.prepare_evaluation({"image": pixels})["image"]
    return Examples(pixels, images, [placed.objects(i) for i in range(count)])


def attributions(
    run: "Run", variables: Any, images: Any, target: Any, methods: Sequence[str] = ()
) -> Iterator[tuple[str, Any]]:
    """Yields pairs (method, `Explanation`) for those `methods` (METHODS if empty) that apply to the network."""
    from models.errors import UserError
    from models.explain import catalogue

    for name in methods or METHODS:
        try:
            yield name, catalogue.METHODS[name](run.task.model, variables, images, target, **OPTIONS.get(name, {}))
        except UserError:
            if name not in SOME_HAVE:
                raise


def explained(
    run: "Run", variables: Any, images: Any, target: Any, methods: Sequence[str] = ()
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields pairs (method, heat [N, H, W]), in the order of `attributions`."""
    from models.explain import catalogue

    for method in methods or METHODS:
        heats = [
            np.asarray(catalogue.heat(explanation.values, images.shape[1:3]))
            for i in range(0, len(images), BATCH)
            for _, explanation in attributions(run, variables, images[i : i + BATCH], target[i : i + BATCH], (method,))
        ]
        if heats:
            yield method, np.concatenate(heats)


def _many(run: "Run") -> int:
    """Returns the number of test images for the pointing game and localization."""
    return MANY.get(run.images.image_shape[0], IMAGES)


def localization(run: "Run", state: "TrainState") -> dict[str, Any]:
    """Measures where the maps that explain the labels of test images have their maximum.

    Returns:
      "right": fraction of images that are classified correctly; "chance": the object's area; "middle": fraction of
      objects that cover the middle; and by method {"pointing": fraction of maps with their maximum on the object,
      "threshold": the one with the best boxes on training images, "localized": fraction of boxes with IoU 0.5, "error":
      fraction that is not localized or not classified correctly, "error_at_0.2": the same with Zhou 2016's threshold}.
    """
    import jax
    from scipy import ndimage

    from models.explain import catalogue, faithful

    variables = jax.device_put(state.evaluation_variables())
    test, train = (examples(run, split, _many(run)) for split in ("test", "train"))
    logits = np.asarray(jax.jit(run.task.model.apply)(variables, test.images))
    right = logits.argmax(1) == test.labels()

    def smooth(name, heat):
        if name in catalogue.MAPS:
            return heat
        return np.stack([ndimage.gaussian_filter(one, SMOOTH * heat.shape[1]) for one in heat])

    scores: dict[str, Any] = {"right": float(right.mean())}
    fitted = dict(explained(run, variables, train.images, train.labels()))
    for name, heat in explained(run, variables, test.images, test.labels()):
        on_train = smooth(name, fitted[name])
        shares = [faithful.localized(on_train, train.boxes(), t).mean() for t in THRESHOLDS]
        best = float(THRESHOLDS[int(np.argmax(shares))])
        heat = smooth(name, heat)
        there = faithful.localized(heat, test.boxes(), best)
        scores[name] = {
            "pointing": float(faithful.pointing(heat, test.boxes()).mean()),
            "threshold": best,
            "localized": float(there.mean()),
            "error": float(1 - (there & right).mean()),
            "error_at_0.2": float(1 - (faithful.localized(heat, test.boxes(), 0.2) & right).mean()),
        }
    area = np.array([(b - t) * (r - left) for t, left, b, r in test.boxes()])
    scores["chance"] = float((area / np.prod(test.images.shape[1:3])).mean())
    scores["middle"] = at_middle(test)
    return scores


def at_middle(some: Examples, which: int = 0) -> float:
    """Returns how often the middle of the canvas is on the object: the score of pointing there (Zhang 2016)."""
    from models.explain import faithful

    count, height, width = some.images.shape[:3]
    peak = np.zeros((count, height, width))
    peak[:, height // 2, width // 2] = 1
    return float(faithful.pointing(peak, some.boxes(which)).mean())


def mean_of_varied(correlations: np.ndarray) -> float:
    """Returns the mean over images whose maps are not constant; 0 if all are.

    A map of zeros says nothing about the other map.
    """
    good = correlations[np.isfinite(correlations)]
    return float(good.mean()) if good.size else 0.0


def two_objects(run: "Run", state: "TrainState") -> dict[str, Any]:
    """Measures the pointing game on images with two objects of different classes.

    Returns:
      By method the fraction of pairs (image, object) in which the maximum of the map for the object's class is on that
      object; "middle": the fraction in which the middle of the image is on it.
    """
    import jax

    from models.explain import faithful

    variables, both = jax.device_put(state.evaluation_variables()), examples(run, "test", _many(run), objects=2)
    shares: dict[str, list[float]] = {}
    for which in (0, 1):
        for name, heat in explained(run, variables, both.images, both.labels(which)):
            shares.setdefault(name, []).append(float(faithful.pointing(heat, both.boxes(which)).mean()))
        shares.setdefault("middle", []).append(at_middle(both, which))
    return {name: float(np.mean(values)) for name, values in shares.items()}


def faithfulness(run: "Run", state: "TrainState") -> dict[str, Any]:
    """Measures deletion, insertion and occlusion on test images, for the most probable class.

    Returns:
      By method {"deletion", "insertion": area under the curve, "deletion_curve", "insertion_curve", "occlusion": rank
      correlation with the logit that a square costs, over its positions}. The method "random" orders pixels at random,
      and "occlusion" by the mean cost of the squares that cover them.
    """
    import jax

    from models.explain import faithful
    from models.explain.occlusion import occlusion

    model, variables = run.task.model, jax.device_put(state.evaluation_variables())
    test = examples(run, "test", FEW)
    height, width = test.images.shape[1:3]
    square = height // 4
    swept = occlusion(model, variables, test.images, size=square, stride=square // 2)
    cost = np.take_along_axis(np.asarray(swept.logits), np.asarray(swept.target)[:, None], 1)[:, :, None] - np.asarray(
        swept.score
    )  # [N, R, S]
    rows, columns = np.asarray(swept.rows), np.asarray(swept.columns)

    def in_squares(heat):
        return np.stack(
            [[heat[:, r : r + square, c : c + square].mean((1, 2)) for c in columns] for r in rows]
        ).transpose(2, 0, 1)

    def spread(values):  # gives each pixel the mean value of the squares that cover it
        total, times = np.zeros((len(values), height, width)), np.zeros((height, width))
        for i, r in enumerate(rows):
            for j, c in enumerate(columns):
                total[:, r : r + square, c : c + square] += values[:, i, j, None, None]
                times[r : r + square, c : c + square] += 1
        return total / times

    target = np.asarray(swept.target)
    heats = {
        **dict(explained(run, variables, test.images, target)),
        "occlusion": spread(cost),
        "random": np.random.default_rng(0).random((len(target), height, width)),
    }
    scores = {}
    for name, heat in heats.items():
        deleted = faithful.deletion(model, variables, test.images, heat, target, steps=STEPS)
        inserted = faithful.insertion(model, variables, test.images, heat, target, steps=STEPS, blur=BLUR)
        scores[name] = {
            "deletion": float(deleted.area.mean()),
            "insertion": float(inserted.area.mean()),
            "deletion_curve": np.asarray(deleted.probability).mean(0).tolist(),
            "insertion_curve": np.asarray(inserted.probability).mean(0).tolist(),
            "occlusion": mean_of_varied(faithful.rank_correlation(in_squares(heat), cost)),
        }
    return scores


def sanity(run: "Run", state: "TrainState") -> dict[str, Any]:
    """Measures how similar the maps stay as layers are reinitialized, from the logits down.

    Returns:
      "layers", and by method a list: after each layer, the rank correlation with the trained network's map, mean over
      images.
    """
    import jax

    from models.explain import faithful

    trained, test = state.evaluation_variables(), examples(run, "test", FEW)
    methods = [name for name in METHODS if name != "smooth_grad"]
    whole = dict(explained(run, jax.device_put(trained), test.images, test.labels(), methods))
    correlations: dict[str, Any] = {"layers": [], **{name: [] for name in whole}}
    for layer, variables in faithful.randomized(run.task.model, trained, run.feed.inputs, seed=1):
        correlations["layers"].append(layer)
        for name, heat in explained(run, jax.device_put(variables), test.images, test.labels(), list(whole)):
            correlations[name].append(mean_of_varied(faithful.rank_correlation(whole[name], heat)))
    return correlations


def effective(run: "Run", state: "TrainState") -> dict[str, Any]:
    """Measures the effective receptive field of the middle unit in the last map whose units see at most a canvas.

    Returns:
      {"theoretical": size, or None if it is the whole image, "endpoint", "box", "before" and "after" training: {"size",
      "map": PNG}}.
    """
    import jax

    from models.explain import method, receptive

    model, test = run.task.model, examples(run, "test", IMAGES)
    outline = method.outline(model, state.evaluation_variables(), test.images)
    fields, name = receptive.fields(model, run.feed.inputs), method.map_endpoint(outline)
    if fields[name]:
        name = [one for one, field in fields.items() if field and max(field.size) <= min(test.images.shape[1:3])][-1]
    grid = method.grid(outline.endpoints[name]) or (1, 1, 0)  # the endpoint is a map, so it has a grid
    field, (height, width, _) = fields[name], grid
    result: dict[str, Any] = {
        "theoretical": None if field is None else list(field.size),
        "endpoint": name,
        "box": None if field is None else list(field.box(height // 2, width // 2)),
    }
    for when, one in (("before", run.state), ("after", state)):
        values = np.asarray(
            receptive.effective(model, jax.device_put(one.evaluation_variables()), test.images, endpoint=name)
        )
        result[when] = {"size": receptive.effective_size(values), "map": png(values / values.max())}
    return result


def gallery(run: "Run", state: "TrainState") -> list[dict[str, Any]]:
    """Returns the rows of the gallery: an image with one object, and one with two that is explained for each class.

    With CIFAR's classes, the second image shows a cat and a dog.

    Returns:
      [{"image": PNG, "says", "boxes", "class", "panels": {method: PNG}}].
    """
    import jax

    from experiments.explain.overlays import around_gray, share_of_largest
    from models.explain import catalogue

    variables, classes = jax.device_put(state.evaluation_variables()), run.feed.classes
    one, two = examples(run, "test", FEW), examples(run, "test", 2000 if "cat" in classes else FEW, objects=2)
    labels = {classes.index("cat"), classes.index("dog")} if "cat" in classes else None
    pair = next(i for i, things in enumerate(two.objects) if labels in (None, {thing.label for thing in things}))
    rows = []
    for some, i, which in ((one, 1, 0), (two, pair, 0), (two, pair, 1)):
        thing, image = some.objects[i][which], some.images[i : i + 1]
        panels, logits = {}, np.zeros(0)
        for name, values in attributions(run, variables, image, np.array([thing.label], np.int32)):
            logits = values.logits
            heat = np.asarray(catalogue.heat(values.values, image.shape[1:3])[0])
            panels[name] = png(
                around_gray(np.asarray(values.values[0]))
                if name in catalogue.SIGNED
                else share_of_largest(heat, 1.0 if name in catalogue.MAPS else 0.995)
            )
        probability = np.asarray(jax.nn.softmax(logits))[0]
        top = int(probability.argmax())
        says = f"{classes[thing.label]}: {probability[thing.label]:.0%}"
        says += "" if top == thing.label else f"\ntop {classes[top]} {probability[top]:.0%}"
        rows.append(
            {
                "image": png(some.pixels[i]),
                "says": says,
                "boxes": [list(map(int, thing.box))],
                "class": classes[thing.label],
                "panels": panels,
            }
        )
    return rows
