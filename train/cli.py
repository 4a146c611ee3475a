"""What the entry points share: absl flags, the config file, errors that are one line, and ctrl-C."""

import io
import logging as python_logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from models.errors import UserError

INTERRUPTED = 130  # the exit code of ctrl-C
flags.disclaim_key_flags()  # flags defined through this module are the entry point's, and --help lists them as such


def run(main: Callable[..., int | None], usage: str, positional: bool = False) -> None:
    """Parses the flags, runs `main`, and exits: 0 done, 2 a user's mistake (one line), 1 a fault (with its traceback),
    130 ctrl-C.

    Args:
      main: returns an exit code, None for 0. It takes no arguments or, if `positional`, what is left of the command
        line without the flags, [program, …].
      usage: what --help prints above the flags.
      positional: whether there may be anything but flags.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    sys.modules["__main__"].__doc__ = usage  # absl's --help prints the main module's docstring

    def parse(argv):
        if {"-h", "-help", "--help"} & set(argv):  # absl would exit with 1, and only after the config is read
            app.define_help_flags()
            app.usage(shorthelp=True, writeto_stdout=True)
            sys.exit(0)
        try:
            rest = flags.FLAGS(argv)
        except flags.Error as error:
            text = str(error)
            if "Error whilst parsing config file" in text:  # with a traceback inside; the last line says what is wrong
                kind, _, text = text.strip().splitlines()[-1].partition(": ")
                if "get_config" in text or kind == "IsADirectoryError":
                    text = f"{text}: a config file defines get_config(arguments)"
                elif kind != "ValueError":  # how a config refuses its arguments; anything else is a fault in the file
                    raise
            raise UserError(text) from None
        except KeyError as error:  # config_flags: a section that the config does not have
            raise UserError(f"unknown config key {error.args[0]}") from None
        if len(rest) > 1 and not positional:
            raise UserError(f"unexpected argument '{rest[1]}'; flags start with --, see --help")
        return rest

    def guarded(argv):
        logging.set_verbosity(logging.WARNING)  # Orbax tells of every step of every save
        sys.exit((main(argv) if positional else main()) or 0)

    interrupt = _Interrupt()
    try:
        app.run(guarded, flags_parser=parse)
    except BaseException as error:
        interrupt.ending = True
        if isinstance(error, SystemExit):
            if error.code == INTERRUPTED:
                _end_at_once()
            raise
        if interrupt.came:  # whatever has become of the KeyboardInterrupt on its way here
            _end_at_once()
        if isinstance(error, OSError) and error.filename is not None:
            error = UserError(f"{error.filename}: {error.strerror}")
        if not isinstance(error, UserError):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        python_logging.disable()  # what libraries still say at the end is of the same fault
        sys.exit(2)


class _Interrupt:
    """Ends the process on ctrl-C with exit code 130 and without a traceback, whatever it does at that moment.

    A first SIGINT is a KeyboardInterrupt, so that files are closed and processes are ended on the way out. A second one
    ends the process at once, and so does one when nothing is left to do. The training loop puts its own handler in this
    one's place. A process that was started with SIGINT ignored (by nohup, or in the background) goes on ignoring it.
    """

    def __init__(self):
        self.came = self.ending = False
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._note)
        self._hooks = sys.unraisablehook, threading.excepthook
        # After the last line, threads of libraries may still complain of what it has said
        sys.unraisablehook = lambda args: self.came or self.ending or self._hooks[0](args)
        threading.excepthook = lambda args: self.came or self.ending or self._hooks[1](args)

    def _note(self, number, frame):
        if self.came or self.ending:
            os._exit(INTERRUPTED)
        self.came = True
        raise KeyboardInterrupt


def _end_at_once() -> None:
    """Ends the process without Python's own way out, in which one more SIGINT would be a traceback or a signal's exit
    code.
    """
    if sys.stdout.isatty():
        sys.stdout.write("\x1b[?25h")  # progress bars hide the cursor
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(INTERRUPTED)


def define_config(name: str = "config") -> Callable[[], ml_collections.ConfigDict]:
    """Defines --config=FILE.py[:ARGUMENTS] with --config.KEY=VALUE, and returns what reads it once flags are parsed.

    A key that the file does not set is accepted here: it may be a field of the model. What nothing reads is refused
    when the run is set up (`train.config.Reader`).
    """
    holder = config_flags.DEFINE_config_file(
        name,
        None,
        f"Config file with its arguments, e.g. configs/cifar10.py:resnet56,norm=group; "
        f"--{name}.KEY=VALUE changes one key, e.g. --{name}.optimizer.learning_rate=0.05.",
        lock_config=False,
        accept_new_attributes=True,
    )

    parser = flags.FLAGS[name].parser
    parse = parser.parse

    def checked(argument: str) -> Any:
        if os.path.isfile(path := argument.split(":")[0]) and not path.endswith(".py"):  # as the config.json of a run
            raise ValueError("a config is a Python file, e.g. configs/digits.py")
        return parse(argument)

    parser.parse = checked

    def read() -> ml_collections.ConfigDict:
        if holder.value is None and not holder.present:
            raise UserError(f"--{name} is missing, e.g. --{name}=configs/digits.py")
        path = flags.FLAGS[name].config_filename.split(":")[0]
        if not os.path.isfile(path):
            raise UserError(f"--{name}={path}: there is no such file")
        if not isinstance(holder.value, ml_collections.ConfigDict):
            raise UserError(f"--{name}={path}: its get_config returns no ConfigDict")
        return holder.value

    return read
