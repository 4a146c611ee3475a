"""Ranges of tensors from int8 layers (models/layers/int8.py) that were trained, which replace calibration."""

from typing import Any

import numpy as np

from models.errors import UserError
from models.layers.int8 import LEAVES, RANGES
from train.export import onnx_graph
from train.export.network import PortableNetwork
from train.export.onnx_int8 import Ranges

Trained = dict[str, dict[str, np.ndarray]]  # by path of a layer: arrays by name of LEAVES


def is_trained(network: PortableNetwork) -> bool:
    """Returns True for a network with int8 layers."""
    return RANGES in network.variables


def plain(network: PortableNetwork) -> tuple[PortableNetwork, Trained]:
    """Returns a network with ordinary layers in the place of int8 layers, and the ranges of these.

    Its weights are those that the int8 layers compute with. A layer whose input was always 0 has no range; it is not
    among the ranges, and stays in float32.

    Raises:
      UserError: all ranges are empty, since no step was trained.
    """
    trained: Trained = {}

    def walk(tree: Any, path: tuple[str, ...]) -> None:
        for name, value in tree.items():
            if name in LEAVES:
                trained.setdefault("/".join(path), {})[name] = np.asarray(value)
            else:
                walk(value, (*path, name))

    walk(network.variables[RANGES], ())
    trained = {path: arrays for path, arrays in trained.items() if arrays["input_low"] != arrays["input_high"]}
    if not trained:
        raise UserError("the int8 layers have no ranges yet: train the run for at least one step")
    fields = {name: "standard" if value == "int8" else value for name, value in network.fields.items()}
    variables = {name: value for name, value in network.variables.items() if name != RANGES}
    return network._replace(fields=fields, variables=variables), trained


def tensor_ranges(model: Any, network: PortableNetwork, trained: Trained) -> Ranges:
    """Returns the lowest and highest value of the tensors that int8 layers and the operations between them use.

    The input of a layer has its trained range. The output of a convolution has the range of its channels after the
    batch normalization that is folded into it. Other ranges are bounds that follow from these, such as sums.

    Args:
      model: the ONNX model of the float32 export, whose nodes are named after the layers.
      network: the network from `plain`.
      trained: its ranges.
    """
    graph = onnx_graph.Graph(model)
    layers = {node.name: node for node in graph.layers() if node.name in trained}
    ranges: Ranges = {
        node.input[0]: (float(trained[name]["input_low"]), float(trained[name]["input_high"]))
        for name, node in layers.items()
    }
    for node in model.graph.node:
        if node.name in layers and node.op_type == "Conv":
            interval = _convolved(graph, node, _kernel(network, node.name), trained[node.name])
        else:
            interval = _passed(graph, node, ranges)
        if interval is not None:
            ranges.setdefault(node.output[0], interval)
    return ranges


def _kernel(network: PortableNetwork, path: str) -> np.ndarray:
    tree = network.variables["params"]
    for name in path.split("/"):
        tree = tree[name]
    return np.asarray(tree["kernel"])


def _convolved(graph: Any, node: Any, kernel: np.ndarray, trained: dict[str, np.ndarray]) -> tuple[float, float]:
    """Returns the range of a convolution's output, which has a gain and a shift per channel by folding."""
    folded = graph.constants[node.input[1]].reshape(kernel.shape[-1], -1)  # [D, C kh kw]
    before = kernel.transpose(3, 2, 0, 1).reshape(folded.shape)
    largest = np.abs(before).argmax(1)[:, None]
    before, after = (np.take_along_axis(one, largest, 1)[:, 0] for one in (before, folded))
    gain = np.divide(after, before, out=np.zeros_like(after), where=before != 0)
    shift = graph.constants[node.input[2]] if len(node.input) == 3 else 0.0
    ends = np.stack([trained["output_low"] * gain, trained["output_high"] * gain]) + shift
    return float(ends.min()), float(ends.max())


def _passed(graph: Any, node: Any, ranges: Ranges) -> tuple[float, float] | None:
    """Returns the range of an operation's output, given those of its inputs; None if it is unknown."""
    inputs = []
    for name in node.input[: None if node.op_type in ("Add", "Concat") else 1]:
        if name in graph.constants:
            inputs.append((float(graph.constants[name].min()), float(graph.constants[name].max())))
        elif name in ranges:
            inputs.append(ranges[name])
        else:
            return None
    if not inputs:
        return None
    lows, highs = ([ends[side] for ends in inputs] for side in (0, 1))
    match node.op_type:
        case "Relu":
            return max(lows[0], 0.0), max(highs[0], 0.0)
        case "Clip":
            least, most = (graph.constants[name].item() for name in node.input[1:])
            return min(max(lows[0], least), most), max(min(highs[0], most), least)
        case "Add":
            return sum(lows), sum(highs)
        case "Concat":
            return min(lows), max(highs)
        case "Pad":
            return min(lows[0], 0.0), max(highs[0], 0.0)
        case "MaxPool" | "AveragePool" | "GlobalAveragePool" | "Flatten" | "Reshape" | "Transpose" | "Slice":
            return lows[0], highs[0]
    return None
