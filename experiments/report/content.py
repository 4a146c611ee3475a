"""Content of the report, gathered from the folder of results: sections of blocks, which `render` writes in two forms.

A block is a pair (kind, value):

  text      a paragraph
  command   a command line
  missing   (what is not there, the command that makes it)
  verdict   (the verdict on a study at a scale, what would change it or "")
  claims    Claims of a study at a scale
  facts     pairs (name, value)
  table     an experiments.study.Table
  figure    a Figure
  page      a Page: Markdown that another command has written
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments import study
from experiments.report import winners
from experiments.study import forest, verdicts
from models.analysis.tables import duration
from models.errors import UserError
from train.storage.files import read_json

COSTS = "python -m experiments.bench.costs --out=experiments/results/costs"
BENCH = "python -m experiments.bench"
SEEDS = "python -m experiments.sweep --config=configs/digits.py --over seed=0:5 --json=experiments/results/digits.json"
PARITY = "PYTHONPATH=../shared/tools ../venv-torch/bin/python -m tests.golden.check_weights"
FUZZ = "make fuzz"
DATES = ("finished", "measured")  # keys that hold the time of a result


class Figure(NamedTuple):
    """A PNG; `name` is its own within the report."""

    file: Path
    name: str
    alt: str
    caption: str


class Page(NamedTuple):
    """Markdown without its title, and the folder that its pictures are in; `name` begins their names."""

    text: str
    folder: Path
    name: str


class Claim(NamedTuple):
    """A claim with its verdict, as in results.json, and its anchor in the report.

    `reason` says why nothing was decided, and how many seeds would decide it; "" where that is unknown.
    """

    anchor: str
    study: str
    scale: str
    statement: str
    published: str
    source: str
    expected: str
    ours: str
    verdict: str
    reason: str
    effect: str
    p: str


class Section(NamedTuple):
    """A heading, its blocks, the sections below it, and blocks after these."""

    anchor: str
    title: str
    blocks: list[tuple[str, Any]]
    children: list["Section"] = []
    rest: list[tuple[str, Any]] = []


class Overview(NamedTuple):
    """A study at a scale: its place in the report, and the claims by verdict, in the order of `study.VERDICTS`."""

    anchor: str
    study: str
    scale: str
    counts: list[int]


class Report(NamedTuple):
    """The whole report; `date` is of the newest result, and `commit` of the code that generated the report."""

    commit: str
    date: str
    devices: list[str]
    overview: list[Overview]
    claims: list[Claim]
    sections: list[Section]


def gather(results: Path, pictures: Path) -> Report:
    """Reads the results.

    Args:
      results: folder of the results.
      pictures: folder for figures that are drawn here; created if missing.

    Raises:
      UserError: there is no such folder, or a file in it is not what its command writes.
    """
    from train.recording import summary

    if not results.is_dir():
        raise UserError(f"--results={results}: there is no such folder; make studies writes experiments/results")
    pictures.mkdir(parents=True, exist_ok=True)
    studies = list(_studies(results / "studies"))
    sections = [
        *_forest(results / "studies", pictures),
        *studies,
        _winners(pictures),
        _costs(results / "costs"),
        _seeds(results / "digits.json"),
        _speed(results / "bench"),
        _parity(results / "parity.md"),
        _fuzz(results / "fuzz.md"),
    ]
    documents = [read(path) for path in sorted(results.rglob("*.json"))]
    devices = dict.fromkeys(value for one in documents for value in _values(one, ("device",)))
    date = max((value for one in documents for value in _values(one, DATES)), default="")
    groups = [(section, part, dict(part.blocks)["claims"]) for section in studies for part in section.children]
    overview = [
        Overview(part.anchor, section.title, own[0].scale, study.counts([one._asdict() for one in own]))
        for section, part, own in groups
        if own
    ]
    claims = [claim for *_, own in groups for claim in own]
    return Report(summary.commit(), date[:10] or "unknown", list(devices), overview, claims, sections)


def read(path: Path) -> Any:
    """Reads a results file; raises UserError if it is damaged."""
    return read_json(path, {})


def _values(value: Any, names: tuple[str, ...]) -> Iterator[str]:
    """Yields the texts under these keys, anywhere in a JSON tree."""
    if isinstance(value, dict):
        yield from (text for name, text in value.items() if name in names and isinstance(text, str))
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _values(part, names)


def anchor(*parts: Any) -> str:
    """Returns an HTML id for a place in the report."""
    return "-".join(re.sub(r"[^a-z0-9]+", "-", str(part).lower()).strip("-") for part in parts)


# -- studies -------------------------------------------------------------------------------------------------------


def _studies(root: Path) -> Iterator[Section]:
    """Yields all studies of the catalogue, then studies of users that have results."""
    names_with_results = {
        path.parent.parent.name for scale in study.SCALES for path in root.glob(f"*/{scale}/results.json")
    }
    for name in (*study.STUDIES, *sorted(names_with_results - set(study.STUDIES))):
        description = study.module(name).STUDY if name in study.STUDIES else None
        paths = [path for scale in study.SCALES if (path := root / name / scale / "results.json").exists()]
        runs = [(path, read(path)) for path in paths]
        try:
            children = [
                _scale(result, path.parent, description.would_change if description else "") for path, result in runs
            ]
        except KeyError as error:
            raise UserError(
                f"{root / name}: its results.json lacks {error}; remove it and run the study again"
            ) from None
        command = f"python -m experiments.run {name} --scale="
        missing = [
            ("missing", (f"Not run at scale {scale} ({cost})", f"{command}{scale}"))
            for scale, cost in (description.cost if description else {}).items()
            if scale not in [path.parent.name for path in paths]
        ]
        title, question = (
            (description.title, description.question)
            if description
            else (runs[-1][1]["title"], runs[-1][1]["question"])
        )
        yield Section(anchor(name), title, [("text", question)], children, missing)


def _scale(result: Mapping[str, Any], folder: Path, would_change: str) -> Section:
    """Returns the section of a study at one scale; `would_change` serves results that lack this text."""
    name, scale = anchor(result["study"]), result["scale"]
    fields = ("statement", "published", "source", "expected", "ours", "verdict")
    claims = [
        Claim._make(
            (
                anchor(name, scale, "claim", i),
                result["title"],
                scale,
                *(claim[field] for field in fields),
                "; ".join(filter(None, (claim.get("reason"), study.seeds_text(claim)))),
                verdicts.effect(claim),
                f"{claim['p']:.2g}" if "p" in claim else "",
            )
        )
        for i, claim in enumerate(result["claims"], 1)
    ]
    figures = [
        Figure(
            folder / figure["file"],
            f"{anchor(name, scale)}-{figure['file']}",
            f"Figure “{Path(figure['file']).stem}” of {result['title']}, scale {scale}",
            figure["caption"],
        )
        for figure in result["figures"]
    ]
    diverged = sum(bool(trial["diverged"]) for trial in result["trials"])
    facts = [
        ("trials", f"{len(result['trials'])}" + (f", of which {diverged} diverged" if diverged else "")),
        ("training, all trials", duration(result["seconds_of_training"])),
        (
            "the last command",
            f"{duration(result['seconds_of_this_command'])}, {result['trials_at_once']} at once; "
            "finished trials are not run again",
        ),
        *(
            ("environment", f"{entry['device']}; commit {entry['commit']}; {_versions(entry['versions'])}")
            for entry in result["environments"]
        ),
    ]
    return Section(
        anchor(name, scale),
        f"Scale: {scale}",
        [
            ("verdict", (study.overall(result["claims"]), result.get("would_change", would_change))),
            ("command", result["command"]),
            ("claims", claims),
            *(("figure", figure) for figure in figures),
            *(("table", study.Table(**table)) for table in result["tables"]),
            ("facts", facts),
        ],
    )


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


# -- the other sections --------------------------------------------------------------------------------------------


def all_claims(folder: Path) -> list[dict[str, Any]]:
    """Returns the claims of all studies in a folder of results, each with its study and scale in the statement."""
    return [
        {**claim, "statement": f"{result['title']}, {result['scale']}: {claim['statement']}"}
        for path in sorted(folder.glob("*/*/results.json"))
        for result in [read(path)]
        for claim in result["claims"]
    ]


def _forest(folder: Path, pictures: Path) -> Iterator[Section]:
    claims = forest.drawable(all_claims(folder))
    if claims:
        file = pictures / "forest-all.png"
        forest.write(file, claims)
        alt = f"Effects of {len(claims)} claims with their intervals"
        yield Section("forest", "All claims", [("figure", Figure(file, file.name, alt, forest.CAPTION))])


def _winners(pictures: Path) -> Section:
    file = pictures / "imagenet-winners.png"
    winners.draw(file)
    figure = Figure(
        file,
        file.name,
        "Bars: "
        + ", ".join(f"{w.year} {w.team} {w.error} %" for w in winners.WINNERS)
        + f"; a line at {winners.HUMAN} % for one trained person",
        winners.CAPTION,
    )
    return Section(
        "winners",
        "Winners of the ImageNet challenge",
        [
            ("text", "Published numbers; nothing here was trained by us."),
            ("figure", figure),
            ("table", winners.table()),
        ],
    )


def _costs(folder: Path) -> Section:
    return Section("costs", "What accuracy costs", _page(folder / "costs.md", "costs", COSTS))


def _parity(path: Path) -> Section:
    return Section("parity", "Weights of other libraries in our networks", _page(path, "parity", PARITY))


def _fuzz(path: Path) -> Section:
    return Section("fuzz", "Damaged files", _page(path, "fuzz", FUZZ))


def _page(path: Path, name: str, command: str) -> list[tuple[str, Any]]:
    """Returns the blocks of a page that `command` has written, or a note that it is missing."""
    if not path.exists():
        return [("missing", ("Not there yet", command))]
    return [("command", command), ("page", Page(path.read_text().partition("\n")[2].strip(), path.parent, name))]


def _seeds(path: Path) -> Section:
    title = "Digits, several seeds"
    if not path.exists():
        return Section("digits", title, [("missing", ("Not run yet", SEEDS))])
    digits = read(path)
    rows = [
        [run["seed"], f"{run['accuracy']:.2%}", f"{run['loss']:.4f}", f"{run['seconds']:.1f}"] for run in digits["runs"]
    ]
    facts = [
        (
            "accuracy",
            f"{digits['accuracy_mean']:.2%} ± {digits['accuracy_std']:.2%}, mean and standard deviation of "
            f"{len(rows)} seeds; {digits['test_examples']} test images",
        ),
        ("network", f"{digits['model']}, {digits['parameters']:,} parameters, {digits['mult_adds']:,} mult-adds"),
        ("environment", f"{digits['device']}; commit {digits['commit']}; {_versions(digits['versions'])}"),
    ]
    return Section(
        "digits",
        title,
        [
            ("text", "The first training, as in make train, under several seeds."),
            ("command", SEEDS),
            ("facts", facts),
            ("table", study.Table("Runs", ["seed", "test accuracy", "test loss", "seconds"], rows)),
        ],
    )


def _speed(folder: Path) -> Section:
    """Returns the section of the benchmark; its pages are newest first."""
    title, parts = "Speed beside PyTorch", []
    for path in sorted(folder.rglob("*.md")):
        where = [part for part in path.relative_to(folder).with_suffix("").parts if part != "bench"]
        name, data = " / ".join(dict.fromkeys(where)) or "all cases", path.with_suffix(".json")
        date = max(_values(read(data), DATES), default="") if data.exists() else ""
        page = Page(path.read_text().partition("\n")[2].strip(), path.parent, anchor("bench", name))
        parts.append((date, Section(anchor("bench", name), f"Benchmark: {name}", [("page", page)])))
    parts = [part for _, part in sorted(parts, key=lambda pair: pair[0], reverse=True)]
    if not parts:
        return Section("bench", title, [("missing", ("Not measured yet", BENCH))])
    return Section(
        "bench",
        title,
        [
            (
                "text",
                "Time of a call, ours beside PyTorch's on the same machine in turn. Where a column is called ratio, "
                "below 1 is faster than the first row of its group; where it counts times, above 1 is faster. Newest "
                "first; older measurements are of older code.",
            ),
            ("command", BENCH),
        ],
        parts,
    )
