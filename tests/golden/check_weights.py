"""Round trips of whole torchvision and timm networks through our files and commands. Needs PyTorch; see parity.py.

  PYTHONPATH=../shared/tools ../venv-torch/bin/python -m tests.golden.check_weights [NAME ...]

Covers every network that both libraries have, up to LIMIT parameters. Their network with drawn weights is saved as .pth
and as .safetensors, imported from each by the command line, and gives the logits of a random image. Our export loads
into their network and is bitwise equal. Without names, all networks are checked and
experiments/results/parity.{json,md} are written: some 30 minutes.
"""

import contextlib
import importlib.metadata
import io
import pathlib
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import models
from models import weights
from models.analysis.tables import markdown_table
from models.layers.init import jit_once
from models.weights import torch_names
from models.weights.__main__ import main as command
from tests.golden import drawn
from train.recording import summary
from train.storage.files import write_atomically, write_json

with contextlib.suppress(ImportError):
    import torchvision_cpu  # noqa: F401

LIMIT = 150e6
TOLERANCE = 1e-4  # relative to the largest logit
RESULTS = pathlib.Path(__file__).parents[2] / "experiments/results"


def pairs() -> dict[str, dict[str, str]]:
    """Returns {our name: {layout: their name}} for networks up to LIMIT."""
    import timm
    import torchvision.models as tv

    names: dict[str, dict[str, str]] = {}
    for name in models.list_models():
        model = models.create(name)
        for layout, table, library_names in (
            ("torchvision", torch_names.TORCHVISION, tv.list_models(module=tv)),
            ("timm", torch_names.TIMM, timm.list_models()),
        ):
            theirs = table.get(name, name)
            if theirs in library_names and layout in weights.layouts(model):
                names.setdefault(name, {})[layout] = theirs
    return {name: theirs for name, theirs in names.items() if parameters(models.create(name)) <= LIMIT}


def parameters(model: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(drawn.abstract(model)["params"]))


def create(layout: str, name: str) -> Any:
    """Returns their network with drawn weights; constant parameters are moved, so that each one has an effect."""
    import timm
    import torch
    import torchvision.models as tv

    torch.manual_seed(0)
    net = (getattr(tv, name)() if layout == "torchvision" else timm.create_model(name)).eval()
    for array in net.state_dict().values():
        if array.is_floating_point() and array.min() == array.max():
            array += 0.2 * torch.rand_like(array)
    return net


def check(name: str, theirs: dict[str, str], folder: pathlib.Path) -> list[dict[str, Any]]:
    """Returns a row for each layout; raises where arrays differ."""
    import torch
    from safetensors.torch import save_file

    model = models.create(name)
    run, rows = jit_once(model.apply), []
    image = drawn.images(name, (1, model.image_size, model.image_size, 3))
    for layout, their_name in theirs.items():
        net = create(layout, their_name)
        state = net.state_dict()
        with torch.no_grad():
            expected = net(torch.from_numpy(image).permute(0, 3, 1, 2)).numpy()
        imported = []
        for suffix in (".pth", ".safetensors"):
            file, ours = str(folder / f"theirs{suffix}"), str(folder / "ours.safetensors")
            if suffix == ".pth":
                torch.save(state, file)
            else:
                save_file({key: value.contiguous() for key, value in state.items()}, file)
            run_command("import", file, f"--from={layout}", f"--model={name}", f"--out={ours}")
            imported.append(weights.load(ours, model))
        jax.tree.map(np.testing.assert_array_equal, *imported)
        back = str(folder / "back.pth")
        run_command("export", ours, f"--to={layout}", f"--out={back}")
        exported = torch.load(back, weights_only=True)
        net.load_state_dict(exported, strict=True)
        assert all(torch.equal(exported[key], value) for key, value in state.items()), f"{name}: export differs"
        logits = np.asarray(run(imported[0], jnp.asarray(image)))
        rows.append(
            {
                "network": name,
                "layout": layout,
                "theirs": their_name,
                "parameters": parameters(model),
                "arrays": len(state),
                "largest_logit": float(np.abs(expected).max()),
                "relative_error": float(np.abs(logits - expected).max() / np.abs(expected).max()),
            }
        )
    return rows


def run_command(*arguments: str) -> None:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = command(["weights", *arguments])
    assert code == 0, output.getvalue()


def main(names: list[str]) -> int:
    """Prints a line per network and writes the results when all were checked; returns 1 if any differs."""
    table, failed = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, theirs in pairs().items():
            if names and name not in names:
                continue
            for row in check(name, theirs, pathlib.Path(folder)):
                table.append(row)
                failed += [row] * (not row["relative_error"] < TOLERANCE)
                print(*row.values(), flush=True)
    print(f"{len(table)} checked, {len(failed)} differ: {failed}")
    if not names:
        write(table)
    return 1 if failed or not table else 0


def write(table: list[dict[str, Any]]) -> None:
    """Writes experiments/results/parity.json and .md."""
    environment = summary.environment(jax.devices())
    environment["versions"] |= {
        package: importlib.metadata.version(package) for package in ("torch", "torchvision", "timm")
    }
    write_json(RESULTS / "parity.json", {"networks": table, "tolerance": TOLERANCE, **environment})
    columns = ("network", "layout", "theirs", "parameters", "arrays", "largest logit", "relative error")
    rows = [
        (
            row["network"], row["layout"], row["theirs"], f"{row['parameters']:,}", row["arrays"],
            f"{row['largest_logit']:.3g}", f"{row['relative_error']:.1e}",
        )
        for row in table
    ]  # fmt: skip
    versions = ", ".join(f"{name} {environment['versions'][name]}" for name in ("torch", "torchvision", "timm", "jax"))
    write_atomically(
        RESULTS / "parity.md",
        f"""# Weights of other libraries in our networks

{environment["device"]}, {environment["commit"]}; {versions}. Written by `python -m tests.golden.check_weights`.

Their network, drawn at random, goes through a .pth and a .safetensors file and `python -m models.weights import` into
ours, and by `export` back, bitwise equal. The error is the largest difference of the two networks' logits of one random
image, relative to the largest logit; it is below {TOLERANCE:g} for all that pass.

{markdown_table(columns, rows)}
""",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
