"""Rewrites the ONNX graphs of jax2onnx in the operations for which runtimes have fast and int8 kernels.

jax2onnx writes each operation of JAX as it is: a ReLU is a maximum with 0, a mean is a sum and a division, and each
convolution is transposed from and to [N, H, W, C]. onnxruntime quantizes and fuses Relu, Clip, GlobalAveragePool,
LayerNormalization and Gelu, and convolutions that have a bias and follow each other without transpositions.
"""

import collections
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

LAYERS = ("Conv", "MatMul", "Gemm")


class Graph:
    """An ONNX graph that can be searched and rewritten.

    Attributes:
      model: the ONNX model.
      constants: values of the initializers by name.
      producers: the node of each tensor.
      consumers: the nodes that use each tensor.
    """

    def __init__(self, model: Any):
        import onnx

        self.model = model
        self.constants = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
        self.index()

    def index(self) -> None:
        """Reads the connections of the nodes again, after they have changed."""
        self.producers = {name: node for node in self.model.graph.node for name in node.output}
        self.consumers = collections.defaultdict(list)
        for node in self.model.graph.node:
            for name in node.input:
                self.consumers[name].append(node)

    def add(self, kind: str, inputs: Sequence[Any], output: str, before: Any, **attributes: Any) -> None:
        """Inserts a node before another; inputs that are arrays become initializers."""
        import onnx

        names = []
        for i, value in enumerate(inputs):
            if isinstance(value, np.ndarray):
                name = f"{output}_{kind}_{i}"
                self.model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
                self.constants[name], value = value, name
            names.append(value)
        node = onnx.helper.make_node(kind, names, [output], name=f"{kind}_{output}", **attributes)
        self.model.graph.node.insert(list(self.model.graph.node).index(before), node)

    def remove(self, *nodes: Any) -> None:
        """Removes nodes."""
        for node in nodes:
            self.model.graph.node.remove(node)

    def prune(self) -> None:
        """Removes the nodes whose results nothing uses."""
        needed, kept = {one.name for one in self.model.graph.output}, []
        for node in reversed(self.model.graph.node):
            if needed & set(node.output):
                needed |= set(node.input)
                kept.append(node)
        del self.model.graph.node[:]
        self.model.graph.node.extend(reversed(kept))

    def producer(self, name: str, kind: str) -> Any:
        """Returns the node of a tensor if it is of the kind, else None."""
        node = self.producers.get(name)
        return node if node is not None and node.op_type == kind else None

    def sides(self, node: Any) -> tuple[str, np.ndarray] | None:
        """Returns the input of a node of two inputs, and the constant that is the other one; None without one."""
        for value, constant in (tuple(node.input), tuple(node.input)[::-1]):
            if constant in self.constants:
                return value, self.constants[constant]
        return None

    def is_constant(self, name: str) -> bool:
        """Returns True if a tensor is computed from initializers alone."""
        if name in self.constants:
            return True
        node = self.producers.get(name)
        return node is not None and bool(node.input) and all(map(self.is_constant, filter(None, node.input)))

    def layers(self) -> list[Any]:
        """Returns the nodes of layers: products and convolutions with weights, in order."""
        return [node for node in self.model.graph.node if node.op_type in LAYERS and self.is_constant(node.input[1])]


def simplified(path: Path, names: Sequence[str]) -> Any:
    """Returns an exported graph in which operations have their ONNX names, constants and transpositions are gone.

    Args:
      path: the file that jax2onnx wrote.
      names: the layers of the network in the order of the computation; they name the nodes if there are as many.

    Returns:
      The ONNX model.
    """
    import onnx

    graph = Graph(onnx.load(path))
    layers = graph.layers()
    if len(layers) == len(names):
        for node, name in zip(layers, names, strict=True):
            node.name = name
    for rewrite in (_clips, _max_pools, _means, _layer_norms, _gelus):
        rewrite(graph)
        graph.prune()
        graph.index()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("before.onnx", "after.onnx")]
        onnx.save_model(graph.model, files[0])
        optimize(files[0], files[1], "BASIC")
        graph = Graph(onnx.load(files[1]))
    _vectors(graph)
    used = {node.domain for node in graph.model.graph.node}
    for one in [one for one in graph.model.opset_import if one.domain not in used]:
        graph.model.opset_import.remove(one)
    for node in graph.model.graph.node:
        node.name = node.name.removesuffix("/MatMulAddFusion")
    del graph.model.graph.value_info[:]  # it names shapes from before the rewriting
    return onnx.shape_inference.infer_shapes(graph.model)


