"""Command lines of the project: flags, --help, one-line errors, exit codes, ctrl-C, and the fields of a network.

A command calls `run` with absl's global flags; the commands of this package call `run_argv`, which takes any list of
arguments and returns an exit code, within `exit_with`.
"""

import ast
import contextlib
import io
import logging
import os
import signal
import sys
import textwrap
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging

from models.errors import UserError

if TYPE_CHECKING:
    import rich.console

FIGURES = ("png", "pdf", "svg")  # formats of figures
USER_ERROR = 2  # exit code of a mistake that the user can correct
INTERRUPTED = 130  # exit code of ctrl-C
PREEMPTED = 75  # exit code of saved, unfinished work (EX_TEMPFAIL of sysexits.h): the same command resumes
flags.disclaim_key_flags()  # absl assigns flags that are defined here to the calling command, so that --help lists them


class _Path(flags.ArgumentParser):
    """A parser of paths that expands `~`, because shells do not expand it after "=".

    Args:
      remote: whether the path may be on an object store.
    """

    def __init__(self, remote: bool):
        self._remote = remote

    def parse(self, argument: str) -> str:
        if not self._remote and "://" in argument:
            raise ValueError("this path must be local")
        return os.path.expanduser(argument)


class _Paths(flags.ListParser):
    """A parser of comma-separated paths."""

    def parse(self, argument: str | list[str]) -> list[str]:
        return list(map(os.path.expanduser, super().parse(argument)))


class _Formats(flags.ArgumentParser):
    """A parser of formats of figures, such as "pdf,svg"."""

    def parse(self, argument: str) -> tuple[str, ...]:
        return formats(argument)


def formats(text: str) -> tuple[str, ...]:
    """Returns the formats of figures in a text such as "pdf,svg"; raises ValueError for a format that is not one."""
    names = tuple(filter(None, (name.strip() for name in text.split(","))))
    if wrong := [name for name in names if name not in FIGURES]:
        raise ValueError(f"{wrong[0]!r} is not a format of figures; allowed: {', '.join(FIGURES)}")
    return names


def define_path(name: str, default: str | None, help: str, remote: bool = False, **options: Any) -> flags.FlagHolder:
    """Defines a flag that holds a path; with `remote`, one that may be on an object store, such as gs://bucket/run."""
    return flags.DEFINE(_Path(remote), name, default, help, serializer=flags.ArgumentSerializer(), **options)


def define_paths(name: str, default: list[str], help: str, **options: Any) -> flags.FlagHolder:
    """Defines a flag that holds a list of paths."""
    return flags.DEFINE(_Paths(), name, default, help, serializer=flags.CsvListSerializer(","), **options)


def define_figures() -> None:
    """Defines the flag --figures, the formats in which a command also writes its figures."""
    text = "Formats of figures, separated by commas, beside PNG: pdf, svg."
    flags.DEFINE(_Formats(), "figures", "", text, serializer=flags.ArgumentSerializer())


def figure_formats() -> tuple[str, ...]:
    """Returns the value of --figures; () for a command that has no such flag."""
    return flags.FLAGS["figures"].value or () if "figures" in flags.FLAGS else ()


def console(**options: Any) -> "rich.console.Console":
    """Returns a console that prints texts literally: "[red]" is no style, and ":cat:" is no emoji."""
    import rich.console  # --help does not need it

    return rich.console.Console(**{"markup": False, "emoji": False, **options})


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses absl's global flags and returns the other arguments; raises UserError for a wrong flag."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(str(error)) from None


# -- running a command -----------------------------------------------------------------------------------


def run(
    main: Callable[..., int | None],
    usage: str,
    positional: bool = False,
    parse: Callable[[Sequence[str]], list[str]] = parse_flags,
) -> NoReturn:
    """Parses absl's global flags, runs `main`, and exits; see `exit_with` for the exit codes.

    Args:
      main: Returns an exit code, or None for 0. It takes no arguments; with `positional`, it takes the command line
        without the flags, [program, ...].
      usage: Text that --help prints above the flags.
      positional: Whether arguments that are not flags are allowed.
      parse: Parses the flags and returns the other arguments; raises UserError for a wrong flag.
    """
    sys.modules["__main__"].__doc__ = usage  # absl's --helpfull prints the main module's docstring

    def parse_or_help(argv: list[str]) -> list[str]:
        if _wants_help(argv):  # absl's own --help exits with 1, and only after the config has been read
            _print_help(usage, flags.FLAGS.main_module_help())
            sys.exit(0)
        arguments = parse(argv)
        if len(arguments) > 1 and not positional:
            raise UserError(f"unexpected argument '{arguments[1]}'; flags start with --, see --help")
        return arguments

    def call(argv: list[str]) -> NoReturn:
        absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax logs every step of every save
        sys.exit((main(argv) if positional else main()) or 0)

    exit_with(lambda: app.run(call, flags_parser=parse_or_help))


