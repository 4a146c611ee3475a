"""Errors of a network by corruption and severity, and their means, all in percent."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from models.errors import UserError
from train.data.corruptions.severities import COMMON, SEVERITIES
from train.storage.files import read_json

if TYPE_CHECKING:  # import Orbax, which --help does not need
    from train.data.source import Source
    from train.run import Network
    from train.state import TrainState

FILE = "corruptions.json"
ALEXNET = "alexnet"
# AlexNet's errors on ImageNet-C, means over severities, in the order of COMMON: github.com/google-research/augmix,
# imagenet.py, "taken from https://github.com/hendrycks/robustness"
ALEXNET_ERRORS = (
    88.6428, 89.4468, 92.2640, 81.9880, 82.6268, 78.5948, 79.8360, 86.6816, 82.6572, 81.9324, 56.4592, 85.3204, 64.6056,
    71.7840, 60.6500,
)  # fmt: skip
_NUMBERS = {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 100}}
SCHEMA = {
    "type": "object",
    "required": ["errors", "severities", "clean_error", "identity"],
    "properties": {
        "errors": {"type": "object", "additionalProperties": _NUMBERS},
        "severities": {"type": "array", "items": {"enum": list(SEVERITIES)}},
        "clean_error": {"type": "number", "minimum": 0, "maximum": 100},
        "identity": {"type": "object"},
    },
}


class Baseline(NamedTuple):
    """The network by whose errors a mCE divides.

    Attributes:
      name: As --baseline names it.
      errors: Mean error over the severities, in percent, by corruption.
      clean: Error without corruption; None if it is unknown.
    """

    name: str
    errors: Mapping[str, float]
    clean: float | None


def error_of(network: "Network", state: "TrainState") -> Callable[["Source"], float]:
    """Returns a function from a source to the network's error on it, in percent; all calls share one program.

    Raises:
      UserError: The task has no accuracy, because images have several classes.
    """
    import jax

    from train import evaluate
    from train.data import stream

    feed = network.images
    if feed.label_shape:
        raise UserError("corruptions need a data set with one class per image")
    variables = jax.device_put(state.evaluation_variables())

    @jax.jit
    def hits(variables, batch):
        metrics = network.task.evaluate(variables, state.task_state, feed.prepare_evaluation(batch))
        return {"accuracy": metrics["accuracy"]}

    def error(source: "Source") -> float:
        total: dict[str, Any] = {}
        # A small part of a set would be padded to the batch of the run's own evaluation
        size = min(network.config["eval_batch_size"], len(source))
        for batch in stream.evaluation_batches(source, size, network.config["data"]["workers"]):
            total = evaluate.add(
                total or None, hits(variables, {key: batch[key] for key in ("image", "label", "mask")})
            )
        accuracy = evaluate.ratios(total)["accuracy"]
        if accuracy is None:
            raise UserError("none of the test images can be decoded")
        return 100 * (1 - accuracy)

    return error


def measure(
    network: "Network",
    state: "TrainState",
    source: "Source",
    names: Sequence[str],
    severities: Sequence[int],
    seed: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Returns the errors of a network on a source, without and with corruptions.

    Args:
      network: The network of a run.
      state: Its state, as NumPy arrays.
      source: The clean images.
      names: Corruptions; they fit the images.
      severities: From 1 to 5.
      seed: Of the corruptions.
      progress: Takes a line for each corruption that is done.

    Returns:
      {"images", "clean_error", "severities", "errors": {name: one per severity}, "images_per_second": {name: …}}.
      The speed includes decoding, the corruption and the network.
    """
    from train.data.corrupted import Corrupted, numbers_of

    error, numbers = error_of(network, state), numbers_of(source)
    result: dict[str, Any] = {"images": len(source), "clean_error": error(source), "severities": list(severities)}
    errors, speeds = {}, {}
    progress(f"clean: {result['clean_error']:.2f}% of {len(source):,} images are wrong")
    for name in names:
        began = time.perf_counter()
        errors[name] = [error(Corrupted(source, name, severity, seed, numbers)) for severity in severities]
        speeds[name] = round(len(source) * len(severities) / (time.perf_counter() - began), 1)
        progress(f"{name}: {' '.join(f'{value:.2f}%' for value in errors[name])}, {speeds[name]:,.0f} images/s")
    return {**result, "errors": errors, "images_per_second": speeds}


def summary(result: Mapping[str, Any], baseline: Baseline | None) -> dict[str, Any]:
    """Returns the means of a result of `measure` over the corruptions of COMMON that it has.

    Args:
      result: Has "errors" and "clean_error".
      baseline: Has an error above 0 of each of these corruptions.

    Returns:
      {"mean_corruption_error"} or {} if there is none of them; with a baseline, "mCE" and, if its clean error is
      known, "relative_mCE": means over corruptions of the ratio of errors, and of the ratio of what corruption adds
      (Hendrycks 2019, section 3.2), as percentages.
    """
    means = {name: statistics.fmean(values) for name, values in result["errors"].items() if name in COMMON}
    if not means:
        return {}
    out: dict[str, Any] = {"mean_corruption_error": statistics.fmean(means.values())}
    if baseline:
        out["mCE"] = 100 * statistics.fmean(means[name] / baseline.errors[name] for name in means)
        if baseline.clean is not None:
            added = {name: baseline.errors[name] - baseline.clean for name in means}
            # Where corruption costs the baseline nothing, the ratio says nothing
            if all(value > 0 for value in added.values()):
                out["relative_mCE"] = 100 * statistics.fmean(
                    (means[name] - result["clean_error"]) / added[name] for name in means
                )
    return out


def read_baseline(text: str, names: Sequence[str], severities: Sequence[int], facts: Mapping[str, Any]) -> Baseline:
    """Reads a baseline.

    Args:
      text: "alexnet", the folder of a run for which this command has run, or a file corruptions.json.
      names: The corruptions that will be measured.
      severities: Their severities.
      facts: "identity" of the test images, and "classes", their number.

    Raises:
      UserError: There is no such baseline, it was measured on other images, corruptions or severities, or it makes no
        error under one of them.
    """
    needed = [name for name in names if name in COMMON]
    if text == ALEXNET:
        if facts["classes"] != 1000 or tuple(severities) != SEVERITIES:
            raise UserError("--baseline=alexnet has the errors on the 1000 classes of ImageNet at severities 1 to 5")
        return Baseline(text, dict(zip(COMMON, ALEXNET_ERRORS, strict=True)), None)
    path = next((path for path in (Path(text) / "corruptions" / FILE, Path(text) / FILE) if path.is_file()), Path(text))
    if not path.is_file():
        raise UserError(
            f"--baseline={text} has no {FILE}; python -m experiments.corruptions --workdir={text} writes it"
        )
    content = read_json(path, SCHEMA)
    if content["identity"] != facts["identity"]:
        raise UserError(f"--baseline={text} was measured on other test images")
    if content["severities"] != list(severities):
        raise UserError(f"--baseline={text} was measured at severities {content['severities']}, not {list(severities)}")
    if missing := [name for name in needed if not content["errors"].get(name)]:
        raise UserError(f"--baseline={text} was not measured with {', '.join(missing)}")
    means = {name: statistics.fmean(content["errors"][name]) for name in needed}
    if zero := [name for name, error in means.items() if not error]:
        raise UserError(f"--baseline={text} makes no error under {zero[0]}: no ratio to it exists")
    return Baseline(text, means, content["clean_error"])
