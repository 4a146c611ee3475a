"""Exact evaluation: every example once, sums and weights, never a mean of means."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from train.tasks import average_precision


def add(total: Mapping[str, Any] | None, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Adds metrics {name: (sum, weight)} in float64."""
    metrics = jax.tree.map(lambda x: np.asarray(x, np.float64), dict(metrics))
    return metrics if total is None else jax.tree.map(np.add, dict(total), metrics)


def ratios(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """{name: sum / weight}, lists for vectors; None where nothing was weighed, such as a class without examples."""

    def ratio(total, weight):
        if total.ndim:
            return [ratio(*pair) for pair in zip(total, weight, strict=True)]
        return float(total / weight) if weight else None

    return {name: ratio(np.asarray(total), np.asarray(weight)) for name, (total, weight) in metrics.items()}


def evaluate(call: Callable, state: Any, calls: Iterable[Any], expected: Callable[[], int]) -> dict[str, Any]:
    """The metrics of one split; where there is "accuracy_by_class", also the mean of it over the classes with examples,
    "mean_class_accuracy", by which sets of uneven classes are judged (Caltech-101, FGVC-Aircraft).

    Args:
      call: `train.step.evaluation_call`, lifted.
      state: on the devices.
      calls: items of every evaluation call.
      expected: tells, afterwards, how many examples must have been counted.

    Raises:
      AssertionError: another number was counted.
    """
    total = None
    for items in calls:
        total = add(total, call(state, {}, items))
    counted = round(float(total["loss"][1])) if total else 0
    assert counted == expected(), f"evaluation counted {counted} examples of {expected()}"
    results = ratios(total)
    if "accuracy_by_class" in results:
        results["mean_class_accuracy"] = average_precision.mean(results["accuracy_by_class"])
    return results


def predictions(
    predict: Callable, variables: Any, prepare: Callable, batches: Iterable[Mapping[str, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """predict(variables, batch) of all batches, labels [N, *label_shape], places in the set, a row an unmasked example;
    one device.
    """
    variables = jax.device_put(variables)
    compiled = jax.jit(lambda variables, batch: predict(variables, prepare(batch)))
    outputs, labels, index, start = [], [], [], 0
    for batch in batches:
        real = np.asarray(batch["mask"]) > 0
        outputs.append(np.asarray(compiled(variables, batch))[real])
        labels.append(np.asarray(batch["label"])[real])
        index.append(start + np.flatnonzero(real))
        start += len(real)
    return np.concatenate(outputs), np.concatenate(labels), np.concatenate(index)
