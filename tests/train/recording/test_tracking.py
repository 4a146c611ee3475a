"""The threads of trackers: each line once, and a tracker that fails or hangs costs one line."""

import io
import json
import threading
import time

import pytest
import rich.console

from models.errors import UserError
from tests import tiny
from train import loop
from train.recording import tracking
from train.recording.tracking import Session, Tracker, Tracking

LINES = [
    {"step": 4, "split": "train", "loss": 2.0, "rate": 1},
    {"step": 6, "split": "test", "loss": 1.5, "by_class": [0.5, 0.5], "by_layer": {"a": 1}},
    {"step": 8, "split": "train", "loss": 1.0},
    {"step": 12, "split": "train", "loss": 0.5},
    {"step": 12, "split": "test", "loss": 0.75},
]
POINTS = [
    (4, {"train/loss": 2.0, "train/rate": 1.0}),
    (6, {"test/loss": 1.5}),
    (8, {"train/loss": 1.0}),
    (12, {"train/loss": 0.5}),
    (12, {"test/loss": 0.75}),
]


class Memory(Tracker):
    """A tracker in memory; `faults` are raised before calls, in turn, where they are not None."""

    install = "pip install memory"

    def __init__(self, faults=(), continues=True):
        self.faults, self.continues = list(faults), continues
        self.keys, self.points, self.ended = [], [], []

    def fail(self):
        if self.faults and (fault := self.faults.pop(0)):
            raise fault

    def begin(self, run, folder, key):
        self.keys.append(key)
        self.fail()
        return Session("abc", self.continues and bool(key), "at memory")

    def logged(self, step, values):
        self.fail()
        self.points.append((step, dict(values)))

    def end(self, state, summary):
        self.fail()
        self.ended.append((state, dict(summary)))


