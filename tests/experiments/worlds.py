"""Synthetic outcomes of every study: as published, the opposite, and others, with the verdicts that they must get."""

import functools
from collections.abc import Callable

import numpy as np
from scipy import stats

from experiments import study
from experiments.studies.explanation import measures
from experiments.studies.measures import png
from experiments.study import AGREES, DISAGREES, TOO_SMALL, Outcome, Outcomes

SEEDS = 10  # of each group: enough to decide each claim of a study by every test
NOISE = stats.norm.ppf((np.arange(SEEDS) + 0.5) / SEEDS)  # by seed


@functools.cache
def planned(name, scale="digits"):
    """Lists the trials of a study once: listing takes seconds."""
    return study.module(name).trials(scale, range(SEEDS))


def diverged(outcomes, seeds=range(SEEDS)):
    """Returns the same outcomes where all training of the seeds diverged; what is measured before training stays."""
    return Outcomes(
        [
            o._replace(summary=None, diverged="loss", history={}, measured={})
            if o.labels.get("seed") in seeds and o.labels.get("at") != "step 0"
            else o
            for o in outcomes.all()
        ]
    )


# -- initialization, normalization, depth --------------------------------------------------------------------------


def outcomes_in(name, world, scale="digits"):
    """Returns outcomes of all trials, with {"accuracy", "loss" of training, measures…} of world(labels)."""
    outcomes = []
    for trial in planned(name, scale):
        values = world(trial.labels)
        history = {"train": {"step": [10 * i for i in range(1, 7)], "loss": values["loss"]}} if trial.train else {}
        outcomes.append(
            Outcome(
                trial.labels,
                {"accuracy": values["accuracy"], "loss": 1.0} if trial.train else None,
                None,
                history,
                {measure.__name__: values[measure.__name__] for measure in trial.measures},
            )
        )
    return Outcomes(outcomes)


def initialization_world(sign, noise):
    """Returns a world: sign 1 as published, -1 the opposite; noise between seeds."""

    def world(labels):
        xavier, n = labels["init"] == "Xavier", noise * NOISE[labels["seed"]]
        accuracy = {
            8: 0.97 if sign > 0 or not xavier else 0.7,
            14: 0.9,
            44: 0.0,
            20: 0.97 if sign > 0 and (labels["network"] != "plain" or "MSRA" in labels["init"]) else 0.1,
        }
        factor = {"MSRA fan-in": 1.0, "Xavier": 0.707}.get(labels["init"], 0.8) if sign > 0 else 0.85
        stds = [factor**i for i in range(43)]
        names = [f"stage{1 + i // 15}/block{i}/conv1" for i in range(43)]
        return {
            "accuracy": accuracy.get(labels["depth"], accuracy[20]) + n,
            "loss": [1 + sign * 0.3 * xavier + n] * 6,
            "signal": {"layers": names, "forward": stds, "backward": stds[::-1]},
        }

    return world


def normalization_world(sign, noise, group_falls=False):
    def world(labels):
        n, norm = noise * NOISE[labels["seed"]], labels.get("norm")
        few = np.log2(32 / labels["images"]) / 4  # 0 at 32, 1 at 2
        falls = 0.9 - 0.1 * sign * few
        accuracy = {
            "BN": falls,
            "BN, same steps": falls,
            "GN": 0.895 - 0.1 * few * group_falls,
            "LN": 0.895 - 0.02 * sign,
            "IN": 0.895 - 0.05 * sign,
            "none": 0.5,
            None: 0.9 - 0.05 * sign * (labels.get("groups") == 1),
        }[norm]
        reach = 0.1 * 10 ** (sign * (norm == "none") + 10 * n)
        apart = 0.01 + 0.05 * (few if sign > 0 else 1 - few)
        gap = {"batch": 0.95 - apart + n, "train": 0.95, "test": 0.9}
        return {
            "accuracy": accuracy + n,
            "loss": [1 + 0.5 * sign * (norm == "none") + n] * 6,
            "gap": gap if norm == "GN" else {**gap, "recalibrated": 0.9 + 0.03 * sign + n},
            "smoothness": {"loss": [1.0, 1 - reach], "change": [reach], "smoothness": [reach]},
        }

    return world


