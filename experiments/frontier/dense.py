"""The run to make smaller, and the recipe by which it and all candidates train on."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.frontier import starts
from experiments.sweeps import plan
from models.errors import UserError
from train.data import identity
from train.data.source import Source, Stored
from train.export.network import PortableNetwork
from train.run import Network
from train.state import TrainState

HELD_OUT = "90%"  # of a TFDS split that has no held-out part, the share to train on
READ = 4096  # stored images in memory at once
RATE = 0.5  # learning rate of further training, as a factor on the run's, as in configs/pruning.py


@dataclasses.dataclass(frozen=True)
class Dense:
    """A finished run.

    Attributes:
      folder: Its folder, absolute.
      network: The network on its data.
      state: Its newest checkpoint.
      portable: The network as `train.export` sees it.
      digest: Digest of its weights.
      config: The recipe of further training: from the run's weights, on a part of its training images, evaluated on the
        images held out of them.
      steps: Steps of further training.
    """

    folder: Path
    network: Network
    state: TrainState
    portable: PortableNetwork
    digest: str
    config: Any
    steps: int

    @functools.cached_property
    def removable(self) -> list[str]:
        """Kernels whose filters can be removed."""
        return starts.removable(self.portable)

    @property
    def model(self) -> Any:
        """The flax module."""
        return self.network.model

    @property
    def before(self) -> int:
        """Steps of the run itself."""
        return self.network.total

    def trained(self, **changes: Any) -> Any:
        """Returns a copy of the recipe with other values of keys, "section__key"."""
        return plan.changed(self.config, {path.replace("__", "."): value for path, value in changes.items()})


def read(workdir: str, duration: str = "") -> Dense:
    """Opens a run.

    Args:
      workdir: Its folder.
      duration: Length of further training, such as "3 epochs"; "" for half of the run's own.

    Raises:
      UserError: There is no run or no checkpoint, it is not finished, its task is not classification, it is compressed
        already, it is not known which images can be held out of its training set, or it was tested on these.
    """
    from train import restore
    from train.data import load
    from train.export import network as export
    from train.setup import pretrained
    from train.storage import workdir as workdirs

    folder = Path(workdir).absolute()
    check(workdirs.read_config(folder), workdir)
    network, state = restore.load_network(folder)
    if state.step < network.total:
        raise UserError(f"--workdir={workdir} stopped at step {state.step} of {network.total}: finish it first")
    config: Any = ConfigDict(json.loads(json.dumps(network.config)))
    if network.feed.label_shape:
        raise UserError(f"--workdir={workdir} has several classes per image; the frontier is for one class per image")
    fit, held_out = splits(config.data.source, config.data.train_split)
    portable = export.network(network, state)
    steps = network.durations.steps(duration) if duration else max(1, network.total // 2)
    if steps < 1:
        raise UserError(f"--duration={duration}: must be at least one step")
    _further(config, folder, fit, held_out, steps)
    if same(network.images.test, load.load(config.data, "test")):
        raise UserError(
            f"--workdir={workdir} was tested on data.test_split={network.config['data']['test_split']}, with images of "
            f"{held_out}, by which candidates are chosen; give a run with test images of its own"
        )
    return Dense(folder, network, state, portable, pretrained.load(folder).digest(), config, steps)


def check(config: Mapping[str, Any], workdir: str) -> None:
    """Checks the config of a run; raises UserError if the run did not classify, or is compressed already."""
    task, optimizer = config["task"]["name"], config["optimizer"]
    if task.partition("(")[0] not in ("classify", "distill"):
        raise UserError(f"--workdir={workdir} trained task.name={task}; allowed: classify, distill")
    if optimizer.get("prune") or optimizer.get("share"):
        raise UserError(f"--workdir={workdir} is compressed already (optimizer.prune or share): give the run before it")


def own(out: Path, dense: Dense) -> None:
    """Raises UserError if a folder has the frontier of another run, of this run with other steps, or from elsewhere.

    Configs of the trainings hold the paths of the run and of the folder, so that both have to stay where they are.
    """
    from train.storage.files import read_json, write_json

    out.mkdir(parents=True, exist_ok=True)
    file, facts = out / "run.json", {"weights": dense.digest, "steps": dense.steps}
    places = {"workdir": str(dense.folder), "out": str(out.absolute())}
    before = read_json(file) if file.exists() else {**facts, **places}
    if {name: before.get(name) for name in facts} != facts:
        raise UserError(f"--out={out} has the frontier of another run, or of other --duration; choose another folder")
    for name, place in places.items():
        if before.get(name, place) != place:
            raise UserError(f"--{name}={place} was {before[name]}: move it back, or choose another --out")
    write_json(file, {**facts, **places})


def splits(source: str, split: str) -> tuple[str, str]:
    """Returns the part of a training split to train on, and the part to choose among candidates by.

    Raises:
      UserError: The source has no such parts.
    """
    from train.data import hold_out

    if rest := hold_out.left_out(split):
        return split, rest
    if source.startswith("tfds:") and split.isidentifier():
        return f"{split}[:{HELD_OUT}]", f"{split}[{HELD_OUT}:]"
    if split == "train":
        return "train_fit", "validation"
    raise UserError(
        f"data.train_split='{split}' of the run has no part to choose among candidates by; allowed: train, train_fit, "
        "or a beginning such as train[:90%]"
    )


def same(a: Source, b: Source) -> bool:
    """Returns whether two or more of a sample of the images of b are in a; a single one may be in a set twice."""
    there = {_digest(stored) for start in range(0, len(a), READ) for stored, _ in a.fetch(range(len(a))[start:][:READ])}
    return sum(_digest(stored) in there for stored, _ in b.fetch(identity.sample(len(b)))) > 1


def _digest(stored: Stored) -> str:
    return identity.Digest().add(stored.tobytes() if isinstance(stored, np.ndarray) else stored).short()


def _further(config: Any, folder: Path, fit: str, held_out: str, steps: int) -> None:
    """Changes the config of a run to the recipe of further training."""
    config.init_from, config.init_new, config.data_init = str(folder), "", "none"
    config.task.name = config.task.name if config.task.name.startswith("classify") else "classify"
    config.data.train_split, config.data.test_split = fit, held_out
    config.data.select_test = config.data.get("select", "")  # the same classes
    config.duration = f"{steps} steps"
    config.optimizer.learning_rate = RATE * config.optimizer.learning_rate
    config.optimizer.schedule, config.optimizer.warmup = "cosine", "0 steps"
    config.optimizer.prune = config.optimizer.share = ""
    config.ema_decay, config.lookahead, config.hooks = 0.0, "", ""
    config.evaluate_every, config.checkpoint_every, config.log_every = "100%", "20%", "10%"
    config.keep_checkpoints, config.devices = 1, 1
