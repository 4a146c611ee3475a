"""Records the outputs of other libraries' networks for drawn weights that went through our layouts. Needs PyTorch.

A family's script, tests/golden/make_FAMILY.py, lists cases and calls `record`; test_parity.py compares. Run one as

  PYTHONPATH=../shared/tools ../venv-torch/bin/python -m tests.golden.make_resnet

in an environment with this project, torch 2.13, torchvision 0.28 and timm 1.0. A CPU build of torch also needs
torchvision_cpu.
"""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import models
from models import weights
from models.weights.layouts import flatten
from tests.golden import drawn

with contextlib.suppress(ImportError):
    import torchvision_cpu  # noqa: F401


class Case(NamedTuple):
    """One comparison: `name` with our `fields`, and `theirs()`, their module with the same structure.

    `theirs()` gives logits. For several exits it gives a list that matches our `endpoints`.
    """

    name: str
    fields: dict[str, Any]  # must be JSON; num_classes=10 keeps the records small
    layout: str
    theirs: Callable[[], Any]
    shapes: Sequence[tuple[int, ...]] = ((2, 64, 64, 3), (3, 96, 80, 3))
    endpoints: Sequence[str] = ()


def manifest(names_and_shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Returns a digest of names and shapes."""
    lines = sorted(f"{name} {tuple(map(int, shape))}" for name, shape in names_and_shapes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def record(
    family: str,
    cases: Mapping[str, Case],
    networks: Mapping[str, tuple[str, Callable[[], Any]]] | None = None,
    **more: Any,
) -> None:
    """Writes golden/FAMILY.npz.

    Args:
      family: name of the file.
      cases: comparisons by an arbitrary label. Their network must load our weights with strict=True. Records
        its logits in evaluation and, where it has batch norm, its logits in training and the running statistics after.
      networks: {our name: (layout, constructor of theirs)}; records the names and shapes of their whole state_dict.
      **more: further facts about the family, as JSON.
    """
    import torch

    arrays, described, manifests = {}, {}, {}
    for label, case in cases.items():
        model = models.create(case.name, **case.fields)
        variables = drawn.variables(model)
        state = {
            name: torch.from_numpy(np.ascontiguousarray(array))
            for name, array in weights.to_arrays(model, variables, case.layout).items()
        }
        theirs = case.theirs()
        described[label] = {
            "name": case.name,
            "fields": case.fields,
            "layout": case.layout,
            "shapes": case.shapes,
            "endpoints": case.endpoints,
        }
        for shape in case.shapes:
            theirs.load_state_dict(state, strict=True)
            key = f"{label}|{'x'.join(map(str, shape))}"
            images = torch.from_numpy(drawn.images(key, shape)).permute(0, 3, 1, 2)
            with torch.no_grad():
                arrays[f"{key}|eval"] = np.asarray(theirs.eval()(images))
                if "batch_stats" in variables:
                    arrays[f"{key}|train"] = np.asarray(theirs.train()(images))
                    after = {name: value.numpy() for name, value in theirs.state_dict().items()}
                    statistics = flatten(weights.from_arrays(model, after, case.layout))
                    arrays[f"{key}|stats"] = projections(statistics)
        print(label, {key: float(np.abs(value).max()) for key, value in arrays.items() if key.startswith(f"{label}|")})
    for name, (layout, constructor) in (networks or {}).items():
        with torch.device("meta"):
            theirs = constructor().state_dict()
        shapes = {key: tuple(value.shape) for key, value in theirs.items()}
        manifests[name] = [layout, manifest(shapes), len(shapes)]
        ours = shapes_of(models.create(name), layout)
        if ours != shapes:
            for key in sorted(set(ours) ^ set(shapes)):
                print(name, "-+"[key in shapes], key)
            for key in sorted(set(ours) & set(shapes)):
                if ours[key] != shapes[key]:
                    print(name, key, ours[key], shapes[key])
            raise SystemExit(f"{name}: our names and shapes are not theirs")
        print(name, manifests[name])
    description = {"cases": described, "manifests": manifests, **more}
    np.savez_compressed(pathlib.Path(__file__).with_name(f"{family}.npz"), about=json.dumps(description), **arrays)


def shapes_of(model: Any, layout: str) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of the result of `weights.to_arrays`, without the arrays."""
    return {name: array.shape for name, array in weights.to_arrays(model, drawn.zeros(model), layout).items()}


def projections(variables: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the product of every running mean and variance with a drawn vector, in the order of their paths."""
    return np.asarray(
        [
            np.dot(np.asarray(value, np.float64), drawn.images(f"projection {path}", value.shape))
            for path, value in sorted(variables.items())
            if path.rsplit("/", 1)[-1] in ("mean", "var")
        ]
    )