def depth_world(sign, noise, projections=0.91):
    def world(labels):
        n, network, deep = noise * NOISE[labels["seed"]], labels["network"], labels["role"] == "deep"
        odd = noise > 0.1 and labels["seed"] == 0
        sign_here = -sign if odd else sign
        whole = {
            "plain": 0.8 - 0.1 * sign if labels["depth"] > 20 else 0.9,
            "residual": 0.9 + 0.05 * sign * deep,
            "pre-activation": 0.9 + 0.08 * sign,
            "zero gamma": 0.9,
        }.get(network, projections)
        ahead = (network == "residual" and not deep) or network == "zero gamma"
        left = (
            {"plain": (0.1, 0.1), "residual": (0.94, 0.8)}
            if sign_here > 0
            else {"plain": (0.9, 0.9), "residual": (0.5, 0.6)}
        )
        loss = 1 - 0.3 * sign * ahead + 0.5 * sign * (network == "plain" and deep) + n
        halving = [False, False, True, False, True, False]
        return {
            "accuracy": whole + n,
            "loss": [loss] * 6,
            "gradients": {"layers": [], "norms": [1.0 if sign_here > 0 else 1e-4] * 20 + [1.0] * 20},
            "deletions": {
                "blocks": [f"stage1/block{i}" for i in range(6)],
                "halving": halving,
                "whole": 0.95,
                "accuracy": [left.get(network, (0, 0))[half] + n / 3 for half in halving],
                "chance": 0.1,
            },
        }

    return world


# -- cost, attention ------------------------------------------------------------------------------------------------


def accurate(name, accuracy, costs=None, scale="digits"):
    """Returns outcomes of all trials, with the accuracy that a function of the labels returns."""
    outcomes = []
    for trial in planned(name, scale):
        summary = None
        if trial.train:
            value = accuracy(trial.labels) + 0.001 * (trial.labels["seed"] - 1)
            summary = {"accuracy": value, "mult_adds": 1000, "parameters": 1000}
            summary |= (costs or (lambda labels: {}))(trial.labels)
        history = {"train": {"step": [1], "loss": [1.0]}}
        measured = (
            {
                "step_time": {
                    "milliseconds": (time := 2.0 if trial.labels["network"] != "dense" else 5.0),
                    "medians": [time + i / 100 for i in range(8)],
                    "images": 64,
                    "mult_adds": 1000,
                    "parameters": 10,
                    "device": "1 x cpu",
                },
                "reuse": {"blocks": [[[1.0], [1.0, 2.0], [1.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0]]] * 2, "moved": 0.8},
            }
            if name == "cost"
            else {}
        )
        measured = {m.__name__: measured[m.__name__] for m in trial.measures}
        outcomes.append(Outcome(trial.labels, summary, None, history, measured))
    return Outcomes(outcomes)


GOOD_COST = {"bottleneck": 0.92, "grouped bottleneck": 0.94, "inverted residual": 0.96, "dense": 0.95}


def cost_agrees(labels):
    return GOOD_COST.get(labels["network"], 0.9)


def cost_counts(labels):
    if labels["set"] == "sizes":
        return {"parameters": 100 * (labels["size"] + 1)}
    return {"mult_adds": 200} if labels["network"] in ("separable", "early") else {}


def cost_reverse(labels):
    return 0.8 if labels["network"] in ("separable", "early") else 1.8 - cost_agrees(labels)


def uneven(labels):
    return {"mult_adds": 1060} if labels["network"] == "bottleneck" else {}


def attention_agrees(labels, scale="digits"):
    """Returns accuracies: ViT_P suffers from SGD, from rates off the best one, and from short training."""
    if labels["set"] == "grid":
        off = study.module("attention").GRID[scale][labels["optimizer"]][0].index(labels["rate"]) != 1
        return 0.9 if labels["stem"] == "ViT_C" else 0.85 - 0.2 * (labels["optimizer"] == "sgd") - 0.3 * off
    if labels["set"] == "length":
        return 0.95 - (0.3 if labels["stem"] == "ViT_P" else 0.1) / labels["epochs"]
    order = {
        "ConvNeXt": 0.9,
        "Swin": 0.8,
        "ViT": 0.7,
        "ResNet": 0.6,
        "0 ResNet": 0.6,
        "4 depthwise": 0.5,
        "5 width": 0.8,
        "14 ConvNeXt": 0.9,
    }
    return order.get(labels["network"], 0.7)


def attention_reverse(labels):
    swapped = {"ViT_P": "ViT_C", "ViT_C": "ViT_P"}
    if "stem" in labels:
        return attention_agrees({**labels, "stem": swapped[labels["stem"]]})
    return 1.5 - attention_agrees(labels)


