"""Runs the cases of the benchmark, ours and the peer's in turn, and writes the results. See --help."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import rich.console
from absl import flags

from models import command
from models.analysis.tables import slug, terminal_table
from models.errors import UserError, choice_error
from train import cli

USAGE = """Measures speed, ours beside PyTorch and timm (the extra `bench`), in turn: medians, ratios, peak memory.

    python -m experiments.bench                                        what is there to measure on this device
    python -m experiments.bench --quick --profile                      on a GPU, when its time is scarce
    python -m experiments.bench --cases=resnet20,loop --rounds=20
    python -m experiments.bench --cases=mobilenet_v2 --sizes=224 --peer_python=../venv-torch/bin/python
    python -m experiments.bench --cases=resnet50 --sweep=batch         or resolution, devices

Cases: networks (timm's on the peer's side but for ResNet-20; training step and forward pass, eager and compiled, with
their share of a measured matrix product; no dropout or stochastic depth on either side); "cifar", training from end to
end beside loops of PyTorch; "data", JPEGs to crops beside torch's DataLoader and tf.data; "start", from the command to
the first step; "commands", imports and --help of each command; "tests", the last `make test` by file and by test;
"speedrun", airbench94's recipe beside the same in PyTorch, and "minute", ResNet-20 by a short recipe, whole
trainings on CIFAR-10 for an accelerator; "loop", what the loop adds to a step; "explain", Grad-CAM and occlusion
beside pytorch-grad-cam's and captum's. Without PyTorch (--peer_python=) ours is measured alone.