def optimize(path: Path, out: Path, level: str) -> None:
    """Writes the graph as onnxruntime optimizes it on this machine; `level` is BASIC, EXTENDED or ALL."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath, options.log_severity_level = str(out), 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _clips(graph: Graph) -> None:
    """Makes max(x, 0) a Relu, and min(max(x, 0), limit) a Clip."""
    for node in list(graph.model.graph.node):
        sides = graph.sides(node) if node.op_type == "Max" and len(node.input) == 2 else None
        if sides is None or sides[1].size != 1 or sides[1].item() != 0:
            continue
        after = graph.consumers[node.output[0]]
        upper = graph.sides(after[0]) if len(after) == 1 and after[0].op_type == "Min" else None
        if upper is not None and upper[1].size == 1:
            limits = [np.array(value, np.float32) for value in (0, upper[1].item())]
            graph.add("Clip", [sides[0], *limits], after[0].output[0], node)
            graph.remove(after[0])
        else:
            graph.add("Relu", [sides[0]], node.output[0], node)
        graph.remove(node)


def _max_pools(graph: Graph) -> None:
    """Makes padding with -infinity [N, H, W, C] a property of the pooling that follows."""
    import onnx

    for pool in [node for node in graph.model.graph.node if node.op_type == "MaxPool"]:
        moved = graph.producer(pool.input[0], "Transpose")
        pad = moved and graph.producer(moved.input[0], "Pad")
        if not pad or len(graph.consumers[pad.output[0]]) > 1 or graph.constants.get(pad.input[2], 0) != -np.inf:
            continue
        (_, top, left, _), (_, bottom, right, _) = graph.constants[pad.input[1]].reshape(2, 4).tolist()
        for attribute in [one for one in pool.attribute if one.name in ("auto_pad", "pads")]:
            pool.attribute.remove(attribute)
        pool.attribute.append(onnx.helper.make_attribute("pads", [top, left, bottom, right]))
        moved.input[0] = pad.input[0]
        graph.remove(pad)


def _means(graph: Graph) -> None:
    """Makes sums over [N, H, W, C]'s places that are divided by their number a GlobalAveragePool."""
    for node in [node for node in graph.model.graph.node if node.op_type == "ReduceSum" and len(node.input) == 2]:
        after, axes = graph.consumers[node.output[0]], graph.constants.get(node.input[1])
        keeps = any(one.name == "keepdims" and one.i == 0 for one in node.attribute)
        if axes is None or axes.tolist() != [1, 2] or not keeps or [one.op_type for one in after] != ["Div"]:
            continue
        sides = graph.sides(after[0])
        shape = _shape(graph, node.input[0])
        if sides is None or sides[1].size != 1 or len(shape) != 4 or sides[1].item() != shape[1] * shape[2]:
            continue
        output = after[0].output[0]
        graph.add("Transpose", [node.input[0]], f"{output}_nchw", node, perm=[0, 3, 1, 2])
        graph.add("GlobalAveragePool", [f"{output}_nchw"], f"{output}_mean", node)
        graph.add("Flatten", [f"{output}_mean"], output, node)
        graph.remove(node, after[0])


def _shape(graph: Graph, name: str) -> list[int]:
    for value in graph.model.graph.value_info:
        if value.name == name:
            return [one.dim_value for one in value.type.tensor_type.shape.dim]
    return []


def _layer_norms(graph: Graph) -> None:
    """Makes (x - mean) / sqrt(var + epsilon) * scale + bias over the last axis a LayerNormalization."""
    for node in [node for node in graph.model.graph.node if node.op_type == "Add"]:
        bias = graph.sides(node)
        scaled = bias and graph.producer(bias[0], "Mul")
        if not scaled or not bias:
            continue
        centered, gain = (graph.producers.get(name) for name in scaled.input)
        if centered is None or gain is None or (centered.op_type, gain.op_type) != ("Sub", "Mul"):
            continue
        scale = graph.sides(gain)
        inverse = scale and graph.producer(scale[0], "Div")
        root = inverse and graph.producer(inverse.input[1], "Sqrt")
        added = root and graph.producer(root.input[0], "Add")
        epsilon = added and graph.sides(added)
        if not epsilon or not scale or not _squares(graph, epsilon[0], centered.output[0]):
            continue
        x = centered.input[0]
        size = max(scale[1].size, bias[1].size)
        scale, shift = (np.broadcast_to(one[1].reshape(-1), (size,)).astype(np.float32) for one in (scale, bias))
        graph.add("LayerNormalization", [x, scale, shift], node.output[0], node, axis=-1, epsilon=epsilon[1].item())
        graph.remove(node)


def _squares(graph: Graph, variance: str, centered: str) -> bool:
    """Returns True if a tensor is the mean of the squares of `centered` over the last axis."""
    name = variance
    for kind in ("Div", "Expand", "Reshape"):
        node = graph.producer(name, kind)
        if node is None:
            return False
        name = node.input[0]
    node = graph.producer(name, "ReduceSumSquare")
    axes = graph.constants.get(node.input[1]) if node is not None else None
    return node is not None and node.input[0] == centered and axes is not None and axes.tolist() in ([2], [-1], [3])


def _gelus(graph: Graph) -> None:
    """Makes 0.5 x (1 + erf(x / sqrt(2))) a Gelu."""
    for erf in [node for node in graph.model.graph.node if node.op_type == "Erf"]:
        inside = graph.producer(erf.input[0], "Mul")
        x = inside and graph.sides(inside)
        after = graph.consumers[erf.output[0]]
        outer = graph.consumers[after[0].output[0]] if len(after) == 1 and after[0].op_type == "Add" else []
        if not x or len(outer) != 1 or outer[0].op_type != "Mul" or abs(x[1].item() - 0.5**0.5) > 1e-6:
            continue
        half = next((graph.producer(name, "Mul") for name in outer[0].input if name != after[0].output[0]), None)
        one, part = graph.sides(after[0]), half and graph.sides(half)
        if not one or not part or one[1].item() != 1 or part[1].item() != 0.5 or part[0] != x[0]:
            continue
        graph.add("Gelu", [x[0]], outer[0].output[0], outer[0])
        graph.remove(outer[0])


def _vectors(graph: Graph) -> None:
    """Gives biases of products [1, D] one axis, since onnxruntime's quantizer takes their rows for channels."""
    import onnx

    shared = collections.Counter(name for node in graph.model.graph.node for name in node.input)
    for node in graph.model.graph.node:
        bias = graph.constants.get(node.input[2]) if node.op_type == "Gemm" and len(node.input) == 3 else None
        if bias is not None and bias.ndim > 1 and bias.size == bias.shape[-1] and shared[node.input[2]] == 1:
            (old,) = [one for one in graph.model.graph.initializer if one.name == node.input[2]]
            old.CopyFrom(onnx.numpy_helper.from_array(bias.reshape(-1), node.input[2]))
