"""Runs the cases of the benchmark, alternating ours and the peer's, and writes the results. See --help."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.console
import rich.table
from absl import flags

from models import command
from models.analysis.tables import slug, terminal_table
from models.errors import UserError, choice_error
from train import cli

USAGE = """Measures speed, alternating ours with PyTorch and timm (the extra `bench`): medians, ratios, peak memory.

    python -m experiments.bench                                        the important cases on this device
    python -m experiments.bench --quick --profile                      on a GPU, when its time is scarce
    python -m experiments.bench --cases=resnet20,loop --rounds=20
    python -m experiments.bench --cases=mobilenet_v2 --sizes=224 --peer_python=../venv-torch/bin/python
    python -m experiments.bench --cases=resnet50 --sweep=batch         or resolution, devices
    python -m experiments.bench --topology=v5e:1x1 --cases=resnet50 --blocks=1

Cases: networks (the peer uses timm's, except for ResNet-20; training step and forward pass, eager and compiled, with
their share of a measured matrix product; no dropout or stochastic depth on either side); "cifar", training end to
end, beside training loops in PyTorch; "data", JPEGs to crops beside torch's DataLoader and tf.data; "start", from the
command to the first step; "commands", imports and --help of each command; "tests", the last `make test` by file and by
test; "speedrun", airbench94's recipe beside the same in PyTorch, and "minute", ResNet-20 with a short recipe, both
whole trainings on CIFAR-10 for an accelerator; "loop", the overhead of the loop per step; "explain", Grad-CAM and
occlusion beside those of pytorch-grad-cam and captum. Without PyTorch (--peer_python=), only ours is measured.

--topology compiles the training steps of networks for an accelerator that is not here (train/devices/topology.py),
beside plain Flax networks with as many parameters: floating-point operations, memory, XLA's estimated cycles, no time.

