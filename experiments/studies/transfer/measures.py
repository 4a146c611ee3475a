"""Measures of the study of transfer on a network before or after training: functions (run, state) -> JSON values."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # measures import training code only when they run
    from train.run import Run
    from train.state import TrainState


LABELS = {8: (2, 5, 20), 32: (10, 50, 250, 1000), 224: ()}  # image size -> numbers of labels per class, besides ALL
CLASSIFIERS = ("logistic", "svm", "knn")
HANDCRAFTED = ("hog", "sift_fv:16", "sift_bow")
# Image size -> number of training images per class from which handcrafted features learn, instead of all, and without
# the last kind, which no claim reads. With all 50,000 of CIFAR-10, they would take hours.
FEWER = {32: 1000}
PAINT = "paint('all')"
SEEDS = (0, 1, 2)
EMBEDDED = 1000  # number of test images in the picture of the embedding
ALL = "all"


def probe(run: "Run", state: "TrainState") -> dict[str, dict[str, Any]]:
    """Returns {labels per class: {classifier: result of `classifiers.evaluate`}}, on the features of the network."""
    from train.data.select import select
    from train.probing import classifiers, features

    test = features.extract(run, state.evaluation_variables(), "test")
    whole = features.extract(run, state.evaluation_variables(), "train")  # features of all images
    results = {}
    for count in _counts(run):
        part = (
            whole
            if count == ALL
            else features.of_source(
                run, state.evaluation_variables(), select(_base(run), _part(run, count, run.config["seed"]))
            )
        )
        results[str(count)] = {
            kind: classifiers.evaluate(kind, part, test, len(run.feed.classes), run.config["seed"])
            for kind in CLASSIFIERS
        }
    return results


def logistic(run: "Run", state: "TrainState") -> dict[str, Any]:
    """Measures logistic regression on the features of the run's training set.

    Returns:
      The result of `classifiers.described`, and for the same regression the accuracy on test images without the cue
      ("clean") and with it ("painted"), and the fraction of predictions that the cue changes ("changed").
    """
    from train.data.select import select
    from train.probing import classifiers, features

    train, test = (features.extract(run, state.evaluation_variables(), split) for split in ("train", "test"))
    painted = features.of_source(run, state.evaluation_variables(), select(run.images.test, PAINT))
    count = len(run.feed.classes)
    fitted = classifiers.fit("logistic", train, count, run.config["seed"])
    return {
        **classifiers.described(fitted, test, count),
        **_cue(fitted.score(test.x), fitted.score(painted.x), test.labels),
    }


def cue(run: "Run", state: "TrainState") -> dict[str, Any]:
    """Measures accuracy on test images with and without the cue, and the fraction of predictions that it changes."""
    from train import evaluate
    from train.data.select import select

    def scores(source):
        return evaluate.predictions(
            run.task.predict, state.evaluation_variables(), run.feed.prepare_evaluation, run.images.batches(source)
        )

    clean, labels, _ = scores(run.images.test)
    return _cue(clean, scores(select(run.images.test, PAINT))[0], labels)


def _cue(clean: np.ndarray, painted: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    before, after = clean.argmax(1), painted.argmax(1)
    return {
        "clean": float((before == labels).mean()),
        "painted": float((after == labels).mean()),
        "changed": float((before != after).mean()),
    }


def handcrafted(run: "Run", state: "TrainState") -> dict[str, dict[str, list[float]]]:
    """Returns {kind: {labels per class: accuracy by seed}} of a linear SVM on handcrafted features.

    The unsupervised part of the features, the visual words, is learned from the whole training set, or from FEWER
    images, which then also stand for ALL.
    """
    del state
    from experiments.studies.transfer.handcrafted import describe
    from train.probing import classifiers, features

    train, test = (getattr(run.feed, split).arrays() for split in ("train", "test"))
    readable = train["mask"] > 0
    test = {name: test[name][test["mask"] > 0] for name in ("image", "label")}
    place = {
        index: place for place, index in enumerate(getattr(run.images.train, "index", range(len(run.images.train))))
    }
    most = FEWER.get(run.images.image_shape[0], 0)
    counts = [count for count in _counts(run) if not most or count != ALL]
    chosen = np.array([place[i] for i in _selected(run, most, 0).index]) if most else np.arange(len(readable))
    place = {index: row for row, index in enumerate(np.array([*place])[chosen])}
    readable, labels = readable[chosen], train["label"][chosen]
    described = describe(HANDCRAFTED[:2] if most else HANDCRAFTED, train["image"][chosen], test["image"])
    accuracies = {}
    for kind, (x, x_test) in described.items():
        tested = features.Features(x_test, test["label"])
        accuracies[kind] = {}
        for count in counts:
            parts = (
                [np.arange(len(x))]
                if count in (ALL, most)
                else [np.array([place[i] for i in _selected(run, count, seed, most).index]) for seed in SEEDS]
            )
            accuracies[kind][str(count)] = [
                classifiers.headline(
                    classifiers.evaluate(
                        "svm",
                        features.Features(*(array[part[readable[part]]] for array in (x, labels))),
                        tested,
                        len(run.feed.classes),
                    )
                )
                for part in parts
            ]
    return accuracies


def embedding(run: "Run", state: "TrainState") -> dict[str, list]:
    """Returns features of test images in two dimensions, by t-SNE (van der Maaten & Hinton 2008): {"x", "labels"}."""
    from sklearn.manifold import TSNE

    from train.probing import features

    test = features.extract(run, state.evaluation_variables(), "test")
    index = np.random.default_rng(0).permutation(len(test.x))[:EMBEDDED]
    x = features.standardizer(test.x[index])(test.x[index])
    placed = TSNE(random_state=0, perplexity=min(30, len(index) / 4), init="pca").fit_transform(x)
    return {"x": placed.round(2).tolist(), "labels": test.labels[index].tolist(), "classes": list(run.feed.classes)}


def _counts(run: "Run") -> tuple[Any, ...]:
    """Returns the numbers of labels for which every class has enough images, and ALL."""
    if run.images.train.label_shape:
        return (ALL,)
    least = np.bincount(run.images.train.all_labels()).min()
    return (*(count for count in LABELS.get(run.images.image_shape[0], ()) if count <= least), ALL)


def _selected(run: "Run", count: int, seed: int, within: int = 0) -> Any:
    """Returns the selection of `count` images of each class; with `within`, of the first so many of each class."""
    from train.data.select import select

    text = _part(run, count, seed)
    return select(_base(run), f"{_part(run, within, 0)}|per_class({count}, seed={seed})" if within else text)


def _base(run: "Run") -> Any:
    """Returns the training split without the run's selection."""
    return getattr(run.images.train, "source", run.images.train)


def _part(run: "Run", count: int, seed: int) -> str:
    """Returns the selection of `count` images of each of the run's classes."""
    classes = [part for part in run.config["data"]["select"].split("|") if part.startswith("classes")]
    return "|".join((*classes, f"per_class({count}, seed={seed})"))
