"""The results of a study: what is printed, results.json, results.md, and the files of its tables and figures."""

import csv
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.console

from experiments import study
from experiments.study import sequential, trials, verdicts
from models.analysis.tables import markdown_table, slug, terminal_table
from models.errors import UserError


def content(
    current_study: study.Study,
    spec: str,
    scale: str,
    outcomes: study.Outcomes,
    seen: Sequence[sequential.Seen],
    how: str,
) -> dict[str, Any]:
    """Returns the content of results.json: claims with their verdicts, tables, figures; `how` are flags about seeds."""
    from experiments.study import forest

    claims = sequential.records(seen, outcomes)
    figures = {forest.NAME: forest.CAPTION} if forest.drawable(claims) else {}
    figures |= {picture.name: picture.caption for picture in current_study.pictures}
    return {
        "study": current_study.name,
        "title": current_study.title,
        "question": current_study.question,
        "scale": scale,
        "command": f"python -m experiments.run {spec} --scale={scale} {how}",
        "verdict": study.overall(claims),
        "would_change": current_study.would_change,
        "claims": claims,
        "tables": [table._asdict() for table in current_study.tables(outcomes)],
        "figures": [{"file": f"{name}.png", "caption": caption} for name, caption in figures.items()],
        "environments": environments(outcomes),
    }


def show(results: Mapping[str, Any], console: rich.console.Console) -> None:
    """Prints tables and verdicts."""
    for table in results["tables"]:
        console.print(terminal_table(table["columns"], table["rows"], table["title"]))
    rows = [
        (
            *(claim[name] for name in ("statement", "published", "ours")),
            verdicts.effect(claim),
            "\n".join(decision(claim)),
        )
        for claim in results["claims"]
    ]
    columns = ("claim", "published", "ours", "effect", "verdict")
    console.print(terminal_table(columns, rows, "verdicts", 5, lines=True))
    console.print(results["verdict"], soft_wrap=True, highlight=False)
    if results["would_change"]:
        console.print(f"What would change it: {results['would_change']}", soft_wrap=True, highlight=False)


def decision(claim: Mapping[str, Any]) -> list[str]:
    """Returns a claim's verdict, its reason if it has one, and the number of seeds that would decide it, if known."""
    return list(filter(None, (claim["verdict"], claim.get("reason"), study.seeds_text(claim))))


def writable(folder: Path) -> Path:
    """Creates the folder if it is missing, and returns it; a failure here comes before hours of trials.

    Raises:
      UserError: The folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"--out: {folder} cannot be written to: {error.strerror}") from None
    return folder


def environments(outcomes: study.Outcomes) -> list[dict[str, Any]]:
    """Returns the distinct (commit, device, versions) of the trials, or those of this process if none trained."""
    import jax

    from train.recording import summary

    names = ("commit", "device", "versions")
    entries = [{name: o.summary[name] for name in names} for o in outcomes.all() if o.summary]
    entries = entries or [summary.environment(jax.local_devices())]
    return [entry for i, entry in enumerate(entries) if entry not in entries[:i]]


def record_of(trial: study.Trial, outcome: study.Outcome) -> dict[str, Any]:
    """Returns the record of a trial in results.json."""
    names = ("accuracy", "loss", "bleu", "exact_match", "parameters", "mult_adds", "steps", "seconds")
    summary = outcome.summary and {name: outcome.summary[name] for name in names if name in outcome.summary}
    return {
        "labels": dict(outcome.labels),
        "folder": trials.address(trial),
        "summary": summary,
        "diverged": outcome.diverged,
    }


def _test(claim: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the corrected p value, and a text with the test, its margin and its number of seeds."""
    margin = verdicts.amount(claim["margin"], claim["unit"]) if claim["margin"] else ""
    seeds = f"{claim['seeds_seen']} seeds" if claim["test"] not in ("", "exact") else ""
    return f"{claim['p']:.2g}", ", ".join(filter(None, (claim["test"], margin and f"margin {margin}", seeds)))


def files_of(results: Mapping[str, Any]) -> list[str]:
    """Returns the names of the files of tables and figures."""
    return [f"{slug(table['title'])}.csv" for table in results["tables"]] + [one["file"] for one in results["figures"]]


def write(current_study: study.Study, results: Mapping[str, Any], outcomes: study.Outcomes, folder: Path) -> None:
    """Writes results.json, results.md, one CSV per table and one PNG per picture."""
    from experiments.study import forest
    from models.analysis import drawing
    from train.storage.files import read_json, write_atomically, write_json

    if (folder / "results.json").exists():
        for name in set(files_of(read_json(folder / "results.json", {}))) - set(files_of(results)):
            (folder / name).unlink(missing_ok=True)  # of a table or figure that has another name now
    if forest.drawable(results["claims"]):
        forest.write(folder / f"{forest.NAME}.png", results["claims"])
    for picture in current_study.pictures:
        with drawing.figure(folder / f"{picture.name}.png", picture.size) as figure:
            picture.draw(outcomes, figure)
    for table in results["tables"]:
        with (folder / f"{slug(table['title'])}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([table["columns"], *table["rows"]])
    write_atomically(folder / "results.md", markdown(results))
    write_json(folder / "results.json", results)


def markdown(results: Mapping[str, Any]) -> str:
    """Returns the results as a Markdown page."""
    where = "; ".join(f"{entry['device']}, commit {entry['commit']}" for entry in results["environments"])
    text = [
        f"# {results['title']}",
        "",
        results["question"],
        "",
        f"    {results['command']}",
        "",
        f"**Verdict.** {results['verdict']}",
        "",
        *([f"**What would change it.** {results['would_change']}", ""] if results["would_change"] else []),
        f"{len(results['trials'])} trials, {results['seconds_of_training']:.0f} s of training; {where}.",
        "",
        "## Claims",
        "",
    ]
    columns = ("claim", "published", "source", "expected here", "ours", "effect, 95% interval", "p", "test", "verdict")
    names = ("statement", "published", "source", "expected", "ours")
    rows = [
        [*(claim[name] for name in names), verdicts.effect(claim), *_test(claim), "; ".join(decision(claim))]
        for claim in results["claims"]
    ]
    text += [markdown_table(columns, rows), "", verdicts.RULE.format(most=results["looks"][-1][0]), ""]
    for table in results["tables"]:
        text += [f"## {table['title']}", "", markdown_table(table["columns"], table["rows"]), ""]
    for figure in results["figures"]:
        text += [f"![{figure['caption']}]({figure['file']})", "", figure["caption"], ""]
    return "\n".join(text)
