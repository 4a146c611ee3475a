"""What the command lines of this package share: flags, --help, one-line errors, exit codes, fields of a network."""

import ast
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from models.errors import UserError

if TYPE_CHECKING:
    import rich.console

flags.disclaim_key_flags()  # flags defined through this module are the entry point's, and --help lists them as such


class _Path(flags.ArgumentParser):
    """Paths, with `~` replaced by the user's home folder: no shell does that behind a "="."""

    def parse(self, argument: str) -> str:
        return os.path.expanduser(argument)


class _Paths(flags.ListParser):
    """Several paths with commas between them."""

    def parse(self, argument: str | list[str]) -> list[str]:
        return list(map(os.path.expanduser, super().parse(argument)))


def define_path(name: str, default: str | None, help: str, **options: Any) -> flags.FlagHolder:
    """Defines a flag that holds a path."""
    return flags.DEFINE(_Path(), name, default, help, serializer=flags.ArgumentSerializer(), **options)


def define_paths(name: str, default: list[str], help: str, **options: Any) -> flags.FlagHolder:
    """Defines a flag that holds a list of paths."""
    return flags.DEFINE(_Paths(), name, default, help, serializer=flags.CsvListSerializer(","), **options)


def console(**options: Any) -> "rich.console.Console":
    """Returns a console that shows texts as they are: a user's "[red]" is no style, and ":cat:" no emoji."""
    import rich.console  # not for --help

    return rich.console.Console(**{"markup": False, "emoji": False, **options})


def run(
    argv: Sequence[str],
    usage: str,
    define: Callable[[flags.FlagValues], None],
    act: Callable[[flags.FlagValues, list[str]], None],
) -> int:
    """Parses a command line and acts on it.

    Args:
      argv: [program, ...]; flags and other arguments in any order.
      usage: what --help prints above the flags.
      define: defines the flags, as with `flag_values=` its argument.
      act: gets the flags' values and the other arguments.

    Returns:
      The exit code: 0 done, 2 a user's mistake, one line on stderr. Anything else is a fault and goes through.
    """
    options = flags.FlagValues()
    define(options)
    flags.DEFINE_bool("help", False, "print this", short_name="h", flag_values=options)
    try:
        others = options(list(argv))[1:]
        if options.help:
            print(f"{usage.strip()}\n\nFlags:\n{_described(options)}")
        else:
            act(options, others)
    except (UserError, flags.Error, OSError) as error:
        named = isinstance(error, OSError) and error.filename is not None
        text = f"{error.filename}: {error.strerror}" if named else str(error)
        print(f"error: {' '.join(text.split())}", file=sys.stderr)
        return 2
    return 0


def _described(options: flags.FlagValues) -> str:
    """The flags, one a line where that is wide enough."""
    lines = []
    for flag in sorted({options[name] for name in options}, key=lambda flag: flag.name):
        has_default = isinstance(flag.default, (int, str)) and flag.default is not False
        default = f" (default: {flag.default})" if has_default else ""
        text = " ".join(f"--{flag.name}: {flag.help}{default}".split())
        lines += textwrap.wrap(text, 116, initial_indent="  ", subsequent_indent="      ")
    return "\n".join(lines)


def define_set(options: flags.FlagValues) -> None:
    """Defines --set FIELD=VALUE, which `fields` reads."""
    flags.DEFINE_multi_string(
        "set",
        [],
        "FIELD=VALUE, another value for a field of the network, e.g. --set norm=group:8 --set 'stage_sizes=(2, 2)'",
        flag_values=options,
    )


def fields(options: flags.FlagValues) -> dict[str, Any]:
    """{field: value} of every --set: Python's literals are what they say, all else is text."""
    values = {}
    for text in options.set:
        field, equals, value = text.partition("=")
        if not field or not equals:
            raise UserError(f"--set {text}: write FIELD=VALUE, e.g. --set norm=group")
        try:
            values[field] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two: nested too deeply
            values[field] = value
    return values
