"""Exact evaluation: each example counts once, because sums and weights are added up instead of means of batches."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from train.state import TrainState
from train.tasks import average_precision


def add(total: Mapping[str, Any] | None, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Adds metrics {name: (sum, weight)} to a total (None for an empty one), in float64."""
    added = jax.tree.map(lambda x: np.asarray(x, np.float64), dict(metrics))
    return added if total is None else jax.tree.map(np.add, dict(total), added)


def ratios(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {name: sum / weight}, with lists for vectors and None for a weight of 0 (a class without examples)."""

    def ratio(total, weight):
        if total.ndim:
            return [ratio(*pair) for pair in zip(total, weight, strict=True)]
        return float(total / weight) if weight else None

    return {name: ratio(np.asarray(total), np.asarray(weight)) for name, (total, weight) in metrics.items()}


def evaluate(
    call: Callable[..., Mapping[str, Any]], state: TrainState, calls: Iterable[Any], expected: Callable[[], int]
) -> dict[str, Any]:
    """Computes the metrics of one split.

    Where there is "accuracy_by_class", its mean over the classes with examples is added as "mean_class_accuracy". Data
    sets with classes of uneven size are judged by it (Caltech-101, FGVC-Aircraft).

    Args:
      call: `train.step.evaluation_call`, lifted over the devices.
      state: the state, on the devices.
      calls: the items of every evaluation call.
      expected: returns, after the last call, how many examples must have been counted.

    Raises:
      AssertionError: a different number of examples was counted.
    """
    total: dict[str, Any] = {}
    for items in calls:
        total = add(total or None, call(state, {}, items))
    counted = round(float(total["loss"][1])) if total else 0
    assert counted == expected(), f"evaluation counted {counted} examples of {expected()}"
    results = ratios(total)
    if "accuracy_by_class" in results:
        results["mean_class_accuracy"] = average_precision.mean(results["accuracy_by_class"])
    return results


def predictions(
    predict: Callable[..., jax.Array],
    variables: Any,
    prepare: Callable[..., dict[str, jax.Array]],
    batches: Iterable[Mapping[str, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns outputs, labels and dataset indices, one row per unmasked example. Single device only.

    Args:
      predict: (variables, prepared batch) -> outputs, one row per example.
      variables: variables of the model.
      prepare: batch -> prepared batch.
      batches: batches on the host, with "label" and "mask".

    Returns:
      Outputs [N, …], labels [N, *label_shape] and indices [N].
    """
    variables = jax.device_put(variables)
    compiled = jax.jit(lambda variables, batch: predict(variables, prepare(batch)))
    outputs, labels, indices, start = [], [], [], 0
    for batch in batches:
        unmasked = np.asarray(batch["mask"]) > 0
        outputs.append(np.asarray(compiled(variables, batch))[unmasked])
        labels.append(np.asarray(batch["label"])[unmasked])
        indices.append(start + np.flatnonzero(unmasked))
        start += len(unmasked)
    return np.concatenate(outputs), np.concatenate(labels), np.concatenate(indices)
