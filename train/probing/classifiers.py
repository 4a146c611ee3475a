"""Classifiers on fixed features, their one hyperparameter chosen on a validation part of the training set.

    logistic   multinomial logistic regression, or one a class where labels are many an image; L-BFGS, in JAX
    svm        linear support vector machines, one against the rest, squared hinge loss; L-BFGS, in JAX
    knn        k nearest neighbours by the cosine, in JAX

Features are standardized by the training set first (logistic, svm). Labels: int [N] below `classes`, or int
[N, classes] with 1 present, 0 absent, -1 not counted.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from models.errors import UserError, choice_error
from train.probing.features import standardizer
from train.tasks import average_precision

# Weight of |W|^2 / 2 beside the mean loss; scikit-learn's C is 1 / (strength x N).
STRENGTHS = tuple(10.0**exponent for exponent in (-6, -5, -4, -3, -2, -1, 0))
SVM_STRENGTHS = tuple(10.0**exponent for exponent in (-4, -3, -2, -1, 0))
NEIGHBOURS = (1, 3, 10, 30)
HELD_OUT = 0.2  # of the training set, to choose by
STEPS = 300  # of L-BFGS, at most
TOLERANCE = 1e-5  # largest element of the gradient at which it ends

Scorer = Callable[[np.ndarray], np.ndarray]  # features [N, D] -> scores [N, classes]


def logistic(x: np.ndarray, y: np.ndarray, classes: int, strength: float) -> Scorer:
    """Minimizes the mean cross-entropy + strength / 2 |W|^2; the biases are free, as scikit-learn has it."""
    return _linear(_cross_entropy, x, y, classes, strength)


def _cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    if y.ndim == 1:
        return optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return (optax.sigmoid_binary_cross_entropy(logits, jnp.maximum(y, 0)) * (y >= 0)).sum(-1)


def _linear(losses: Callable, x: np.ndarray, y: np.ndarray, classes: int, strength: float) -> Scorer:
    weights = np.zeros((x.shape[1], classes), np.float32), np.zeros(classes, np.float32)
    kernel, bias = jax.tree.map(np.asarray, _minimize(losses, weights, jnp.asarray(x), jnp.asarray(y), strength))
    return lambda x: x @ kernel + bias


@functools.partial(jax.jit, static_argnums=0)
def _minimize(losses: Callable, weights: Any, x: jax.Array, y: jax.Array, strength: float) -> Any:
    """By L-BFGS with a zoom line search (Nocedal & Wright 2006, algorithms 7.4 and 3.5)."""

    def loss(weights):
        kernel, bias = weights
        return losses(x @ kernel + bias, y).mean() + strength / 2 * jnp.sum(kernel**2)

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def more(carry):
        _, state, count, largest = carry
        return (count < STEPS) & (largest > TOLERANCE)

    def step(carry):
        weights, state, count, _ = carry
        value, gradient = value_and_grad(weights, state=state)
        updates, state = optimizer.update(gradient, state, weights, value=value, grad=gradient, value_fn=loss)
        largest = jnp.max(jnp.array([jnp.max(jnp.abs(leaf)) for leaf in gradient]))
        return optax.apply_updates(weights, updates), state, count + 1, largest

    return jax.lax.while_loop(more, step, (weights, optimizer.init(weights), 0, jnp.inf))[0]


def svm(x: np.ndarray, y: np.ndarray, classes: int, strength: float) -> Scorer:
    """Minimizes the mean over images of the squared hinge losses of all classes, each against the rest, + strength / 2
    |W|^2: what scikit-learn's LinearSVC does with C = 1 / (strength x N), but for the biases, which are free here.
    """
    return _linear(_squared_hinge, x, y, classes, strength)


def _squared_hinge(logits: jax.Array, y: jax.Array) -> jax.Array:
    present = jax.nn.one_hot(y, logits.shape[1]) if y.ndim == 1 else y
    return (jnp.square(jax.nn.relu(1 - (2 * jnp.maximum(present, 0) - 1) * logits)) * (present >= 0)).sum(-1)


def knn(x: np.ndarray, y: np.ndarray, classes: int, k: int) -> Scorer:
    """Share of the votes of the k nearest, weighted by exp(cosine / 0.07) as in Wu 2018 (arXiv 1805.01978, section
    3.4).
    """
    labels = np.eye(classes, dtype=np.int32)[y] if y.ndim == 1 else y
    present, counted, known = (jnp.asarray(array, jnp.float32) for array in (labels == 1, labels >= 0, _unit(x)))

    @jax.jit
    def votes(queries):
        cosine, index = jax.lax.top_k(queries @ known.T, min(k, len(known)))
        weight = jnp.exp((cosine - 1) / 0.07)
        votes, all_votes = (jnp.einsum("nk,nkc->nc", weight, what[index]) for what in (present, counted))
        return votes / jnp.maximum(all_votes, 1e-30)

    def score(x):
        chunk = max(1, 2**24 // len(known))
        return np.concatenate([np.asarray(votes(_unit(x[i : i + chunk]))) for i in range(0, len(x), chunk)])

    return score


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


# name: (fit, values of its hyperparameter, whether features are standardized)
CLASSIFIERS = {
    "logistic": (logistic, STRENGTHS, True),
    "svm": (svm, SVM_STRENGTHS, True),
    "knn": (knn, NEIGHBOURS, False),
}


class Fitted(NamedTuple):
    """score: of features as they are extracted; the hyperparameter, and what each value of it reached on the part to
    choose by, {} where a class has too few examples for one.
    """

    score: Scorer
    chosen: float
    validation: dict[float, float]


def fit(kind: str, train: Any, classes: int, seed: int = 0) -> Fitted:
    """Chooses the hyperparameter on a fifth of `train` (of each class where labels are one an image); fits all of it.

    Args:
      kind: one of CLASSIFIERS.
      train: `train.probing.features.Features`.
      classes: their number.
      seed: of the part to choose by.

    Raises:
      UserError: an unknown kind.
    """
    if kind not in CLASSIFIERS:
        raise choice_error("classifier", kind, CLASSIFIERS)
    function, values, standardized = CLASSIFIERS[kind]

    def scorer(x, y, value):
        if not standardized:
            return function(x, y, classes, value)
        scale = standardizer(x)
        score = function(scale(x), y, classes, value)
        return lambda x: score(scale(x))

    fitted, held = _split(train.labels, seed)
    validation = {}
    for value in values if len(held) else ():
        score = scorer(train.x[fitted], train.labels[fitted], value)
        validation[value] = headline(measure(score(train.x[held]), train.labels[held], classes))
    chosen = max(values, key=lambda value: (validation[value], value)) if validation else values[len(values) // 2]
    return Fitted(scorer(train.x, train.labels, chosen), chosen, validation)


def evaluate(kind: str, train: Any, test: Any, classes: int, seed: int = 0) -> dict[str, Any]:
    """Fits `train` and measures on `test`.

    Args:
      kind, train, classes, seed: see `fit`.
      test: `train.probing.features.Features`.

    Returns:
      {"chosen", "validation": {value: score}, and of the test set "accuracy", "mean_class_accuracy", or, where
      labels are many an image, "mean_average_precision", "mean_average_precision_11"}.

    Raises:
      UserError: an unknown kind, labels that the classes do not have, features of different sizes.
    """
    if train.x.shape[1] != test.x.shape[1]:
        raise UserError(f"features of {train.x.shape[1]} and of {test.x.shape[1]} numbers do not fit")
    if max(train.labels.max(), test.labels.max()) >= classes and train.labels.ndim == 1:
        raise UserError(f"label {max(train.labels.max(), test.labels.max())} is none of {classes} classes")
    return described(fit(kind, train, classes, seed), test, classes)


def described(fitted: Fitted, test: Any, classes: int) -> dict[str, Any]:
    """What `evaluate` returns, of a classifier that is fitted."""
    return {
        "chosen": fitted.chosen,
        "validation": {str(value): score for value, score in fitted.validation.items()},
        **measure(fitted.score(test.x), test.labels, classes),
    }


def measure(scores: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, float]:
    """Metrics of scores [N, classes]: see `evaluate`."""
    if labels.ndim == 2:
        return average_precision.measure(scores, labels)
    right = scores.argmax(1) == labels
    own = [right[labels == label].mean() for label in range(classes) if (labels == label).any()]
    return {"accuracy": float(right.mean()), "mean_class_accuracy": float(np.mean(own))}


def headline(found: Mapping[str, float]) -> float:
    """The one of the results by which classifiers are chosen and compared."""
    return found.get("accuracy", found.get("mean_average_precision"))


def _split(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices to fit and to choose by; none of the latter where a class has a single example."""
    from sklearn.model_selection import train_test_split

    index = np.arange(len(labels))
    if labels.ndim == 2:
        return tuple(train_test_split(index, test_size=HELD_OUT, random_state=seed))
    counts = np.bincount(labels)
    if counts[counts > 0].min() < 2:
        return index, index[:0]
    held = max(round(HELD_OUT * len(labels)), int((counts > 0).sum()))
    return tuple(train_test_split(index, test_size=held, stratify=labels, random_state=seed))


def names(text: str | Sequence[str]) -> list[str]:
    """Kinds from "logistic,svm"; UserError for an unknown one."""
    found = [name.strip() for name in (text.split(",") if isinstance(text, str) else text)]
    for name in found:
        if name not in CLASSIFIERS:
            raise choice_error("classifier", name, CLASSIFIERS)
    return found
