"""Classifiers on fixed features, each with one hyperparameter that is chosen on a validation part of the training set.

    logistic   multinomial logistic regression or, for several classes per image, one regression per class; L-BFGS
    svm        linear support vector machines, one against the rest, squared hinge loss; L-BFGS
    knn        k nearest neighbors by the cosine

The features for logistic and svm are standardized by the training set. Labels are int [N] below `classes` or, for
several classes per image, int [N, classes] with 1 for present, 0 for absent, -1 for not counted.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from models.errors import UserError, choice_error
from train.probing.features import Features, standardizer
from train.tasks import average_precision

# Weight of |W|^2 / 2 beside the mean loss; scikit-learn's C is 1 / (strength x N)
STRENGTHS = tuple(10.0**exponent for exponent in (-6, -5, -4, -3, -2, -1, 0))
SVM_STRENGTHS = tuple(10.0**exponent for exponent in (-4, -3, -2, -1, 0))
NEIGHBORS = (1, 3, 10, 30)
HELD_OUT = 0.2  # share of the training set for validation
STEPS = 300  # most steps of L-BFGS
TOLERANCE = 1e-5  # L-BFGS ends when no element of the gradient is larger

Scorer = Callable[[np.ndarray], np.ndarray]  # features [N, D] -> scores [N, classes]


def logistic(x: np.ndarray, labels: np.ndarray, classes: int, strength: float) -> Scorer:
    """Minimizes the mean cross-entropy + strength / 2 |W|^2; biases are not penalized, as in scikit-learn."""
    return _linear(_cross_entropy, x, labels, classes, strength)


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    if labels.ndim == 1:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return (optax.sigmoid_binary_cross_entropy(logits, jnp.maximum(labels, 0)) * (labels >= 0)).sum(-1)


def _linear(losses: Callable, x: np.ndarray, labels: np.ndarray, classes: int, strength: float) -> Scorer:
    weights = np.zeros((x.shape[1], classes), np.float32), np.zeros(classes, np.float32)
    kernel, bias = jax.tree.map(np.asarray, _minimize(losses, weights, jnp.asarray(x), jnp.asarray(labels), strength))
    return lambda x: x @ kernel + bias


@functools.partial(jax.jit, static_argnums=0)
def _minimize(losses: Callable, weights: Any, x: jax.Array, labels: jax.Array, strength: float) -> Any:
    """Minimizes by L-BFGS with a zoom line search (Nocedal & Wright 2006, algorithms 7.4 and 3.5)."""

    def loss(weights):
        kernel, bias = weights
        return losses(x @ kernel + bias, labels).mean() + strength / 2 * jnp.sum(kernel**2)

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def more(carry):
        _, state, count, largest = carry
        return (count < STEPS) & (largest > TOLERANCE)

    def step(carry):
        weights, state, count, _ = carry
        value, gradient = value_and_grad(weights, state=state)
        updates, state = optimizer.update(gradient, state, weights, value=value, grad=gradient, value_fn=loss)
        largest = jnp.max(jnp.array([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(gradient)]))
        return optax.apply_updates(weights, updates), state, count + 1, largest

    return jax.lax.while_loop(more, step, (weights, optimizer.init(weights), 0, jnp.inf))[0]


def svm(x: np.ndarray, labels: np.ndarray, classes: int, strength: float) -> Scorer:
    """Minimizes the mean squared hinge loss + strength / 2 |W|^2.

    The loss of an image is the sum over all classes, each against the rest. This equals scikit-learn's LinearSVC with
    C = 1 / (strength x N), except that biases are not penalized here.
    """
    return _linear(_squared_hinge, x, labels, classes, strength)


def _squared_hinge(logits: jax.Array, labels: jax.Array) -> jax.Array:
    present = jax.nn.one_hot(labels, logits.shape[1]) if labels.ndim == 1 else labels
    return (jnp.square(jax.nn.relu(1 - (2 * jnp.maximum(present, 0) - 1) * logits)) * (present >= 0)).sum(-1)


def knn(x: np.ndarray, labels: np.ndarray, classes: int, k: int) -> Scorer:
    """Scores classes by the votes of the k nearest neighbors, weighted by exp(cosine / 0.07).

    Source: Wu 2018 (arXiv 1805.01978, section 3.4).
    """
    targets = np.eye(classes, dtype=np.int32)[labels] if labels.ndim == 1 else labels
    present, counted, neighbors = (jnp.asarray(array, jnp.float32) for array in (targets == 1, targets >= 0, _unit(x)))

    @jax.jit
    def votes(queries):
        cosine, indices = jax.lax.top_k(queries @ neighbors.T, min(k, len(neighbors)))
        weight = jnp.exp((cosine - 1) / 0.07)
        votes, all_votes = (jnp.einsum("nk,nkc->nc", weight, targets[indices]) for targets in (present, counted))
        return votes / jnp.maximum(all_votes, 1e-30)

    def score(x):
        chunk = max(1, 2**24 // len(neighbors))
        return np.concatenate([np.asarray(votes(_unit(x[i : i + chunk]))) for i in range(0, len(x), chunk)])

    return score


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


# name: (function that fits, values of its hyperparameter, True to standardize features)
CLASSIFIERS = {
    "logistic": (logistic, STRENGTHS, True),
    "svm": (svm, SVM_STRENGTHS, True),
    "knn": (knn, NEIGHBORS, False),
}


class Fitted(NamedTuple):
    """A fitted classifier.

    Attributes:
      score: maps features, as they are extracted, to scores.
      chosen: value of the hyperparameter.
      validation: result on the validation part for each value; {} if a class has too few examples for such a part.
    """

    score: Scorer
    chosen: float
    validation: dict[float, float | None]


def fit(kind: str, train: Features, classes: int, seed: int = 0) -> Fitted:
    """Chooses the hyperparameter on a fifth of the training set, then fits the whole set.

    With one class per image, the part has a fifth of each class.

    Args:
      kind: one of CLASSIFIERS.
      train: the training set.
      classes: number of classes.
      seed: seed of the validation part.

    Raises:
      UserError: the kind is unknown.
    """
    if kind not in CLASSIFIERS:
        raise choice_error("classifier", kind, CLASSIFIERS)
    function, values, standardized = CLASSIFIERS[kind]

    def scorer(x, labels, value):
        if not standardized:
            return function(x, labels, classes, value)
        scale = standardizer(x)
        score = function(scale(x), labels, classes, value)
        return lambda x: score(scale(x))

    fitted, held_out = _split(train.labels, seed)
    validation = {}
    for value in values if len(held_out) else ():
        score = scorer(train.x[fitted], train.labels[fitted], value)
        validation[value] = headline(measure(score(train.x[held_out]), train.labels[held_out], classes))
    best = max(values, key=lambda value: (validation[value], value)) if validation else values[len(values) // 2]
    return Fitted(scorer(train.x, train.labels, best), best, validation)


def evaluate(kind: str, train: Features, test: Features, classes: int, seed: int = 0) -> dict[str, Any]:
    """Fits a classifier to the training set and evaluates it on the test set.

    Args:
      kind: one of CLASSIFIERS.
      train: the training set.
      test: the test set.
      classes: number of classes.
      seed: seed of the validation part, see `fit`.

    Returns:
      {"chosen", "validation": {value: result}, and metrics of the test set}. The metrics are "accuracy" and
      "mean_class_accuracy" or, for several classes per image, "mean_average_precision" and
      "mean_average_precision_11".

    Raises:
      UserError: the kind is unknown, a label is not below `classes`, or features have different sizes.
    """
    if train.x.shape[1] != test.x.shape[1]:
        raise UserError(f"training features have {train.x.shape[1]} dimensions, but test features {test.x.shape[1]}")
    if max(train.labels.max(), test.labels.max()) >= classes and train.labels.ndim == 1:
        raise UserError(
            f"label {max(train.labels.max(), test.labels.max())} is out of range: classes are 0 to {classes - 1}"
        )
    return described(fit(kind, train, classes, seed), test, classes)


def described(fitted: Fitted, test: Features, classes: int) -> dict[str, Any]:
    """Evaluates a fitted classifier; returns the results of `evaluate`."""
    return {
        "chosen": fitted.chosen,
        "validation": {str(value): score for value, score in fitted.validation.items()},
        **measure(fitted.score(test.x), test.labels, classes),
    }


def measure(scores: np.ndarray, labels: np.ndarray, classes: int) -> Mapping[str, float | None]:
    """Returns the metrics of scores [N, classes], see `evaluate`; None means that no class is present in any image."""
    if labels.ndim == 2:
        return average_precision.measure(scores, labels)
    right = scores.argmax(1) == labels
    own = [right[labels == label].mean() for label in range(classes) if (labels == label).any()]
    return {"accuracy": float(right.mean()), "mean_class_accuracy": float(np.mean(own))}


def headline(metrics: Mapping[str, float | None]) -> float | None:
    """Returns the metric by which classifiers are chosen and compared."""
    return metrics["accuracy"] if "accuracy" in metrics else metrics["mean_average_precision"]


def _split(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices to fit and to validate; none to validate if a class has a single example."""
    from sklearn.model_selection import train_test_split

    indices = np.arange(len(labels))
    if labels.ndim == 2:
        fitted, held_out = train_test_split(indices, test_size=HELD_OUT, random_state=seed)
        return np.asarray(fitted), np.asarray(held_out)
    counts = np.bincount(labels)
    if counts[counts > 0].min() < 2:
        return indices, indices[:0]
    size = max(round(HELD_OUT * len(labels)), int((counts > 0).sum()))
    fitted, held_out = train_test_split(indices, test_size=size, stratify=labels, random_state=seed)
    return np.asarray(fitted), np.asarray(held_out)


def names(text: str | Sequence[str]) -> list[str]:
    """Returns the kinds that a text such as "logistic,svm" lists; raises UserError if one is unknown."""
    kinds = [name.strip() for name in (text.split(",") if isinstance(text, str) else text)]
    for name in kinds:
        if name not in CLASSIFIERS:
            raise choice_error("classifier", name, CLASSIFIERS)
    return kinds