bench.json, bench.md and charts in --out are written after each case; rows of other cases are kept. Only one worker
computes at a time. Samples during which the machine ran something else are discarded if enough others remain.
A worker that fails (no compiler, no memory) gets a row with the reason.
"""
OTHERS = ("cifar", "data", "start", "commands", "tests", "speedrun", "minute", "loop", "explain")
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def check(cases: list[str], sizes: list[str], modes: list[str], sweep: str, values: list[str]) -> None:
    """Checks cases, sizes, modes of torch.compile and values of a sweep.

    Raises:
      UserError: One is unknown, or the case to sweep is not a network.
    """
    from experiments.bench.networks import NETWORKS

    for kind, names, choices in (
        ("case", cases, (*NETWORKS, *OTHERS)),
        ("size", sizes, ("32", "224")),
        ("mode of torch.compile", modes, MODES),
    ):
        for name in names:
            if name not in choices:
                raise choice_error(kind, name, choices)
    if sweep and (not cases or set(cases) - set(NETWORKS)):
        raise UserError(f"--sweep={sweep} measures networks only: name them by --cases={'|'.join(NETWORKS)}")
    for value in values:
        if not value.isdecimal() or not int(value):
            raise UserError(f"--values={value}: must be whole numbers above 0, e.g. --values=1,2,4")


def usual(accelerator: bool) -> list[str]:
    """Returns the most important cases for the device, most important first."""
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
    """Returns (title, function that measures its rows) for each part, in order."""
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
    """Returns whether that Python finds the modules."""
    code = f"import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, {modules!r})))"
    try:
        return bool(python) and subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def settings_from_flags(accelerator: bool) -> Any:
    """Reads the settings from the flags, with "auto" resolved; --quick takes fewer and shorter measurements."""
    from experiments.bench.workers import Settings

    quick = {"processes": 1, "rounds": 2, "overlap": True} if QUICK.value else {}
    overrides = {
        name: flags.FLAGS[name].value for name in ("processes", "rounds", "inner") if flags.FLAGS[name].present
    }
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
            **overrides,
        }
    )


def device() -> dict[str, Any]:
    """Returns what our worker reports about the device.

    Raises:
      UserError: There is no device, or --sweep=devices would measure virtual ones.
    """
    from experiments.bench.workers import Settings, Spec, WorkerFailed, one

    try:
        description = one(Spec("ours", "ours", {"case": "about"}), Settings())
    except WorkerFailed as error:
        raise UserError(f"JAX has no device: {error}") from None
    if description["platform"] == "cpu" and SWEEP.value == "devices" and not VIRTUAL.value:
        raise UserError(
            "--sweep=devices: virtual devices of a CPU share its cores, so their speed means nothing; "
            "--virtual_devices=4 measures them nevertheless"
        )
    return description


def peer_version(names: Sequence[str]) -> str:
    """Returns the version of the peer's PyTorch.

    Raises:
      UserError: Its Python lacks a module that the cases need.
    """
    from experiments.bench import networks

    if not PEER.value:
        return "not measured"
    modules = (
        ["torch"]
        + ["timm"] * bool(set(names) & set(networks.NETWORKS) - {"resnet20"})
        + ["captum", "pytorch_grad_cam"] * ("explain" in names)
    )
    if not has(PEER.value, *modules):
        raise UserError(
            f"--peer_python={PEER.value} lacks one of {', '.join(modules)}: pip install -e '.[bench]', or "
            "name another; --peer_python= measures ours alone"
        )
    arguments = [PEER.value, "-c", "import torch; print(torch.__version__)"]
    return subprocess.run(arguments, text=True, capture_output=True, check=True).stdout.strip()


class Results:
    """The results of this command, merged with those in the folder; each addition is written at once."""

    def __init__(self, out: Path, header: Mapping[str, Any]):
        from experiments.bench import output

        self._out, self._header, self._before = out, header, output.read(out)
        self.rows: list[dict[str, Any]] = []
        self._profiles: list[dict[str, Any]] = []

    def add(self, rows: Sequence[Mapping[str, Any]] = (), profiles: Sequence[dict[str, Any]] = ()) -> None:
        """Adds rows, with the device, the commit and the time, and profiles."""
        from experiments.bench import output

        measured_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        stamp = {"device": self._header["device"], "commit": self._header["commit"], "measured": measured_at}
        self.rows.extend({**stamp, **row} for row in rows)
        self._profiles.extend(profiles)
        output.write(
            self._out,
            {
                **self._header,
                "measured": measured_at,
                "rows": output.merged(self._before["rows"], self.rows),
                "profiles": output.merged(self._before["profiles"], self._profiles),
            },
        )


def profile(results: Results, settings: Any, console: rich.console.Console) -> None:
    """Adds profiles of our time in networks that missed a target."""
    from experiments.bench import networks, targets
    from experiments.bench.workers import WorkerFailed

    missed = [one["subject"] for one in targets.judged(results.rows) if one["met"] is False]
    for name in networks.NETWORKS:
        for size, batch in networks.sizes(name, settings).items():
            if f"{name}/{size}" not in missed:
                continue
            console.print(f"where the time goes in {name} at {size} …")
            try:
                by_call = networks.profiled(name, size, batch, settings)
            except WorkerFailed as error:
                console.print(f"no profile: {error}")
                continue
            case = f"{name}, {size}x{size}, batch {batch}, {settings.precision}"
            rows = [{"case": f"{case}, {call}", **row} for call, rows in by_call.items() for row in rows]
            results.add(profiles=rows)


def table(rows: Sequence[Mapping[str, Any]], seconds: float) -> rich.table.Table:
    """Returns the rows of a case for the terminal."""
    from experiments.bench import output

    keys = [key for key in output.columns(rows) if key not in ("case", "min_ms")]
    cells = [[output.cell(key, row) for key in keys] for row in rows]
    title = f"{rows[0]['case']} ({seconds:.0f} s)"
    return terminal_table([output.COLUMNS[key] for key in keys], cells, title, texts=len(keys))


def ahead(console: rich.console.Console) -> None:
    """Compiles the networks of --cases for --topology, and prints and writes what the compiler says of them."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # libtpu would look for TPUs
    from experiments.bench import plain
    from experiments.bench import topology as bench
    from train.devices import topology
    from train.recording.summary import commit

    names = CASES.value or list(plain.NAMES)
    bench.check(names, BLOCKS.value)
    target = topology.read(TOPOLOGY.value)
    name = f"topology-{slug(target.name).replace('_', '-')}"
    out = Path(OUT.value or f"experiments/results/bench/{name}")
    results = Results(out, {"device": f"{target.name}, compiled for, not run", "commit": COMMIT.value or commit()})
    cases = ((case, lambda case=case: list(bench.rows(case, target, BATCH.value, BLOCKS.value))) for case in names)
    take(cases, results, console)
    console.print(f"written to {out}")


def take(
    cases: Iterable[tuple[str, Callable[[], list[dict[str, Any]]]]], results: Results, console: rich.console.Console
) -> None:
    """Measures cases, and adds and prints their rows.

    Args:
      cases: (title, function that measures the rows).
      results: Where to add the rows.
      console: Where to print them.
    """
    for title, measure in cases:
        began = time.monotonic()
        try:
            rows = measure()
        except UserError as error:  # a failed case does not end the others
            rows = [{"case": title, "subject": title, "what": "", "who": "", "side": "", "failed": str(error)}]
        results.add(rows)
        console.print(table(rows, time.monotonic() - began))


