"""The plan of a sweep: its settings as complete configs, checked before anything runs, and their trials."""

import concurrent.futures
import contextlib
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import study
from experiments.study import trials
from experiments.sweeps import space
from models.errors import UserError
from models.kernels import runtime
from train import cli
from train.setup import config as configs
from train.storage import files

FEW = 8  # settings that are checked in this process, if it computes on the CPU


class Setting(NamedTuple):
    """A combination of values.

    Attributes:
      labels: {short name of a key: value}.
      texts: {key: value as the command line takes it}.
      config: The complete config, a ConfigDict.
    """

    labels: Mapping[str, Any]
    texts: space.Texts
    config: Any

    @property
    def name(self) -> str:
        """The values in one line."""
        return ", ".join(f"{name}={value}" for name, value in self.labels.items()) or "the config"

    def trials(self, seeds: Sequence[int], until: int = 0) -> list[study.Trial]:
        """Returns a trial for each seed."""
        configs_by_seed = {seed: changed(self.config, {"seed": seed}) for seed in seeds}
        return [study.Trial({**self.labels, "seed": seed}, c, until=until) for seed, c in configs_by_seed.items()]


class Sweep(NamedTuple):
    """A sweep.

    Attributes:
      arguments: The base config, as `cli.read_config` takes it.
      keys: {short name: key} of the swept keys.
      settings: The settings.
      seeds: The seeds of each.
    """

    arguments: Sequence[str]
    keys: Mapping[str, space.Key]
    settings: Sequence[Setting]
    seeds: Sequence[int]


def read(arguments: Sequence[str], overs: Sequence[str], random: int = 0, random_seed: int = 0) -> Sweep:
    """Returns the sweep of a config over the values of some keys.

    Args:
      arguments: The base config, as `cli.read_config` takes it.
      overs: See `space.read`.
      random: Number of random draws; 0 for every combination.
      random_seed: Seed of the draws.

    Raises:
      UserError: A value does not have the type of its key, a key or a value is there twice, or there are too many
        trials.
    """
    base: Any = cli.read_config(arguments)
    keys, seeds = space.read(overs)
    for key in [*(key.path for key in keys), *(["seed"] if seeds else [])]:
        if any(argument.startswith(f"--config.{key}=") for argument in arguments):
            raise UserError(f"--over {key}: --config.{key} sets it, too; leave one of them out")
    seeds = seeds or [base.seed]
    _check_count(keys, random, seeds)
    chosen = space.draws(keys, random, random_seed) if random else space.combinations(keys)
    texts = {key.path: dict.fromkeys([*key.texts, *(one[key.path] for one in chosen)]) for key in keys}
    values = {path: {text: value_of(arguments, path, text) for text in texts[path]} for path in texts}
    for key in keys:
        _check_different(key, values[key.path])
    names = short_names(list(texts), base)
    settings = []
    for one in chosen:
        changes = {path: values[path][text] for path, text in one.items()}
        labels = {names[path]: value for path, value in changes.items()}
        settings.append(Setting(labels, one, changed(base, changes)))
    return Sweep(arguments, {names[key.path]: key for key in keys}, settings, seeds)


def _check_count(keys: Sequence[space.Key], random: int, seeds: Sequence[int]) -> None:
    count = (random or 1) * len(seeds)
    for key in keys:
        count *= 1 if random else max(1, len(key.texts))
    if count > space.MOST:
        raise UserError(
            f"the sweep has {count:,} trials; the maximum is {space.MOST:,}: sweep fewer values, or use --random"
        )


def _check_different(key: space.Key, values: Mapping[str, Any]) -> None:
    """Raises UserError if two values of a list are the same."""
    seen: list[Any] = []
    for text in key.texts:
        if values[text] in seen:
            raise UserError(f"--over {key.path}: {text} is there twice")
        seen.append(values[text])


def value_of(arguments: Sequence[str], path: str, text: str) -> Any:
    """Returns the value that --config.PATH=TEXT gives to a key of a config."""
    try:
        value: Any = cli.read_config([*arguments, f"--config.{path}={text}"])
    except UserError as error:
        raise UserError(f"--over {path}={text}: {error}") from None
    for part in path.split("."):
        value = value[part]
    return value


def short_names(paths: Sequence[str], config: configs.Config) -> dict[str, str]:
    """Returns {key: its last part, or all of it if another key of the config or of the sweep ends so, too}."""
    known = {line.split(": ")[0] for line in configs.lines(configs.plain(config))} | {*paths}
    ends = [key.rpartition(".")[2] for key in known]
    return {path: last if ends.count(last := path.rpartition(".")[2]) == 1 else path for path in paths}


def changed(config: Any, changes: Mapping[str, Any]) -> Any:
    """Returns a copy of a config with other values of some keys."""
    config = config.copy_and_resolve_references()
    for path, value in changes.items():
        *sections, key = path.split(".")
        section = config
        for name in sections:
            section = section[name]
        section[key] = value
    return config


# -- checking ------------------------------------------------------------------------------------------------


def check(settings: Sequence[Setting], file: Path) -> list[int]:
    """Builds each setting's run, as training does, and returns the numbers of steps.

    Other processes do so on the CPU if this one would take the memory of an accelerator, or if there are many.

    Args:
      settings: The settings.
      file: JSON file that remembers the checks, for the next launch of the sweep with the same code.

    Raises:
      UserError: A setting cannot be trained; the text names it.
    """
    known: dict[str, int] = {}
    with contextlib.suppress(UserError, FileNotFoundError):
        known = files.read_json(file)
    names = [f"{trials.folder_name(trial)} {trials.code_of(trial)}" for (trial,) in (s.trials([0]) for s in settings)]
    left = {name: setting for name, setting in zip(names, settings, strict=True) if name not in known}
    try:
        for name, steps in zip(left, _steps(list(left.values())), strict=False):
            known[name] = steps
    finally:
        files.write_json(file, known)
    return [known[name] for name in names]


def _steps(settings: Sequence[Setting]) -> Iterator[int]:
    """Yields the steps of each setting."""
    if len(settings) <= FEW and runtime.computes_on_cpu():
        yield from map(steps_of, settings)
        return
    devices = max(setting.config.devices or 1 for setting in settings)
    with concurrent.futures.ProcessPoolExecutor(
        min(runtime.cores(), len(settings), FEW), multiprocessing.get_context("spawn"), _on_cpu, (devices,)
    ) as pool:
        try:
            yield from pool.map(steps_of, settings)
        finally:
            pool.shutdown(cancel_futures=True)


def _on_cpu(devices: int) -> None:
    """Makes a process compute on the CPU, with this many devices."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)


def steps_of(setting: Setting) -> int:
    """Builds the run of a setting, and returns its number of steps; raises UserError if it cannot be trained."""
    from train.run import build_run

    config = changed(setting.config, {"devices": setting.config.devices or 1})  # as `trials.run` does
    try:
        return build_run(config).total
    except UserError as error:
        raise UserError(f"{setting.name}: {error}") from None
