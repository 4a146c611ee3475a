"""Writes torch_files.npz: small torch.save files, so that reading them is tested without PyTorch.

python -m tests.fuzz.make_torch_files
"""

import argparse
import copy
import io
import pathlib
from typing import Any

import numpy as np


def saved(value: Any, **options: Any) -> np.ndarray:
    """Returns the bytes of a file, uint8."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def plain() -> dict[str, Any]:
    """Returns {"a": 0 to 11 as [4, 3], "b": 0 to 3}, float32."""
    import torch

    return {"a": torch.arange(12.0).reshape(4, 3), "b": torch.arange(4.0)}


def views() -> dict[str, Any]:
    """Returns tensors with unusual shapes, or that are views of one storage holding 0 to 23."""
    import torch

    base = torch.arange(24.0)
    grid = base.reshape(2, 3, 2, 2)
    return {
        "whole": base, "transposed": base.reshape(4, 6).T, "part": base[5:9], "steps": base[1::7],
        "channels_last": grid.contiguous(memory_format=torch.channels_last), "expanded": base[3:4].expand(5),
        "number": base[7], "empty": torch.zeros(0, 3), "tied": base,
    }  # fmt: skip


def types() -> dict[str, Any]:
    """Returns 0 to 2 in every type that NumPy has, and in bfloat16."""
    import torch

    names = (
        "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32",
        "uint64",
    )  # fmt: skip
    return {name: torch.arange(3).to(getattr(torch, name)) for name in names} | {"bool": torch.tensor([False, True])}


def training() -> dict[str, Any]:
    """Returns a training script's checkpoint: a compiled network in DataParallel, its optimizer and options."""
    import torch

    net = torch.nn.Linear(3, 4)
    with torch.no_grad():
        net.weight.copy_(plain()["a"])
        net.bias.copy_(plain()["b"])
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(2, 3)).sum().backward()
    state = {f"module._orig_mod.{name}": value.clone() for name, value in net.state_dict().items()}
    optimizer.step()
    return {
        "epoch": 3, "best_acc": torch.tensor(0.75), "score": np.float64(0.5), "none": None, "arch": "linear",
        "args": argparse.Namespace(lr=0.1), "optimizer": optimizer.state_dict(), "state_dict": state,
    }  # fmt: skip


def files() -> dict[str, np.ndarray]:
    """Returns all files by name."""
    import torch

    whole, cycle, cycle_of_arrays = torch.nn.Linear(3, 4), {}, plain()
    cycle["model"], cycle_of_arrays["module"] = cycle, cycle_of_arrays
    marked = torch.nn.Parameter(plain()["a"])
    marked.mark = 1
    program = io.BytesIO()
    torch.jit.save(torch.jit.script(whole), program)
    quantized = torch.quantize_per_tensor(plain()["a"], 0.1, 0, torch.qint8)
    return {
        "new": saved(plain()), "old": saved(plain(), _use_new_zipfile_serialization=False),
        "protocol4": saved(plain(), pickle_protocol=4),
        "old_training": saved(training(), _use_new_zipfile_serialization=False), "training": saved(training()),
        "views": saved(views()), "old_views": saved(views(), _use_new_zipfile_serialization=False),
        "types": saved(types()), "parameters": saved({k: torch.nn.Parameter(v) for k, v in plain().items()}),
        "marked": saved({"a": marked}), "module": saved(torch.nn.Linear(3, 4)),
        "state_dict": saved(copy.deepcopy(torch.nn.BatchNorm1d(4)).state_dict()), "cycle": saved(cycle),
        "cycle_of_arrays": saved(cycle_of_arrays), "sparse": saved({"a": plain()["a"].to_sparse()}),
        "csr": saved({"a": plain()["a"].to_sparse_csr()}), "quantized": saved({"a": quantized}),
        "float8": saved({"a": plain()["a"].to(torch.float8_e4m3fn)}), "complex": saved({"a": plain()["a"] + 1j}),
        "conjugated": saved({"a": (plain()["a"] + 1j).conj()}),
        "nested": saved({"a": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}),
        "meta": saved({"a": torch.ones(2, device="meta")}), "tensor": saved(plain()["a"]), "list": saved([1, 2]),
        "nothing": saved({}), "numbers": saved({"epoch": 3}), "numbered": saved({3: plain()["a"]}),
        "program": np.frombuffer(program.getvalue(), np.uint8),
    }  # fmt: skip


if __name__ == "__main__":
    np.savez_compressed(pathlib.Path(__file__).with_name("torch_files.npz"), **files())
