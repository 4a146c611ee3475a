"""The ways to make a network smaller, and the candidates that they give.

METHODS has one row per method or combination: its name, its levels from mild to strong, and a function of (dense,
level) that returns a candidate. The further training of a candidate takes as many steps as that of the dense network.
Networks that start from nothing take the steps of the run in addition, as the dense network has them behind it.
"""

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import models
from experiments.frontier import starts
from experiments.frontier.dense import Dense
from experiments.frontier.starts import Cut
from models.errors import UserError
from train.export.network import PortableNetwork

SHARING = 0.2  # share of further training in which shared values are trained, after pruning
SHARING_RATE = 0.02  # learning rate of shared values, as a factor; the gradients of many weights add up
SLOW_SCALES = ((".*/(positive|negative)", 0.01), (".*", 1.0))  # as in the study of compression
EXITS = "early_exit_resnet62"
DENSE = "dense"
WHOLE = Cut()
LOW_BITS = {"ternary": "ternary weights", "binary_weight": "binary weights"}


class Training(NamedTuple):
    """A training of a candidate.

    Attributes:
      changes: Values of keys of the recipe that differ, "section__key".
      is_taught: Whether the trained dense network teaches.
    """

    changes: Mapping[str, Any]
    is_taught: bool = True


class Candidate(NamedTuple):
    """A smaller network to try.

    Attributes:
      name: Its name for people.
      method: The method's name.
      level: The number of the level, from 0 for the mildest.
      model: Section `model` of its config.
      trainings: Its trainings, each from the result of the one before; () for the trained dense network.
      start: Returns the network from which the first training starts; None for the run, or for what the training says.
      kept: Share of the weights of kernels that are not 0, for the estimate of its bytes.
      bits: Bits of a weight that is not 0, for the same.
      share: Codebooks that the export rounds weights to.
      exits: Mult-adds of the average image that exits allow, as a share of all; 0 without exits.
      time: Time of its kernels as a share of that of dense float32 ones, for the estimate of its time.
      format: Format of its export; "" for that of the measure.
      options: Other arguments of `train.export.write.export`.
    """

    name: str
    method: str
    level: int
    model: Mapping[str, Any]
    trainings: Sequence[Training] = (Training({}),)
    start: Callable[[], PortableNetwork] | None = None
    kept: float = 1.0
    bits: float = 32.0
    share: str = ""
    exits: float = 0.0
    time: float = 1.0
    format: str = ""
    options: Mapping[str, Any] = types.MappingProxyType({})


Make = Callable[[Dense, Any], Candidate]


def _candidate(name: str, dense: Dense, cut: Cut = WHOLE, **options: Any) -> Candidate:
    """Returns a candidate without some parts of the network; `candidates` fills in method and level."""
    kernels = dense.removable if cut.filters else ()
    fields = starts.fields(dense.portable, cut, kernels)
    parts = [f"blocks {'-'.join(map(str, fields['stage_sizes']))}"] if cut.blocks else []
    parts += [f"{cut.filters:.0%} of filters removed"] if cut.filters else []
    start = functools.partial(starts.reduced, dense.portable, cut, kernels) if parts else None
    section = starts.section(dense.portable.name, fields, dense.network.feed.fields)
    return Candidate(", ".join(filter(None, (*parts, name))), "", 0, **{"model": section, "start": start, **options})


def _cut(dense: Dense, cut: tuple[float, float]) -> Candidate:
    return _candidate("", dense, Cut(*cut))


def _narrow(dense: Dense, share: float) -> Candidate:
    """Returns a student of smaller width, which starts from nothing."""
    width = getattr(dense.model, "width", None)
    if not isinstance(width, int) or round(share * width) < 1:
        raise UserError(f"{dense.portable.name} has no field width")
    training = Training(
        {
            "init_from": "",
            "duration": f"{dense.before + dense.steps} steps",
            "optimizer__learning_rate": dense.network.config["optimizer"]["learning_rate"],
            "optimizer__warmup": "5%",
        }
    )
    candidate = _candidate(f"width {round(share * width)}, from scratch", dense, trainings=(training,))
    return candidate._replace(model={**candidate.model, "width": round(share * width)})


