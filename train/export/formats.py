"""Writes each format of exported networks into a folder, and opens it as a function of images.

opened(pixels uint8 [N, H, W, C]) -> probabilities, logits: float32 [N, num_classes], NumPy arrays
"""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

import models
from models import weights
from models.compress import file, skip, two_four
from models.errors import UserError
from models.kernels.tracing import lowering
from models.layers import conditional, endpoint
from models.weights import preprocessing
from train.export import cards, graph, onnx_graph
from train.export.network import PortableNetwork
from train.storage.files import write_atomically

Card = dict[str, Any]
Opened = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
PLATFORMS = ("cpu", "cuda", "tpu")  # of one StableHLO file
REFUSED = 3  # exit code of a process whose network does not take the weights
TORCH_SIDE = Path(__file__).with_name("torch_side.py")


class Failed(Exception):
    """A written network that differs from the run's network."""


class Format(NamedTuple):
    """One of FORMATS.

    Attributes:
      file: name of the file in the folder.
      write: (network, card, path of the file) -> entries to add to the card.
      open: (folder, card) -> a function of images, in this process.
      exact: True if the logits equal the network's to the bit.
      folds: the `graph.FOLDS` that it supports.
      by: names the software that `open` runs.
      check: (card, Python to run) -> None, before anything is computed; raises UserError if a library is missing.
      outside: (folder, card, pixels, Python to run) -> the software that ran, and its logits. It runs in another
        process, without this project. None if the format has no such check.
    """

    file: str
    write: Callable[[PortableNetwork, Card, Path], Card]
    open: Callable[[Path, Card], Opened]
    exact: bool = False
    folds: tuple[str, ...] = ()
    by: Callable[[], str] = lambda: "this process"
    check: Callable[[Card, str], None] = lambda card, python: None
    outside: Callable[[Path, Card, np.ndarray, str], tuple[str, np.ndarray]] | None = None


def of_variables(model: nn.Module, variables: Mapping[str, Any], card: Mapping[str, Any]) -> Opened:
    """Returns a flax module as a function of pixels; on a CPU, it skips the zero blocks of pruned kernels.

    With the entry "exits" of the card, each image leaves where the thresholds say, and later parts are not computed.
    """
    opened = skip.opened(model, variables, *models.abstract(card["inputs"]))
    exits = {"leave": np.asarray(card["exits"]["thresholds"], np.float32)} if "exits" in card else {}
    variables = jax.device_put(opened.variables)

    @jax.jit
    def compute(variables, pixels):
        images = graph.normalized(pixels, card["preprocessing"])
        with conditional.skipping() if exits else contextlib.nullcontext():
            logits = cast("jax.Array", opened.apply(variables, images, **exits))
        return graph.to_probabilities(logits, card["probabilities"]), logits

    def run(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        probabilities, logits = compute(variables, pixels)
        return np.asarray(probabilities), np.asarray(logits)

    return run


_ANOTHER = "choose another Python by --torch_python"
_OURS = "train.export.loaded.load(FOLDER).run(pixels), or --config.init_from=FOLDER"

# -- weights -------------------------------------------------------------------------------------------------------


def _write_compressed(network: PortableNetwork, card: Card, path: Path) -> Card:
    write_atomically(path, file.dump(network.name, network.fields, network.variables, network.inputs))
    return {"usage": _OURS}


def _write_safetensors(network: PortableNetwork, card: Card, path: Path) -> Card:
    facts = preprocessing.of_card(card["preprocessing"])
    about = {"model": network.name, "fields": network.fields, "labels": tuple(card["labels"])}
    about |= {"license": card["license"] or "", **({} if facts is None else {"preprocessing": facts})}
    weights.save(path, network.create(), network.variables, about)
    return {"usage": _OURS}


def _write_semi_structured(network: PortableNetwork, card: Card, path: Path) -> Card:
    arrays = weights.to_arrays(network.create(), network.variables, "ablate")
    weights.write(path, two_four.dump(arrays), {"format": "pt"})
    packed = {name: list(np.shape(array)) for name, array in arrays.items() if two_four.fits(array)}
    return {
        "packed": packed,
        "usage": "torch.sparse.SparseSemiStructuredTensorCUTLASS(torch.Size([outputs, taps * inputs]), "
        "packed=arrays[NAME + '.values'], meta=arrays[NAME + '.metadata'], packed_t=None, meta_t=None, "
        "compressed_swizzled_bitmask=None), with arrays = safetensors.torch.load_file(" + repr(path.name) + ")",
    }


def _open_weights(folder: Path, card: Card) -> Opened:
    model, variables = cards.network(folder, card)
    if "exits" in card and not getattr(model, "num_exits", 0):
        raise UserError(f"{folder / cards.NAME} has thresholds of exits, which {card['architecture']} does not have")
    return of_variables(model, variables, card)


# -- PyTorch -------------------------------------------------------------------------------------------------------


def _write_torch(network: PortableNetwork, card: Card, path: Path) -> Card:
    peer = card["torch"]
    weights.write(path, weights.to_arrays(network.create(), network.variables, peer["library"]), {"format": "pt"})
    constructor = {"torchvision": "torchvision.models.get_model", "timm": "timm.create_model"}[peer["library"]]
    options = "".join(f", {key}={value!r}" for key, value in peer["arguments"].items())
    return {
        "usage": f"net = {constructor}({peer['name']!r}{options}); "
        f"net.load_state_dict(safetensors.torch.load_file({path.name!r}), strict=True)"
    }


def _check_torch(card: Card, python: str) -> None:
    """Raises UserError unless a Python has PyTorch and the library of the network."""
    names = ("torch", "safetensors", card["torch"]["library"])
    code = f"import importlib.util, sys; sys.exit(' '.join(n for n in {names} if not importlib.util.find_spec(n)) or 0)"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"PyTorch ({python}) does not run: {error.strerror}; {_ANOTHER}") from None
    if done.returncode:
        raise UserError(
            f"format torch needs {', '.join(done.stderr.split())}, which {python} does not have; {_ANOTHER}"
        )


