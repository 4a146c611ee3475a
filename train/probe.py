"""Probes: linear classifiers and nearest neighbors on the features of a pretrained network. See --help."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich.console
import rich.table
from absl import flags

from models import command
from train import cli

if TYPE_CHECKING:  # imports Orbax, which --help does not need
    from train.run import Network

USAGE = """Trains classifiers on the features of a pretrained network, whose own weights stay fixed.

    python -m train.probe --config=configs/transfer.py:from=runs/x,to=cifar10
    python -m train.probe --config=configs/transfer.py:from=runs/x,to=digits --endpoint=stage2 --classifiers=logistic

Features are computed once and cached in $XDG_CACHE_HOME/ablate/features (~/.cache/ablate/features) or --cache.
Classifiers are logistic regression, a linear SVM and k nearest neighbors. The strength of regularization, or k, is
chosen on a fifth of the training set. --out writes a JSON file.
"""


def main() -> None:
    """Extracts features, evaluates the classifiers on them, and prints and writes the results."""
    import jax

    from train.probing import classifiers, features
    from train.recording import summary
    from train.run import build_network, examples_of_norm
    from train.setup import initial_weights
    from train.setup.config import Reader, keys
    from train.storage.files import write_json

    kinds, console = classifiers.names(KINDS.value), command.console()
    reader = Reader.of(CONFIG())
    network = build_network(reader)
    for endpoint in ENDPOINTS.value:
        features.check(network, endpoint)  # all of them before anything is computed
    part = examples_of_norm(reader, network.parallel)
    variables, *_ = initial_weights.variables(reader, network.task, network.feed, part)
    reader.check_all_read(known=keys())
    rows = []
    for endpoint in ENDPOINTS.value:
        rows += _probe(network, variables, endpoint, kinds, console)
    console.print(_table(network, rows))
    if OUT.value:
        out = Path(OUT.value)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, {"results": rows, "config": network.config, **summary.environment(jax.devices())})
        console.print(f"written to {out}", soft_wrap=True)


def _probe(
    network: "Network", variables: Any, endpoint: str, kinds: Sequence[str], console: rich.console.Console
) -> list[dict[str, Any]]:
    """Returns the result of each kind of classifier on the features at an endpoint."""
    from train.probing import classifiers, features

    folder = Path(CACHE.value) if CACHE.value else None
    began = time.time()
    with console.status(f"features at {endpoint}"):
        splits = {split: features.extract(network, variables, split, endpoint, folder) for split in ("train", "test")}
    console.print(f"features at {endpoint}: {features.summary(splits)}, {time.time() - began:.1f} s", highlight=False)
    train, test = splits["train"], splits["test"]
    rows = []
    for kind in kinds:
        began = time.time()
        with console.status(f"{kind} at {endpoint}"):
            result = classifiers.evaluate(kind, train, test, len(network.feed.classes), network.config["seed"])
        start = {"endpoint": endpoint, "features": train.x.shape[1], "classifier": kind}
        rows.append({**start, **result, "seconds": round(time.time() - began, 2)})
    return rows


def _table(network: "Network", rows: Sequence[dict[str, Any]]) -> rich.table.Table:
    from train.probing import classifiers

    config = network.config
    table = rich.table.Table(
        title=f"{config['model']['name']} from {config['init_from'] or 'scratch'} on {config['data']['source']}",
        title_justify="left",
    )
    for column in ("endpoint", "features", "classifier", "chosen", "result"):
        table.add_column(column, justify="left" if column != "result" else "right")
    for row in rows:
        score = "accuracy" if "accuracy" in row else "mean average precision"
        result = f"{score} {classifiers.headline(row):.2%}"
        table.add_row(row["endpoint"], str(row["features"]), row["classifier"], f"{row['chosen']:g}", result)
    return table


if __name__ == "__main__":  # only here: absl has one table of flags for the process
    CONFIG = cli.define_config()
    ENDPOINTS = flags.DEFINE_list("endpoint", ["pre_logits"], "Endpoints of the network, e.g. stage2,pre_logits.")
    KINDS = flags.DEFINE_list("classifiers", ["logistic", "svm", "knn"], "Classifiers, from logistic, svm and knn.")
    CACHE = command.define_path("cache", None, "Folder for cached features; default: ~/.cache/ablate/features.")
    OUT = command.define_path("out", None, "JSON file to write.")
    cli.run(main, USAGE)
