"""Latency and images per second of train.serve, beside the forward pass alone. See --help."""

import asyncio
import contextlib
import io
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from absl import flags

from models import command
from models.analysis.tables import markdown_table, terminal_table
from models.errors import UserError
from models.kernels import runtime
from train import cli

if TYPE_CHECKING:
    from train.export.loaded import Loaded

USAGE = """Measures train.serve: each client sends one image after another, and waits for each answer.

    python -m experiments.bench.latency runs/digits
    python -m experiments.bench.latency lite0.safetensors exported/lite0_onnx --image=cat.jpg --clients=1,8,64

The server is a process of its own, with its usual flags, and the clients share the machine with it. Beside it stands
what the server cannot save: decoding the image and the forward pass, one after the other in one process. All of a
network take turns, --rounds times. latency.json and latency.md go to --out.
"""
ALONE = (1, 8)  # batch sizes of the forward pass
LEAST = 3  # requests per client and turn
CONTENT = (375, 500)  # height and width of the drawn image, typical of ImageNet


def main(argv: list[str]) -> None:
    """Measures, prints and writes."""
    if len(argv) < 2:
        raise UserError("name MODELs: runs, exported networks, or published weights; see --help")
    if wrong := [text for text in CLIENTS.value if not text.isdecimal() or not 1 <= int(text) <= 128]:
        raise UserError(f"--clients={wrong[0]}: must be whole numbers from 1 to 128, e.g. --clients=1,8,64")
    import jax

    from train.export import loaded
    from train.recording import summary
    from train.storage.files import write_atomically, write_json

    image = Path(IMAGE.value).read_bytes() if IMAGE.value else _drawn()
    out, rows = Path(OUT.value), []
    for model in argv[1:]:
        network = loaded.load(model)
        name = f"{network.card['architecture']}, {network.card['format']}, {'x'.join(map(str, network.shape[:2]))}"
        rows += [{"case": name, **row} for row in measured(model, network, image)]
    environment = {"cores": runtime.cores(), "image_bytes": len(image), **summary.environment(jax.devices())}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "latency.json", {"rows": rows, **environment})
    write_atomically(out / "latency.md", markdown(rows, environment))
    command.console().print(terminal_table(COLUMNS, list(map(cells, rows)), texts=2))


def _drawn() -> bytes:
    """Returns a JPEG of blurred noise, which takes about as long to decode as a photograph."""
    from PIL import Image, ImageFilter

    noise = np.random.default_rng(0).integers(0, 256, (*CONTENT, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2)).save(file, "JPEG", quality=90)
    return file.getvalue()


def measured(model: str, network: "Loaded", image: bytes) -> list[dict[str, Any]]:
    """Returns one row per way to compute: median and 95th percentile in milliseconds, and images per second."""
    pixels = network.prepared(image)[0]
    batches = {size: np.repeat(pixels[None], size, 0) for size in ALONE}
    with served(model) as port:
        ways: dict[str, Callable[[], Measured]] = {
            f"forward pass alone, batch {size}": lambda size=size: repeated(lambda: network.run(batches[size]), size)
            for size in ALONE
        }
        ways["decoding and forward pass, batch 1"] = lambda: repeated(
            lambda: network.run(network.prepared(image)[0][None])
        )
        for clients in map(int, CLIENTS.value):
            ways[f"served, {clients} client{'s' * (clients > 1)}"] = lambda clients=clients: asyncio.run(
                requested(port, clients, image)
            )
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(ROUNDS.value + 1):
            for way, measure in ways.items():
                result = measure()
                if turn:  # the first warms up
                    seconds[way] += result.seconds
                    rates[way].append(result.rate)
    return [
        {
            "way": way,
            "milliseconds": round(1e3 * statistics.median(seconds[way]), 2),
            "milliseconds_95": round(1e3 * float(np.quantile(seconds[way], 0.95)), 2),
            "images_per_second": round(statistics.median(rates[way]), 1),
            "samples": len(seconds[way]),
        }
        for way in ways
    ]


