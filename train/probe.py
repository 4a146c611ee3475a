"""Linear classifiers and neighbours on the features of a pretrained network. See --help."""

import time
from pathlib import Path

import rich.table
from absl import flags

from models import command
from train import cli

USAGE = """Classifies by the features of a pretrained network, as it is: nothing of it is trained.

    python -m train.probe --config=configs/transfer.py:from=runs/x,to=cifar10
    python -m train.probe --config=configs/transfer.py:from=runs/x,to=digits --endpoint=stage2 --classifiers=logistic

Features are computed once, and kept in $XDG_CACHE_HOME/ablate/features (~/.cache/ablate/features) or --cache.
Classifiers: logistic regression, a linear SVM, k nearest neighbours; the regularization, and k, are chosen on a fifth
of the training set. --out writes a JSON file.
"""


def main() -> None:
    """Extracts, classifies, prints, writes."""
    import jax

    from train import initial_weights, summary
    from train.config import Reader, keys
    from train.files import write_json
    from train.probing import classifiers, features
    from train.run import build_network, examples_of_norm

    kinds, console = classifiers.names(KINDS.value), command.console()
    reader = Reader.of(CONFIG())
    network = build_network(reader)
    for endpoint in ENDPOINTS.value:
        features.check(network, endpoint)  # before anything is computed
    part = examples_of_norm(reader, network.parallel)
    variables, *_ = initial_weights.variables(reader, network.task, network.feed, part)
    reader.check_all_read(known=keys())
    folder = Path(CACHE.value) if CACHE.value else None
    table = rich.table.Table(
        title=f"{network.config['model']['name']} from {network.config['init_from'] or 'scratch'} on "
        f"{network.config['data']['source']}",
        title_justify="left",
    )
    for column in ("endpoint", "features", "classifier", "chosen", "result"):
        table.add_column(column, justify="left" if column != "result" else "right")
    rows = []
    for endpoint in ENDPOINTS.value:
        began = time.time()
        with console.status(f"features at {endpoint}"):
            found = {
                split: features.extract(network, variables, split, endpoint, folder) for split in ("train", "test")
            }
        console.print(
            f"features at {endpoint}: {features.summary(found)}, {time.time() - began:.1f} s", highlight=False
        )
        for kind in kinds:
            began = time.time()
            with console.status(f"{kind} at {endpoint}"):
                result = classifiers.evaluate(
                    kind, found["train"], found["test"], len(network.feed.classes), network.config["seed"]
                )
            rows.append(
                {
                    "endpoint": endpoint,
                    "features": found["train"].x.shape[1],
                    "classifier": kind,
                    **result,
                    "seconds": round(time.time() - began, 2),
                }
            )
            score = "accuracy" if "accuracy" in result else "mean average precision"
            table.add_row(
                endpoint,
                str(rows[-1]["features"]),
                kind,
                f"{result['chosen']:g}",
                f"{score} {classifiers.headline(result):.2%}",
            )
    console.print(table)
    if OUT.value:
        out = Path(OUT.value)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, {"results": rows, "config": network.config, **summary.environment(jax.devices())})
        console.print(f"written to {out}", soft_wrap=True)


if __name__ == "__main__":  # only here: absl has one table of flags for the process
    CONFIG = cli.define_config()
    ENDPOINTS = flags.DEFINE_list("endpoint", ["pre_logits"], "Endpoints of the network, e.g. stage2,pre_logits.")
    KINDS = flags.DEFINE_list("classifiers", ["logistic", "svm", "knn"], "Some of logistic, svm, knn.")
    CACHE = command.define_path("cache", None, "Folder of the features; default: ~/.cache/ablate/features.")
    OUT = command.define_path("out", None, "JSON file to write.")
    cli.run(main, USAGE)
