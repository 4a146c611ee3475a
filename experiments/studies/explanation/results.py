"""Results of the study of explanations: judges, tables."""

import statistics
from collections.abc import Sequence

from experiments.study import Judge, Judgement, Outcome, Outcomes, Table, evidence, finite, more, spread
from experiments.study.tables import accuracy, table_by
from models.explain.names import TITLES

MAPS = ("cam", "grad_cam", "grad_cam_plus_plus", "attention_rollout")
PIXELS = ("saliency", "smooth_grad", "integrated_gradients", "guided_backprop", "deconvnet", "guided_grad_cam")
NAMES = {
    **{name: TITLES[name] for name in (*MAPS, *PIXELS, "occlusion")},
    "random": "Random Order",
    "middle": "Always the Middle",
}
CORRELATION, PIXEL = 0.02, 1.0  # smallest differences of rank correlations, and of sizes of fields, that matter
PUBLISHED = [  # (quantity, numbers, source)
    ("localization error, ILSVRC val, GoogLeNet-GAP (CAM)", "56.40 % top-1, 43.00 % top-5", "Zhou 2016, table 2"),
    ("the same, VGGnet-GAP (CAM)", "57.20 %, 45.14 %", "Zhou 2016, table 2"),
    ("the same, backprop on GoogLeNet, VGGnet, AlexNet", "61.31, 61.12, 65.17 % top-1", "Zhou 2016, table 2"),
    ("the same, Grad-CAM on VGG-16", "56.51 %, 46.41 %", "Selvaraju 2017, table 1"),
    ("the same, Grad-CAM on AlexNet, GoogLeNet", "68.3, 60.09 % top-1", "Selvaraju 2017, table 1"),
    ("pointing game, Grad-CAM and c-MWP", "70.58 %, 60.30 %", "Selvaraju 2017, section on the pointing game"),
    (
        "rank correlation with occlusion",
        "Grad-CAM 0.254, guided Grad-CAM 0.261, guided backprop 0.168, c-MWP 0.220, CAM 0.208",
        "Selvaraju 2017, section on faithfulness",
    ),
]


def _lower(network: str, low: str, high: str) -> Judge:
    """Returns a judge: one method has a lower localization error than another."""

    def judge(outcomes: Outcomes) -> Judgement:
        runs = outcomes.where(network=network)
        judgement = more({NAMES[name]: runs.measured("localization", name, "error") for name in (high, low)})
        correct = spread(runs.measured("localization", "right"))
        return Judgement(
            judgement.evidence,
            f"localization error: {judgement.ours}; {correct} of the images are classified correctly",
        )

    return judge


cam_localizes = _lower("ResNet", "cam", "saliency")
grad_cam_localizes = _lower("VGG", "grad_cam", "saliency")


def tells_classes_apart(outcomes: Outcomes) -> Judgement:
    """Compares how often guided Grad-CAM and guided backprop point at the requested object, mean over networks."""
    values = {
        NAMES[name]: [
            statistics.mean(same_seed.measured("two_objects", name)) for _, same_seed in outcomes.groups("seed")
        ]
        for name in ("guided_grad_cam", "guided_backprop")
    }
    return more(values, by=0.1)


def agrees_with_occlusion(outcomes: Outcomes) -> Judgement:
    """Compares rank correlations with occlusion."""
    runs, names = outcomes.where(network="VGG"), ("grad_cam", "guided_backprop")
    values = {NAMES[name]: runs.measured("faithfulness", name, "occlusion") for name in names}
    return more(values, percent=False, digits=3, worth=CORRELATION, unit="")


