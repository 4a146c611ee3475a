"""Speedups from removed filters, zero weights and packed bits on this machine. See --help."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.bench.timing import Timed, timed
from models import command
from models.analysis.tables import markdown_table, terminal_table
from models.errors import UserError
from models.kernels import runtime
from train import cli

USAGE = """Times the forward pass of smaller networks beside the whole ones.

    python -m experiments.bench.smaller
    python -m experiments.bench.smaller --cases=filters --rounds=30
    python -m experiments.bench.smaller --cases=blocks --out=runs/blocks

filters   ResNet-20, VGG-11 and ResNet-50 without a quarter and a half of the removable filters, as the smaller dense
          networks of models/compress/shrink.py; ResNet-50 with 90% of its weights 0, on the existing dense kernels
blocks    ResNet-20 and ResNet-50 with 0 to 90% of the blocks of their kernels 0, which inference skips; dense as in
          training, and opened for inference, for comparison
binary    preactivation ResNet-20 and ResNet-18 in floats; as XNOR networks in floats, and by xor and popcount
layers    one convolution and one dense layer, in the same versions

The programs of a case take turns; times are medians, ratios are relative to the first. smaller.json and smaller.md go
to --out.
"""
CASES = ("filters", "blocks", "binary", "layers")


def main() -> None:
    """Times, prints and writes."""
    import jax

    from train.recording import summary
    from train.storage.files import write_atomically, write_json

    console, out = command.console(), Path(OUT.value)
    for case in KINDS.value:
        if case not in CASES:
            raise UserError(f"--cases={case}: unknown case; allowed: {', '.join(CASES)}")
    rows = []
    for kind in KINDS.value:
        for title, programs in {"filters": filters, "blocks": blocks, "binary": binary, "layers": layers}[kind]():
            rows += [{"case": title, **row} for row in timed(programs, ROUNDS.value)]
            console.print(
                f"{title}: "
                + ", ".join(f"{row['program']} {row['milliseconds']:.2f} ms" for row in rows if row["case"] == title),
                soft_wrap=True,
                highlight=False,
            )
    environment = {"cores": runtime.cores(), **summary.environment(jax.devices())}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "smaller.json", {"rows": rows, **environment})
    write_atomically(out / "smaller.md", markdown(rows, environment))
    console.print(terminal_table(COLUMNS, list(map(cells, rows)), texts=2))


def network(
    name: str, model: Any, variables: Any, images: Any, packed: bool = False, apply: Callable[..., Any] | None = None
) -> Timed:
    """Returns the forward pass of a network, or of `apply` in its place, compiled."""
    import jax

    from models.analysis.cost import analyze
    from models.kernels.tracing import lowering
    from models.layers import low_bit

    cost = analyze(model, (1, *images.shape[1:])).mult_adds
    if packed:
        variables = low_bit.packed(model, variables, images)
    variables = jax.device_put(variables)

    def forward(variables, images):
        with lowering("packed" if packed else "auto"):
            return (apply or model.apply)(variables, images)

    compiled = jax.jit(forward)
    return Timed(name, lambda: jax.block_until_ready(compiled(variables, images)), None if packed else cost)


def _drawn(model: Any, shape: Sequence[int]) -> tuple[Any, Any]:
    """Returns variables of the model, and images [N, H, W, C]."""
    import jax

    import models

    images = jax.random.normal(jax.random.key(1), shape)
    return models.initialize(model, jax.random.key(0), (1, *shape[1:])), images


def filters() -> list[tuple[str, list[Timed]]]:
    """Times whole networks, and networks without some filters."""
    import jax
    import numpy as np

    import models
    from models.compress import shrink
    from models.weights.layouts import flatten

    rows = []
    for name, size, batch, what in (
        ("resnet20", 32, 64, "conv1/"),
        ("vgg11_cifar", 32, 16, "conv"),
        ("resnet50", 224, 1, "conv1/|conv2/"),
    ):
        model, shape = models.create(name), (batch, size, size, 3)
        variables, images = _drawn(model, shape)
        sizes = {
            path: leaf.shape[-1]
            for path, leaf in flatten({"params": variables["params"]}).items()
            if path.endswith("/kernel") and "stage" in path and any(part in path for part in what.split("|"))
        }
        programs = [network("whole", model, variables, images)]
        for share in (0.25, 0.5):
            masks = {path: np.arange(features) >= round(share * features) for path, features in sizes.items()}
            programs.append(
                network(
                    f"{share:.0%} of the filters gone", *shrink.shrink(model, variables, masks, (1, *shape[1:])), images
                )
            )
        if name == "resnet50":
            zeros = jax.tree.map(
                lambda x: np.where(np.random.default_rng(0).random(x.shape) < 0.9, 0, x) if x.ndim > 1 else x, variables
            )
            timed = network("90% of the weights 0", model, zeros, images)
            programs.append(timed._replace(mult_adds=(timed.mult_adds or 0) // 10))  # theoretical
        rows.append((f"{name}, {size}x{size}, batch {batch}", programs))
    return rows


def blocks() -> list[tuple[str, list[Timed]]]:
    """Times networks of which a share of the blocks of each kernel is 0."""
    import jax
    import numpy as np

    import models
    from models.compress import skip
    from models.kernels.blocks import SIZE

    def zeroed(rng, leaf, share):
        """Returns a kernel without a share of its blocks; the first layer and the head stay as they are."""
        if leaf.ndim < 4 or leaf.shape[-1] % SIZE or leaf.shape[-2] < SIZE:
            return leaf
        order = rng.permutation(leaf.size // SIZE).reshape(*leaf.shape[:-1], -1)
        return np.where(np.repeat(order < round(share * order.size), SIZE, -1), np.float32(0), leaf)

    rows = []
    for name, size, batch in (("resnet20", 32, 1), ("resnet20", 32, 8), ("resnet50", 224, 1), ("resnet50", 224, 8)):
        model, shape = models.create(name), (batch, size, size, 3)
        variables, images = _drawn(model, shape)
        opened = skip.opened(model, variables, images)
        programs = [
            network("dense", model, variables, images),
            network("dense, opened", model, opened.variables, images, apply=opened.apply),
        ]
        for share in (0.5, 0.75, 0.9):
            rng = np.random.default_rng(0)
            zeros = jax.tree.map(lambda leaf, rng=rng, share=share: zeroed(rng, np.asarray(leaf), share), variables)
            opened = skip.opened(model, zeros, images)
            timed = network(f"{share:.0%} of the blocks 0", model, opened.variables, images, apply=opened.apply)
            programs.append(timed._replace(mult_adds=round((timed.mult_adds or 0) * (1 - share))))  # without the stem's
        rows.append((f"{name}, {size}x{size}, batch {batch}", programs))
    return rows


def binary() -> list[tuple[str, list[Timed]]]:
    """Times networks with float weights and inputs, and with binary ones."""
    import models

    rows = []
    for name, size, batch in (
        ("preresnet20", 32, 1),
        ("preresnet20", 32, 64),
        ("preresnet18", 224, 1),
        ("preresnet18", 224, 8),
    ):
        full, signs = models.create(name), models.create(name, conv="xnor", act="identity")
        variables, images = _drawn(full, (batch, size, size, 3))
        rows.append(
            (
                f"{name}, {size}x{size}, batch {batch}",
                [
                    network("full precision", full, variables, images),
                    network("XNOR by floats", signs, variables, images),
                    network("XNOR, packed", signs, variables, images, packed=True),
                ],
            )
        )
    return rows


def layers() -> list[tuple[str, list[Timed]]]:
    """Times a convolution of floats, and of packed signs."""
    import jax

    from models.layers import conv, xnor

    rows = []
    how = ((1, 1), ((1, 1), (1, 1)), (1, 1))
    for channels, size, batch in ((64, 56, 1), (64, 56, 8), (256, 14, 1), (256, 14, 8), (512, 7, 1), (512, 7, 8)):
        x = jax.random.normal(jax.random.key(0), (batch, size, size, channels))
        kernel = jax.random.normal(jax.random.key(1), (3, 3, channels, channels))
        cost = size * size * 9 * channels**2
        rows.append(
            (
                f"3x3 convolution, {channels} channels, {size}x{size}, batch {batch}",
                _layer(
                    lambda x, k: conv.conv2d(x, k, *how),
                    lambda x, p: xnor.convolve_packed(x, p, *how),
                    xnor.pack_conv,
                    x,
                    kernel,
                    cost,
                ),
            )
        )
    for batch in (1, 16):
        x = jax.random.normal(jax.random.key(0), (batch, 4096))
        kernel = jax.random.normal(jax.random.key(1), (4096, 4096))
        rows.append(
            (
                f"dense, 4096 x 4096, batch {batch}",
                _layer(conv.product, xnor.multiply_packed, xnor.pack_dense, x, kernel, 4096**2),
            )
        )
    return rows


def _layer(floats: Callable, signs: Callable, pack: Callable, x: Any, kernel: Any, cost: int) -> list[Timed]:
    import jax

    floats, signs, bits = jax.jit(floats), jax.jit(signs), jax.jit(pack)(kernel)
    return [
        Timed("full precision", lambda: jax.block_until_ready(floats(x, kernel)), cost),
        Timed("XNOR, packed", lambda: jax.block_until_ready(signs(x, bits)), None),
    ]


COLUMNS = ("case", "program", "mult-adds, one image", "of them", "time", "times faster")


def cells(row: Mapping[str, Any]) -> list[str]:
    """Returns a row as strings."""
    return [
        row["case"],
        row["program"],
        f"{row['mult_adds']:,}" if row["mult_adds"] else "bits",
        f"{row['of_mult_adds']:.0%}" if row["of_mult_adds"] else "",
        f"{row['milliseconds']:.2f} ms",
        f"{row['times_faster']:.2f}",
    ]


def markdown(rows: Sequence[Mapping[str, Any]], environment: Mapping[str, Any]) -> str:
    """Returns the results as a page."""
    return f"""# What smaller networks gain

Forward pass, float32 and packed bits. The programs of a case took turns. Times are medians; "times faster" is relative
to the case's first. Mult-adds are theoretical: zeros and packed bits count none. {environment["device"]}, commit
{environment["commit"]}, on {environment["cores"]} cores.

{markdown_table(COLUMNS, list(map(cells, rows)))}
"""


if __name__ == "__main__":  # only here: absl has one table of flags for the process, and tests import this module
    KINDS = flags.DEFINE_list("cases", list(CASES), f"Cases to time, among {', '.join(CASES)}.")
    ROUNDS = flags.DEFINE_integer("rounds", 20, "Number of calls; the median counts.", lower_bound=3)
    OUT = command.define_path("out", "experiments/results/bench/smaller", "Folder of smaller.json and smaller.md.")
    cli.run(main, USAGE)
