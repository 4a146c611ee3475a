"""Names of Vision Transformers in JAX's own .npz files: vision_transformer (AugReg, SAM) and big_vision.

  embedding/kernel, cls, Transformer/posembed_input/pos_embedding, Transformer/encoderblock_0/LayerNorm_0/scale, ...

big_vision counts other layers of a block, may stack all blocks in one array, and puts params/ before each name.
Queries, keys and values are arrays of their own there, [C, heads, C / heads], and one array here, [C, 3 C].
"""

import re
from collections.abc import Mapping

import numpy as np

from models.errors import UserError
from models.weights.layouts import SAME, Layout

_PREFIXES = ("opt/target/", "params/img/", "params/")
_BLOCKS = "Transformer/encoderblock"
_ATTENTION = "MultiHeadDotProductAttention_1"
# The layers of big_vision's blocks -> those of vision_transformer's
_BIG_VISION = {"LayerNorm_1": "LayerNorm_2", "MlpBlock_0": "MlpBlock_3", "MultiHeadDotProductAttention_0": _ATTENTION}
_PARTS = ("query", "key", "value")


def layout() -> Layout:
    """Returns the layout of vision_transformer, with queries, keys and values in one array; see `fused`."""
    block, theirs = r"block(\d+)/", rf"{_BLOCKS}_\1/"
    return Layout(
        rules=[
            ("class_token", "cls"),
            ("positions", "Transformer/posembed_input/pos_embedding"),
            ("stem_conv", "embedding"),
            (f"{block}norm1", f"{theirs}LayerNorm_0"),
            (f"{block}norm2", f"{theirs}LayerNorm_2"),
            (f"{block}attention/(qkv|out)", rf"{theirs}{_ATTENTION}/\2"),
            (f"{block}expand", f"{theirs}MlpBlock_3/Dense_0"),
            (f"{block}reduce", f"{theirs}MlpBlock_3/Dense_1"),
            ("final_norm", "Transformer/encoder_norm"),
            ("head", "head"),
        ],
        leaves={name: name for name in ("kernel", "bias", "scale")},
        separator="/",
        kernels=SAME,
        extra=lambda names: {},
    )


def fused(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays of any of these files with the names and shapes of `layout`.

    A head that sees a hidden layer (pre_logits, in the first checkpoints of vision_transformer) is left out with it.

    Raises:
      UserError: The network is another one, or queries, keys and values do not belong together.
    """
    named = _named(arrays)
    for start, what in (("MAPHead_0/", "pools by attention"), ("conv_root/", "has a residual network as its stem")):
        if any(name.startswith(start) for name in named):
            raise UserError(f"these weights are of a Vision Transformer that {what}, which networks here do not")
    if any(name.startswith("pre_logits/") for name in named):
        named = {name: array for name, array in named.items() if not name.startswith(("pre_logits/", "head/"))}
    for name in [name for name in named if name.endswith(f"{_ATTENTION}/query/kernel")]:
        start = name.removesuffix("query/kernel")
        for leaf in ("kernel", "bias"):
            parts = [named.pop(f"{start}{part}/{leaf}", None) for part in _PARTS]
            if any(part is None or part.ndim != (3 if leaf == "kernel" else 2) for part in parts):
                raise UserError(f"'{start}': query, key and value are not three arrays of one shape")
            flat = [part.reshape(*part.shape[:-2], -1) for part in parts if part is not None]
            if len({part.shape for part in flat}) > 1:
                raise UserError(f"'{start}': query, key and value are not three arrays of one shape")
            named[f"{start}qkv/{leaf}"] = np.concatenate(flat, -1)
        out = named.get(f"{start}out/kernel")
        if out is not None and out.ndim == 3:
            named[f"{start}out/kernel"] = out.reshape(-1, out.shape[-1])
    return named


def _named(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays by vision_transformer's names, one for each block."""
    prefix = next((start for start in _PREFIXES if f"{start}embedding/kernel" in arrays), "")
    named = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    if "pos_embedding" in named:
        named["Transformer/posembed_input/pos_embedding"] = named.pop("pos_embedding")
    for name in [name for name in named if name.startswith(f"{_BLOCKS}/")]:
        for i, array in enumerate(named.pop(name)):
            named[f"{_BLOCKS}_{i}/{name.removeprefix(f'{_BLOCKS}/')}"] = array
    if not any("MultiHeadDotProductAttention_0" in name for name in named):
        return named

    def renamed(name: str) -> str:
        return re.sub(r"(?<=/)\w+_\d+(?=/)", lambda match: _BIG_VISION.get(match[0], match[0]), name)

    return {renamed(name): array for name, array in named.items()}


def split(arrays: Mapping[str, np.ndarray], heads: int) -> dict[str, np.ndarray]:
    """Returns arrays of `layout` as vision_transformer stores them; the inverse of `fused`."""
    result = {}
    for name, array in arrays.items():
        start, _, leaf = name.rpartition("/")
        if start.endswith(f"{_ATTENTION}/qkv"):
            for part, values in zip(_PARTS, np.split(array, 3, -1), strict=True):
                shape = (*values.shape[:-1], heads, values.shape[-1] // heads)
                result[f"{start.removesuffix('qkv')}{part}/{leaf}"] = values.reshape(shape)
        elif name.endswith(f"{_ATTENTION}/out/kernel"):
            result[name] = array.reshape(heads, array.shape[0] // heads, -1)
        else:
            result[name] = array
    return result
