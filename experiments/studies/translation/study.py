"""Translation: what a Transformer from English to German loses without one of its parts.

  Vaswani et al. 2017     Attention is all you need, arXiv 1706.03762, sections 3.5, 5.4 and 6.2, table 3
  Lin et al. 2020         Dynamic context-guided capsule network, arXiv 2009.02016 (a text-only Transformer on Multi30k)

The smallest scale has sentences of a grammar (train/data/sources/grammar.py) that German orders otherwise; test
sentences come in pairs of the same tokens, so what sees a set translates at most half of them. The next one has
Multi30k, from the folder $ABLATE_MULTI30K, else ../shared/multi30k.
"""

import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.study import (
    AGREES,
    DISAGREES,
    TOO_SMALL,
    Claim,
    Judgement,
    Outcomes,
    Picture,
    Study,
    Table,
    Trial,
    all_of,
    compare,
    spread,
)
from models.errors import UserError
from train.plots.figures import draw_attention, tidy
from train.plots.palette import BLUE, BROWN, CYAN, GREEN, PURPLE, RED, YELLOW

FULL = "full"
# label -> what is changed in the config: section, key, value
NETWORKS = {
    FULL: None,
    "1 head": ("model", "heads", 1),
    "1 layer": ("model", "layers", 1),
    "no dropout": ("model", "dropout", 0.0),
    "no label smoothing": ("task", "label_smoothing", 0.0),
    "learned positions": ("model", "positions", "learned"),
    "no positions": ("model", "positions", "none"),
}
SEEDS = (0, 1, 2)
COLORS = dict(zip(NETWORKS, (BLUE, RED, YELLOW, PURPLE, CYAN, GREEN, BROWN), strict=True))
CLOSE = 2.0  # BLEU: means that differ by less are nearly identical, or reach a published number
PUBLISHED_MULTI30K = 38.4  # Lin 2020, results table, row 7
SAMPLES = 4  # test sentences whose attention is drawn


def trials(scale: str) -> list[Trial]:
    """Every network under every seed; of the first full one, attention.

    Raises:
      UserError: Multi30k is not there.
    """
    from train import config

    folder = "grammar"
    if scale == "cifar10":
        folder = os.environ.get("ABLATE_MULTI30K", "../shared/multi30k")
        if not Path(folder).is_dir():
            raise UserError(
                f"study translation needs Multi30k at this scale, and there is no folder {folder}: set "
                "ABLATE_MULTI30K to one with train.en, train.de, test_2016_flickr.en, … (or .gz)"
            )
    made = []
    for network, change in NETWORKS.items():
        for seed in SEEDS:
            c = config.load(f"configs/translation.py:folder={folder},seed={seed}")
            c.hooks, c.log_every, c.checkpoint_every, c.keep_checkpoints = "bleu(4)", "10%", "100%", 1
            c.evaluate_every = "10%"
            if change:
                section, key, value = change
                c[section][key] = value
            measures = (attention,) if network == FULL and seed == SEEDS[0] else ()
            text = "grammar" if folder == "grammar" else "Multi30k"
            made.append(Trial({"text": text, "network": network, "seed": seed}, c, measures=measures))
    return made


def attention(run: Any, state: Any) -> list[dict[str, Any]]:
    """For the first test sentences: the tokens, and the last decoder block's attention to the source, mean of heads."""
    from train.hooks import translation

    return [
        {**found, "weights": found["weights"].mean(0, keepdims=True).round(4).tolist()}
        for found in translation.attention(run, state, range(SAMPLES))
    ]


# -- what is read off ----------------------------------------------------------------------------------------------


def _values(outcomes: Outcomes, network: str, name: str = "bleu") -> list[float]:
    return outcomes.where(network=network).values(name)


def _bleu(outcomes: Outcomes, *networks: str) -> str:
    return "; ".join(f"{network} {spread(_values(outcomes, network), percent=False)} BLEU" for network in networks)


def _is_grammar(outcomes: Outcomes) -> bool:
    return outcomes.distinct("text") == ["grammar"]


def _loses(network: str, needs_more: bool = False) -> Callable[[Outcomes], Judgement]:
    """The full network is better than that one; `needs_more`: the grammar, which has nothing to overfit, cannot tell
    against it.
    """

    def judge(outcomes):
        verdict = compare(_values(outcomes, FULL), _values(outcomes, network))
        if needs_more and verdict == DISAGREES and _is_grammar(outcomes):
            verdict = TOO_SMALL
        return Judgement(verdict, _bleu(outcomes, FULL, network))

    return judge


def _order(outcomes: Outcomes) -> Judgement:
    """On the grammar by sentences, on Multi30k by BLEU."""
    if not _is_grammar(outcomes):
        return Judgement(
            compare(_values(outcomes, FULL), _values(outcomes, "no positions"), by=5.0),
            _bleu(outcomes, FULL, "no positions"),
        )
    full, none = (_values(outcomes, network, "exact_match") for network in (FULL, "no positions"))
    bound = AGREES if max(none) <= 0.5 else DISAGREES
    return Judgement(
        all_of([bound, compare(full, none, by=0.25)]),
        f"sentences right: {FULL} {spread(full)}; no positions {spread(none)}, at most {max(none):.1%}",
    )