bench.json, bench.md and charts in --out are written after each case; rows of other cases that are there stay. Only one
worker computes at a time; samples in which the machine gave its cores to something else are left out where enough
others remain. A worker that fails (no compiler, no memory) has a row that says so.
"""
OTHERS = ("cifar", "data", "start", "commands", "tests", "speedrun", "minute", "loop", "explain")
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def check(cases: list[str], sizes: list[str], modes: list[str], sweep: str, values: list[str]) -> None:
    """Checks cases, sizes, modes of torch.compile and values of a sweep.

    Raises:
      UserError: One is unknown, or what is swept is no network.
    """
    from experiments.bench.networks import NETWORKS

    for kind, names, known in (
        ("case", cases, (*NETWORKS, *OTHERS)),
        ("size", sizes, ("32", "224")),
        ("mode of torch.compile", modes, MODES),
    ):
        for name in names:
            if name not in known:
                raise choice_error(kind, name, known)
    if sweep and (not cases or set(cases) - set(NETWORKS)):
        raise UserError(f"--sweep={sweep} is of networks, by name: --cases={'|'.join(NETWORKS)}")
    for value in values:
        if not value.isdecimal() or not int(value):
            raise UserError(f"--values={value}: want whole numbers above 0, e.g. --values=1,2,4")


def usual(accelerator: bool) -> list[str]:
    """The cases that matter on the device, most important first."""
    networks = ["resnet50", "convnext_tiny", "vit_small_patch16", "mobilenet_v2", "densenet121", "swin_t"]
    if accelerator:
        return [
            "vit_base_patch16",
            "resnet50",
            "cifar",
            "speedrun",
            "minute",
            *networks[1:],
            "start",
            "resnet20",
            "data",
            "loop",
        ]
    return ["resnet20", *networks, "cifar", "data", "start", "commands", "tests", "loop", "explain"]


def measured(
    names: list[str], sizes: list[str], sweep: str, values: list[int], devices: int, folder: Path, settings: Any
) -> Iterator[tuple[str, Callable[[], list[dict[str, Any]]]]]:
    """(title, what measures its rows) of each part, in order."""
    from experiments.bench import commands, mfu, networks, pipelines, speedrun, start

    products: list[dict[str, Any]] = []

    def ceiling() -> list[dict[str, Any]]:
        products.extend(mfu.products(settings))
        return products

    if not sweep and set(names) & set(networks.NETWORKS):
        yield "ceiling", ceiling
    for name in names:
        if sweep:
            yield f"{name} by {sweep}", lambda name=name: networks.sweep(sweep, name, devices, settings, values)
        elif name in networks.NETWORKS:
            for size, batch in networks.sizes(name, settings).items():
                if str(size) in sizes:
                    yield (
                        f"{name} at {size}",
                        lambda at=(name, size, batch): networks.network(*at, mfu.ceiling(products), settings),
                    )
        elif name == "explain":
            for explained, (size, *_) in networks.EXPLAINED.items():
                if str(size) in sizes:
                    yield f"explain {explained}", lambda name=explained: networks.explanations(name, settings)
        elif name == "data":
            sample = pipelines.tfds_folder(pipelines.SAMPLE, settings.data_dir)
            yield name, lambda sample=sample: pipelines.data(folder, sample, settings)
        elif name == "start":
            for kind in start.KINDS:
                yield f"start {kind}", lambda kind=kind: start.start(kind, folder, settings)
        elif name == "commands":
            yield name, lambda: commands.commands(settings)
        elif name == "tests":
            yield name, commands.tests
        else:
            measure = {
                "cifar": pipelines.cifar,
                "loop": pipelines.loop_overhead,
                "speedrun": speedrun.speedrun,
                "minute": speedrun.minute,
            }[name]
            yield name, lambda measure=measure: measure(folder, settings)


def has(python: str, *modules: str) -> bool:
    """Whether that Python finds the modules."""
    code = f"import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, {modules!r})))"
    try:
        return bool(python) and subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def settings_from_flags(accelerator: bool) -> Any:
    """What the flags say, "auto" and the like resolved; fewer and shorter measurements with --quick."""
    from experiments.bench.workers import Settings

    quick = {"processes": 1, "rounds": 2, "overlap": True} if QUICK.value else {}
    asked = {name: flags.FLAGS[name].value for name in ("processes", "rounds", "inner") if flags.FLAGS[name].present}
    precision = PRECISION.value
    if precision == "auto":
        precision = "bfloat16" if accelerator else "float32"
    tensorflow = TF.value or sys.executable
    return Settings(
        **{
            "peer_python": PEER.value,
            "tf_python": tensorflow if has(tensorflow, "tensorflow") else "",
            "accelerator": accelerator,
            "batch": BATCH.value,
            "precision": precision,
            "compile": tuple(COMPILE.value),
            "stock": STOCK.value,
            "quick": QUICK.value,
            "data_dir": DATA_DIR.value,
            "images": IMAGES.value,
            "cores": CORES.value,
            **quick,
            **asked,
        }
    )


def main() -> None:
    """Runs what was asked for, prints and writes it."""
    check(CASES.value, SIZES.value, COMPILE.value, SWEEP.value, VALUES.value)
    if VIRTUAL.value:
        os.environ["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={VIRTUAL.value}"
        ).strip()
    import jax

    from experiments.bench import networks, output, targets
    from experiments.bench.workers import Settings, Spec, WorkerFailed, one

    jax.config.update("jax_platforms", "cpu")  # this process traces networks; an accelerator is for the workers
    try:
        about = one(Spec("ours", "ours", {"case": "about"}), Settings())
    except WorkerFailed as error:
        raise UserError(f"JAX finds no device: {error}") from None
    accelerator = about["platform"] != "cpu"
    if not accelerator and SWEEP.value == "devices" and not VIRTUAL.value:
        raise UserError(
            "--sweep=devices: virtual devices of a CPU share its cores, so they say nothing of speed; "
            "--virtual_devices=4 measures them all the same"
        )
    names = CASES.value or usual(accelerator)
    modules = (
        ["torch"]
        + ["timm"] * bool(set(names) & set(networks.NETWORKS) - {"resnet20"})
        + ["captum", "pytorch_grad_cam"] * ("explain" in names)
    )
    if PEER.value and not has(PEER.value, *modules):
        raise UserError(
            f"--peer_python={PEER.value} lacks one of {', '.join(modules)}: pip install -e '.[bench]', or "
            "name another; --peer_python= measures ours alone"
        )
    settings = settings_from_flags(accelerator)
    version = (
        subprocess.run(
            [PEER.value, "-c", "import torch; print(torch.__version__)"], text=True, capture_output=True, check=True
        ).stdout.strip()
        if PEER.value
        else "not measured"
    )
    result = {
        "device": about["device"],
        "commit": COMMIT.value or about["commit"],
        "versions": about["versions"],
        "peer": f"PyTorch {version}",
        "processes": settings.processes,
        "rounds": settings.rounds,
        "overlap": settings.overlap,
    }
    out = Path(OUT.value or f"experiments/results/bench/{slug(about['device']).replace('_', '-')}")
    console = rich.console.Console(width=None if sys.stdout.isatty() else 160)
    before, new, profiles = output.read(out), [], []

    def keep(rows):
        measured_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        stamp = {"device": about["device"], "commit": result["commit"], "measured": measured_at}
        new.extend({**stamp, **row} for row in rows)
        output.write(
            out,
            {
                **result,
                "measured": measured_at,
                "rows": output.merged(before["rows"], new),
                "profiles": output.merged(before["profiles"], profiles),
            },
        )

    with tempfile.TemporaryDirectory() as folder:
        for title, measure in measured(
            names,
            SIZES.value,
            SWEEP.value,
            [int(value) for value in VALUES.value],
            about["devices"],
            Path(folder),
            settings,
        ):
            began = time.monotonic()
            try:
                rows = measure()
            except UserError as error:  # the other cases are worth having
                rows = [{"case": title, "subject": title, "what": "", "who": "", "side": "", "failed": str(error)}]
            keep(rows)
            shown = [key for key in output.columns(rows) if key not in ("case", "min_ms")]
            console.print(
                terminal_table(
                    [output.COLUMNS[key] for key in shown],
                    [[output.cell(key, row) for key in shown] for row in rows],
                    f"{rows[0]['case']} ({time.monotonic() - began:.0f} s)",
                    texts=len(shown),
                )
            )
        missed = [one["subject"] for one in targets.judged(new) if one["met"] is False]
        for name in networks.NETWORKS if PROFILE.value and not SWEEP.value else ():
            for size, batch in networks.sizes(name, settings).items():
                if f"{name}/{size}" not in missed:
                    continue
                console.print(f"where the time goes in {name} at {size} …")
                try:
                    found = networks.profiled(name, size, batch, settings)
                except WorkerFailed as error:
                    console.print(f"no profile: {error}")
                    continue
                profiles += [
                    {"case": f"{name}, {size}x{size}, batch {batch}, {settings.precision}, {what}", **row}
                    for what, rows in found.items()
                    for row in rows
                ]
                keep([])
    for one_target in targets.judged(new):
        console.print(f"{one_target['target']}: {one_target['measured']}, {one_target['verdict']}", soft_wrap=True)
    console.print(f"written to {out}")


if __name__ == "__main__":
    CASES = flags.DEFINE_list(
        "cases", [], f"Names of networks, and of {', '.join(OTHERS)}; default: what matters on the device."
    )
    SIZES = flags.DEFINE_list("sizes", ["32", "224"], "Sizes of images at which networks are measured.")
    SWEEP = flags.DEFINE_enum(
        "sweep", "", ["", "batch", "resolution", "devices"], "What the networks of --cases cost by."
    )
    VALUES = flags.DEFINE_list("values", [], "Of the sweep; default: some that fit.")
    VIRTUAL = flags.DEFINE_integer("virtual_devices", 0, "CPU devices, for --sweep=devices where there is no other.")
    QUICK = flags.DEFINE_bool(
        "quick", False, "Training steps alone, one start, few samples; the workers of a case compile at the same time."
    )
    PROFILE = flags.DEFINE_bool("profile", False, "Also say where our time goes in networks that miss a target.")
    STOCK = flags.DEFINE_bool("stock", False, "Also measure ours without the settings and lowerings of this project.")
    flags.DEFINE_integer("processes", 3, "How often all workers of a case are started afresh.", lower_bound=1)
    flags.DEFINE_integer(
        "rounds", 4, "Rounds a start; in each, every worker runs every call --inner times.", lower_bound=1
    )
    flags.DEFINE_integer("inner", 3, "Calls a round.", lower_bound=1)
    BATCH = flags.DEFINE_integer("batch", 0, "Images a step; 0: 8 to 256, by network, size and device.")
    PRECISION = flags.DEFINE_enum(
        "precision",
        "auto",
        ["auto", "float32", "bfloat16"],
        "Of the computation, for both; auto: bfloat16 on an accelerator, float32 on a CPU.",
    )
    COMPILE = flags.DEFINE_list(
        "compile", ["default"], f"Modes of torch.compile to measure beside eager, of {', '.join(MODES)}; empty: none."
    )
    CORES = flags.DEFINE_integer(
        "data_cores", 2, "Cores that every side of the case data is confined to.", lower_bound=1
    )
    DATA_DIR = command.define_path(
        "data_dir", "", "Where TFDS sets lie: imagenet_sample for the case data, cifar10 for speedrun and minute."
    )
    IMAGES = command.define_path(
        "images",
        "",
        "CIFAR-10 for speedrun and minute, an .npz for data.source=arrays; "
        "default: the TFDS set cifar10, or cifar10_jpeg.",
    )
    PEER = command.define_path(
        "peer_python", sys.executable, "Python that has PyTorch, timm, torchvision; empty: ours alone."
    )
    TF = command.define_path("tf_python", "", "Python that has TensorFlow; default: this one, if it has.")
    COMMIT = flags.DEFINE_string("commit", "", "That rows name, where this is a copy without its git folder.")
    OUT = command.define_path("out", "", "Folder of the results; default: experiments/results/bench/DEVICE.")
    cli.run(main, USAGE)