def alike(labels):
    return 0.9


# -- adaptive inference --------------------------------------------------------------------------------------------


def outcome(labels, accuracy, mult_adds=100, **measured):
    return Outcome(labels, {"accuracy": accuracy, "mult_adds": mult_adds, "parameters": 10}, None, {}, measured)


def of_blocks(labels, accuracy, blocks, every, **measured):
    rows = [
        {"way": "all blocks", "accuracy": every, "mult_adds": 100.0, "blocks": 15.0},
        {"way": "as decided", "accuracy": accuracy, "mult_adds": 10 + 6.0 * blocks, "blocks": float(blocks)},
    ]
    used = [7 * (count == round(blocks)) for count in range(16)]
    by_class = {"classes": ["0", "1"], "by_class": [[0.5] * 15, [0.7] * 15]}
    decided = {"rows": rows, "blocks": [f"b{i}" for i in range(15)], **by_class, "used": used, "paths": 3}
    return outcome(labels, accuracy, decided=decided, **measured)


def of_exits(labels, accuracy, gain):
    costs, budget = (20.0, 60.0, 100.0), {"way": "batch", "left": [0.5, 0.3, 0.2], "thresholds": [0.9, 0.9]}
    rows = [{"way": f"exit {i + 1}", "accuracy": accuracy, "mult_adds": cost} for i, cost in enumerate(costs)]
    rows += [{**budget, "budget": cost, "mult_adds": cost, "accuracy": accuracy + gain} for cost in costs]
    return outcome(labels, accuracy, leaving={"rows": rows, "classes": ["0", "1"], "by_class": [30.0, 50.0]})


def adaptive(better=0.0, seeds=SEEDS, scale="digits"):
    """Returns outcomes as in the papers for `better` = 0.03, and the opposite for a negative value."""
    shown = [{"image": png(np.zeros((8, 8), np.uint8)), "label": "1", "says": "3 blocks"}]
    extremes, outcomes = {"easy": shown * 3, "hard": shown}, []
    for seed in range(seeds):
        noise = seed / 1000

        def labels(method, seed=seed, **more):
            return {"method": method, **more, "seed": seed}

        for depth, cost in ((8, 30), (32 if scale == "digits" else 14, 80), (38, 95)):
            outcomes.append(outcome(labels("ResNet", depth=depth), 0.8 + noise, cost))
        for target in (0.3, 0.5, 0.7) if scale == "digits" else (0.5, 0.7, 0.9):
            accuracy = 0.8 + better + noise + 0.02 * (target > 0.6 if better >= 0 else target < 0.4)
            blocks, own = (8 if better >= 0 else 14.5) + noise, labels("ConvNet-AIG", target=target)
            outcomes.append(of_blocks(own, accuracy, blocks, accuracy + better, extremes=extremes))
        outcomes.append(of_exits(labels("MSDNet"), 0.8 + better + noise, better))
        outcomes.append(of_exits(labels("ResNet with exits"), 0.8 + noise, better))
        if scale == "cifar":  # no policies
            continue
        outcomes.append(outcome(labels("ResNet-32, twice as long"), 0.8 + noise, 80))
        chosen = dict.fromkeys(("first", "random", "distributed"), 0.7 - better + noise)
        heuristics = {**chosen, "policy": 0.7 + noise, "blocks": 9}
        outcomes.append(of_blocks(labels("policy alone"), 0.75 + noise, 9, 0.8, heuristics=heuristics))
        for penalty in (1.0, 10.0):
            blocks = (7 if better >= 0 else 14) + (penalty - 1) * better + noise
            own = labels("BlockDrop", penalty=penalty)
            outcomes.append(of_blocks(own, 0.79 + 2 * better + noise, blocks, 0.8, extremes=extremes))
    return Outcomes(outcomes)


# -- explanation ---------------------------------------------------------------------------------------------------


