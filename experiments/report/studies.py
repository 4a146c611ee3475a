"""The report's sections of studies, with their claims."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import study
from experiments.report import marks, results_files
from experiments.report.blocks import Claim, Figure, Overview, Section, anchor
from experiments.study import forest, verdicts
from models.analysis.tables import duration
from models.errors import UserError

SCALES = {
    "digits": "the smallest scale, for a CPU: scikit-learn's 1,797 handwritten digits, gray images of 8x8 pixels, "
    "1,437 to train on and 360 to test, so that one test image is 0.28 points. Translation has sentences of a small "
    "grammar instead. Good networks get nearly all right, which leaves little room to be better.",
    "cifar": "photographs of 32x32 pixels, for a CPU: CIFAR-10 and, as the source of transfer, Tiny ImageNet, both "
    "from lossy JPEGs. Small networks, trained briefly.",
    "cifar10": "CIFAR-10, or Multi30k for translation, for an accelerator. Small networks, trained for 60 epochs.",
    "imagenet": "data, networks and schedules as in the papers.",
}


class Study(NamedTuple):
    """A study of the report: its section, a row of the figure for each scale that has claims, and these claims."""

    section: Section
    overview: list[Overview]
    claims: list[Claim]


def gather(root: Path) -> Iterator[Study]:
    """Yields all studies of the catalogue, then studies of users that have results in the folder `root`."""
    names_with_results = {
        path.parent.parent.name for scale in study.SCALES for path in root.glob(f"*/{scale}/results.json")
    }
    for name in (*study.STUDIES, *sorted(names_with_results - set(study.STUDIES))):
        description = study.module(name).STUDY if name in study.STUDIES else None
        paths = [path for scale in study.SCALES if (path := root / name / scale / "results.json").exists()]
        yield _study(name, description, [(path, results_files.read(path, results_files.STUDY)) for path in paths])


def _study(name: str, description: study.Study | None, runs: Sequence[tuple[Path, Mapping[str, Any]]]) -> Study:
    missing = [
        ("missing", (f"Not run at scale {scale} ({cost})", f"python -m experiments.run {name} --scale={scale}"))
        for scale, cost in (description.cost if description else {}).items()
        if scale not in [path.parent.name for path, _ in runs]
    ]
    title, question = (
        (description.title, description.question) if description else (runs[-1][1]["title"], runs[-1][1]["question"])
    )
    children, overview, claims = [], [], []
    for path, result in runs:
        own = _claims(result)
        children.append(_scale(result, own, path.parent, description.would_change if description else ""))
        if own:
            counts, row = study.counts(result["claims"]), marks.row(list(zip(own, result["claims"], strict=True)))
            overview.append(Overview(children[-1].anchor, title, result["scale"], counts, row))
        claims += own
    return Study(Section(anchor(name), title, [("text", question)], children, missing), overview, claims)


def _claims(result: Mapping[str, Any]) -> list[Claim]:
    claims = []
    for i, claim in enumerate(result["claims"], 1):
        claims.append(
            Claim(
                anchor(result["study"], result["scale"], "claim", i),
                result["title"],
                result["scale"],
                *(claim[field] for field in ("statement", "published", "source", "expected", "ours", "verdict")),
                reason="; ".join(filter(None, (claim.get("reason"), study.seeds_text(claim)))),
                effect=verdicts.effect(claim),
                p=f"{claim['p']:.2g}" if claim.get("p") is not None else "",
                interval=marks.interval(claim),
            )
        )
    return claims


def _scale(result: Mapping[str, Any], claims: list[Claim], folder: Path, would_change: str) -> Section:
    """Returns the section of a study at one scale; `would_change` serves results that lack this text."""
    name, scale = anchor(result["study"]), result["scale"]
    for table in result["tables"]:
        if any(len(row) != len(table["columns"]) for row in table["rows"]):
            raise UserError(
                f"{folder / 'results.json'} is damaged: rows of the table “{table['title']}” differ in length"
            )
    figures = [
        (
            "forest" if figure["file"] == f"{forest.NAME}.png" else "figure",
            Figure(
                folder / figure["file"],
                f"{anchor(name, scale)}-{figure['file']}",
                f"Figure “{Path(figure['file']).stem}” of {result['title']}, scale {scale}",
                figure["caption"],
            ),
        )
        for figure in result["figures"]
    ]
    return Section(
        anchor(name, scale),
        f"Scale: {scale}",
        [
            ("verdict", (study.overall(result["claims"]), result.get("would_change", would_change))),
            *(block for block in figures if block[0] == "forest"),
            ("claims", claims),
            *(block for block in figures if block[0] == "figure"),
            *(("table", study.Table(**table)) for table in result["tables"]),
            ("command", result["command"]),
            ("facts", _facts(result)),
        ],
    )


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    diverged = sum(bool(trial["diverged"]) for trial in result["trials"])
    return [
        ("trials", f"{len(result['trials'])}" + (f", of which {diverged} diverged" if diverged else "")),
        ("training, all trials", duration(result["seconds_of_training"])),
        (
            "the last command",
            f"{duration(result['seconds_of_this_command'])}, {result['trials_at_once']} at once; "
            "finished trials are not run again",
        ),
        *(
            ("environment", f"{entry['device']}; commit {entry['commit']}; {versions(entry['versions'])}")
            for entry in result["environments"]
        ),
    ]


def versions(numbers: Mapping[str, str]) -> str:
    """Formats {package: version}."""
    return ", ".join(f"{name} {version}" for name, version in numbers.items())