def _half_way(outcome: Outcome, name: str) -> float:
    """Returns the rank correlation after the upper half of the layers is reinitialized."""
    correlations = outcome.measured.get("sanity", {}).get(name)
    return correlations[(len(correlations) - 1) // 2] if correlations else float("nan")


def insensitive(outcomes: Outcomes) -> Judgement:
    """Compares how similar the maps of guided backprop and Grad-CAM stay without the trained upper layers."""
    runs, names = outcomes.where(network="VGG"), ("guided_backprop", "grad_cam")
    values = {NAMES[name]: [_half_way(outcome, name) for outcome in runs] for name in names}
    return more(values, by=0.2, percent=False, digits=2, unit="")


def effective_field(outcomes: Outcomes) -> Judgement:
    """Compares the effective receptive field with the theoretical one, and with itself before training."""
    fields = outcomes.where(network="ResNet").results("effective")
    before, after = ([one[when]["size"] for one in fields] for when in ("before", "after"))
    theoretical = [statistics.mean(one["theoretical"]) for one in fields]
    below = [2 / 3 * size - effective for size, effective in zip(theoretical, after, strict=True)]
    smaller = evidence.above(below, 0.0, unit="pixels")
    return Judgement(
        evidence.all_of(smaller, evidence.more(after, before, worth=PIXEL, unit="pixels")),
        f"theoretical {spread(theoretical, percent=False, digits=0)} pixels; effective "
        f"{spread(before, percent=False)} before and {spread(after, percent=False)} after training",
    )


# -- tables --------------------------------------------------------------------------------------------------------


def methods_of(outcomes: Outcomes, measure: str) -> list[str]:
    """Returns the methods that were measured on some network, in the order of NAMES."""
    return [name for name in NAMES if any(name in o.measured.get(measure, {}) for o in outcomes)]


def _table(
    outcomes: Outcomes, title: str, measure: str, paths: Sequence[tuple[str, tuple[str, ...]]], percent: bool
) -> Table:
    """Returns a table with one row per method, and one column per network and path; `paths` are (heading, keys)."""
    networks, rows = outcomes.distinct("network"), []
    for name in methods_of(outcomes, measure):
        cells = [
            spread(values, percent=percent, digits=1 if percent else 3) if finite(values) else "—"
            for _, runs in outcomes.groups("network")
            for _, path in paths
            if (values := runs.measured(measure, name, *path))
        ]
        rows += [[NAMES[name], *cells]] if set(cells) != {"—"} else []
    return Table(
        title,
        ["method", *(f"{network}{', ' if name else ''}{name}" for network in networks for name, _ in paths)],
        rows,
    )


def tables(outcomes: Outcomes) -> list[Table]:
    """Returns tables of the networks, localization, two objects, faithfulness, sanity, and the published numbers."""
    half = Outcomes(
        [
            o._replace(
                measured={
                    **o.measured,
                    "half": {name: _half_way(o, name) for name in o.measured.get("sanity", {}) if name != "layers"},
                }
            )
            for o in outcomes
        ]
    )
    return [
        table_by(
            "Networks",
            outcomes,
            {"network": "network"},
            {
                "parameters": lambda group: f"{group[0].get('parameters'):,.0f}",
                "accuracy": accuracy,
                "area of the object (pointing by chance)": lambda g: spread(g.measured("localization", "chance")),
                "pointing at the middle": lambda g: spread(g.measured("localization", "middle")),
            },
        ),
        _table(outcomes, "Pointing game, one object", "localization", [("", ("pointing",))], True),
        _table(outcomes, "Pointing game, the requested one of two objects", "two_objects", [("", ())], True),
        _table(
            outcomes,
            "Top-1 localization error",
            "localization",
            [("fitted threshold", ("error",)), ("threshold 0.2", ("error_at_0.2",))],
            True,
        ),
        _table(
            outcomes,
            "Area under the curve of deletion (lower is better) and insertion (higher is better)",
            "faithfulness",
            [("deletion", ("deletion",)), ("insertion", ("insertion",))],
            False,
        ),
        _table(outcomes, "Rank correlation with occlusion", "faithfulness", [("", ("occlusion",))], False),
        _table(
            half,
            "Rank correlation with the trained network's map, upper half of the layers reinitialized",
            "half",
            [("", ())],
            False,
        ),
        Table("Published", ("quantity", "numbers", "source"), [list(row) for row in PUBLISHED]),
    ]