def explanation(sign, noise=0.001, after=12, scale="digits"):
    """Returns outcomes: sign 1 as published, -1 against; noise between seeds; the field's size after training."""
    outcomes, picture, color = [], png(np.full((8, 8), 0.5)), png(np.full((8, 8, 3), 0.5))
    only = {"cam": "ResNet", "attention_rollout": "ViT"}
    curves = {"deletion": 0.2, "insertion": 0.8, "deletion_curve": [1, 0.5, 0], "insertion_curve": [0, 0.5, 1]}
    for trial in planned("explanation", scale):
        network, n = trial.labels["network"], noise * NOISE[trial.labels["seed"]]
        methods = [method for method in measures.METHODS if only.get(method, network) == network]
        good = {method: 1 if method in ("cam", "grad_cam", "guided_grad_cam") else -1 for method in methods}
        level = {method: 0.6 + (0.15 * sign + n) * side for method, side in good.items()}
        localization = {"right": 0.9, "chance": 0.1, "middle": 0.3}
        for method, v in level.items():
            errors = {"error": 1 - v, "error_at_0.2": 1 - v, "threshold": 0.3, "localized": v}
            localization[method] = {"pointing": v, **errors}
        sizes = {"before": 20 - 3 * sign + n, "after": (20 if sign > 0 else after) + n}
        row = {"image": picture, "says": "3: 90%", "boxes": [[1, 1, 4, 4]], "class": "3"}
        panels = {method: color if method == "guided_backprop" else picture for method in methods}
        measured = {
            "localization": localization,
            "two_objects": {**level, "middle": 0.15},
            "faithfulness": {method: {**curves, "occlusion": v} for method, v in {**level, "random": 0.0}.items()},
            "sanity": {"layers": ["head", "b", "a"], **{method: [0.9, 1.2 - v, 0.1] for method, v in level.items()}},
            "effective": {
                "endpoint": "last_map",
                "theoretical": [40, 40],
                "box": [0, 0, 8, 8],
                **{when: {"size": size, "map": picture} for when, size in sizes.items()},
            },
            "gallery": [{**row, "panels": panels}] * 3,
        }
        outcomes.append(Outcome(trial.labels, {"accuracy": 0.9 + n, "parameters": 1000}, None, {}, measured))
    return Outcomes(outcomes)


# -- compression ---------------------------------------------------------------------------------------------------


def compression(scale="cifar"):
    """Returns outcomes of all trials as published."""
    from experiments.studies.compression import measures as compressed
    from models.compress import file, packed

    weights = np.zeros((16, 16), np.float32)
    weights[::3, ::2] = 1.0
    layers = file.table(packed.pack({}, {"w": weights}), {"params": {"w": weights}})

    def bits(n, *pairs):
        return [{"bits": i, "ratio": ratio, "accuracy": accuracy + n} for i, (ratio, accuracy) in enumerate(pairs)]

    curve = {"sparsity": [0.0, 0.5, 0.9], "accuracy": [0.9, 0.8, 0.3]}
    outcomes = []
    for trial in planned("compression", scale):
        labels, n = trial.labels, 0.001 * NOISE[trial.labels["seed"]]
        accuracy = 0.9 + n - 0.1 * (labels.get("kind") == "XNOR")
        stage, is_pruned = labels.get("stage"), labels["part"] == "curves" or labels.get("stage") == "pruned"
        sizes = (5.0, 0.895), (30.0, 0.893), (60.0, 0.7)
        measured = {
            "stored": {
                "bytes": 1000 if stage == "dense" else 100,
                "float32": 3000,
                "ratio": {"shared": 30.0, "pruned": 8.0}.get(stage, 3.0) + n,
                "identical": True,
                "layers": layers,
                "accuracy": accuracy,
                "parameters": 250,
                "mult_adds": 60 if labels["part"] == "filters" else 100,
            },
            "bits": bits(n, *(sizes if is_pruned else ((1.0, 0.9), (8.0, 0.9), (16.0, 0.5)))),
            "cut": [0.5 + n] * len(compressed.CUTS),
            "centroids": {init: [0.8 + 0.05 * (init == "linear") + n] * 3 for init in compressed.INITS},
            "int8": {"accuracy": accuracy, "float32": 0.9 + n, "share": 1.0},
            "sensitivity": {"layers": dict.fromkeys(("stem_conv/kernel", "head/kernel"), curve)},
        }
        summary = {"accuracy": accuracy, "parameters": 250, "mult_adds": 100} if trial.train else None
        own = {measure.__name__: measured[measure.__name__] for measure in trial.measures}
        outcomes.append(Outcome(labels, summary, None, {}, own))
    return Outcomes(outcomes)


# -- transfer, translation ----------------------------------------------------------------------------------------


