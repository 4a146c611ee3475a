"""Networks without some filters or blocks of a trained one, with its other weights, as a start of further training.

Li et al. 2017     Pruning filters for efficient ConvNets, arXiv 1608.08710: filters with the smallest L1 norm go,
                   as many from each layer
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import models
from models import weights
from models.compress import shrink
from models.errors import UserError
from train.export.network import PortableNetwork

BLOCK = re.compile(r"(stage(\d+))/block(\d+)/")


class Cut(NamedTuple):
    """The parts of a network to remove.

    Attributes:
      filters: Share of the filters of each layer whose filters can be removed.
      blocks: Share of the blocks of each stage; the last ones go, and each stage keeps at least one.
    """

    filters: float = 0.0
    blocks: float = 0.0


def removable(network: PortableNetwork) -> list[str]:
    """Returns the names of the kernels whose filters can be removed; [] if there are none."""
    kernels = [name for name in weights.flatten({"params": network.variables["params"]}) if name.endswith("/kernel")]
    try:
        return list(shrink.removable(network.create(), network.variables, network.inputs, kernels)[0])
    except UserError:
        return []


def fields(network: PortableNetwork, cut: Cut, kernels: Sequence[str]) -> dict[str, Any]:
    """Returns the fields of a network without some parts.

    Args:
      network: The network.
      cut: The parts.
      kernels: See `removable`.

    Raises:
      UserError: The network has no such parts.
    """
    smaller = dict(network.fields)
    if cut.blocks:
        sizes = tuple(getattr(network.create(), "stage_sizes", ()))
        smaller["stage_sizes"] = tuple(max(1, round((1 - cut.blocks) * size)) for size in sizes)
        if smaller["stage_sizes"] == sizes:
            raise UserError(f"{network.name} has no blocks to remove")
    if cut.filters:
        if not kernels:
            raise UserError(f"{network.name} has no filters that can be removed")
        sizes = smaller.get("stage_sizes", (10**9,) * 9)
        features = {name: leaf.shape[-1] for name, leaf in weights.flatten(network.variables).items()}
        smaller["widths"] = tuple(
            (name.removesuffix("/kernel"), features[name] - _gone(features[name], cut.filters))
            for name in kernels
            if _stays(name, sizes)
        )
    return smaller


def _gone(features: int, share: float) -> int:
    return min(round(share * features), features - 1)


def reduced(network: PortableNetwork, cut: Cut, kernels: Sequence[str]) -> PortableNetwork:
    """Returns a network without some parts, with its other weights; see `fields` for the arguments.

    Raises:
      UserError: The parts cannot be removed.
    """
    if cut.blocks:
        small = network._replace(fields=fields(network, cut._replace(filters=0.0), ()))
        sizes = small.fields["stage_sizes"]
        arrays = {name: array for name, array in weights.flatten(network.variables).items() if _stays(name, sizes)}
        try:
            network = small._replace(variables=weights.from_arrays(small.create(), arrays, "ablate"))
        except weights.Mismatch as error:
            raise UserError(f"{network.name} without blocks is another network: {error.lines[0]}") from None
    if cut.filters:
        arrays, masks = weights.flatten(network.variables), {}
        for name in (name for name in kernels if name in arrays):
            norms = np.abs(np.asarray(arrays[name])).sum(axis=tuple(range(arrays[name].ndim - 1)))
            masks[name] = np.argsort(np.argsort(norms, kind="stable")) >= _gone(len(norms), cut.filters)
        smaller, variables = shrink.shrink(network.create(), network.variables, masks, network.inputs)
        network = network._replace(fields={**network.fields, "widths": smaller.widths}, variables=variables)
    return network


def _stays(name: str, sizes: Sequence[int]) -> bool:
    match = BLOCK.match(name)
    return not match or int(match[3]) < sizes[int(match[2]) - 1]


def write(network: PortableNetwork, path: Path) -> None:
    """Writes a network for `init_from`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    weights.save(partial, network.create(), network.variables, {"model": network.name, "fields": network.fields})
    partial.replace(path)


def section(name: str, fields: Mapping[str, Any], feed_fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the section `model` of a config that creates a network, without the fields that the data determine."""
    return {"name": name, **{field: value for field, value in fields.items() if field not in feed_fields}}


def inherited(model: Any, name: str) -> dict[str, Any]:
    """Returns the fields with which the network `name` is like a model of another variant of the same class."""
    other = models.create(name)
    fields = [field for field in models.fields(name) if field not in ("num_classes", "dtype", "image_size")]
    pairs = {field: (getattr(model, field, None), getattr(other, field, None)) for field in fields}
    plain = (bool, int, float, str, tuple)
    return {
        field: ours
        for field, (ours, theirs) in pairs.items()
        if hasattr(model, field) and isinstance(ours, plain) and ours != theirs
    }
