"""Mutates each kind of file that the project reads, and counts the failures. See --help."""

import argparse
import fnmatch
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from models.analysis.tables import markdown_table
from tests.fuzz import cases
from tests.fuzz.mutate import mutants
from tests.fuzz.worker import SECONDS, Worker

KINDS = ("refused", "same", "earlier", "other", "traceback", "crash", "hang", "memory")
FAULTS = ("traceback", "crash", "hang", "memory")
SHOWN = 5  # mutants per kind of fault that the results describe


def run(name: str, seconds: float, seed: int, most: int, folder: Path) -> dict[str, Any]:
    """Reads mutants of one case until the time is up, cycling through the files.

    Returns:
      {"case", "checked", "mutants", one count per kind, "faults": descriptions of some}.
    """
    folder.mkdir()
    worker, case = Worker(name, folder), cases.CASES[name]
    streams = [(file, mutants((folder / file).read_bytes(), seed + i, most)) for i, file in enumerate(worker.files)]
    counts, faults, end = Counter(), [], time.monotonic() + seconds
    while streams and time.monotonic() < end and counts.total() < most:
        for file, stream in list(streams):
            what, data = next(stream, (None, None))
            if data is None:
                streams.remove((file, stream))
                continue
            kind, message = worker.ask(file, data)
            counts[kind] += 1
            if (kind in FAULTS or (case.checked and kind == "other")) and len(faults) < SHOWN:
                faults.append({"file": file, "mutant": what, "kind": kind, "said": message[-600:]})
    worker.close()
    return {
        "case": name,
        "checked": case.checked,
        "mutants": counts.total(),
        **{kind: counts[kind] for kind in KINDS},
        "faults": faults,
    }


def bad(row: dict[str, Any]) -> int:
    """Returns the number of mutants in a row with a forbidden outcome."""
    return sum(row[kind] for kind in FAULTS) + (row["other"] if row["checked"] else 0)


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the counts as Markdown."""
    titles = (
        "file", "checksum", "mutants", "refused", "read as the same", "earlier state", "read as another", "traceback",
        "crash", f"over {SECONDS:g} s", "over 1 GiB",
    )  # fmt: skip
    cells = [
        [row["case"], "yes" if row["checked"] else "no", *(row[kind] for kind in ("mutants", *KINDS))] for row in rows
    ]
    return markdown_table(titles, cells)


def write(rows: list[dict[str, Any]], seed: int, folder: Path) -> None:
    """Writes fuzz.json and fuzz.md."""
    import jax

    from train.recording import summary
    from train.storage.files import write_atomically, write_json

    environment = {
        "seed": seed,
        **summary.environment(jax.devices()),
        "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_json(folder / "fuzz.json", {"rows": rows, **environment})
    write_atomically(
        folder / "fuzz.md",
        f"""# Damaged files

Each kind of file that the project reads was mutated: bits, bytes, numbers and blocks changed, cut, repeated, and zip
archives packed again. A mutant has to be refused in one line, be read as the same, or, of a checkpoint, give way to an
earlier one with a warning. Formats without a checksum may give other contents. Nothing else may happen.

{table(rows)}

{sum(row["mutants"] for row in rows):,} mutants, seed {seed}; commit {environment["commit"]}; {environment["device"]}.
""",
    )


def main() -> int:
    """Returns 1 if a mutant had a forbidden outcome."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="for all kinds of files together")
    parser.add_argument("--mutants", type=int, default=2000, help="at most, of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", default="*", help="pattern of names, e.g. 'weights*'")
    parser.add_argument("--out", default="", help="folder for fuzz.json and fuzz.md")
    options = parser.parse_args()
    names = [name for name in cases.CASES if fnmatch.fnmatchcase(name, options.cases)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for i, name in enumerate(names):
            rows.append(run(name, options.seconds / len(names), options.seed, options.mutants, Path(folder) / str(i)))
            print(f"{name}: {rows[-1]['mutants']} mutants, {bad(rows[-1])} bad", file=sys.stderr, flush=True)
            for fault in rows[-1]["faults"]:
                print(f"  {fault['file']}, {fault['mutant']}: {fault['kind']}\n    {fault['said']}", file=sys.stderr)
    print(table(rows))
    if options.out:
        write(rows, options.seed, Path(options.out))
    return int(any(map(bad, rows)))


if __name__ == "__main__":
    sys.exit(main())
