"""Results of a study that does not exist, with texts that a page must escape."""

import json

from PIL import Image

from experiments import study

ENVIRONMENT = {"commit": "0123456789ab", "device": "1 x toy (2 < 3 cores)", "versions": {"jax": "0.0"}}
CLAIMS = [
    {
        "statement": f'a < b & "c" | d, part {i}',
        "published": f"{i}.5 % <b>",
        "source": f"Author 201{i}, table {i}",
        "expected": f"above {i} & rising",
        "ours": f"9{i}.0 ± 0.{i} %",
        "verdict": verdict,
        **(
            {
                "estimate": 0.012,
                "low": 0.002,
                "high": 0.022,
                "margin": 0.0,
                "unit": "points",
                "p": 0.0312,
                "test": "Welch",
            }
            if i
            else {}
        ),
        **({"seeds": 17} if verdict == study.TOO_SMALL else {}),
    }
    for i, verdict in enumerate(study.VERDICTS)
]
COMMAND = "python -m experiments.run toy.py --scale=digits"


def result(name="toy"):
    """Returns results.json of a study of this name."""
    return {
        "study": name,
        "verdict": "as before",
        "would_change": "Larger <toys> & more seeds.",
        "title": "Toys & <tools>",
        "question": "Does <i>it</i> & that work?",
        "scale": "digits",
        "command": COMMAND,
        "claims": CLAIMS,
        "tables": [
            {
                "title": "Sizes of *toys*",
                "columns": ["toy", "size", "acc_uracy"],
                "rows": [["a|b", 10, "97.2 ± 0.3 %"], ["<c>", 2.5, "diverged"]],
            }
        ],
        "figures": [{"file": "curves.png", "caption": "Loss < 1 & falling."}],
        "environments": [ENVIRONMENT],
        "trials_at_once": 2,
        "seconds_of_training": 312.4,
        "seconds_of_this_command": 61.0,
        "finished": "2026-03-04T05:06:07Z",
        "trials": [{"diverged": None}, {"diverged": "loss is nan at step 3"}],
    }


def write_result(folder, **changes):
    """Writes results.json with changed values."""
    (folder / "results.json").write_text(json.dumps({**result(), **changes}))


def write(root):
    """Writes a folder of results: a study outside the catalogue, a page of costs, a benchmark; returns it."""
    folder = root / "studies" / "toy" / "digits"
    for path in (folder, root / "costs", root / "bench" / "small"):
        path.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(result("toy")))
    Image.new("RGB", (30, 20), "red").save(folder / "curves.png")
    Image.new("RGB", (40, 10), "blue").save(root / "costs" / "early.png")
    (root / "costs" / "costs.md").write_text(
        "# Title\n\nSome text & <script>alert(1)</script>.\n\n![early costs](early.png)\n\n## Below\n\n"
        "| network | top-1 % |\n| --- | --- |\n| vgg | 71.6 |\n"
    )
    (root / "bench" / "small" / "bench.md").write_text("# Benchmark\n\nOne machine.\n")
    (root / "bench" / "small" / "bench.json").write_text(json.dumps({"measured": "2025-01-01T00:00:00Z"}))
    return root