def _torch_outside(folder: Path, card: Card, pixels: np.ndarray, python: str) -> tuple[str, np.ndarray]:
    """Runs the library's network with the file's weights, loaded by load_state_dict(strict=True)."""
    images = np.asarray(graph.normalized(pixels, card["preprocessing"]))
    return _elsewhere(
        [python, str(TORCH_SIDE), json.dumps(card["torch"]), str(folder / card["file"])], images, f"PyTorch ({python})"
    )


# -- programs ------------------------------------------------------------------------------------------------------


def _both(outputs: Iterable[Any], card: Card) -> tuple[np.ndarray, np.ndarray]:
    """Returns probabilities and logits from the outputs of a program."""
    arrays = [np.asarray(output) for output in outputs]
    if len(arrays) == 1:
        return np.asarray(graph.to_probabilities(jnp.asarray(arrays[0]), card["probabilities"])), arrays[0]
    probabilities, logits = arrays
    return probabilities, logits


def program_input(card: Card, pixels: np.ndarray) -> np.ndarray:
    """Returns what the program of a card takes for pixels, uint8 [N, H, W, C]."""
    return pixels if "normalization" in card["folded"] else np.asarray(graph.normalized(pixels, card["preprocessing"]))


def fed(card: Card, call: Callable[[np.ndarray], Iterable[Any]]) -> Opened:
    """Returns a program as a function of pixels."""
    return lambda pixels: _both(call(program_input(card, pixels)), card)


def _check_onnx(card: Card, python: str) -> None:
    for name in ("jax2onnx", "onnx", "onnxruntime"):  # the last one checks the file
        _needed(name)


def _write_onnx(network: PortableNetwork, card: Card, path: Path) -> Card:
    # The process keeps the working folder, since paths of the user's files are relative to it
    path_of_modules = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as folder:
        weights.save(Path(folder) / "model.safetensors", network.create(), network.variables)
        (Path(folder) / cards.NAME).write_text(json.dumps(card))
        done = subprocess.run(
            [sys.executable, "-m", "train.export.onnx_side", folder, str(path)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path_of_modules},
        )
    if done.returncode:
        raise Failed(f"jax2onnx cannot convert the network: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    _simplify(network, path)
    return {
        "usage": f"session = onnxruntime.InferenceSession({path.name!r}); "
        f"session.run({graph.outputs(card)!r}, {{'images': images}})"
    }


def _simplify(network: PortableNetwork, path: Path) -> None:
    """Rewrites a file for fast kernels, unless its arrays are in a second file."""
    if path.with_name(f"{path.name}.data").exists():
        return
    import onnx

    model, tree = network.create(), (network.variables, *models.abstract(network.inputs))
    program = jax.make_jaxpr(model.apply)(*tree).jaxpr
    used = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))[1]  # not early exits, which ONNX lacks
    kernels = weights.flatten(jax.tree.unflatten(jax.tree.structure(tree), used)[0])
    names = [name for name in endpoint.order(model, *tree) if kernels.get(f"{name}/kernel")]
    properties = {one.key: one.value for one in onnx.load(path).metadata_props}
    simplified = onnx_graph.simplified(path, names)
    onnx.helper.set_model_props(simplified, properties)
    onnx.save_model(simplified, path)


def onnx_call(path: Path, card: Card) -> Callable[[np.ndarray], Iterable[Any]]:
    """Opens a file in onnxruntime.

    Raises:
      UserError: onnxruntime is missing, or cannot read the file.
    """
    _needed("onnxruntime")
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own
        raise UserError(f"{path.parent}: onnxruntime cannot read {path.name}: {str(error).splitlines()[0]}") from None
    return lambda images: session.run(graph.outputs(card), {"images": images})


