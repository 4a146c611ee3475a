"""Tables of the study of compression."""

from collections.abc import Sequence
from typing import Any

from experiments.studies.compression.results import (
    LONGER,
    STAGES,
    curve_at,
    low_bits,
    sparsities_of,
    stage_of,
    with_and_without_filters,
)
from experiments.study import Outcomes, Table
from experiments.study.verdicts import spread

# Han 2016, table 1: (error before and after in percent, ratio)
PUBLISHED = {
    "LeNet-300-100": (1.64, 1.58, 40),
    "LeNet-5": (0.80, 0.74, 39),
    "AlexNet": (42.78, 42.78, 35),
    "VGG-16": (31.50, 31.17, 49),
}
# Zhu 2017, CIFAR-10: error in percent with (full precision, ternary weights)
TERNARY = {20: (8.23, 8.87), 32: (7.67, 7.63), 44: (7.18, 7.02), 56: (6.80, 6.44)}


def _error(values: Sequence[float]) -> str:
    return spread([1 - value for value in values], digits=2)


def _unhuffed(layers: Sequence[dict[str, Any]]) -> float:
    """Returns the bytes that a file would have without Huffman coding, with indices and jumps of fixed width."""
    total = 0.0
    for row in layers:
        parts, entries = row["parts"], row["entries"] or 0
        huffman_coded = parts.get("indices", 0) + parts.get("jumps", 0) + parts.get("tables", 0)
        width = (row["index_bits"] or 0) * ("indices" in parts) + (row["jump_bits"] or 0)
        total += row["bytes"] - huffman_coded + entries * width / 8
    return total


def _kilobytes(values: Sequence[float]) -> str:
    return spread([value / 1000 for value in values], percent=False)


def _row_of_network(outcomes: Outcomes, network: str) -> list[Any]:
    stages = {stage: stage_of(outcomes, network, stage) for stage in STAGES}
    files = {stage: group.results("stored") for stage, group in stages.items()}
    density = [
        sum(row["kept"] for row in one["layers"] if row["entries"])
        / sum(row["weights"] for row in one["layers"] if row["entries"])
        for one in files["pruned"]
    ]

    def times(stage: str) -> str:
        return spread([one["ratio"] for one in files[stage]], percent=False)

    shared, dense = files["shared"], stages["dense"].first()
    return [
        network,
        f"{dense['parameters']:,}" if dense else "diverged",
        *(_error(stages[stage].values("accuracy")) for stage in ("dense", "pruned")),
        _error([one["accuracy"] for one in shared]),
        spread(density),
        *(_kilobytes([one[key] for one in shared]) for key in ("float32", "bytes")),
        times("pruned"),
        spread([one["float32"] / _unhuffed(one["layers"]) for one in shared], percent=False),
        times("shared"),
        "yes" if all(one["identical"] for one in shared) else "NO",
    ]


def tables(outcomes: Outcomes) -> list[Table]:
    """Returns tables for each part of the study that the scale has."""
    networks = outcomes.where(part="stages").distinct("network")
    return [
        _table_of_stages(outcomes, networks),
        *_table_of_longer(outcomes, networks),
        *(table for network in networks for table in _table_of_layers(outcomes, network)),
        *_table_of_curves(outcomes),
        *_table_of_low_bits(outcomes),
        _table_of_filters(outcomes),
        *_table_of_int8(outcomes),
    ]


def _table_of_stages(outcomes: Outcomes, networks: Sequence[str]) -> Table:
    sizes = ("weights kept", "float32 (kB)", "file (kB)", "pruned, times", "shared, times", "Huffman, times")
    columns = ("network", "numbers", "error", "pruned", "file", *sizes, "logits equal")
    published = [
        [f"{name} (Han 2016, table 1)", "", f"{before:.2f} %", "", f"{after:.2f} %", *[""] * 5, ratio, ""]
        for name, (before, after, ratio) in PUBLISHED.items()
    ]
    rows = [_row_of_network(outcomes, network) for network in networks]
    return Table("Deep compression", columns, [*rows, *published])


def _table_of_longer(outcomes: Outcomes, networks: Sequence[str]) -> list[Table]:
    stages = ("dense", LONGER)
    rows = [
        [name, *(_error(stage_of(outcomes, name, stage).values("accuracy")) for stage in stages)] for name in networks
    ]
    title = "Dense networks that train as long as pruned ones"
    return [Table(title, ("network", "error", "error, longer"), rows)] if outcomes.where(stage=LONGER) else []


def _table_of_layers(outcomes: Outcomes, network: str) -> list[Table]:
    from models.compress import file  # imports JAX

    columns = ("layer", "weights", "kept", "index bits / coded", "jump bits / coded", "bytes", "of float32")
    shared = stage_of(outcomes, network, "shared").results("stored")
    return [Table(f"{network}, layer by layer", columns, file.rows(shared[0]["layers"]))] if shared else []


def _table_of_filters(outcomes: Outcomes) -> Table:
    rows = []
    for network in outcomes.where(part="filters").distinct("network"):
        names = ("whole", "without some of its filters")
        for name, group in zip(names, with_and_without_filters(outcomes, network), strict=True):
            if measured := group.having("stored"):
                costs = (f"{measured[0].measured['stored'][key]:,}" for key in ("parameters", "mult_adds"))
                rows.append([f"{network}, {name}", _error(measured.measured("stored", "accuracy")), *costs])
    return Table("Filters removed", ("network", "error", "parameters", "mult-adds"), rows)


def _table_of_int8(outcomes: Outcomes) -> list[Table]:
    rows = []
    for network in outcomes.where(part="stages").distinct("network"):
        if measured := stage_of(outcomes, network, "int8").results("int8"):
            float32, int8, share = ([one[name] for one in measured] for name in ("float32", "accuracy", "share"))
            rows.append([network, _error(float32), _error(int8), spread(share)])
    return [Table("int8 kernels", ("network", "error", "error, int8", "mult-adds in int8"), rows)] if rows else []


def _table_of_curves(outcomes: Outcomes) -> list[Table]:
    sparsities, first = sparsities_of(outcomes), outcomes.where(part="curves").first()
    columns = [("L2", "cut"), ("L1", "cut"), ("L2", "at once"), ("L1", "at once")]
    columns += [("L2", "step by step"), ("L2", "taught")]
    columns = [c for c in columns if any(curve_at(outcomes, *c, s) for s in sparsities)]
    title = f"Accuracy by sparsity, {first['parameters'] if first else 0:,} parameters"
    rows = [[f"{s:.0%}", *(spread(curve_at(outcomes, *column, s)) for column in columns)] for s in sparsities]
    return [Table(title, ("weights pruned", *(f"{decay}, {how}" for decay, how in columns)), rows)] if rows else []


def _table_of_low_bits(outcomes: Outcomes) -> list[Table]:
    low_bit_runs = outcomes.where(part="low bits")
    kinds, rows = low_bit_runs.distinct("kind"), []
    for depth in low_bit_runs.distinct("depth"):
        ratios = (low_bit_runs.where(depth=depth, kind=kind).measured("stored", "ratio")[:1] for kind in kinds)
        rows.append(
            [
                depth,
                *(_error(low_bits(outcomes, depth, kind)) for kind in kinds),
                " / ".join(f"{error:.2f}" for error in TERNARY.get(depth, ())) or "—",
                " / ".join(spread(ratio, percent=False) for ratio in ratios),
            ]
        )
    columns = ("layers", *kinds, "Zhu 2017: full / ternary, %", "file, times smaller")
    return [Table("Error with low-bit weights", columns, rows)] if rows else []
