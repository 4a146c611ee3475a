"""Breaks the code in one place at a time and records which tier of tests notices: python -m tests.mutation.

Each change is applied to a copy of the working tree. Only the test files that its row names are run: first their tests
in `make check`, then those in `make test`, then all.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

from models.analysis.tables import markdown_table
from train.recording import summary
from train.storage.files import read_json, write_atomically, write_json

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
TIERS = {"check": "check and not full", "test": "not full", "test-all": ""}
CHECKPOINTS = "train/test_checkpoint.py train/test_hostile_workdir.py"
# By file: the code, its replacement, and the test files.
MUTANTS = """
train/step.py
    jnp.sum(x, 0), metrics)  =>  jnp.mean(x, 0), metrics)  | train/test_step.py
    (10 + t)) if ema_warmup  =>  (11 + t)) if ema_warmup  | train/test_step.py
    lax.axis_index(AXIS) * size)  =>  0 * size)  | train/test_step.py train/devices/test_parallel.py
    fold_in(model_key, index)  =>  fold_in(model_key, 0)  | train/test_step.py
train/data/shuffle.py
    self.seed, int(epoch))  =>  self.seed, int(epoch) // 2)  | train/data/test_shuffle.py train/data/test_stream.py
    ^ (odd > 0)  =>  ^ (odd < 0)  | train/data/test_shuffle.py models/test_airbench.py train/data/test_augment.py
    range(index * batch_size  =>  range(0 * batch_size  | train/data/test_shuffle.py train/data/test_stream.py
    [0, 0, 0, stream]  =>  [0, 0, 0, 0]  | train/data/test_shuffle.py train/data/test_stream.py
models/layers/norm.py
    (count / max(count - 1, 1))  =>  1  | models/layers/test_norm.py
    rstd**3 - 2 * dvar)  =>  rstd**3 - dvar)  | models/layers/test_norm.py
    jnp.square(x32 - mean), axes, axis_name)  =>  jnp.square(x32 - mean), axes, None)  | models/layers/test_norm.py
    running_var.value + self.epsilon) * scale  =>  running_var.value) * scale  | models/layers/test_norm.py
models/resnet.py
    self.preact and i > 1:  =>  self.preact and i > 2:  | models/test_resnet.py models/test_parity.py
    if self.stride_in == "1x1" else  =>  if self.stride_in != "1x1" else  | models/test_resnet.py models/test_parity.py
    drop_slope * (before + i + 1)  =>  drop_slope * (before + i)  | models/test_families.py
    return y if self.preact else act(y)  =>  return act(y)  | models/test_resnet.py models/test_parity.py
train/storage/checkpoint_format.py
    about.pop("checksum") != _checksum(about)  =>  about.pop("checksum") is None  | CHECKPOINTS
    str(about["step"]) != folder.name  =>  str(about["step"]) is None  | CHECKPOINTS
    if actual[name] != digest  =>  if actual[name] is None  | CHECKPOINTS
    leaf)) != about["crc32"][name]  =>  leaf)) is None  | CHECKPOINTS
"""


def mutants():
    """Yields (file, code, replacement, test files)."""
    for file, rows in re.findall(r"^(\S+)\n((?: +.*\n)*)", MUTANTS.lstrip(), re.MULTILINE):
        for row in rows.splitlines():
            change, _, tests = row.rpartition(" | ")
            code, _, other = change.partition("=>")
            yield file, code.strip(), other.strip(), tests.replace("CHECKPOINTS", CHECKPOINTS).split()


def copy_of_the_tree(folder):
    """Copies the files that Git tracks or would track, with their current content."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")[:-1]:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def catches(folder, tier, tests):
    """Returns the first test of the tier that fails; None where all pass or there is no such test."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-m", TIERS[tier], *(f"tests/{t}" for t in tests)]
    cache = {"JAX_COMPILATION_CACHE_DIR": f"{folder}/.cache", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | cache, check=False)
    if done.returncode not in (0, 1, 5):  # 5: no tests
        raise RuntimeError(done.stdout + done.stderr)
    return (re.findall(r"^FAILED (\S+)", done.stdout, re.MULTILINE) or [None])[0]


def judged(folder, file, code, other, tests):
    """Returns the row of one mutant: its location, and the test by which each tier catches it."""
    text = (folder / file).read_text()
    assert text.count(code) == 1, (
        f"{file} contains {code!r} {text.count(code)} times, not once: update tests/mutation.py"
    )
    row = {"file": file, "line": text[: text.index(code)].count("\n") + 1, "code": code, "instead": other}
    (folder / file).write_text(text.replace(code, other))
    for tier in TIERS:
        row[tier] = catches(folder, tier, tests)
        if row[tier]:  # the next tiers include this test
            row |= dict.fromkeys(list(TIERS)[list(TIERS).index(tier) :], row[tier])
            break
    (folder / file).write_text(text)
    return row


def main():
    numbers = [int(number) for number in sys.argv[1:]]  # rows to judge again; default: all
    with tempfile.TemporaryDirectory(prefix="ablate-mutation-") as room:
        folder = Path(room)
        copy_of_the_tree(folder)
        rows = read_json(RESULTS / "mutation.json", {})["rows"] if numbers else [None] * len([*mutants()])
        for number, mutant in enumerate(mutants()):
            if not numbers or number in numbers:
                rows[number] = judged(folder, *mutant)
                print(json.dumps(rows[number]), flush=True)
    result = {"rows": rows, **summary.environment(jax.devices())}
    write_json(RESULTS / "mutation.json", result)
    write_atomically(RESULTS / "mutation.md", page(result))


def page(result):
    """Returns the result in Markdown."""
    rows = result["rows"]
    titles = ["file", "line", "code", "instead", *(f"make {tier}" for tier in TIERS)]
    cells = [
        [row["file"], row["line"], f"`{row['code']}`", f"`{row['instead']}`", *(_noticed(row, tier) for tier in TIERS)]
        for row in rows
    ]
    counts = ", ".join(f"`make {tier}` notices {sum(bool(row[tier]) for row in rows)} of {len(rows)}" for tier in TIERS)
    return f"""# Mutations: which tier of tests notices a broken line

By `python -m tests.mutation`: {counts}.
Each cell names the first test that fails, among those of a few files for each line. A test of `make check` is in the
other tiers, too.

{markdown_table(titles, cells)}

Commit {result["commit"]}; {result["device"]}.
"""


def _noticed(row, tier):
    """Returns the test that fails in this tier; "the same" for the test of the tier before."""
    before = [row[name] for name in TIERS][: list(TIERS).index(tier)]
    return "no" if not row[tier] else "the same" if row[tier] in before else row[tier].removeprefix("tests/")


if __name__ == "__main__":
    main()
