"""Serves a trained network by HTTP: a page to drop an image on, and predictions as JSON. See --help."""

import importlib.util
import sys

from absl import flags

from models.errors import UserError
from train import cli

USAGE = """Serves a run, an exported network of any format, or published weights: a page, and predictions as JSON.

    python -m train.serve runs/digits
    python -m train.serve exported/x_onnx --port=8080 --batch=16
    python -m train.serve hf:timm/resnet50.a1_in1k

Open the address that it prints, and drop an image on the page. It shows the most probable classes, the time, and, where
this project has the network and not a program, which part of the image is evidence for a class (Grad-CAM). Or:

    curl --data-binary @cat.jpg http://127.0.0.1:8000/predict?top=5

Images are prepared as by train.predict. Images that arrive together are computed together. Ctrl-C or SIGTERM ends it
once what is in work is answered."""
LIBRARIES = {"starlette": "starlette", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}
LOCAL = ["127.0.0.1", "localhost", "[::1]"]


def main(argv: list[str]) -> int:
    """Opens the network, compiles it, and serves it until a signal comes."""
    if len(argv) != 2:
        raise UserError("name one MODEL: a run, an exported network, or published weights; see --help")
    if missing := [name for module, name in LIBRARIES.items() if importlib.util.find_spec(module) is None]:
        raise UserError(f"train.serve needs {', '.join(missing)}: pip install -c constraints.txt -e '.[serve]'")
    from train.export import loaded
    from train.serving import batcher, server
    from train.serving.app import Service
    from train.serving.uploads import Limits

    listening = server.bound(HOST.value, PORT.value)  # before what takes long
    local = server.is_loopback(listening)
    network = loaded.load(argv[1], CHECKPOINT.value if CHECKPOINT.present else None)
    if not local:
        text = f"warning: --host={HOST.value}: other machines can reach this server, which asks for no password"
        print(text, file=sys.stderr, flush=True)
    limits = Limits(MEGABYTES.value * 2**20, MEGAPIXELS.value * 10**6, REQUESTS.value, TIMEOUT.value)
    about = f"{network.card['architecture']} ({network.card['format']}, {len(network.card['labels'])} classes)"
    print(f"compiling {about} for batches of {', '.join(map(str, batcher.sizes(BATCH.value)))} …", flush=True)
    service = Service(network, limits, BATCH.value, WAIT.value / 1e3)

    def ready() -> None:
        print(f"serving on {server.address(listening)}; ctrl-C ends it", flush=True)

    hosts = [*LOCAL, server.host(listening)] if local else ["*"]
    return server.run(service.application(hosts), listening, TIMEOUT.value, ready)


if __name__ == "__main__":  # only here: absl has one table of flags for the process
    HOST = flags.DEFINE_string(
        "host", "127.0.0.1", "Address to serve on; the default accepts connections from this machine only."
    )
    PORT = flags.DEFINE_integer("port", 8000, "Port; 0 takes a free one.", lower_bound=0, upper_bound=65535)
    CHECKPOINT = flags.DEFINE_string("checkpoint", "last", "Checkpoint of a run: last, or best (on its test set).")
    BATCH = flags.DEFINE_integer("batch", 8, "Largest number of images per batch.", lower_bound=1, upper_bound=1024)
    WAIT = flags.DEFINE_integer(
        "wait", 5, "Milliseconds that a batch waits for images that are on their way.", lower_bound=0, upper_bound=1000
    )
    MEGABYTES = flags.DEFINE_integer(
        "max_megabytes", 10, "Largest body of a request, in MiB.", lower_bound=1, upper_bound=1024
    )
    MEGAPIXELS = flags.DEFINE_integer(
        "max_megapixels", 50, "Largest image, in millions of pixels.", lower_bound=1, upper_bound=89
    )
    REQUESTS = flags.DEFINE_integer(
        "max_requests", 128, "Most requests in work at a time; further ones are answered with 503.", lower_bound=1
    )
    TIMEOUT = flags.DEFINE_integer("timeout", 10, "Seconds for an image to arrive.", lower_bound=1, upper_bound=3600)
    cli.run(main, USAGE, positional=True)
