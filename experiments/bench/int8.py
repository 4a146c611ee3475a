"""Times int8 networks beside float32 ones in onnxruntime and OpenVINO. See --help."""

import contextlib
import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from models import command
from models.analysis.tables import markdown_table, terminal_table
from models.errors import UserError
from models.kernels import runtime
from train import cli

USAGE = """Times one image in onnxruntime and OpenVINO, in int8 and float32, beside this project's own float32 program.

    python -m experiments.bench.int8
    python -m experiments.bench.int8 --cases=resnet50,vit_small_patch16 --rounds=50

Weights and images are random, since times do not depend on them; all layers are in int8. OpenVINO takes part where it
is installed, also with its own quantization by NNCF (pip install -e '.[openvino]'). The programs of a network take
turns; times are medians. int8.json and int8.md go to --out. Processors with VNNI gain more: the result says whether
this one has it.
"""
CASES = ("resnet50", "vit_small_patch16", "mobilenet_v2", "efficientnet_lite0")


def main() -> None:
    """Times, prints and writes."""
    import jax

    import models
    from train.export import formats, quantize
    from train.recording import summary
    from train.storage.files import write_atomically, write_json

    for case in KINDS.value:
        if case not in models.list_models():
            raise UserError(f"--cases={case}: unknown network; see python -m models")
        if [len(one.shape) for one in models.create(case).example()] != [4]:
            raise UserError(f"--cases={case}: must be a network of images")
    console, out, rows = command.console(), Path(OUT.value), []
    for name in KINDS.value:
        with tempfile.TemporaryDirectory() as folder:
            try:
                programs, kernels = network(name, Path(folder))
            except formats.Failed as error:
                raise UserError(f"--cases={name}: {error}") from None
            times = quantize.milliseconds(programs, ROUNDS.value)
            rows += [
                {
                    "case": name,
                    "program": program,
                    "kernels": kernels,
                    "milliseconds": milliseconds,
                    "times_faster": times[f"{program.partition(',')[0]}, float32"] / milliseconds,
                }
                for program, milliseconds in times.items()
            ]
    environment = {"vnni": vnni(), "cores": runtime.cores(), **summary.environment(jax.devices())}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "int8.json", {"rows": rows, **environment})
    write_atomically(out / "int8.md", markdown(rows, environment))
    console.print(terminal_table(COLUMNS, list(map(cells, rows)), texts=2))


def network(name: str, folder: Path) -> tuple[dict[str, Callable[[], Any]], int]:
    """Returns the programs of one image, float32 first, and the number of int8 kernels of onnxruntime."""
    import jax
    import numpy as np

    import models
    from train.export import formats, graph, onnx_int8
    from train.export.network import PortableNetwork

    model = models.create(name)
    (example,) = model.example()
    variables = jax.tree.map(np.asarray, models.initialize(model, jax.random.key(0), example.shape))
    portable = PortableNetwork(name, {}, example.shape, variables)
    card = {
        "architecture": name, "fields": {}, "inputs": list(example.shape), "labels": [], "license": None,
        "probabilities": "softmax", "folded": list(graph.FOLDS), "preprocessing": {"mean": [0.5], "std": [0.5]},
    }  # fmt: skip
    float32, int8 = folder / "float32.onnx", folder / "int8.onnx"
    formats.FORMATS["onnx"].check(card, "")
    formats.FORMATS["onnx"].write(portable, card, float32)
    pixels = np.random.default_rng(0).integers(0, 256, example.shape, np.uint8)
    onnx_int8.write(onnx_int8.prepare(float32, "int8", [pixels]), (), int8)
    calls = {"onnxruntime, float32": float32, "onnxruntime, int8": int8}
    programs = {name: functools.partial(formats.onnx_call(path, card), pixels) for name, path in calls.items()}
    programs |= by_openvino(float32, int8, pixels)
    programs["ours, float32"] = functools.partial(formats.of_variables(model, variables, card), pixels)
    return programs, sum(onnx_int8.kernels(int8).values())


def by_openvino(float32: Path, int8: Path, pixels: Any) -> dict[str, Callable[[], Any]]:
    """Returns OpenVINO's programs of two ONNX files, and of the first one quantized by NNCF; {} without OpenVINO."""
    try:
        import openvino  # pyright: ignore[reportMissingImports]  (optional: the extra openvino)
    except ImportError:
        return {}
    core = openvino.Core()
    models = {"OpenVINO, float32": core.read_model(float32), "OpenVINO, int8": core.read_model(int8)}
    with contextlib.suppress(ImportError):
        import nncf  # pyright: ignore[reportMissingImports]

        models["OpenVINO, int8 by NNCF"] = nncf.quantize(
            core.read_model(float32), nncf.Dataset([pixels]), subset_size=1
        )
    # Else it computes in bfloat16 where the processor can
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    return {
        name: functools.partial(core.compile_model(model, "CPU", options), [pixels]) for name, model in models.items()
    }


def vnni() -> bool | None:
    """Returns whether this processor multiplies bytes by VNNI; None if the system does not say."""
    path = Path("/proc/cpuinfo")
    return "vnni" in path.read_text() if path.exists() else None


COLUMNS = ("network", "program", "time", "times faster", "int8 kernels")


def cells(row: Mapping[str, Any]) -> list[str]:
    """Returns a row as strings."""
    kernels = str(row["kernels"]) if row["program"] == "onnxruntime, int8" else ""
    return [row["case"], row["program"], f"{row['milliseconds']:.2f} ms", f"{row['times_faster']:.2f}", kernels]


def markdown(rows: Sequence[Mapping[str, Any]], environment: Mapping[str, Any]) -> str:
    """Returns the results as a page."""
    with_vnni = {True: "with VNNI", False: "without VNNI", None: "VNNI unknown"}[environment["vnni"]]
    return f"""# int8 in onnxruntime and OpenVINO

One image; the programs of a network took turns, and times are medians. "times faster" is relative to float32 in the
same software. {environment["device"]} {with_vnni}, commit {environment["commit"]}, on {environment["cores"]} cores.

{markdown_table(COLUMNS, list(map(cells, rows)))}
"""


if __name__ == "__main__":  # only here: absl has one table of flags for the process, and tests import this module
    KINDS = flags.DEFINE_list("cases", list(CASES), "Networks to time.")
    ROUNDS = flags.DEFINE_integer("rounds", 20, "Number of calls; the median counts.", lower_bound=3)
    OUT = command.define_path("out", "experiments/results/bench/int8", "Folder of int8.json and int8.md.")
    cli.run(main, USAGE)
