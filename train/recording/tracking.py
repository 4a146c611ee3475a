"""Trackers: hooks that act at each log, each in a thread of its own, so that none delays or ends the training."""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from train.run import Hook, Run
from train.storage.files import read_json, write_json

# Seconds that the end of a process waits for a tracker. A scheduler kills soon after its signal.
PATIENCE = {"finished": 60.0, "stopped": 10.0, "failed": 10.0}
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between attempts, which double
SHOWN = 90  # characters at the start and at the end of a longer error, where the cause often stands
REST = "what it did not get is in metrics.jsonl"
NOTES = {
    "type": "object",
    "required": ["key", "steps"],
    "properties": {
        "key": {"type": "string"},
        "steps": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}},
    },
}


class Session(NamedTuple):
    """A run as a tracker keeps it.

    Attributes:
      key: finds it again when the run resumes.
      continues: whether it holds the points of earlier processes of the run; if not, it receives all of them again.
      where: tells people where to look, e.g. a URL; "" for nothing.
    """

    key: str = ""
    continues: bool = False
    where: str = ""


class Tracker(Hook):
    """A hook that acts at each log, on the primary process.

    Its methods run in a thread of their own. A method that raises is called again, after growing pauses, until the
    training ends; the second failure in a row is said in one line. A library that is not installed is said at once.

    Attributes:
      install: the command that installs its library.
    """

    install = ""

    def begin(self, run: Run, folder: Path, key: str) -> Session:
        """Opens a session for a run that starts or resumes.

        Args:
          run: the run.
          folder: where files belong, in the workdir; it exists.
          key: that of the session of earlier processes of the run, or "".
        """
        del run, folder, key
        return Session()

    def logged(self, step: int, values: Mapping[str, float]) -> None:
        """Receives the numbers of a line of metrics.jsonl, by split/name; each line once, in their order."""

    def end(self, state: str, summary: Mapping[str, Any]) -> None:
        """Closes the session.

        Args:
          state: "finished"; "stopped" if a signal or a pause ended this process, and the run may resume; or "failed".
          summary: that of a finished run, as in summary.json; otherwise empty.
        """


class _GivenUpError(Exception):
    """An error after which a tracker is not called again."""


class Tracking:
    """The thread of one tracker: it takes lines at once, and hands them over as fast as the tracker takes them.

    Its notes, tracking/NAME.json in the workdir, hold the key and the last step of each split that was handed over, so
    that each line is handed over once, whatever ended earlier processes.

    Args:
      tracker: the hook.
      name: what lines and files call it.
      run: the run.
      folder: the workdir.
      say: shows a line.
    """

    def __init__(self, tracker: Tracker, name: str, run: Run, folder: Path, say: Callable[[str], None]):
        self._tracker, self._name, self._run, self._say = tracker, name, run, say
        self._folder, self._path = folder / "tracking", folder / "tracking" / f"{name}.json"
        self._key, self._steps, self._end = "", dict[str, int](), ("failed", dict[str, Any]())
        self._lines: queue.SimpleQueue[tuple[int, str, dict[str, float]] | None] = queue.SimpleQueue()
        self._closing, self._abandoned, self._warned = threading.Event(), False, False
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def catch_up(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Takes the lines of metrics.jsonl from which the run resumes; those that were handed over are skipped."""
        for line in lines:
            self.write(line["step"], line["split"], {name: value for name, value in line.items() if name != "step"})

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Takes a line; returns at once."""
        numbers = {f"{split}/{name}": float(value) for name, value in values.items() if isinstance(value, (int, float))}
        self._lines.put((step, split, numbers))

    def close(self, state: str, summary: Mapping[str, Any]) -> None:
        """Waits until everything is handed over, but no longer than `PATIENCE`; see `Tracker.end`."""
        self._end = (state, dict(summary))
        self._closing.set()
        self._lines.put(None)
        self._thread.join(PATIENCE[state])
        if self._thread.is_alive():
            self._warn(f"no answer for {PATIENCE[state]:.0f} s; {REST}")
            self._abandoned = True  # the thread stops after its current call, if that ever returns

    def _work(self) -> None:
        with contextlib.suppress(_GivenUpError):
            self._attempt(self._begin)
            while line := self._lines.get():
                step, split, values = line
                if step > self._steps.get(split, -1):
                    self._attempt(lambda step=step, values=values: self._tracker.logged(step, values))
                    self._steps[split] = step
                    self._note()
            self._attempt(lambda: self._tracker.end(*self._end))

    def _begin(self) -> None:
        self._folder.mkdir(exist_ok=True)
        notes = read_json(self._path, NOTES) if self._path.exists() else {"key": "", "steps": {}}
        session = self._tracker.begin(self._run, self._folder, notes["key"])
        self._key, self._steps = session.key, notes["steps"] if session.continues else {}
        self._note()
        if session.where:
            self._say(f"{self._name}: {session.where}")

    def _note(self) -> None:
        with contextlib.suppress(OSError):  # a full disk, which checkpoints report
            write_json(self._path, {"key": self._key, "steps": self._steps})

    def _attempt(self, call: Callable[[], None]) -> None:
        """Calls until a call succeeds; raises _GivenUpError if one fails after `close`, or the library is missing."""
        pause, failures = FIRST_PAUSE, 0
        while not self._abandoned:
            was_closing = self._closing.is_set()
            try:
                return call()
            except ModuleNotFoundError as error:
                how = f" ({self._tracker.install})" if self._tracker.install else ""
                self._warn(f"{error.name} is not installed{how}; the run goes on without it", error)
                break
            except BaseException as error:  # libraries raise many types, even KeyboardInterrupt
                failures += 1
                if was_closing:
                    self._warn(f"{_line(error)}; {REST}", error)
                    break
                if failures > 1:
                    self._warn(f"{_line(error)}; the run goes on, and tries again until it ends", error)
            self._closing.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        raise _GivenUpError

    def _warn(self, text: str, error: BaseException | None = None) -> None:
        """Says the first failure of this process; details.log has the traceback."""
        if not (self._warned or self._abandoned):
            self._warned = True
            logging.getLogger(__name__).warning("%s: %s", self._name, text, exc_info=error)
            self._say(f"warning: {self._name}: {text}")


def _line(error: BaseException) -> str:
    text = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".: ")
    return text if len(text) <= 2 * SHOWN else f"{text[:SHOWN]} … {text[-SHOWN:]}"


def start(run: Run, folder: Path, say: Callable[[str], None]) -> list[Tracking]:
    """Starts the threads of the trackers among the hooks of a run; names are those of the classes, in lower case."""
    trackers: list[Tracking] = []
    names: list[str] = []
    for tracker in run.hooks:
        if isinstance(tracker, Tracker):
            kind = type(tracker).__name__.lower()
            names.append(kind)
            name = kind if names.count(kind) == 1 else f"{kind}-{names.count(kind)}"
            trackers.append(Tracking(tracker, name, run, folder, say))
    return trackers
