"""int8 exports: onnx's reference evaluator agrees with onnxruntime, and accuracy decides what stays in float32."""

import copy
import json
import shutil

import jax
import numpy as np
import pytest

import models
from models.errors import UserError
from models.layers.int8 import LEAVES
from tests import tiny
from tests.golden import drawn
from tests.train.tasks.test_adaptive import RUNS, TEXTS, config
from train import loop, predict, restore
from train.export import __main__ as command
from train.export import formats, loaded, onnx_graph, onnx_int8, quantize, trained_int8, write
from train.export import network as export

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("jax2onnx")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns the folder of a run of a ResNet-8 with shortcuts, long enough to be right about most digits."""
    changes = {"duration": "60 steps", "checkpoint_every": "60 steps", "evaluate_every": "60 steps", "model__width": 8}
    return tiny.trained(tmp_path_factory.mktemp("run") / "run", **changes)


@pytest.fixture(scope="module")
def out(run, tmp_path_factory):
    """Returns the folder with its exports: "float32", "int8" and "dynamic"."""
    folder = tmp_path_factory.mktemp("exported")
    opened, state = restore.load_network(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(formats.FORMATS, "onnx", once(formats.FORMATS["onnx"], folder / "converted.onnx"))
        for name in ("float32", "int8", "dynamic"):
            write.of_run(opened, state, "onnx", folder / name, quantize=name.replace("float32", ""), images=100)
    return folder


def once(how, kept):
    """Returns a format that converts the first network it gets, in a process that takes seconds, and copies the file.

    All exports begin with the same conversion.
    """
    entries = {}

    def converted(network, card, path):
        if not kept.exists():
            entries.update(how.write(network, card, path))
            shutil.copy(path, kept)
        shutil.copy(kept, path)
        return dict(entries)

    return how._replace(write=converted)


def cards_of(out):
    return {name: json.loads((out / name / "card.json").read_text()) for name in ("float32", "int8", "dynamic")}


def initializers(path):
    graph = onnx.load(path).graph
    return graph, {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}


def test_weights_are_symmetric_per_channel_and_within_seven_bits(out):
    """Pairs of products of pixels up to 255 and weights up to 64 fit into 16 bits, on which AVX2 computes."""
    graph, arrays = initializers(out / "int8" / "model.onnx")
    inputs = {node.output[0]: node.input for node in graph.node if node.op_type == "DequantizeLinear"}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 8 and {"stem_conv", "head"} <= {node.name for node in layers}
    for node in layers:
        weight, scale, zero = (arrays[name] for name in inputs[node.input[1]])
        axis = 0 if node.op_type == "Conv" else 1
        assert weight.dtype == np.int8 and 2 * 255 * np.abs(weight.astype(int)).max() < 2**15
        assert scale.shape == (weight.shape[axis],) and not zero.any()
        assert (np.abs(weight.astype(int)).max(tuple(i for i in range(weight.ndim) if i != axis)) == 64).all()
        assert arrays[inputs[node.input[2]][0]].dtype == np.int32


def test_the_reference_evaluator_computes_the_same(out):
    card = cards_of(out)["int8"]
    pixels = np.random.default_rng(0).integers(0, 256, (4, *card["inputs"][1:]), np.uint8)
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator(str(out / "int8" / "model.onnx"))
    onnx.checker.check_model(str(out / "dynamic" / "model.onnx"), full_check=True)
    expected = evaluator.run(["logits"], {"images": pixels})[0]
    logits = loaded.load(out / "int8").run(pixels)[1]
    in_floats = loaded.load(out / "float32").run(pixels)[1]
    rounding = np.abs(in_floats - expected).max()
    assert 0 < rounding < 0.2 * np.abs(expected).max()
    assert np.abs(logits - expected).max() < 0.25 * rounding  # a sum that is on the edge may round either way


def test_cards_and_summaries_say_what_was_lost(out):
    cards = cards_of(out)
    assert "quantized" not in cards["float32"] and cards["float32"]["verified"]["largest_difference"] < 1e-3
    for name in ("int8", "dynamic"):
        card, entry = cards[name], cards[name]["quantized"]
        lost = 100 * (entry["accuracy"]["float32"] - entry["accuracy"]["int8"])
        assert entry["accuracy"]["float32"] > 0.5 and lost <= entry["lose"] == quantize.LOSE
        assert set(card["verified"]["metrics"]) == {"network", "file"} and card["verified"]["largest_difference"] > 0
        assert set(entry["milliseconds"]) == {"int8", "float32", "ours"} and min(entry["milliseconds"].values()) > 0
        assert entry["held_out_images"] == quantize.HELD_OUT
        assert sum(entry["kernels"].values()) == entry["int8_layers"] == {"int8": 8, "dynamic": 1}[name]
        text = "\n".join(command.lines(card, out / name, card["metrics"], "accuracy"))
        for part in (f"{lost:.2f} of at most 0.5 points", "of the multiply-adds", "of the file", "both by onnxruntime"):
            assert part in text
    assert cards["int8"]["quantized"]["mult_adds"] == 1 and cards["dynamic"]["quantized"]["mult_adds"] < 0.01
    assert cards["int8"]["quantized"]["calibration_images"] == quantize.CALIBRATION
    assert cards["dynamic"]["quantized"]["calibration_images"] == 0


def test_an_exported_folder_predicts(out, tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (row,) = predict.predict(loaded.load(out / "int8"), [str(tmp_path / "a.png")], 3)
    assert len(row["classes"]) == 3


def prepared(run, out, images):
    """Returns the run, its int8 graph, and functions that open a file and the float32 export."""
    opened, _ = restore.load_network(run)
    card = cards_of(out)["float32"]
    path = out / "float32" / "model.onnx"

    def logits(file):
        call = formats.fed(card, formats.onnx_call(file, card))
        return lambda pixels: call(pixels)[1]

    return opened, onnx_int8.prepare(path, "int8", images.calibration), logits, logits(path)


def test_a_layer_that_loses_accuracy_stays_in_float32(run, out):
    opened, _ = restore.load_network(run)
    images = quantize.training_images(opened, True)
    assert images is not None
    seen = {batch.tobytes() for part in images.calibration for batch in part}
    assert not seen & {image.tobytes() for batch in images.held_out for image in batch["image"]}
    opened, graph, logits, original = prepared(run, out, images)
    (node,) = [one for one in graph.model.graph.node if one.name == "stage2/block0/conv2"]
    low, high = graph.ranges[node.input[0]]
    broken = graph._replace(ranges={**graph.ranges, node.input[0]: (low, 1e-3 * high)})
    choice = quantize.choose(broken, opened, images, 0.5, logits, original)
    # The range is also that of the output of the convolution before
    assert set(choice.floats) == {"stage2/block0/conv1", "stage2/block0/conv2"}
    assert choice.before is not None and choice.after is not None and choice.before - choice.after <= 0.005
    worse = graph._replace(ranges=dict.fromkeys(graph.ranges, (0.0, 1e-6)))
    with pytest.raises(formats.Failed, match="no layer can compute in int8 without losing more than 0 points"):
        quantize.choose(worse, opened, images._replace(held_out=images.held_out[:2]), 0, logits, original)


def test_graphs_have_operations_with_fast_kernels(out):
    graph, arrays = initializers(out / "float32" / "model.onnx")
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Transpose") == 1 and kinds.count("Relu") == 7 and "Max" not in kinds and "GatherND" not in kinds
    (head,) = [node for node in graph.node if node.op_type == "Gemm"]
    assert arrays[head.input[2]].ndim == 1  # rows of a bias [1, D] would count as channels in onnxruntime's quantizer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("int8", "stablehlo", None), "--quantize=int8 is for --format=onnx, not --format=stablehlo"),
        (("int4", "onnx", None), "unknown --quantize 'int4'; did you mean 'int8'. allowed: int8, dynamic"),
        (("", "onnx", 0.5), "--lose=0.5 says how much accuracy --quantize may lose; add --quantize=int8"),
        (("int8", "onnx", -1.0), "--lose=-1: must be points of accuracy, from 0 to 100"),
        (("int8", "onnx", float("nan")), "--lose=nan: must be points"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(UserError, match=message):
        quantize.check(*arguments)
    quantize.check("", "torch", None)


def test_a_run_without_training_images_is_refused(run, tmp_path, monkeypatch):
    opened, state = restore.load_network(run)

    def gone(self):
        raise UserError("there is no such folder")

    monkeypatch.setattr(type(opened.images), "train", property(gone))
    with pytest.raises(UserError, match="calibrates on training images, which this run does not have: there is no"):
        write.of_run(opened, state, "onnx", tmp_path / "x", quantize="int8")
    assert not list(tmp_path.iterdir()) and quantize.training_images(opened, False) is None


def test_a_network_without_products_of_matrices_has_nothing_to_quantize_dynamically(out, tmp_path):
    graph = onnx.load(out / "float32" / "model.onnx")
    (head,) = [node for node in graph.graph.node if node.op_type == "Gemm"]
    graph.graph.node.remove(head)
    (flat,) = [node for node in graph.graph.node if node.op_type == "Flatten"]
    flat.output[0] = "logits"
    onnx.save_model(graph, tmp_path / "x.onnx")
    with pytest.raises(UserError, match="no MatMul with weights, only Conv; --quantize=int8 quantizes those"):
        onnx_int8.prepare(tmp_path / "x.onnx", "dynamic", [np.zeros((1, 8, 8, 1), np.uint8)])


@pytest.mark.parametrize("name", ["vit_tiny_patch16"])
def test_transformers_are_fused(name, tmp_path):
    """Checks LayerNormalization and Gelu, which onnxruntime computes by one kernel each, and int8 products."""
    fields = {"image_size": 32, "patch_size": 8, "width": 32, "depth": 2, "heads": 2, "num_classes": 10}
    model = models.create(name, **fields)
    network = export.PortableNetwork(name, fields, (1, 32, 32, 3), drawn.variables(model))
    card = {
        "file": "model.onnx", "folded": ["normalization"], "labels": [], "architecture": name, "fields": fields,
        "inputs": [1, 32, 32, 3], "license": None, "probabilities": "softmax",
        "preprocessing": {"mean": [0.5], "std": [0.25]},
    }  # fmt: skip
    formats.FORMATS["onnx"].write(network, card, tmp_path / "model.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert kinds.count("LayerNormalization") == 5 and kinds.count("Gelu") == 2 and not {"Erf", "Sqrt"} & set(kinds)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    expected = formats.of_variables(model, network.variables, card)(pixels)[1]
    logits = formats.FORMATS["onnx"].open(tmp_path, card)(pixels)[1]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    graph = onnx_int8.prepare(tmp_path / "model.onnx", "int8", [pixels])
    assert len(graph.layers) == 10 and "block1/attention/qkv" in " ".join(graph.layers)
    onnx_int8.write(graph, (), tmp_path / "int8.onnx")
    assert sum(onnx_int8.kernels(tmp_path / "int8.onnx").values()) == 10


def test_a_network_trained_with_int8_layers_needs_no_calibration(tmp_path):
    """Checks an export by the trained ranges, which computes as the network does."""
    fields = {"model__conv": "int8", "model__dense": "int8", "checkpoint_every": "6 steps"}
    whole = tiny.trained(tmp_path / "whole", **fields)
    opened, state = restore.load_network(whole)
    assert "ranges" in state.model_state
    network = export.network(opened, state)
    plain, trained = trained_int8.plain(network)
    assert len(trained) == 8 and plain.create() == models.create("resnet8", **plain.fields)
    card = write.of_run(opened, state, "onnx", tmp_path / "out", quantize="int8", images=100)
    entry = card["quantized"]
    assert entry["calibration_images"] == 0 and "trained" in entry["calibration"] and entry["int8_layers"] == 8
    # Sums of shortcuts are rounded in the file alone, and after 12 steps the ranges are still those of the first
    assert card["verified"]["largest_difference"] < 0.2 * card["verified"]["largest_logit"]
    with pytest.raises(UserError, match="torch has no int8 layers; export --format=onnx --quantize=int8"):
        write.check_libraries("torch", network, "", "python")
    nothing = {"head": dict.fromkeys(LEAVES[:2], np.float32(0))}
    empty = network._replace(variables={**network.variables, "ranges": nothing})
    with pytest.raises(UserError, match="the int8 layers have no ranges yet: train the run for at least one step"):
        trained_int8.plain(empty)
    # An input that was always 0
    ranges = copy.deepcopy(jax.tree.map(np.asarray, network.variables["ranges"]))
    ranges["stage2"]["block0"]["conv2"] |= dict.fromkeys(LEAVES[:2], np.float32(0))
    silent = network._replace(variables={**network.variables, "ranges": ranges})
    entry = write.export(opened, silent, "onnx", tmp_path / "silent", {}, quantize="int8", images=20)["quantized"]
    assert entry["float32_layers"] == ["stage2/block0/conv2"] and entry["int8_layers"] == 7


def test_int8_layers_of_a_network_with_exits_keep_their_names(tmp_path):
    """Checks an export without the layers of early exits, on which its logits do not depend."""
    int8 = {"model__conv": "int8", "model__dense": "int8", "duration": "6 steps"}
    loop.train(config(RUNS["multi_exit"], TEXTS["multi_exit"], **int8), tmp_path / "run")
    opened, state = restore.load_network(tmp_path / "run")
    card = write.of_run(opened, state, "onnx", tmp_path / "out", quantize="int8", lose=100, images=20)
    graph = onnx_graph.Graph(onnx.load(tmp_path / "out" / "model.onnx"))
    layers = [node.name for node in graph.model.graph.node if node.op_type in onnx_graph.LAYERS]
    assert layers[0] == "stem_conv" and layers[-1] == "head" and not any("exit" in name for name in layers)
    assert card["quantized"]["int8_layers"] == len(layers) and not card["quantized"]["float32_layers"]


def test_a_program_without_ranges_has_nothing_to_quantize(out, tmp_path):
    path, pixels = out / "float32" / "model.onnx", [np.zeros((1, 8, 8, 1), np.uint8)]
    with pytest.raises(UserError, match="no layer of the network has a known range"):
        onnx_int8.prepare(path, "int8", pixels, lambda model: {})
    for method in ("int8", "dynamic"):  # all layers in float32
        graph = onnx_int8.prepare(path, method, pixels)
        onnx_int8.write(graph, list(graph.layers), tmp_path / "x.onnx")
        assert not onnx_int8.kernels(tmp_path / "x.onnx")