def _pruned(dense: Dense, share: float) -> Candidate:
    prune = Training({"optimizer__prune": f"magnitude({share}, end='50%', every='2%')"})
    return _candidate(f"{share:.0%} of weights pruned", dense, trainings=(prune,), kept=1 - share, bits=36.0)


def _zero_blocks(dense: Dense, share: float) -> Candidate:
    """Returns the network with blocks of 16 zeros, which opened networks skip on a CPU (models/compress/skip.py)."""
    prune = Training({"optimizer__prune": f"magnitude({share}, end='50%', every='2%', by=layer, structure=blocks)"})
    name = f"{share:.0%} of weights pruned in blocks"
    candidate = _candidate(name, dense, trainings=(prune,), kept=1 - share, bits=36.0, format="safetensors")
    return candidate._replace(time=1.25 - share)  # about what docs/compress.md has measured


def _int8(dense: Dense, filters: float) -> Candidate:
    """Returns the network as int8 kernels of onnxruntime compute it; the whole network needs no training."""
    candidate = _candidate("int8", dense, Cut(filters), format="onnx", options={"quantize": "int8"})
    candidate = candidate._replace(time=0.6)  # about what docs/export.md has measured
    return candidate if filters else candidate._replace(trainings=())


def _shared(dense: Dense, bits: int) -> Candidate:
    share = f"linear(conv={bits}, dense={bits})"
    return _candidate(f"{bits}-bit values", dense, trainings=(), bits=bits, share=share)


def _pruned_and_shared(dense: Dense, level: tuple[float, float, int]) -> Candidate:
    filters, sparsity, bits = level
    tuned = max(1, round(SHARING * dense.steps))
    prune = {"optimizer__prune": f"magnitude({sparsity}, end='50%', every='2%')"}
    share = {
        "optimizer__share": f"linear(conv={bits}, dense={bits})",
        "optimizer__learning_rate": SHARING_RATE * dense.config.optimizer.learning_rate,
        "duration": f"{tuned} steps",
    }
    trainings = (Training({**prune, "duration": f"{max(1, dense.steps - tuned)} steps"}), Training(share))
    # Of a weight that is not 0, the position takes about 3 bits after Huffman coding, and the index less than `bits`
    options = {"trainings": trainings, "kept": 1 - sparsity, "bits": bits + 2.5}
    return _candidate(f"{sparsity:.0%} of weights pruned, {bits}-bit values", dense, Cut(filters), **options)


def _low_bit(dense: Dense, level: tuple[float, str]) -> Candidate:
    """Returns the network with ternary or binary weights in all layers but the first and the head."""
    filters, layer = level
    if "conv" in dense.config.model or "dense" in dense.config.model:
        raise UserError(f"{dense.portable.name} has layers of another kind already")
    groups = {"optimizer__groups": SLOW_SCALES} if layer == "ternary" else {}
    options = {"trainings": (Training(groups),), "bits": {"ternary": 1.5, "binary_weight": 1.05}[layer]}
    candidate = _candidate(LOW_BITS[layer], dense, Cut(filters), **options)
    for kinds in (("conv", "dense"), ("conv",), ("dense",)):
        model = {**candidate.model, **dict.fromkeys(kinds, layer)}
        try:
            model_of(dense, model)
            return candidate._replace(model=model)
        except UserError as error:  # a kind of layer that the network does not have
            reason = error
    raise reason


def model_of(dense: Dense, section: Mapping[str, Any]) -> Any:
    """Returns the flax module of a section `model` on the data of a run."""
    fields = {name: value for name, value in section.items() if name != "name"}
    return models.create(section["name"], **{**dense.network.feed.fields, **fields})


