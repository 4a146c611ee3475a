"""experiments.bench.int8: the programs, and rows relative to float32 in the same software."""

import types

import numpy as np
import pytest

from experiments.bench import int8
from models.errors import UserError
from train.export import formats


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return int8.network("resnet8", tmp_path_factory.mktemp("programs"))


def test_all_layers_are_int8_kernels_and_nearly_agree(programs):
    calls, kernels = programs
    logits = {name: np.asarray(call()[1]) for name, call in calls.items() if not name.startswith("OpenVINO")}
    assert list(logits) == ["onnxruntime, float32", "onnxruntime, int8", "ours, float32"] and kernels == 8
    float32 = logits["onnxruntime, float32"]
    np.testing.assert_allclose(logits["ours, float32"], float32, atol=1e-5)
    assert 0 < np.abs(logits["onnxruntime, int8"] - float32).max() < 0.1 * np.abs(float32).max()


def test_openvino_computes_the_same(programs):
    pytest.importorskip("openvino", reason="pip install -e '.[openvino]'")
    calls, _ = programs
    expected = np.asarray(calls["onnxruntime, float32"]()[1])
    for name, share in (("OpenVINO, float32", 1e-4), ("OpenVINO, int8", 0.1)):
        logits = np.asarray(list(calls[name]().values())[1])
        assert np.abs(logits - expected).max() < share * np.abs(expected).max(), name


@pytest.mark.parametrize("case", ["transformer_base", "resnet8"])
def test_networks_that_cannot_be_timed_are_one_line(case, monkeypatch, tmp_path):
    def failed(*_):
        raise formats.Failed("jax2onnx cannot convert the network")

    monkeypatch.setattr(int8, "network", failed)
    monkeypatch.setattr(int8, "OUT", types.SimpleNamespace(value=str(tmp_path)), raising=False)
    monkeypatch.setattr(int8, "KINDS", types.SimpleNamespace(value=[case]), raising=False)
    message = "must be a network of images" if case == "transformer_base" else "jax2onnx cannot convert"
    with pytest.raises(UserError, match=f"--cases={case}: {message}"):
        int8.main()


def test_the_page_says_what_times_are_relative_to_and_which_processor_it_was():
    rows = [
        {"case": "n", "program": name, "kernels": 3, "milliseconds": 2.0, "times_faster": faster}
        for name, faster in (("onnxruntime, int8", 2.0), ("OpenVINO, int8", 1.5))
    ]
    page = int8.markdown(rows, {"vnni": False, "device": "1 x cpu", "commit": "abc", "cores": 2})
    assert "1 x cpu without VNNI" in page and "in the\nsame software" in page
    assert [int8.cells(row)[-1] for row in rows] == ["3", ""]
