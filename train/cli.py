"""The flag --config of the commands that train or read configs, and how they run."""

import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, cast

import ml_collections
from absl import flags
from ml_collections import config_flags

from models import command, plugins
from models.errors import UserError
from train.setup import config, names

flags.disclaim_key_flags()  # absl assigns flags that are defined here to the calling command, so that --help lists them

_SECTION = re.compile(r"flag --\w+\.(\S+?)=(.*): Failed to parse .* as a ConfigDict", re.DOTALL)


def run(main: Callable[..., int | None], usage: str, positional: bool = False) -> NoReturn:
    """Runs a command as `models.command.run` does, and reports errors of a config in one line."""
    command.run(main, usage, positional, parse=_parse)


def _parse(argv: Sequence[str], registry: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses the flags of a registry and returns the other arguments.

    Raises:
      UserError: A flag or a config file is wrong.
    """
    try:
        return registry(argv)
    except flags.Error as error:
        if section := _SECTION.search(str(error)):
            key, value = section.groups()
            raise UserError(f"config key '{key}' is a section, not '{value}'{names.hint(key, config.keys())}") from None
        if isinstance(error.__context__, UserError):  # absl repeats the flag before the text
            raise error.__context__ from None
        raise UserError(str(error)) from None
    except KeyError as error:  # config_flags raises it for a section that the config does not have
        text = str(error.args[0])
        if "Did you mean" not in text:
            section = text.strip("'")
            key = next((key for key in map(_key, argv) if section in key.split(".")[:-1]), section)
            text = f"'{key}'{names.hint(key, config.keys())}"
        raise UserError(f"unknown config key {text}") from None


def _key(argument: str) -> str:
    """Returns the config key of an argument --config.KEY=VALUE; "" for other arguments."""
    return argument.partition("=")[0].partition(".")[2]


def read_config(arguments: Sequence[str]) -> ml_collections.ConfigDict:
    """Returns the config of the arguments --config=FILE.py[:ARGUMENTS] and --config.KEY=VALUE, as commands read them.

    Raises:
      UserError: A value does not have the type of its key, or the file is wrong.
    """
    registry, argv = flags.FlagValues(), ["", *arguments]
    read = define_config(registry=registry, argv=argv)
    _parse(argv, registry)
    return read()


def config_arguments(name: str = "config") -> list[str]:
    """Returns the arguments --config=FILE.py[:ARGUMENTS] and --config.KEY=VALUE of this process, for `read_config`."""
    flag = cast(Any, flags.FLAGS[name])
    overrides = config_flags.get_override_values(flag)
    return [f"--{name}={flag.config_filename}", *(f"--{name}.{key}={value}" for key, value in overrides.items())]


def define_config(
    name: str = "config", registry: flags.FlagValues = flags.FLAGS, argv: list[str] | None = None
) -> Callable[[], ml_collections.ConfigDict]:
    """Defines --config=FILE.py[:ARGUMENTS] with --config.KEY=VALUE, and returns its reader.

    The reader returns the config once flags are parsed. A key that the file does not set is accepted here, because it
    may be a field of the model; setting up a run refuses keys that nothing reads (`train.setup.config.Reader`).

    Args:
      name: Name of the flag.
      registry: Flags to add it to.
      argv: Arguments that will be parsed; None for those of this process.
    """
    holder = config_flags.DEFINE_config_file(
        name,
        None,
        f"Config file with its arguments, e.g. configs/cifar10.py:resnet56,norm=group; "
        f"--{name}.KEY=VALUE changes one key, e.g. --{name}.optimizer.learning_rate=0.05.",
        lock_config=False,
        accept_new_attributes=True,
        flag_values=registry,
        sys_argv=argv,
    )
    parser = registry[name].parser
    parse = parser.parse

    def parse_python_file(argument: str) -> Any:
        path = argument.split(":")[0]
        if os.path.isfile(path) and not path.endswith(".py"):  # e.g. the config.json of a run
            raise ValueError("a config is a Python file, e.g. configs/digits.py")
        try:
            return parse(argument)
        except Exception as error:  # the file's code may raise anything
            # config_flags wraps TypeErrors and ValueErrors, with a traceback as their text
            wrapped = error.__context__ if "whilst parsing config file" in str(error) else None
            cause = wrapped if isinstance(wrapped, Exception) else error
            if isinstance(cause, ValueError):  # by which configs refuse their arguments
                raise UserError(str(cause)) from error
            if "get_config" in str(cause):
                raise UserError(f"{path}: {cause}: a config file defines get_config(arguments)") from error
            raise plugins.fault(path, cause) from error

    parser.parse = parse_python_file

    def read() -> ml_collections.ConfigDict:
        if holder.value is None and not holder.present:
            raise UserError(f"--{name} is missing, e.g. --{name}=configs/digits.py")
        path = cast(Any, registry[name]).config_filename.split(":")[0]
        if not os.path.isfile(path):
            raise UserError(f"--{name}={path}: there is no such file")
        if not isinstance(holder.value, ml_collections.ConfigDict):
            raise UserError(f"--{name}={path}: its get_config returns no ConfigDict")
        return holder.value

    return read
