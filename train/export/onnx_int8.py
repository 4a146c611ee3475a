"""Graphs of ONNX with int8 layers: the scales of their tensors, and the nodes QuantizeLinear and DequantizeLinear.

A number x is stored as round(x / scale) + zero point (Jacob et al. 2018, arXiv 1712.05877, eq. 1). Weights have a scale
per output channel and no zero point, and are within -64 to 64: processors with AVX2 but without VNNI add pairs of
products of 8 bits in 16 bits, which larger weights overflow. Activations have 8 bits, and a scale and a zero point per
tensor. onnxruntime's quantizer inserts the nodes (QDQ), which onnxruntime and other runtimes fuse to int8 kernels.
"""

import contextlib
import copy
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from models.errors import UserError
from train.export import onnx_graph

# Operations that pass int8 on: they are quantized where all their inputs come from quantized operations
PASSING = (
    "Relu", "Clip", "Add", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool", "Flatten", "Reshape", "Transpose",
    "Slice", "Pad",
)  # fmt: skip
KERNELS = (
    "QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger",
)  # fmt: skip
Ranges = dict[str, tuple[float, float]]


class Int8(NamedTuple):
    """A graph that is ready to be quantized.

    Attributes:
      model: the ONNX model, with inferred shapes.
      method: "int8" or "dynamic".
      layers: multiply-adds of each layer per image, by the name of its node, in order.
      ranges: the lowest and highest value of each tensor; {} for "dynamic".
      without: names of layers that stay in float32 because they have no range.
    """

    model: Any
    method: str
    layers: dict[str, int]
    ranges: Ranges
    without: tuple[str, ...] = ()


