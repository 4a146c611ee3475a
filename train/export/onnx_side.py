"""Converts a network to ONNX in a separate process, because jax2onnx patches functions of JAX and leaves them patched.

    python -m train.export.onnx_side FOLDER model.onnx

FOLDER has the network's card.json and model.safetensors.
"""

import json
import logging
import sys
from pathlib import Path

import jax

from models.kernels.tracing import lowering
from train.export import cards, graph
from train.export.network import PortableNetwork


def convert(folder: Path, path: Path) -> None:
    """Writes the program of a card, with its arrays in a second file if they are too large for one."""
    for name in ("jax2onnx", "onnx_ir"):  # they log each of their examples and each constant that they skip
        logging.getLogger(name).setLevel(logging.ERROR)
    import jax2onnx
    import onnx

    card = json.loads((folder / cards.NAME).read_text())
    _, variables = cards.network(folder, {**card, "format": "safetensors", "file": "model.safetensors"})
    network = PortableNetwork(card["architecture"], card["fields"], tuple(card["inputs"]), variables)
    function = graph.program(network, card["preprocessing"], card["probabilities"], card["folded"])
    with lowering("onnx"):
        model = jax2onnx.to_onnx(
            function,
            inputs=[graph.inputs(card, "N")],
            model_name=network.name,
            input_names=["images"],
            output_names=graph.outputs(card),
        )
    properties = ("architecture", "preprocessing", "labels", "probabilities", "license")
    onnx.helper.set_model_props(model, {key: json.dumps(card[key]) for key in properties})
    is_large = sum(leaf.nbytes for leaf in jax.tree.leaves(variables)) > graph.ONE_FILE
    onnx.save_model(model, path, save_as_external_data=is_large, location=f"{path.name}.data" if is_large else None)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
