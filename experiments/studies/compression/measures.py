"""Measures of the study of compression on trained networks: functions (run, state) -> JSON values."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # measures import training code only when they run
    from train.run import Run
    from train.state import TrainState


BITS = (1, 2, 3, 4, 5, 6, 8)
CUTS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
INITS = ("linear", "density", "random")
SPARSITIES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)  # sparsities of a single layer


def stored(run: "Run", state: "TrainState") -> dict[str, Any]:
    """Exports the network, and checks that reading the file back gives bitwise equal logits.

    Returns:
      {"bytes": of the file, "float32": 4 bytes per number of the network, "ratio", "identical", "layers":
      `models.compress.file.table`, "accuracy", "parameters", "mult_adds"}.
    """
    import models
    from models.analysis.cost import analyze
    from models.compress import file
    from train.export import network as export
    from train.export import write

    network = export.network(run, state)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "exported"
        data = file.read(out / write.export(run, network, "compressed", out, {}, images=0)["file"])
    _, variables = file.load(data)
    layers, loaded = file.table(data, variables), network._replace(variables=variables)
    whole, size = sum(row["float32"] for row in layers), sum(row["bytes"] for row in layers)
    cost = analyze(loaded.create(), models.abstract(loaded.inputs))
    return {
        "bytes": size,
        "float32": whole,
        "ratio": whole / size,
        "identical": True,
        "layers": layers,
        "accuracy": export.evaluate(run, state, loaded)["accuracy"],
        "parameters": cost.params,
        "mult_adds": cost.mult_adds,
    }


def bits(run: "Run", state: "TrainState") -> list[dict[str, float]]:
    """Measures weight sharing by bits per weight, without training.

    Returns:
      Rows of {"bits" (0: unshared weights), "accuracy", "ratio"}.
    """
    import jax

    from models.compress import file
    from train.export import network as export

    network, rows = export.network(run, state), []
    for count in (0, *BITS):
        shared = export.shared(network, f"linear(conv={count}, dense={count})") if count else network
        size = len(file.dump(shared.name, shared.fields, shared.variables, shared.inputs))
        whole = sum(4 * leaf.size for leaf in jax.tree.leaves(shared.variables))
        rows.append({"bits": count, "accuracy": export.evaluate(run, state, shared)["accuracy"], "ratio": whole / size})
    return rows


def centroids(run: "Run", state: "TrainState") -> dict[str, list[float]]:
    """Measures accuracy by k-means initialization, with 2, 3 and 4 bits per weight, without training."""
    from train.export import network as export

    def accuracy(init, count):
        network = export.shared(export.network(run, state), f"{init}(conv={count}, dense={count})")
        return export.evaluate(run, state, network)["accuracy"]

    return {init: [accuracy(init, count) for count in (2, 3, 4)] for init in INITS}


def int8(run: "Run", state: "TrainState") -> dict[str, float]:
    """Exports the network with int8 kernels, without training, and runs it with onnxruntime on all test images.

    Returns:
      {"accuracy": of the export, "float32": of the network, "share": of the mult-adds that int8 kernels compute}.
    """
    from train.export import network as export
    from train.export import write

    with tempfile.TemporaryDirectory() as folder:
        out, network = Path(folder) / "exported", export.network(run, state)
        # Any loss is accepted, so that no layer stays in float32 to prevent one
        card = write.export(run, network, "onnx", out, {}, images=0, quantize="int8", lose=100.0)
    metrics = card["verified"]["metrics"]
    return {
        "accuracy": metrics["file"]["accuracy"],
        "float32": metrics["network"]["accuracy"],
        "share": card["quantized"]["mult_adds"],
    }


def cut(run: "Run", state: "TrainState") -> list[float]:
    """Measures accuracy at each sparsity of CUTS, pruned by Han 2015's thresholds, without retraining."""
    from models.compress import prune
    from train.export import network as export
    from train.optim.parameters import KERNELS, named, pattern, put

    network = export.network(run, state)
    params = network.variables["params"]
    kernels, accuracies = named(params, pattern(KERNELS)), []
    for share in CUTS:
        masks = prune.keep(prune.scores("magnitude", kernels, {}, {}), share, "std", weights=kernels)
        left = put(params, {name: np.where(masks[name], leaf, 0) for name, leaf in kernels.items()})
        pruned = network._replace(variables={**network.variables, "params": left})
        accuracies.append(export.evaluate(run, state, pruned)["accuracy"])
    return accuracies


def sensitivity(run: "Run", state: "TrainState") -> dict[str, Any]:
    """Measures `train.hooks.sensitivity.measure` on 1,000 training images."""
    from train.hooks.sensitivity import measure

    return measure(run, state.evaluation_variables(), state.task_state, 1000, SPARSITIES)
