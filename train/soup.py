"""Averages of the weights of several checkpoints.

  Izmailov 2018    Averaging weights leads to wider optima and better generalization, arXiv 1803.05407
  Wortsman 2022    Model soups, arXiv 2203.05482

The weights are those that each run evaluates, its own averages where it has some. Batch-norm statistics of an average
are estimated anew on the training images. The result is the folder of a run that is not trained on: it is predicted
with, exported, explained and started from, as any other.
"""

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from models.errors import UserError, choice_error
from train import evaluate, restore
from train.data import hold_out
from train.data.image_feed import ImageFeed, as_images
from train.data.source import Source
from train.hooks.recalibrate import recalibrate_batch_norm
from train.recording import summary
from train.run import Network
from train.setup.config import difference
from train.state import TrainState
from train.storage import checkpoint, paths
from train.storage.files import write_json
from train.storage.remote import fetched

CHECKPOINTS = (*restore.CHECKPOINTS, "all")
REPORT = "average.json"  # in the folder of an average


class Member(NamedTuple):
    """A checkpoint of a run.

    Attributes:
      name: the run, with its step.
      variables: {"params", "model_state"} that the run evaluates.
    """

    name: str
    variables: dict[str, Any]


class Members(NamedTuple):
    """Checkpoints of one network, and the network and state of the first run."""

    network: Network
    state: TrainState
    checkpoints: list[Member]

    @property
    def feed(self) -> ImageFeed:
        """The images."""
        return as_images(self.network.feed, "averages are for networks that take images")

    def state_of(self, variables: dict[str, Any]) -> TrainState:
        """Returns the state of the first run with other variables, without optimizer and average."""
        return self.state.replace(**variables, opt_state={}, ema={})


def read(runs: Sequence[str], which: str = "last") -> Members:
    """Reads checkpoints of runs.

    Args:
      runs: folders.
      which: "last", "best" (on the test set), or "all" that a folder keeps.

    Raises:
      UserError: a folder holds no run, runs do not fit each other, or there are fewer than two checkpoints.
    """
    if which not in CHECKPOINTS:
        raise choice_error("--checkpoints", which, CHECKPOINTS)
    opened = [restore.load_network(run, "best" if which == "best" else "last") for run in runs]
    network, state = opened[0]
    checkpoints = []
    for run, (other, own) in zip(runs, opened, strict=True):
        _check(runs[0], network, run, other)
        states = _all_states(Path(run), own) if which == "all" else [own]
        for one in states:
            variables = one.evaluation_variables()
            parts = {"params": variables.pop("params"), "model_state": variables}
            checkpoints.append(Member(f"{run} at step {int(one.step):,}", parts))
    if len(checkpoints) < 2:
        raise UserError(f"{runs[0]}: one checkpoint is no average; name more runs, or --checkpoints=all")
    members = Members(network, state, checkpoints)
    assert members.feed  # raises if its examples are no images
    return members


def _check(first: str, network: Network, run: str, other: Network) -> None:
    """Raises UserError if two runs cannot be averaged."""
    section = other.config["optimizer"]
    for key in ("prune", "share"):
        if section.get(key):
            raise UserError(f"{run}: averaged weights would not keep optimizer.{key}={section[key]}")

    def facts(one: Network) -> dict[str, Any]:
        data = {key: one.config["data"].get(key) for key in ("mean", "std")}
        record = {key: list(getattr(one.feed, key, ())) for key in ("classes", "image_shape")}
        return {"model": one.config["model"], "data": data, "task": {"name": one.config["task"]["name"]}, **record}

    if lines := difference(facts(network), facts(other)):
        raise UserError(f"{run} does not fit {first}: {'; '.join(lines[:3])}")


def _all_states(folder: Path, state: TrainState) -> list[TrainState]:
    """Returns the states of all checkpoints of a run, oldest first; `state` is one of them."""
    template = state.replace(opt_state={})
    states = []
    with contextlib.closing(checkpoint.Checkpoints(fetched(folder) / "checkpoints", read_only=True)) as saved:
        for step in saved.steps():
            try:
                leaves, _ = saved.restore(step)
            except ValueError as error:
                raise UserError(f"{folder}: checkpoint {step} is damaged: {error}") from None
            leaves = {name: leaf for name, leaf in leaves.items() if not name.startswith("opt_state/")}
            states.append(checkpoint.unflatten(template, leaves, f"checkpoint {step} in {folder}"))
    return states


def mean(members: Sequence[Member]) -> dict[str, Any]:
    """Returns the mean of variables; integers, such as counters, are those of the first."""

    def average(*leaves):
        if not np.issubdtype(leaves[0].dtype, np.inexact):
            return leaves[0]
        return np.mean([np.asarray(leaf, np.float64) for leaf in leaves], 0).astype(leaves[0].dtype)

    return jax.tree.map(average, *(member.variables for member in members))


def selection_split(network: Network, split: str = "") -> tuple[str, str]:
    """Returns the split on which checkpoints are compared, and a line about it ("" for a held-out part).

    Args:
      network: the network of the runs.
      split: the split that the user names; "" for what the training split leaves out, or else the test split.

    Raises:
      UserError: the runs were trained on it.
    """
    data = network.config["data"]
    if split and split == data["train_split"]:
        raise UserError(f"--split={split} is the split that the runs were trained on")
    if split := split or hold_out.left_out(data["train_split"]):
        return split, ""
    return data["test_split"], (
        f"data.train_split={data['train_split']} leaves no images out, so the test split compares the checkpoints, and "
        "its numbers are too high; train with 'train_fit' or 'train[:90%]', or name a split by --split"
    )