def _open_onnx(folder: Path, card: Card) -> Opened:
    return fed(card, onnx_call(folder / card["file"], card))


def _needed(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        raise UserError(
            f"format onnx needs {name}, which is not installed: pip install -e '.[export]' and pip install "
            "--no-deps jax2onnx, which asks for an older orbax-checkpoint than it needs"
        )


def _write_stablehlo(network: PortableNetwork, card: Card, path: Path) -> Card:
    if _bytes(network) > graph.ONE_FILE:
        raise UserError(
            f"format stablehlo holds its arrays in one file of at most 2 GiB, and {network.name} has "
            f"{_bytes(network):,} bytes; export safetensors or onnx"
        )
    function = jax.jit(graph.program(network, card["preprocessing"], card["probabilities"], card["folded"]))
    with lowering("plain"):
        (batch,) = jax.export.symbolic_shape("N")
        exported = jax.export.export(function, platforms=PLATFORMS)(graph.inputs(card, batch))
    write_atomically(path, bytes(exported.serialize()))
    returned = ", ".join(graph.outputs(card))
    return {
        "platforms": list(PLATFORMS),
        "usage": f"program = jax.export.deserialize(bytearray(open({path.name!r}, 'rb').read())); "
        f"{returned}{',' * (returned == 'logits')} = program.call(images)",
    }


def _open_stablehlo(folder: Path, card: Card) -> Opened:
    try:
        program = jax.export.deserialize(bytearray((folder / card["file"]).read_bytes()))
    except Exception as error:  # flatbuffers can raise anything for a damaged file
        raise UserError(f"{folder}: {card['file']} is damaged: {type(error).__name__} {error}") from None
    if jax.default_backend() not in ("cpu", "gpu", "tpu"):
        raise UserError(f"{folder}: this program runs on {', '.join(PLATFORMS)}, not on {jax.default_backend()}")
    return fed(card, jax.jit(program.call))


_ALONE = """
import sys
for name in ("flax", "optax", "orbax", "models", "train"):
    sys.modules[name] = None  # importing one of them fails
import jax
import jax.export
import numpy
program = jax.jit(jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read())).call)
with numpy.load(sys.argv[2]) as arrays:
    numpy.savez(sys.argv[3], logits=program(arrays["images"])[-1])
print("a process with jax", jax.__version__, "alone")
"""


def _stablehlo_outside(folder: Path, card: Card, pixels: np.ndarray, python: str) -> tuple[str, np.ndarray]:
    del python
    if "normalization" not in card["folded"]:
        pixels = np.asarray(graph.normalized(pixels, card["preprocessing"]))
    return _elsewhere([sys.executable, "-c", _ALONE, str(folder / card["file"])], pixels, "a process of jax")


def _elsewhere(command: list[str], images: np.ndarray, who: str) -> tuple[str, np.ndarray]:
    """Runs a command in another process.

    Args:
      command: the command. It gets two more arguments: an .npz file with "images", and the .npz file for "logits".
      images: the images.
      who: the command's name in errors.

    Returns:
      The last line that it prints, and the logits.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder) / "images.npz", Path(folder) / "logits.npz"
        np.savez(inputs, images=images)
        done = subprocess.run(
            [*command, str(inputs), str(outputs)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        if done.returncode == REFUSED:
            raise Failed(done.stderr.strip().splitlines()[-1])
        if done.returncode or not outputs.exists():
            lines = [*done.stderr.strip().splitlines(), f"exit code {done.returncode}"]
            more = f"; {_ANOTHER}" if "ModuleNotFoundError" in done.stderr else ""
            raise UserError(f"{who} cannot run the network: {lines[max(-2, -len(lines))]}{more}")
        with np.load(outputs) as arrays:
            return done.stdout.strip().splitlines()[-1], arrays["logits"]


def _bytes(network: PortableNetwork) -> int:
    return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(network.variables))


FORMATS = {
    "safetensors": Format("model.safetensors", _write_safetensors, _open_weights, exact=True),
    "torch": Format("model.safetensors", _write_torch, _open_weights, check=_check_torch, outside=_torch_outside),
    "onnx": Format(
        "model.onnx",
        _write_onnx,
        _open_onnx,
        folds=graph.FOLDS,
        check=_check_onnx,
        by=lambda: f"onnxruntime {importlib.metadata.version('onnxruntime')}",
    ),
    "stablehlo": Format(
        "model.stablehlo", _write_stablehlo, _open_stablehlo, folds=graph.FOLDS, outside=_stablehlo_outside
    ),
    "semi_structured": Format("model.safetensors", _write_semi_structured, _open_weights, exact=True),
    "compressed": Format(f"model{file.SUFFIX}", _write_compressed, _open_weights, exact=True),
}
