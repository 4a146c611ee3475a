"""The project's performance targets in one table, and their verdicts from measured rows."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.bench.networks import NETWORKS

CPU = r"\bcpu\b"
H200 = "H200"
FASTEST = "the fastest of PyTorch's"


class Target(NamedTuple):
    """A limit on a measured number.

    subject, what, who: select the rows. measure: key of the number. limit: the least that reaches the target, or, with
    `at_most`, the most. device: pattern of the devices of the target. against: the row that `measure` is relative to,
    if not the first or the best of the peer's. batch, precision: of the rows (0, "": any).
    """

    subject: str
    what: str
    measure: str
    limit: float
    device: str
    at_most: bool = False
    who: str = "ours"
    against: str = ""
    batch: int = 0
    precision: str = ""


def _beside_pytorch(name: str, sizes: Sequence[int], slower: float) -> Iterator[Target]:
    """Returns targets on a CPU: training step and forward pass take at most this many times PyTorch's time."""
    for size in sizes:
        for what in ("step", "forward"):
            yield Target(
                f"{name}/{size}",
                what,
                "times_first",
                round(1 / slower, 3),
                CPU,
                precision="float32",
                batch=NETWORKS[name].cpu[size],
            )


def _on_h200(name: str, measure: str, limit: float) -> Target:
    """Returns the target of a training step, at the benchmark's batch for that device."""
    return Target(
        f"{name}/224", "step", measure, limit, H200, batch=NETWORKS[name].accelerator[224], precision="bfloat16"
    )


TARGETS = (
    _on_h200("vit_base_patch16", "mfu", 0.5),
    *(
        _on_h200(name, "times_best", 1.2)
        for name in (
            "vit_base_patch16",
            "resnet50",
            "convnext_tiny",
            "vit_small_patch16",
            "mobilenet_v2",
            "densenet121",
            "swin_t",
        )
    ),
    *(
        Target(
            "cifar/resnet20",
            "step",
            "times",
            5,
            H200,
            who="ours, resident",
            against=against,
            batch=NETWORKS["resnet20"].accelerator[32],
            precision="bfloat16",
        )
        for against in (FASTEST, "PyTorch, DataLoader")
    ),
    *(
        Target(f"start/{kind}", "start", "ms", 10_000, device, at_most=True, who="ours, warm")
        for kind in ("digits", "resnet50")
        for device in (H200, CPU)
    ),
    Target("speedrun/airbench94", "training", "accuracy", 0.94, H200),
    Target("speedrun/airbench94", "training", "ms", 10_000, H200, at_most=True),
    Target("minute/resnet20", "command", "accuracy", 0.91, H200),
    Target("minute/resnet20", "command", "ms", 60_000, H200, at_most=True),
    *_beside_pytorch("resnet20", (32,), 1.2),
    *(
        target
        for name, slower in (
            ("mobilenet_v2", 1.0),
            ("convnext_tiny", 1.0),
            ("resnext50_32x4d", 1.3),
            ("densenet121", 1.3),
            ("vgg16", 1.1),
            ("vit_small_patch16", 1.1),
        )
        for target in _beside_pytorch(name, (32, 224), slower)
    ),
)
SHOWN = {
    "times_first": "times as fast as PyTorch eager",
    "times_best": "times as fast as the fastest of PyTorch's",
    "mfu": "of the measured ceiling",
    "ms": "ms",
    "times": "times as fast as",
    "accuracy": "of the test images right",
}


def judged(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns {"target", "measured", "met", "verdict", "subject"} for each target that the rows measure.

    A target for an H200 is judged on any other accelerator, too; the verdict then names that device. If one of the
    peer's workers failed, or torch.compile did not run, the fastest is unknown: "met" is None.
    """
    verdicts = []
    for target in TARGETS:
        matching = [
            row
            for row in rows
            if row["subject"] == target.subject
            and row["what"] == target.what
            and "ms" in row
            and target.batch in (0, row.get("batch"))
            and target.precision in ("", row.get("precision"))
        ]
        for row in matching:
            is_there = re.search(target.device, row["device"])
            is_alike = is_there or (target.device == H200 and not re.search(CPU, row["device"]))
            value = _value(target, row, matching) if is_alike and row["who"] == target.who else None
            if value is None:
                continue
            unknown = _unknown([one for one in rows if one["case"] == row["case"] and one["side"] == "peer"])
            if unknown and (target.measure == "times_best" or target.against == FASTEST):
                verdicts.append(
                    {
                        "subject": target.subject,
                        "target": described(target),
                        "measured": value,
                        "met": None,
                        "verdict": f"not judged: {unknown}",
                    }
                )
                continue
            met = value <= target.limit if target.at_most else value >= target.limit
            missed = value / target.limit - 1 if target.at_most else 1 - value / target.limit
            where = "" if is_there else f" (on {row['device']}; the target is for an {target.device})"
            verdicts.append(
                {
                    "subject": target.subject,
                    "target": described(target),
                    "measured": value,
                    "met": met,
                    "verdict": ("met" if met else f"missed by {missed:.0%}") + where,
                }
            )
    return verdicts


def _unknown(peers: Sequence[Mapping[str, Any]]) -> str:
    """Returns why these rows do not show the peer's fastest program, or "" if they do."""
    failed = [row["who"] for row in peers if "failed" in row]
    if failed:
        return f"{', '.join(failed)} failed"
    return "" if any("torch.compile" in row["who"] for row in peers) else "torch.compile did not run"


def described(target: Target) -> str:
    """Returns a target in words: "resnet50/224, step: at least 1.2 times as fast as …"."""
    bound = "at most" if target.at_most else "at least"
    return (
        f"{target.subject}, {target.what}, {target.who}: {bound} {target.limit:g} {SHOWN[target.measure]}"
        + f" {target.against}" * bool(target.against)
    )


def _value(target: Target, row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> float | None:
    if not target.against:
        return row.get(target.measure)
    if target.against == FASTEST:
        return row.get("times_best")
    other = [one["ms"] for one in rows if one["who"] == target.against and one["case"] == row["case"]]
    return round(other[0] / row["ms"], 3) if other else None
