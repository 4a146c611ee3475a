"""Measures of the study of adaptive inference on trained networks: functions (run, state) -> JSON values."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.studies.measures import png

if TYPE_CHECKING:  # measures import training code only when they run
    from train.run import Run
    from train.state import TrainState


SHOWN = 12  # images per picture
POINTS = 12  # number of budgets


def decided(run: "Run", state: "TrainState") -> dict[str, Any]:
    """Measures a network with gates or a policy.

    Returns:
      "rows" of `train.adaptive.measure`; "blocks", their names; "by_class", for each class the fraction of its images
      for which each block is computed; "used", the number of images that use 0, 1, … blocks; "paths", the number of
      distinct choices of blocks.
    """
    from train import adaptive

    decisions = adaptive.blocks(run, state)
    computed, labels = decisions["computed"], decisions["labels"]
    return {
        "rows": adaptive.measure(run, state),
        "blocks": list(run.task.model.blocks),
        "classes": run.feed.classes,
        "by_class": adaptive.by_class(computed, labels, len(run.feed.classes)),
        "used": np.bincount(computed.sum(1), minlength=computed.shape[1] + 1).tolist(),
        "paths": len(np.unique(computed, axis=0)),
    }


def leaving(run: "Run", state: "TrainState") -> dict[str, Any]:
    """Measures a network with exits.

    Returns:
      "rows" of `train.adaptive.measure` for POINTS budgets; "classes"; "by_class", the mean mult-adds per image of each
      class at the middle budget.
    """
    from models.analysis import exit_policy
    from train import adaptive
    from train.tasks.multi_exit import exit_costs

    costs = exit_costs(run.task.model, run.images.image_shape)
    rows = adaptive.measure(run, state, adaptive.between(costs, POINTS))
    middle = rows[len(costs) + POINTS // 2]
    test = adaptive.exits(run, state, run.feed.test_batches())
    spent = np.asarray(costs)[exit_policy.leave(test["confidence"], np.asarray(middle["thresholds"]))]
    return {
        "rows": rows,
        "classes": run.feed.classes,
        "by_class": adaptive.by_class(spent, test["labels"], len(run.feed.classes)),
    }


def extremes(run: "Run", state: "TrainState") -> dict[str, list[dict[str, Any]]]:
    """Returns `train.adaptive.extremes` with the images: {"easy", "hard": [{"image": PNG, "label", "says"}]}."""
    from train import adaptive

    return {
        kind: [_example(run, index, says) for index, says in shown]
        for kind, shown in adaptive.extremes(run, state, SHOWN).items()
    }


def _example(run: "Run", index: int, says: str) -> dict[str, Any]:
    example = run.images.test.example(index, None)
    return {"image": png(example["image"]), "label": run.feed.classes[int(example["label"])], "says": says}


def heuristics(run: "Run", state: "TrainState") -> dict[str, Any]:
    """Measures accuracy with other choices of as many blocks as a policy uses on average (Wu 2018, section 4.2).

    Returns:
      "blocks", their number, and the accuracy with the blocks of the "policy", with the "first" blocks, with evenly
      "distributed" blocks, and with "random" blocks, which differ from image to image.
    """
    import jax
    import jax.numpy as jnp

    from train import adaptive

    decisions = adaptive.blocks(run, state)
    model, total = run.task.model, decisions["computed"].shape[1]
    count = math.ceil(decisions["computed"].sum(1).mean())
    spaced = np.zeros(total)
    spaced[np.linspace(0, total - 1, count).round().astype(int)] = 1

    def accuracy(choose):
        def predict(variables, batch):
            return model.apply(variables, batch["image"], keep=choose(batch["image"]))

        logits, labels, _ = adaptive.outputs(predict, run, state, run.feed.test_batches())
        return float((logits.argmax(1) == labels).mean())

    def random(images):
        noise = jax.random.uniform(jax.random.key(0), (len(images), total))
        return (jnp.argsort(jnp.argsort(noise, -1), -1) < count).astype(jnp.float32)

    def fixed(keep):
        return lambda images: jnp.broadcast_to(jnp.asarray(keep, jnp.float32), (len(images), total))

    return {
        "blocks": count,
        "policy": float(decisions["right"].mean()),
        "random": accuracy(random),
        "first": accuracy(fixed(np.arange(total) < count)),
        "distributed": accuracy(fixed(spaced)),
    }