def transfer(sign, scale="cifar", noise=0.002):
    """Returns outcomes of all trials as published (sign 1), or of the opposite (-1)."""
    outcomes, most = [], "1000" if scale == "cifar" else "all"
    for trial in planned("transfer", scale):
        labels = trial.labels
        n = noise * NOISE[labels["seed"]]
        if labels["part"] == "source":
            outcomes.append(Outcome(labels, {"accuracy": 0.5}, None, {}, {}))
            continue
        how = labels["how"]
        few = labels.get("labels") not in (None, "all")
        value = {
            "hand-crafted": 0.4,
            "scratch": 0.5 - (0.2 if few else 0) * sign,
            "classifier": 0.6,
            "fine-tuned": 0.7,
        }[how]
        if sign < 0 and how != "hand-crafted":
            value = {"scratch": 0.9, "fine-tuned": 0.3 if few else 0.35, "classifier": 0.38}[how]
            value = 0.85 if few and how == "scratch" else value - 0.1 * few
        value += n
        if labels["part"] == "grid":
            value = 0.3 + sign * (0.1 * labels["share"] + 0.01 * labels["width"] * (1 + labels["share"])) + n
        if labels["part"] in ("relation", "bias"):
            value = 0.5 + sign * {"near": 0.1, "far": -0.1, "imbalanced": -0.1}.get(labels["source"], 0.0) + n
        lost = 0.1 if (labels.get("source") == "cue") == (sign > 0) else 0.02
        measured = {
            "probe": {
                str(count): {kind: {"accuracy": value} for kind in ("logistic", "svm", "knn")}
                for count in (10, 50, 250, 1000, "all")
            },
            "logistic": {"accuracy": value, "clean": value, "painted": value - lost + n, "changed": lost},
            "cue": {"clean": value, "painted": value - lost + n, "changed": lost},
            "handcrafted": {"sift_fv:16": {"10": [0.4] * 3, "50": [0.4] * 3, "250": [0.4] * 3, most: [0.4]}},
            "embedding": {"x": [[0.0, 1.0], [1.0, 0.0]], "labels": [0, 1], "classes": ["a", "b"]},
        }
        history = {"test": {"step": [1, 2], "accuracy": [value - 0.1, value]}} if trial.train else {}
        outcomes.append(
            Outcome(
                labels,
                {"accuracy": value} if trial.train else None,
                None,
                history,
                {measure.__name__: measured[measure.__name__] for measure in trial.measures},
            )
        )
    return Outcomes(outcomes)


def translation(text, sign=1, noise=0.1):
    """Returns outcomes on a text: sign 1 as published, -1 the opposite; noise between seeds."""
    lost = {"full": 0, "1 head": 2, "1 layer": 4, "no positions": 28, "learned positions": 0}
    outcomes = []
    for trial in planned("translation"):
        seed = trial.labels["seed"]
        bleu = 38.4 - sign * lost.get(trial.labels["network"], 1) + noise * (seed - 1) ** (1 + (seed == 2))
        summary = {
            "bleu": bleu,
            "exact_match": bleu / 50,
            "accuracy": bleu / 45,
            "loss": 1.0,
            "parameters": 12345,
            "steps": 6797,
        }
        history = {"test": {"step": [1, 2], "loss": [2.0, 1.0], "accuracy": [0.1, 0.2]}}
        maps = [{"weights": [[[0.1, 0.9], [0.5, 0.5]]], "source": ["a", "b"], "ours": ["x", "y"]}] * 2
        outcomes.append(
            Outcome(
                {**trial.labels, "text": text}, summary, None, history, {"attention": maps} if trial.measures else {}
            )
        )
    return Outcomes(outcomes)


# -- all -----------------------------------------------------------------------------------------------------------