def main() -> None:
    """Measures the cases, prints and writes them."""
    if TOPOLOGY.value:
        ahead(rich.console.Console(width=None if sys.stdout.isatty() else 160))
        return
    check(CASES.value, SIZES.value, COMPILE.value, SWEEP.value, VALUES.value)
    if VIRTUAL.value:
        os.environ["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={VIRTUAL.value}"
        ).strip()
    import jax

    from experiments.bench import targets

    jax.config.update("jax_platforms", "cpu")  # this process only traces networks; workers get the accelerator
    description = device()
    accelerator = description["platform"] != "cpu"
    names = CASES.value or usual(accelerator)
    version, settings = peer_version(names), settings_from_flags(accelerator)
    out = Path(OUT.value or f"experiments/results/bench/{slug(description['device']).replace('_', '-')}")
    header = {
        "device": description["device"],
        "commit": COMMIT.value or description["commit"],
        "versions": description["versions"],
        "peer": f"PyTorch {version}",
        **{name: getattr(settings, name) for name in ("processes", "rounds", "overlap")},
    }
    results = Results(out, header)
    console = rich.console.Console(width=None if sys.stdout.isatty() else 160)
    values = [int(value) for value in VALUES.value]
    with tempfile.TemporaryDirectory() as folder:
        cases = measured(names, SIZES.value, SWEEP.value, values, description["devices"], Path(folder), settings)
        take(cases, results, console)
        if PROFILE.value and not SWEEP.value:
            profile(results, settings, console)
    for target in targets.judged(results.rows):
        console.print(f"{target['target']}: {target['measured']}, {target['verdict']}", soft_wrap=True)
    console.print(f"written to {out}")


if __name__ == "__main__":
    CASES = flags.DEFINE_list(
        "cases", [], f"Networks by name, and any of {', '.join(OTHERS)}; default: the important ones for the device."
    )
    SIZES = flags.DEFINE_list("sizes", ["32", "224"], "Image sizes at which networks are measured.")
    SWEEP = flags.DEFINE_enum(
        "sweep", "", ["", "batch", "resolution", "devices"], "Quantity over which the networks of --cases are measured."
    )
    VALUES = flags.DEFINE_list("values", [], "Values of the sweep; default: some suitable ones.")
    TOPOLOGY = flags.DEFINE_string("topology", "", "Compile for these accelerators, such as v5e:1x1; measure no time.")
    BLOCKS = flags.DEFINE_integer("blocks", 0, "With --topology: blocks per stage; 0: the whole network.")
    VIRTUAL = flags.DEFINE_integer(
        "virtual_devices", 0, "Virtual CPU devices, for --sweep=devices without accelerators."
    )
    QUICK = flags.DEFINE_bool(
        "quick", False, "Training steps alone, one start, few samples; the workers of a case compile at the same time."
    )
    PROFILE = flags.DEFINE_bool("profile", False, "Also profile our time in networks that miss a target.")
    STOCK = flags.DEFINE_bool("stock", False, "Also measure ours without this project's settings and lowerings.")
    flags.DEFINE_integer("processes", 3, "Number of times that all workers of a case are started.", lower_bound=1)
    flags.DEFINE_integer(
        "rounds", 4, "Rounds per start; in each, every worker runs every call --inner times.", lower_bound=1
    )
    flags.DEFINE_integer("inner", 3, "Calls per round.", lower_bound=1)
    BATCH = flags.DEFINE_integer("batch", 0, "Images per step; 0: 8 to 256, by network, size and device.")
    PRECISION = flags.DEFINE_enum(
        "precision",
        "auto",
        ["auto", "float32", "bfloat16"],
        "Precision of the computation on both sides; auto: bfloat16 on an accelerator, float32 on a CPU.",
    )
    COMPILE = flags.DEFINE_list(
        "compile", ["default"], f"Modes of torch.compile to measure beside eager, of {', '.join(MODES)}; empty: none."
    )
    CORES = flags.DEFINE_integer(
        "data_cores", 2, "Number of cores to which each side of the case data is confined.", lower_bound=1
    )
    DATA_DIR = command.define_path(
        "data_dir", "", "Folder of TFDS sets: imagenet_sample for the case data, cifar10 for speedrun and minute."
    )
    IMAGES = command.define_path(
        "images",
        "",
        "CIFAR-10 for speedrun and minute, as an .npz for data.source=arrays; "
        "default: the TFDS set cifar10, or cifar10_jpeg.",
    )
    PEER = command.define_path(
        "peer_python", sys.executable, "Python with PyTorch, timm, torchvision; empty: only ours."
    )
    TF = command.define_path("tf_python", "", "Python with TensorFlow; default: this one, if it has it.")
    COMMIT = flags.DEFINE_string("commit", "", "Commit to record in rows, for a copy without its git folder.")
    command.define_figures()
    OUT = command.define_path("out", "", "Folder of the results; default: experiments/results/bench/DEVICE.")
    cli.run(main, USAGE)