class Hanging(Memory):
    """A tracker that does not return from `where` before the event."""

    def __init__(self, where, event):
        super().__init__()
        setattr(self, where, lambda *arguments: event.wait(30) and None)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(tracking, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(tracking, "PATIENCE", {"finished": 20.0, "stopped": 20.0, "failed": 0.2})


def tracked(tracker, folder, before=(), after=LINES, state="finished", summary=None):
    """Hands lines to a tracker in a thread, and returns what was said."""
    said = []
    thread = Tracking(tracker, "memory", None, folder, said.append)
    thread.catch_up(before)
    for line in after:
        thread.write(line["step"], line["split"], {k: v for k, v in line.items() if k not in ("step", "split")})
    thread.close(state, summary or {})
    return said


def test_the_numbers_of_each_line_in_their_order(tmp_path):
    tracker = Memory()
    assert tracked(tracker, tmp_path, summary={"accuracy": 0.5}) == ["memory: at memory"]
    assert tracker.points == POINTS and tracker.keys == [""] and tracker.ended == [("finished", {"accuracy": 0.5})]
    notes = json.loads((tmp_path / "tracking" / "memory.json").read_text())
    assert notes == {"key": "abc", "steps": {"train": 12, "test": 12}}


@pytest.mark.parametrize("continues", [True, False])
def test_a_resumed_run_hands_over_each_point_once(tmp_path, continues):
    """Tests a kill after step 8 and a checkpoint at step 4, so that the lines of steps 6 and 8 are written again."""
    first, second = Memory(), Memory(continues=continues)
    tracked(first, tmp_path, after=LINES[:3], state="stopped")
    tracked(second, tmp_path, before=LINES[:1], after=LINES[1:])
    assert second.keys == ["abc"] and first.ended == [("stopped", {})]
    assert (first.points if continues else []) + second.points == POINTS


def test_a_tracker_that_was_off_gets_what_it_missed_when_the_run_resumes(tmp_path):
    off, on = Memory([ModuleNotFoundError("No module", name="memory")]), Memory()
    assert tracked(off, tmp_path, after=LINES[:3], state="stopped") == [
        "warning: memory: memory is not installed (pip install memory); the run goes on without it"
    ]
    assert tracked(on, tmp_path, before=LINES[:3], after=LINES[3:]) == ["memory: at memory"]
    assert on.points == POINTS and not off.points and not off.ended


def test_a_tracker_that_is_down_for_a_while_gets_everything(tmp_path):
    down = ConnectionError("refused\n by all.")
    tracker = Memory([down, down, None, None, down, down, down])
    said = []
    thread = Tracking(tracker, "memory", None, tmp_path, said.append)
    thread.catch_up(LINES)
    while not tracker.points or tracker.points[-1] != POINTS[-1]:
        time.sleep(0.01)
    thread.close("finished", {})
    assert tracker.points == POINTS and tracker.ended == [("finished", {})] and tracker.keys == [""] * 3
    assert said == [
        "warning: memory: ConnectionError: refused by all; the run goes on, and tries again until it ends",
        "memory: at memory",
    ]


def test_a_single_failure_is_not_worth_a_line(tmp_path):
    said, tracker = [], Memory([OSError("two created it at once")])
    thread = Tracking(tracker, "memory", None, tmp_path, said.append)
    while not said:
        time.sleep(0.01)
    thread.close("finished", {})
    assert said == ["memory: at memory"] and tracker.ended and len(tracker.keys) == 2


@pytest.mark.parametrize("fault", [OSError("x" * 500 + "refused"), KeyboardInterrupt(), SystemExit(1), TypeError("a")])
def test_a_tracker_that_stays_down_costs_one_line(tmp_path, fault):
    (line,) = tracked(Memory([fault] * 1000), tmp_path)
    assert line.startswith("warning: memory: ") and len(line) < 300 and "\n" not in line
    assert line.split(": ")[2].startswith(type(fault).__name__) and (type(fault) is not OSError or "refused;" in line)


@pytest.mark.parametrize("where", ["begin", "logged", "end"])
def test_a_tracker_that_hangs_delays_neither_lines_nor_the_end(tmp_path, where):
    event = threading.Event()
    began = time.monotonic()
    said = tracked(Hanging(where, event), tmp_path, state="failed")  # 0.2 s of patience here
    assert 0.2 <= time.monotonic() - began < 5
    assert said[-1].startswith("warning: memory: no answer for") and len(said) == (1 if where == "begin" else 2)
    event.set()


def test_a_tracker_that_comes_back_after_the_end_is_not_called_again(tmp_path):
    event, tracker = threading.Event(), Memory()
    tracker.begin = lambda *arguments: event.wait(30) and Session("abc")
    said = []
    thread = Tracking(tracker, "memory", None, tmp_path, said.append)
    thread.catch_up(LINES)
    thread.close("failed", {})
    event.set()
    thread._thread.join(10)
    assert not thread._thread.is_alive() and not tracker.points and not tracker.ended and len(said) == 1


@pytest.mark.parametrize("notes", ["", "[]", '{"key": 1, "steps": {}}', '{"key": "a", "steps": {"train": -1}}'])
def test_damaged_notes_are_one_line(tmp_path, notes):
    (tmp_path / "tracking").mkdir()
    (tmp_path / "tracking" / "memory.json").write_text(notes)
    (line,) = tracked(Memory(), tmp_path)
    assert "memory.json is damaged" in line and line.startswith("warning: memory: ")


# -- in a run ---------------------------------------------------------------------------------------------------------

HOOK = """
import json
from train.recording.tracking import Session, Tracker

class Log(Tracker):
    def __init__(self, path: str):
        self.path = path

    def write(self, *what):
        with open(self.path, "a") as file:
            file.write(json.dumps(what) + "\\n")

    def begin(self, run, folder, key):
        self.write("begin", key, folder.name, run.total)
        return Session("k", bool(key))

    def logged(self, step, values):
        self.write("logged", step, values)

    def end(self, state, summary):
        self.write("end", state, summary.get("accuracy"))
"""


@pytest.fixture
def hook(tmp_path):
    """Returns the text of `hooks` and a reader of the file that the hook writes."""
    (tmp_path / "log.py").write_text(HOOK)
    path = tmp_path / "log.jsonl"
    return f"{tmp_path}/log.py:Log('{path}')", lambda: [json.loads(line) for line in path.read_text().splitlines()]


def test_a_hook_of_a_users_file_acts_at_each_log_of_a_run_that_pauses(tmp_path, hook):
    text, events = hook
    folder, config = tmp_path / "run", tiny.config(hooks=text)
    loop.train(config, folder, until=6)
    summary = loop.train(config, folder)
    kinds = [(event[0], event[1]) for event in events()]
    assert kinds == [
        ("begin", ""), ("logged", 4), ("logged", 6), ("end", "stopped"),
        ("begin", "k"), ("logged", 8), ("logged", 12), ("logged", 12), ("end", "finished"),
    ]  # fmt: skip
    assert events()[0] == ["begin", "", "tracking", 12] and events()[-1] == ["end", "finished", summary["accuracy"]]
    points = [event[1:] for event in events() if event[0] == "logged"]
    logged = {(name, step): value for step, values in points for name, value in values.items()}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert logged == {
        (f"{line['split']}/{name}", line["step"]): value
        for line in lines
        for name, value in line.items()
        if isinstance(value, (int, float)) and name != "step"
    }


def test_a_run_that_fails_says_so_to_its_trackers(tmp_path, hook):
    text, events = hook
    with pytest.raises(UserError, match="at step"):
        loop.train(tiny.config(hooks=text, optimizer__learning_rate=1e30), tmp_path / "run")
    assert events()[0][0] == "begin" and events()[-1] == ["end", "failed", None]


@pytest.mark.parametrize("library", ["wandb", "mlflow"])
def test_a_library_that_is_not_installed_is_one_line(tmp_path, monkeypatch, library):
    monkeypatch.setitem(__import__("sys").modules, library, None)
    screen = io.StringIO()
    console = rich.console.Console(file=screen, width=200)
    assert loop.train(tiny.config(hooks=library, duration="2 steps"), tmp_path / "run", console)["steps"] == 2
    (line,) = [line for line in screen.getvalue().splitlines() if "warning" in line]
    install = f"pip install -c constraints.txt -e '.[{library}]'"
    assert line == f"warning: {library}: {library} is not installed ({install}); the run goes on without it"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wandb('a/b')", "project='a/b' must be a name without any of"),
        ("wandb('')", "project='' must be"),
        ("mlflow('')", "experiment='' must have 1 to 500 characters"),
        ("mlflow(experiment=3)", "experiment must be str, not 3"),
    ],
)
def test_names_that_no_tracker_takes_are_refused_before_training(text, message):
    from train import hooks

    with pytest.raises(UserError, match=message):
        hooks.create(text)