class Measured(NamedTuple):
    """Seconds of calls or requests, and images per second of all of them together."""

    seconds: list[float]
    rate: float


def repeated(call: Callable[[], Any], images: int = 1) -> Measured:
    """Measures calls, each for some images, one after the other for --seconds."""
    started, seconds = time.perf_counter(), []
    while time.perf_counter() < started + SECONDS.value or not seconds:
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return Measured(seconds, images * len(seconds) / sum(seconds))


@contextlib.contextmanager
def served(model: str) -> Iterator[int]:
    """Yields the port on which a process serves a network.

    Raises:
      UserError: it does not start.
    """
    arguments = [sys.executable, "-m", "train.serve", model, "--port=0"]
    with tempfile.TemporaryFile("w+") as errors:  # a pipe that nobody reads would stop the process
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert process.stdout
            lines = (re.search(r"serving on .*:(\d+); ctrl-C", line) for line in process.stdout)
            port = next((int(address[1]) for address in lines if address), None)
            if port is not None:
                yield port
                return
        finally:
            process.terminate()
            process.wait()
        errors.seek(0)
        reason = (errors.read().splitlines() or ["it ended without a word"])[-1]
        raise UserError(f"train.serve {model} does not start: {reason}")


async def requested(port: int, clients: int, image: bytes) -> Measured:
    """Measures requests of clients at the same time, for --seconds and at least LEAST requests of each client.

    The first request of each client is left out of the seconds: all of them arrive at once.
    """
    head = f"POST /predict?top=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(image)}\r\n\r\n"
    request, started = head.encode() + image, time.perf_counter()

    async def client() -> list[float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        seconds = []
        while time.perf_counter() < started + SECONDS.value or len(seconds) < LEAST:
            began = time.perf_counter()
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            size = re.search(rb"content-length: (\d+)", answer)
            body = await reader.readexactly(int(size[1]) if size else 0)
            seconds.append(time.perf_counter() - began)
            if not answer.startswith(b"HTTP/1.1 200 "):
                raise UserError(f"train.serve refuses the image: {body.decode(errors='replace')[:500].strip()}")
        writer.close()
        return seconds

    by_client = await asyncio.gather(*(client() for _ in range(clients)))
    rate = sum(map(len, by_client)) / (time.perf_counter() - started)
    return Measured([one for seconds in by_client for one in seconds[1:]], rate)


COLUMNS = ("network", "way", "median", "95th percentile", "images/s")


def cells(row: Mapping[str, Any]) -> list[str]:
    """Returns a row as strings."""
    times = [f"{row[key]:.1f} ms" for key in ("milliseconds", "milliseconds_95")]
    return [row["case"], row["way"], *times, f"{row['images_per_second']:,.0f}"]


def markdown(rows: Sequence[Mapping[str, Any]], environment: Mapping[str, Any]) -> str:
    """Returns the results as a page."""
    return f"""# What serving costs

`python -m experiments.bench.latency`: clients on the server's machine, each of which sends one image of
{environment["image_bytes"]:,} bytes after another. The times leave out the first request of each, which all send at
once. All ways of a network took turns. {environment["device"]}, commit {environment["commit"]}, on
{environment["cores"]} cores.

{markdown_table(COLUMNS, list(map(cells, rows)))}
"""


if __name__ == "__main__":  # only here: absl has one table of flags for the process, and tests import this module
    CLIENTS = flags.DEFINE_list("clients", ["1", "8", "64"], "Numbers of clients at the same time.")
    IMAGE = command.define_path("image", "", "Image to send; default: a drawn JPEG of 500 x 375.")
    SECONDS = flags.DEFINE_float("seconds", 2.0, "Seconds of each turn.", lower_bound=0.01, upper_bound=600)
    ROUNDS = flags.DEFINE_integer("rounds", 3, "Number of turns, after one to warm up.", lower_bound=1)
    OUT = command.define_path("out", "experiments/results/bench/latency", "Folder of latency.json and latency.md.")
    cli.run(main, USAGE, positional=True)