def _same(outcomes: Outcomes) -> Judgement:
    sine, learned = _values(outcomes, FULL), _values(outcomes, "learned positions")
    if AGREES in (compare(sine, learned, by=CLOSE), compare(learned, sine, by=CLOSE)):
        verdict = DISAGREES
    else:
        verdict = all_of([compare(sine, learned, by=-CLOSE), compare(learned, sine, by=-CLOSE)])
    return Judgement(verdict, _bleu(outcomes, FULL, "learned positions"))


def _level(outcomes: Outcomes) -> Judgement:
    bleu = _values(outcomes, FULL)
    if _is_grammar(outcomes):
        return Judgement(TOO_SMALL, f"{_bleu(outcomes, FULL)} on the grammar, which is another text")
    difference = abs(statistics.mean(bleu) - PUBLISHED_MULTI30K)
    return Judgement(AGREES if difference <= CLOSE else DISAGREES, _bleu(outcomes, FULL))


def tables(outcomes: Outcomes) -> list[Table]:
    """BLEU and the rest by network."""
    rows = []
    for (network,), group in outcomes.groups("network"):
        parameters = next((f"{o.summary['parameters']:,}" for o in group if o.summary), "—")
        rows.append(
            [
                network,
                parameters,
                spread(group.values("bleu"), percent=False),
                spread(group.values("exact_match")),
                spread(group.values("accuracy")),
                spread(group.values("loss"), percent=False, digits=3),
            ]
        )
    columns = ["network", "parameters", "BLEU", "sentences right", "tokens right", "loss a token (nats)"]
    return [Table("Translation of the test split by network", columns, rows)]


def _draw_attention(outcomes: Outcomes, figure: Any) -> None:
    if found := outcomes.results("attention"):
        draw_attention(found[0], figure)


def _draw_curves(outcomes: Outcomes, figure: Any) -> None:
    for axes, (name, label) in zip(
        figure.subplots(1, 2),
        (("loss", "loss on the test split (nats a token)"), ("accuracy", "tokens right (%)")),
        strict=True,
    ):
        for (network,), group in outcomes.groups("network"):
            histories = [o.history["test"] for o in group if o.summary]
            if histories:
                mean = [statistics.mean(values) for values in zip(*(h[name] for h in histories), strict=True)]
                mean = [100 * value for value in mean] if name == "accuracy" else mean
                axes.plot(histories[0]["step"], mean, color=COLORS[network], label=network, linewidth=1.4)
        axes.set(xlabel="step", ylabel=label)
        if name == "loss":
            axes.set_yscale("log")
        tidy(axes)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=9)


STUDY = Study(
    name="translation",
    title="Translation",
    question="What does a Transformer that translates English to German lose without positions, with one head, one "
    "layer, no dropout or no label smoothing?",
    would_change="Multi30k, which is this study's cifar10 scale: on the grammar the full network is near the top of "
    "the scale, so that heads and layers have little to gain, nothing to overfit is there for dropout, "
    "and 38.4 BLEU are of another text. On the grammar itself more seeds for learned positions, which "
    "spread by several BLEU.",
    cost={"digits": "about 5 minutes on 2 cores", "cifar10": "21 runs of 60 epochs of Multi30k: hours on one GPU"},
    trials=trials,
    claims=(
        Claim(
            "Attention without positions is a function of the set of tokens; order must be put in.",
            "the model has no recurrence and no convolution, so positions are added",
            "Vaswani 2017, section 3.5",
            "grammar: without positions at most 50 % of the sentences are right, since each has a twin of the same "
            "tokens, and with them 25 points more; Multi30k: 5 BLEU more",
            _order,
        ),
        Claim(
            "Learned positions do as well as sines.",
            "nearly identical results",
            "Vaswani 2017, section 6.2",
            f"means differ by less than {CLOSE:.0f} BLEU",
            _same,
        ),
        Claim(
            "One head is worse than eight.",
            "0.9 BLEU lower",
            "Vaswani 2017, section 6.2",
            "8 heads have more BLEU",
            _loses("1 head"),
        ),
        Claim(
            "Fewer layers are worse.",
            "2 layers 23.7, 6 layers 25.8 BLEU on newstest2013",
            "Vaswani 2017, table 3 (C)",
            "more than one layer has more BLEU",
            _loses("1 layer"),
        ),
        Claim(
            "Dropout avoids overfitting.",
            "24.6 BLEU without, 25.8 with it",
            "Vaswani 2017, table 3 (D)",
            "more BLEU with it on Multi30k; the grammar has nothing to overfit",
            _loses("no dropout", needs_more=True),
        ),
        Claim(
            "Label smoothing improves BLEU.",
            "25.3 BLEU without, 25.8 with it",
            "Vaswani 2017, table 3 (D)",
            "more BLEU with it on Multi30k; the grammar has nothing to overfit",
            _loses("no label smoothing", needs_more=True),
        ),
        Claim(
            "A small Transformer translates Multi30k's test2016 at 38.4 BLEU.",
            "38.4 (16.1M parameters)",
            "Lin 2020, results table",
            f"within {CLOSE:.0f} BLEU, though theirs is of tokenized text",
            _level,
        ),
    ),
    tables=tables,
    pictures=(
        Picture(
            "attention",
            "What the decoder's last block looks at (columns: the English tokens) while each German "
            "token is written (rows), mean of its heads; full network, seed 0. A token that goes on with a word "
            "begins with a dot.",
            _draw_attention,
            (13, 13),
        ),
        Picture(
            "curves",
            "Loss and accuracy by token on the test split, the reference's beginning given; mean of three seeds.",
            _draw_curves,
            (12, 5),
        ),
    ),
)