def run_argv(
    argv: Sequence[str],
    usage: str,
    define: Callable[[flags.FlagValues], None],
    act: Callable[[flags.FlagValues, list[str]], None],
) -> int:
    """Parses a command line, acts on it, and returns the exit code, with flags that belong to this call alone.

    Args:
      argv: [program, ...]; flags and other arguments in any order.
      usage: Text that --help prints above the flags.
      define: Defines the flags in its argument.
      act: Takes the flags' values and the other arguments.

    Returns:
      0, or 2 for a user's mistake, which is printed as one line on stderr. Other exceptions propagate.
    """
    options = flags.FlagValues()
    define(options)
    try:
        if _wants_help(argv):
            _print_help(usage, _list_flags(options))
        else:
            act(options, options(list(argv))[1:])
    except (UserError, flags.Error, OSError) as error:
        _print_error(error)
        return USER_ERROR
    return 0


def exit_with(command: Callable[[], int | None]) -> NoReturn:
    """Runs `command` and exits with its exit code.

    The exit codes are 0 for success, 2 for a user's mistake (one line on stderr), 1 for a fault (with its traceback),
    130 for ctrl-C, and 75 for work that was saved unfinished.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be valid UTF-8
    interrupt = _Interrupt()
    try:
        sys.exit(command() or 0)
    except BaseException as error:
        interrupt.ending = True
        if isinstance(error, SystemExit):
            if error.code == INTERRUPTED:
                _exit_immediately()
            raise
        if interrupt.came:  # the KeyboardInterrupt may have been replaced by another exception on its way here
            _exit_immediately()
        is_os_error = isinstance(error, OSError) and error.filename is not None
        if not (is_os_error or isinstance(error, UserError)):
            raise
        _print_error(error)
        logging.disable()  # later messages of libraries repeat the same error
        sys.exit(error.exit_code if isinstance(error, UserError) else USER_ERROR)


class _Interrupt:
    """A handler of ctrl-C that ends the process with exit code 130, without a traceback, at any moment.

    The first SIGINT raises KeyboardInterrupt, so that files are closed and child processes are ended. A second one ends
    the process immediately, and so does one that arrives while the process is exiting. The training loop replaces this
    handler with its own. A process that was started with SIGINT ignored (by nohup, or in the background) keeps ignoring
    it.
    """

    def __init__(self):
        self.came = self.ending = False
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._handle)
        self._hooks = sys.unraisablehook, threading.excepthook
        # Threads of libraries may report the same error again after the last line
        sys.unraisablehook = lambda args: None if self.came or self.ending else self._hooks[0](args)
        threading.excepthook = lambda args: None if self.came or self.ending else self._hooks[1](args)

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        if self.came or self.ending:
            os._exit(INTERRUPTED)
        self.came = True
        raise KeyboardInterrupt


Handler = Callable[[int, types.FrameType | None], Any]


@contextlib.contextmanager
def handling(numbers: Iterable[int], handler: Handler) -> Iterator[dict[int, Any]]:
    """Handles signals within a context, and yields the handlers that were there before; they return at its end.

    Outside of the main thread, where Python allows no handlers, nothing is handled.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield before
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _exit_immediately() -> NoReturn:
    """Ends the process without Python's shutdown, during which another SIGINT would print a traceback."""
    if sys.stdout.isatty():
        sys.stdout.write("\x1b[?25h")  # shows the cursor, which progress bars hide
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(INTERRUPTED)


def _print_error(error: BaseException) -> None:
    """Prints an exception as one line on stderr."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    print(f"error: {' '.join(text.split())}", file=sys.stderr, flush=True)


def _wants_help(argv: Sequence[str]) -> bool:
    return bool({"-h", "-help", "--help"} & set(argv))


def _print_help(usage: str, flags_text: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # of `--help | head`
        print(f"{usage.strip()}\n\nFlags:\n{flags_text}")


def _list_flags(options: flags.FlagValues) -> str:
    """Returns the names, help texts and defaults of flags, sorted by name."""
    lines = []
    for flag in sorted({options[name] for name in options}, key=lambda flag: flag.name):
        has_default = isinstance(flag.default, (int, str)) and flag.default is not False
        default = f" (default: {flag.default})" if has_default else ""
        text = " ".join(f"--{flag.name}: {flag.help}{default}".split())
        lines += textwrap.wrap(text, 116, initial_indent="  ", subsequent_indent="      ")
    return "\n".join(lines)


# -- fields of a network ---------------------------------------------------------------------------------


def define_set(options: flags.FlagValues) -> None:
    """Defines --set FIELD=VALUE, which `fields` reads."""
    flags.DEFINE_multi_string(
        "set",
        [],
        "FIELD=VALUE, another value for a field of the network, e.g. --set norm=group:8 --set 'stage_sizes=(2, 2)'",
        flag_values=options,
    )


def fields(options: flags.FlagValues) -> dict[str, Any]:
    """Returns {field: value} for every --set; values are Python literals, or else text."""
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