WORLDS: dict[tuple[str, str], tuple[Callable[[], Outcomes], str]] = {
    # (study, world): (outcomes, verdicts in the order of the claims by their initials; "-": of no interest here)
    ("initialization", "as published"): (
        lambda: outcomes_in("initialization", initialization_world(1, 0.001)),
        "AAAAAA",
    ),
    ("initialization", "against"): (lambda: outcomes_in("initialization", initialization_world(-1, 0.001)), "DDDDDD"),
    ("initialization", "noise"): (lambda: outcomes_in("initialization", initialization_world(1, 0.5)), "ATTTTT"),
    ("normalization", "as published"): (lambda: outcomes_in("normalization", normalization_world(1, 0.001)), "A" * 10),
    ("normalization", "against"): (
        lambda: outcomes_in("normalization", normalization_world(-1, 0.001)),
        "DT" + "D" * 8,
    ),
    ("normalization", "noise"): (lambda: outcomes_in("normalization", normalization_world(1, 0.5)), "T" * 10),
    ("normalization", "all fall"): (
        lambda: outcomes_in("normalization", normalization_world(1, 0.001, True)),
        "AD--------",
    ),
    ("depth", "as published"): (lambda: outcomes_in("depth", depth_world(1, 0.001)), "A" * 11),
    ("depth", "against"): (lambda: outcomes_in("depth", depth_world(-1, 0.001)), "DDDDT" + "D" * 6),
    ("depth", "noise"): (lambda: outcomes_in("depth", depth_world(1, 0.5)), "T" * 11),
    ("depth", "projections harm"): (lambda: outcomes_in("depth", depth_world(1, 0.001, 0.7)), "----A------"),
    ("depth", "projections help"): (lambda: outcomes_in("depth", depth_world(1, 0.001, 1.05)), "----D------"),
    ("translation", "as published"): (lambda: translation("Multi30k"), "A" * 7),
    ("translation", "against"): (lambda: translation("Multi30k", -1), "DADDDDA"),
    ("translation", "grammar"): (lambda: translation("grammar"), "AAAAAAT"),
    ("translation", "grammar against"): (lambda: translation("grammar", -1), "DADDTTT"),
    ("cost", "as published"): (lambda: accurate("cost", cost_agrees, cost_counts), "A" * 10),
    ("cost", "against"): (lambda: accurate("cost", cost_reverse), "-DDDD-D-D-"),
    ("cost", "alike"): (lambda: accurate("cost", alike, cost_counts), "--DDD-D---"),
    ("cost", "unequal costs"): (lambda: accurate("cost", cost_agrees, uneven), "--T-------"),
    ("attention", "as published"): (lambda: accurate("attention", attention_agrees), "A" * 9),
    ("attention", "against"): (lambda: accurate("attention", attention_reverse), "D" * 9),
    ("attention", "alike"): (lambda: accurate("attention", alike), "D" * 9),
    ("transfer", "as published"): (lambda: transfer(1), "A" * 12),
    ("transfer", "against"): (lambda: transfer(-1), "D" * 12),
    ("transfer", "noise"): (lambda: transfer(1, noise=0.5), "TTT-TTT-TTTT"),
    ("transfer", "digits"): (lambda: transfer(1, "digits"), "A" * 8 + "TAAA"),
    ("adaptive", "as published"): (lambda: adaptive(0.03), "A" * 9),
    ("adaptive", "against"): (lambda: adaptive(-0.03), "D" * 9),
    ("adaptive", "one seed"): (lambda: adaptive(0.03, seeds=1), "T" * 9),
    ("explanation", "as published"): (lambda: explanation(1), "A" * 6),
    ("explanation", "against"): (lambda: explanation(-1), "D" * 6),  # a field of 12 after training: smaller than before
    ("explanation", "large fields"): (lambda: explanation(-1, after=39), "D" * 6),  # above two thirds of the 40
    ("explanation", "noise"): (lambda: explanation(1, 0.9), "TTTTT-"),
    ("initialization", "cifar"): (
        lambda: outcomes_in("initialization", initialization_world(1, 0.001), "cifar"),
        "AAAAAA",
    ),
    ("normalization", "cifar"): (
        lambda: outcomes_in("normalization", normalization_world(1, 0.001), "cifar"),
        "A" * 10,
    ),
    ("depth", "cifar"): (lambda: outcomes_in("depth", depth_world(1, 0.001), "cifar"), "A" * 11),
    ("cost", "cifar"): (lambda: accurate("cost", cost_agrees, cost_counts, "cifar"), "A" * 10),
    ("attention", "cifar"): (
        lambda: accurate("attention", functools.partial(attention_agrees, scale="cifar"), None, "cifar"),
        "A" * 9,
    ),
    ("compression", "cifar"): (compression, "TTAATTTAAAAAAAT"),
    ("adaptive", "cifar"): (lambda: adaptive(0.03, scale="cifar"), "AAATTTAAA"),
    ("explanation", "cifar"): (lambda: explanation(1, scale="cifar"), "A" * 6),
}
INITIALS = {"A": AGREES, "D": DISAGREES, "T": TOO_SMALL}
# Claims that agree although all training diverged: they are about networks at step 0, and about counts
WITHOUT_TRAINING = {"initialization": [0], "depth": [5], "cost": [0, 9]}