class Kitchen:
    """Averages checkpoints and evaluates them.

    Args:
      members: the checkpoints.
      split: the split on which they are compared.
      batches: number of training batches for batch-norm statistics; 0 for an epoch.
    """

    def __init__(self, members: Members, split: str, batches: int = 0):
        self.members, self.split, self._batches = members, split, batches
        data = members.network.config["data"]
        self._is_test = split == data["test_split"]
        part = data["select_test"] if self._is_test else data["select"]
        feed = members.feed
        self._sources = {"test": feed.test}
        self._sources[split] = feed.test if self._is_test else feed.split(split, select_test=part)
        self._kept: dict[str, list[Any]] = {}

    def average(self, members: Sequence[Member]) -> dict[str, Any]:
        """Returns the mean of the members, with batch-norm statistics of its own if there are several."""
        variables = mean(members)
        stats = variables["model_state"]
        if len(members) < 2 or "batch_stats" not in stats:
            return variables
        network, feed = self.members.network, self.members.feed
        part = network.config["batch_size"] // network.config["accumulate"]
        count = self._batches or -(-len(feed.train) // part)
        whole = {"params": variables["params"], **stats}
        fresh = recalibrate_batch_norm(network.model, whole, feed.training_images(count, part))
        return {**variables, "model_state": {**stats, "batch_stats": jax.tree.map(np.asarray, fresh["batch_stats"])}}

    def measure(self, variables: dict[str, Any], split: str) -> dict[str, Any]:
        """Returns the metrics of variables on a split, "test" or that of the comparison."""
        network, feed = self.members.network, self.members.feed
        if split not in self._kept:
            source: Source = self._sources[split]
            self._kept[split] = list(feed.batches(source))
        kept = self._kept[split]
        calls = (network.parallel.shard({name: leaf[None] for name, leaf in batch.items()}) for batch in kept)
        count = int(sum(batch["mask"].sum() for batch in kept))
        state = network.parallel.place(self.members.state_of(variables))
        return evaluate.evaluate(network.evaluation_call, state, calls, lambda: count)

    def score(self, variables: dict[str, Any]) -> float:
        """Returns the headline metric on the split of the comparison.

        Raises:
          UserError: the task has no headline metric there.
        """
        name = self.members.network.task.headline
        value = self.measure(variables, self.split).get(name)
        if value is None:
            raise UserError(f"task.name={self.members.network.config['task']['name']} measures no {name} per split")
        return value

    def cook(self, greedy: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """Averages the members: all, or greedily (Wortsman 2022, recipe 1); returns (variables, report).

        Greedily, the members are sorted by their score. Each is added if the average is no worse with it than without.
        """
        members = self.members.checkpoints
        scores = [self.score(member.variables) for member in members]
        order = sorted(range(len(members)), key=lambda i: -scores[i])
        if greedy:
            kept, best = order[:1], scores[order[0]]
            variables = members[order[0]].variables
            for i in order[1:]:
                candidate = self.average([members[j] for j in (*kept, i)])
                if (score := self.score(candidate)) >= best:
                    kept, best, variables = [*kept, i], score, candidate
        else:
            kept, variables = order, self.average([members[i] for i in order])
            best = self.score(variables)
        rows = [self._row(members[i].name, members[i].variables, scores[i], i in kept) for i in order]
        rows.append(self._row("average", variables, best, True))
        headline = self.members.network.task.headline
        return variables, {"metric": headline, "split": self.split, "greedy": greedy, "rows": rows}

    def _row(self, name: str, variables: dict[str, Any], score: float, kept: bool) -> dict[str, Any]:
        test = score if self._is_test else self.measure(variables, "test")[self.members.network.task.headline]
        return {"name": name, "score": score, "test": test, "kept": kept}


def check_out(out: Path) -> None:
    """Raises UserError if a folder holds other files than those of an earlier average."""
    if out.exists() and not (out.is_dir() and ((out / REPORT).is_file() or not any(out.iterdir()))):
        raise UserError(f"--out={out} exists and is no average of this command: choose another folder")


def write(members: Members, variables: dict[str, Any], report: dict[str, Any], out: Path) -> None:
    """Writes an average as the folder of a run, with its report; the folder appears when it is complete.

    Args:
      members: what was averaged.
      variables: the average.
      report: of `Kitchen.cook`.
      out: the folder; see `check_out`.
    """
    partial = out.absolute().with_name(f".{out.absolute().name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        network, record = members.network, members.network.feed.record()
        write_json(partial / "config.json", network.config)
        write_json(partial / "data.json", record)
        if values := paths.relative(network.config, out.absolute()):
            write_json(partial / paths.NAME, values)
        scores = {report["metric"]: report["rows"][-1]["test"]}
        with contextlib.closing(checkpoint.Checkpoints(partial / "checkpoints", keep=1)) as saved:
            state = members.state_of(variables)
            content = {"seconds": 0.0, "data": record, "recorder": None}
            saved.save(int(members.state.step), jax.tree.map(np.asarray, state), content, scores)
            saved.wait()
        write_json(partial / REPORT, {**report, **summary.environment(jax.devices())})
        if out.exists():
            shutil.rmtree(out)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