def _early(dense: Dense, budget: float) -> Candidate:
    """Returns a residual network with two exits, whose thresholds allow a share of the mult-adds on average."""
    from models import resnet

    if type(dense.model) is not resnet.ResNet or len(dense.model.blocks) < 3:
        raise UserError(f"{dense.portable.name} is not a residual network of at least 3 blocks")
    count = len(dense.model.blocks)
    exits = tuple(sorted({max(1, count // 3), max(2, 2 * count // 3)}))
    model = {"name": EXITS, **starts.inherited(dense.model, EXITS), "exits": exits, "exit_width": 0}
    model |= {field: value for field, value in dense.config.model.items() if field != "name"}
    training = Training({"init_new": "exit*", "task__name": "multi_exit"}, is_taught=False)
    name = f"early exits, {budget:.0%} of mult-adds"
    return _candidate(name, dense, model=model, trainings=(training,), exits=budget, format="safetensors")


class Method(NamedTuple):
    """A row of METHODS.

    Attributes:
      levels: From mild to strong.
      make: Function of (dense, level) that returns a candidate; raises UserError if it does not fit the network.
      measures: The measures that it makes smaller.
    """

    levels: Sequence[Any]
    make: Make
    measures: Sequence[str] = ("time", "bytes", "mult_adds")


METHODS = {
    "filters": Method(((0.25, 0.0), (0.5, 0.0), (0.75, 0.0)), _cut),
    "blocks": Method(((0.0, 0.34), (0.0, 0.67)), _cut),
    "blocks+filters": Method(((0.5, 0.34), (0.25, 0.67), (0.5, 0.67), (0.75, 0.67)), _cut),
    "narrow": Method((0.5, 0.25), _narrow),
    "exits": Method((0.7, 0.5), _early, ("time", "mult_adds")),
    "zero blocks": Method((0.6, 0.75), _zero_blocks, ("time",)),
    "int8": Method((0.0,), _int8, ("time",)),
    "filters+int8": Method((0.25, 0.5), _int8, ("time",)),
    "prune": Method((0.8,), _pruned, ("bytes",)),
    "share": Method((8, 6, 5, 4), _shared, ("bytes",)),
    "prune+share": Method(
        ((0.0, 0.6, 5), (0.0, 0.7, 4), (0.0, 0.8, 4), (0.0, 0.85, 3), (0.0, 0.9, 3)), _pruned_and_shared, ("bytes",)
    ),
    "filters+prune+share": Method(((0.25, 0.7, 4), (0.5, 0.7, 4)), _pruned_and_shared, ("bytes",)),
    "low bits": Method(((0.0, "ternary"), (0.0, "binary_weight")), _low_bit, ("bytes",)),
    "filters+low bits": Method(((0.25, "ternary"), (0.5, "ternary")), _low_bit, ("bytes",)),
}


def candidates(dense: Dense, measure: str, names: Sequence[str] = ()) -> tuple[list[Candidate], dict[str, str]]:
    """Returns the candidates that can make a measure of a network smaller.

    Args:
      dense: The network.
      measure: One of `estimates.MEASURES`.
      names: Names in METHODS; () for all.

    Returns:
      The candidates, and {method: reason} for the methods that do not fit the network, and for those of `names` that
      are for other measures.
    """
    fitting, refused = [], {}
    for name, method in METHODS.items():
        if names and name not in names:
            continue
        if measure not in method.measures:
            if names:
                refused[name] = f"is only tried with --measure={' or '.join(method.measures)}, which it makes smaller"
            continue
        for number, level in enumerate(method.levels):
            try:
                candidate = method.make(dense, level)._replace(method=name, level=number)
                if candidate.name not in {one.name for one in fitting}:  # few blocks give few levels
                    fitting.append(candidate)
            except UserError as error:
                refused.setdefault(name, str(error).splitlines()[0])
    return fitting, refused