def prepare(
    path: Path, method: str, batches: Sequence[np.ndarray], known: Callable[[Any], Ranges] | None = None
) -> Int8:
    """Returns a float32 export with the ranges of its tensors.

    Args:
      path: the file of the float32 export.
      method: "int8" or "dynamic".
      batches: inputs of the program for calibration; at least one.
      known: returns the ranges of the tensors of the model, where they need no calibration.

    Raises:
      UserError: nothing in the network can be quantized.
    """
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    if method == "dynamic":
        _split_gemms(model)
    graph = onnx_graph.Graph(model)
    kinds = ("MatMul",) if method == "dynamic" else onnx_graph.LAYERS
    nodes = [node for node in graph.layers() if node.op_type in kinds and node.input[1] in graph.constants]
    if not nodes:
        other = sorted({node.op_type for node in graph.layers()})
        raise UserError(
            f"--quantize={method} has nothing to quantize: the network has no {' or '.join(kinds)} with weights"
            + (f", only {', '.join(other)}; --quantize=int8 quantizes those" if other else "")
        )
    ranges, sizes = _observed(graph, nodes, batches)
    layers = {
        node.name: sizes[node.output[0]] * (weight.size // weight.shape[0 if node.op_type == "Conv" else -1])
        for node in nodes
        for weight in [graph.constants[node.input[1]]]
    }
    if method == "dynamic":
        return Int8(model, method, layers, {})
    ranges = ranges if known is None else known(model)
    outputs = {node.name: node.output[0] if node.op_type == "Conv" else node.input[0] for node in nodes}
    without = [node.name for node in nodes if not {node.input[0], outputs[node.name]} <= ranges.keys()]
    layers = {name: count for name, count in layers.items() if name not in without}
    if not layers:
        raise UserError(f"--quantize={method} has nothing to quantize: no layer of the network has a known range")
    return Int8(model, method, layers, ranges, tuple(without))


def _split_gemms(model: Any) -> None:
    """Splits products with a bias in two nodes, since dynamic quantization knows only MatMul."""
    graph = onnx_graph.Graph(model)
    for node in [node for node in model.graph.node if node.op_type == "Gemm" and len(node.input) == 3]:
        if not any(one.name in ("transA", "transB") and one.i for one in node.attribute):
            inside = f"{node.output[0]}_product"
            graph.add("MatMul", node.input[:2], inside, node)
            graph.producers = {n.output[0]: n for n in model.graph.node}
            graph.producers[inside].name = node.name
            graph.add("Add", [inside, node.input[2]], node.output[0], node)
            graph.remove(node)


def _observed(graph: Any, nodes: Sequence[Any], batches: Sequence[np.ndarray]) -> tuple[Ranges, dict[str, int]]:
    """Runs batches.

    Returns:
      The mean of the batches' lowest and highest values of each float tensor, and the numbers of elements per image of
      the outputs of `nodes`.
    """
    import onnx
    import onnxruntime

    model = copy.deepcopy(graph.model)
    tensors = [one.name for one in model.graph.value_info if one.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]
    tensors = [name for name in [*tensors, *(one.name for one in model.graph.output)] if name not in graph.constants]
    wanted = [(kind, name) for name in tensors for kind in ("ReduceMin", "ReduceMax")]
    wanted += [("Size", node.output[0]) for node in nodes]
    for kind, name in wanted:
        attributes: Any = {} if kind == "Size" else {"keepdims": 0}
        model.graph.node.append(onnx.helper.make_node(kind, [name], [f"{name}:{kind}"], **attributes))
        kind_of = onnx.TensorProto.INT64 if kind == "Size" else onnx.TensorProto.FLOAT
        model.graph.output.append(onnx.helper.make_tensor_value_info(f"{name}:{kind}", kind_of, []))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [f"{name}:{kind}" for kind, name in wanted]
    values: list[dict[str, Any]] = [
        dict(zip(names, session.run(names, {"images": batch}), strict=True)) for batch in batches
    ]

    def mean(name: str) -> float:
        return float(np.mean([one[name] for one in values]))

    sizes = {node.output[0]: int(values[0][f"{node.output[0]}:Size"]) // len(batches[0]) for node in nodes}
    return {name: (mean(f"{name}:ReduceMin"), mean(f"{name}:ReduceMax")) for name in tensors}, sizes


def write(network: Int8, floats: Sequence[str], path: Path) -> None:
    """Writes the graph with all layers in int8 except for `floats`."""
    import onnx
    from onnxruntime import quantization

    int8 = [name for name in network.layers if name not in floats]
    if not int8:  # for which onnxruntime takes all layers
        onnx.save_model(network.model, path)
        return
    with _quiet():
        if network.method == "dynamic":
            quantization.quantize_dynamic(
                network.model,
                path,
                nodes_to_quantize=int8,
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                reduce_range=True,
                weight_type=quantization.QuantType.QInt8,
            )
        else:
            onnx.save_model(_static(network, int8), path)


def _static(network: Int8, int8: Sequence[str]) -> Any:
    from onnxruntime import quantization
    from onnxruntime.quantization import calibrate
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    data: dict[str, Any] = {
        name: calibrate.TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in network.ranges.items()
    }
    nodes = _selected(network, int8)
    quantizer = QDQQuantizer(
        copy.deepcopy(network.model),
        per_channel=True,
        reduce_range=True,
        weight_qType=quantization.QuantType.QInt8,
        activation_qType=quantization.QuantType.QUInt8,
        tensors_range=calibrate.TensorsData(calibrate.CalibrationMethod.MinMax, data),
        nodes_to_quantize=nodes,
        nodes_to_exclude=[],
        op_types_to_quantize=[*onnx_graph.LAYERS, *PASSING],
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()  # as ONNX requires; onnxruntime takes any order
    return quantizer.model.model


def _selected(network: Int8, int8: Sequence[str]) -> list[str]:
    """Returns the names of the nodes to quantize: layers, and the operations between convolutions."""
    graph, reached, selected = onnx_graph.Graph(network.model), set(), []
    for node in network.model.graph.node:
        inputs = [name for name in node.input if name and name not in graph.constants]
        passes = node.op_type in PASSING and inputs and inputs[0] in reached
        if node.op_type in ("Add", "Concat"):
            passes = passes and reached.issuperset(inputs)
        if node.name in int8 or (passes and reached.issuperset([name for name in inputs if name in network.ranges])):
            selected.append(node.name)
            if node.op_type not in ("MatMul", "Gemm"):
                reached.update(node.output)
    return selected


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drops the advice of onnxruntime's quantizer, which is logged for each call."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def kernels(path: Path) -> dict[str, int]:
    """Returns how many int8 layers of each kind onnxruntime computes on this machine, by its optimized graph."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        onnx_graph.optimize(path, Path(folder) / "optimized.onnx", "ALL")
        kinds = [node.op_type for node in onnx.load(Path(folder) / "optimized.onnx").graph.node]
    return {kind: kinds.count(kind) for kind in KERNELS if kind in kinds}
