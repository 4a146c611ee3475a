"""Networks of .npz files, which name none: BiT's, and Vision Transformers of vision_transformer and big_vision."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

import models
from models.errors import UserError
from models.weights import jax_vit

_BIT = "resnet/root_block/standardized_conv2d/kernel"


class Inferred(NamedTuple):
    """A network that fits arrays.

    Attributes:
      network: Its name here.
      fields: Its fields, without classes.
      layout: Name of the arrays' layout.
      classes: Number of classes; 0 without a head.
    """

    network: str
    fields: dict[str, Any]
    layout: str
    classes: int


def infer(arrays: Mapping[str, np.ndarray]) -> Inferred:
    """Returns the network whose arrays these are; raises UserError if it is not one of ours."""
    if _BIT in arrays:
        return _bit(arrays)
    if any(re.search(r"(^|/)embedding/kernel$", name) for name in arrays):
        return _vit(arrays)
    names = ", ".join(sorted(arrays)[:3])
    raise UserError(f"its arrays ({names}, …) are neither of BiT nor of a Vision Transformer of JAX")


def _bit(arrays: Mapping[str, np.ndarray]) -> Inferred:
    stages = [0] * 4
    for name in arrays:
        if match := re.fullmatch(r"resnet/block([1-4])/unit(\d\d)/a/standardized_conv2d/kernel", name):
            stages[int(match[1]) - 1] = max(stages[int(match[1]) - 1], int(match[2]))
    wanted = {"stage_sizes": tuple(stages), "width": arrays[_BIT].shape[-1]}
    network, fields = _nearest(models.list_models("resnetv2_*_bit"), wanted)
    head = arrays.get("resnet/head/conv2d/bias")
    return Inferred(network, fields, "bit", 0 if head is None else len(head))


def _vit(arrays: Mapping[str, np.ndarray]) -> Inferred:
    queries = [array for name, array in arrays.items() if name.endswith("/query/kernel")]
    named = jax_vit.fused(arrays)
    positions = named.get("Transformer/posembed_input/pos_embedding")
    if positions is None or not queries:
        raise UserError("this Vision Transformer has no learned positions or no attention, unlike those here")
    kernel, hidden = named["embedding/kernel"], named["Transformer/encoderblock_0/MlpBlock_3/Dense_0/bias"]
    prefix = int("cls" in named)
    wanted = {
        "patch_size": kernel.shape[0],
        "width": kernel.shape[-1],
        "depth": sum(name.endswith("/LayerNorm_0/scale") for name in named),
        "heads": queries[0].shape[-2],
        "mlp_width": len(hidden),
        "pool": "token" if prefix else "mean",
        "image_size": math.isqrt(positions.shape[1] - prefix) * kernel.shape[0],
    }
    network, fields = _nearest(models.list_models("vit_*_patch*"), wanted)
    return Inferred(network, fields, "jax", len(named["head/bias"]) if "head/bias" in named else 0)


def _nearest(names: list[str], wanted: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the network that has most of these fields, and the fields that it lacks."""
    fields = {}
    for name in names:
        model = models.create(name)
        fields[name] = {field: value for field, value in wanted.items() if getattr(model, field) != value}
    network = min(fields, key=lambda name: len(fields[name]))
    return network, fields[network]
