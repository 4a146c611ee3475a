"""Transfer learning: the gain of a pretrained network on another data set, and the factors that decide its size.

  Razavian et al. 2014      CNN features off-the-shelf, arXiv 1403.6382 (features and a linear SVM)
  Agrawal 2014, Girshick 2014, Lin 2015 and others: the fine-tuned networks of the published table, from the lecture
  Yosinski et al. 2014      How transferable are features in deep neural networks?, arXiv 1411.1792
  Sun et al. 2017           Revisiting unreasonable effectiveness of data, arXiv 1707.02968
  He et al. 2019            Rethinking ImageNet pre-training, arXiv 1811.08883
  Kolesnikov et al. 2020    Big Transfer, arXiv 1912.11370
  Salman et al. 2022        When does bias transfer in transfer learning?, arXiv 2207.02842

digits     source: scikit-learn's digits 0 to 4; target: digits 5 to 9
cifar      source: tiny_imagenet32 (Tiny ImageNet at 32x32), without label smoothing, which makes features worse for
           linear classifiers (Kornblith 2021, arXiv 2010.16402); target: cifar10_jpeg. $TFDS_DATA_DIR must contain
           these TFDS sets; to use another source, change SETS
imagenet   ResNet-50 from $ABLATE_RESNET50, a file of `python -m models.weights import`, on the five published data sets
           ($ABLATE_AIRCRAFT is the folder of FGVC-Aircraft, with train/VARIANT and test/VARIANT)
"""

import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.studies.transfer import figures, results
from experiments.studies.transfer.measures import ALL, cue, embedding, handcrafted, logistic, probe
from experiments.study import Claim, Measure, Picture, Study, Trial, recipe
from models.errors import UserError

SETS = {"cifar": ("tfds:tiny_imagenet32", "validation")}  # source, and its test split
PHOTOGRAPHS = ("caltech101", "voc2007", "cub200", "aircraft", "cars")
# Selections of Tiny ImageNet's 200 classes. NEAR: birds, cats, dogs, frogs, hoofed animals, cars, trucks, boats and a
# train. FAR: food and household things. ANY: every sixth class.
NEAR = "20, 21, 22, 11, '30-33', '24-29', '1-3', '49-53', 70, 94, 116, 153, 121, 133, 145, 164, 166, 115, 108, 81"
FAR = "63, 64, 65, 67, 68, 69, '73-80', 82, 83, 85, '177-193'"
ANY = ", ".join(str(label) for label in range(0, 200, 6))
SUBSETS = {"near": NEAR, "any": ANY, "far": FAR}
FACTOR = 30  # ratio of the sizes of the largest and the smallest class in the imbalanced source
RATES = {"scratch": 0.1, "fine-tuned": 0.02}  # learning rates


class Scale(NamedTuple):
    """Networks, targets and numbers of training steps of a scale that pretrains its own networks.

    Attributes:
      small: Network for the grid, parts and biases.
      probed: Labels per class when sources are compared.
      few: Steps on a target with some labels per class.
      many: Steps on the first target with all labels.
      main: Steps on the source of all transfers.
      grid: Steps on a source of the grid.
      part: Steps on a part of the source, or on a biased source.
    """

    model: str
    width: int
    small: str
    widths: tuple[int, ...]
    shares: tuple[float, ...]
    targets: tuple[str, ...]
    labels: tuple[int, ...]
    probed: int
    few: int
    many: int
    main: int
    grid: int
    part: int


SCALES = {
    "digits": Scale(
        "resnet8",
        8,
        "resnet8",
        (4, 8, 16),
        (0.1, 0.3, 1.0),
        ("digits",),
        (2, 5, 20),
        probed=5,
        few=100,
        many=200,
        main=200,
        grid=100,
        part=100,
    ),
    "cifar": Scale(
        "resnet14",
        16,
        "resnet8",
        (4, 8, 16),
        (0.005, 0.05, 1.0),
        ("cifar10_jpeg",),
        (10, 50, 250),
        probed=250,
        few=500,
        many=4700,  # 6 epochs
        main=2400,
        grid=3200,
        part=3200,
    ),
}


def trials(scale: str, seeds: Sequence[int]) -> list[Trial]:
    """Lists the sources, and the trials that start from them."""
    if scale == "imagenet":
        return _imagenet(seeds)
    planned = []
    for seed in seeds:
        s = SCALES[scale]
        main = _source(scale, seed, s.model, s.width, s.main)
        planned += [main, *(trial for target in s.targets for trial in _transfers(scale, seed, target, main))]
        planned += _compared(scale, seed)
    return planned


def _transfers(scale: str, seed: int, target: str, main: Trial) -> list[Trial]:
    """Lists the trials on a target, from the main source and from scratch."""
    s, labels = SCALES[scale], {"part": "transfer", "target": target, "seed": seed}
    first = target == s.targets[0]
    drawn_measures = (embedding,) if seed == 0 and first else ()
    planned = [_target(scale, {**labels, "how": "classifier"}, main, target, measures=(probe, *drawn_measures))]
    for count in (*s.labels, ALL) if first else (s.labels[0], ALL):
        for how in ("fine-tuned", "scratch"):
            measures = drawn_measures if count == ALL else ()
            trial_labels = {**labels, "how": how, "labels": count}
            planned.append(_target(scale, trial_labels, main, target, count, how=how, measures=measures))
    if seed == 0:
        trial = _target(scale, {**labels, "how": "hand-crafted"}, main, target, measures=(handcrafted,))
        planned.append(trial._replace(start=None))
    return planned


def _compared(scale: str, seed: int) -> list[Trial]:
    """Lists trials that start from sources of different sizes, distances from the target, and biases."""
    s, tuned = SCALES[scale], []

    def source(select: str = "", width: int = s.width, steps: int = s.part, both: bool = False) -> Trial:
        return _source(scale, seed, s.small, width, steps, select, both)

    sources: list[tuple[Mapping[str, Any], Trial]] = [
        (
            {"part": "grid", "width": width, "share": share},
            source(f"share({share}, seed={seed})" * (share < 1), width, s.grid),
        )
        for width in s.widths
        for share in s.shares
    ]
    if scale == "cifar":
        sources += [
            ({"part": "relation", "source": name}, source(f"classes({classes})", both=True))
            for name, classes in SUBSETS.items()
        ]
    for name, select in _biases(scale, seed).items():
        labels, start = {"part": "bias", "source": name}, source(select)
        sources.append((labels, start))
        if name in ("clean", "cue"):
            trial_labels = {**labels, "seed": seed, "how": "fine-tuned"}
            tuned.append(_target(scale, trial_labels, start, s.targets[0], s.probed, how="fine-tuned", measures=(cue,)))
    return [
        *tuned,
        *(
            _target(
                scale,
                {**trial_labels, "seed": seed, "how": "classifier"},
                start,
                s.targets[0],
                s.probed,
                measures=(logistic,),
            )
            for trial_labels, start in sources
        ),
    ]


def _biases(scale: str, seed: int) -> dict[str, str]:
    """Returns selections of the source by name.

    "clean" is all of it, and "cue" is all of it with a cue on every second class. "imbalanced" is a part with few
    images of most classes, and "balanced" a random part with the same number of images.
    """
    classes = {"digits": 5, "cifar": 200}[scale]
    half = f"0-{classes - 1}/2"  # every second class rather than the first half, because neighboring classes are alike
    remaining = statistics.mean(FACTOR ** (-i / (classes - 1)) for i in range(classes))
    return {
        "clean": "",
        "cue": f"paint('{half}', p=1.0, seed={seed})",
        "imbalanced": f"imbalance({FACTOR}, seed={seed})",
        "balanced": f"share({remaining:.4f}, seed={seed})",
    }


def _source(scale: str, seed: int, model: str, width: int, steps: int, select: str = "", both: bool = False) -> Trial:
    """Returns a trial on a selection of the source; with `both`, its test split has the same selection."""
    c = recipe(f"configs/study.py:{scale},model={model},seed={seed}")
    c.model.width = width
    test = select if both else ""
    if scale == "digits":
        select = "|".join(filter(None, ("classes('0-4')", select)))
        test = "classes('0-4')"
        c.batch_size, c.eval_batch_size = 64, 180
    else:
        c.data.source, c.data.test_split = SETS[scale]
        c.task.label_smoothing, c.optimizer.learning_rate = 0.0, 0.1
        if steps != SCALES[scale].main:  # smaller batches, so that small networks and parts get more steps
            c.batch_size, c.optimizer.learning_rate = 32, 0.05
    c.data.select, c.data.select_test = select, test
    c.duration, c.evaluate_every, c.log_every = f"{steps} steps", "100%", "10%"
    return Trial({"part": "source", "model": model, "width": width, "select": select, "seed": seed}, c)


def _target(
    scale: str,
    labels: Mapping[str, Any],
    start: Trial,
    target: str,
    count: Any = ALL,
    how: str = "",
    measures: Sequence[Measure] = (),
) -> Trial:
    """Returns a trial on a target that starts from a source's network.

    `how` is "" if nothing is trained, and "scratch" if the network starts from new weights.
    """
    s, source = SCALES[scale], start.config
    steps = s.many if count == ALL and target == s.targets[0] else s.few
    c = recipe(
        f"configs/transfer.py:model={source.model.name},to={target},seed={labels['seed']},steps={steps},"
        f"size={0 if scale == 'digits' else 32},lr={RATES.get(how, 0.1)},"
        f"labels={0 if count == ALL else count}"
    )
    c.model, c.data.mean, c.data.std = source.model.copy_and_resolve_references(), source.data.mean, source.data.std
    c.hooks, c.keep_checkpoints, c.checkpoint_every, c.log_every = "", 1, "100%", "10%"
    c.evaluate_every = "10%" if count == ALL else "25%"
    if scale == "digits":
        c.data.channels, c.eval_batch_size = 0, 180
        c.data.select = "|".join(filter(None, ("classes('5-9')", c.data.select)))
        c.data.select_test = "classes('5-9')"
    return Trial(labels, c, train=bool(how), measures=measures, start=None if how == "scratch" else start)


def _imagenet(seeds: Sequence[int]) -> list[Trial]:
    """Lists trials on the published data sets, with pretrained weights from other libraries."""
    weights, planned = os.environ.get("ABLATE_RESNET50", "resnet50.safetensors"), []
    if not os.path.isfile(weights):
        raise UserError(
            f"the initial weights {weights} (or $ABLATE_RESNET50) are missing; make them by "
            "python -m models.weights import --from torchvision resnet50.pth --model resnet50 --out FILE"
        )
    for seed in seeds:
        for target in PHOTOGRAPHS:
            for how in ("fine-tuned", "scratch", "classifier", *(("hand-crafted",) if seed == 0 else ())):
                start = "model=resnet50" if how in ("scratch", "hand-crafted") else f"from={weights}"
                c = recipe(f"configs/transfer.py:{start},to={target},seed={seed}")
                if target == "aircraft":  # TFDS does not have it
                    c.data.source = f"folder:{os.environ.get('ABLATE_AIRCRAFT', c.data.source.partition(':')[2])}"
                c.precision = "bfloat16"
                measures = {"classifier": (probe,), "hand-crafted": (handcrafted,)}.get(how, ())
                labels = {"part": "transfer", "target": target, "how": how, "seed": seed}
                labels |= {} if measures else {"labels": ALL}
                planned.append(Trial(labels, c, train=not measures, measures=measures))
    return planned


CLAIMS = [
    Claim(
        "A pretrained network with a linear classifier is better than hand-crafted features.",
        "Caltech-101 87.7 against 84.3, VOC 2007 79.7 against 61.7, CUB-200 61.0 against 18.8; but Aircraft 45.0 "
        "against 61.0, Cars 36.5 against 59.2",
        "lecture, transfer learning; Razavian 2014",
        "better on every target, with all labels (cifar: both with 1,000 labels per class)",
        results.better("classifier", "hand-crafted"),
    ),
    Claim(
        "Fine-tuning is better than a classifier on fixed features.",
        "88.4, 82.4, 70.4, 74.1, 79.8 against 87.7, 79.7, 61.0, 45.0, 36.5",
        "lecture, transfer learning",
        "better on every target, with all labels",
        results.better("fine-tuned", "classifier"),
    ),
    Claim(
        "Fine-tuning is better than the same training from scratch.",
        "BiT-M R50x1, fine-tuned on CIFAR-10, 97.3 % (no training from scratch is given beside it)",
        "Kolesnikov 2020, README of the authors' code",
        "better on every target, with all labels and the same steps",
        results.better("fine-tuned", "scratch"),
    ),
    Claim(
        "Pretraining helps most where labels are few.",
        "“training from random initialization is surprisingly robust”, there even with 10 % of COCO",
        "He 2019, abstract",
        "fine-tuning gains over scratch with the fewest labels, and gains less the more labels there are (slope of "
        "a line over their ranks)",
        results.few_labels,
    ),
    Claim(
        "Pretraining makes training converge faster.",
        "“pre-training speeds up convergence early in training”",
        "He 2019, abstract",
        "after a tenth of the steps, fine-tuning has a higher accuracy than training from scratch",
        results.faster,
    ),
    Claim(
        "More source data, better transfer.",
        "“the performance on vision tasks increases logarithmically based on volume of training data size”",
        "Sun 2017, abstract",
        "the accuracy of the widest network rises with the fraction of the source (slope of a line over its logarithm)",
        results.more_data,
    ),
    Claim(
        "Larger networks transfer better.",
        "R152x4 above R50x1 (figure only)",
        "Kolesnikov 2020, figure 5",
        "with all of the source, accuracy rises with the width of the network (slope of a line over its logarithm)",
        results.bigger,
    ),
    Claim(
        "More data and larger networks go together.",
        "small networks gain little from more data (figure only)",
        "Kolesnikov 2020, figure 5",
        "the gain from more source data rises with the width of the network (slope of a line over its logarithm)",
        results.together,
    ),
    Claim(
        "Transfer is better from a source that is near to the target.",
        "“the transferability of features decreases as the distance between the base task and target task increases”",
        "Yosinski 2014, abstract",
        "animals and vehicles are a better source for CIFAR-10 than food and household things",
        results.related,
    ),
    Claim(
        "A cue that the source taught reaches the target, with fixed features.",
        "bias transfers to a target without it (no number quoted)",
        "Salman 2022, abstract",
        "on the target, a square costs more accuracy if it marked every second class of the source than if the source "
        "had no squares",
        results.biased("classifier"),
    ),
    Claim(
        "A cue that the source taught reaches the target, after fine-tuning.",
        "bias transfers to a target without it (no number quoted)",
        "Salman 2022, abstract",
        "the same as with fixed features, after fine-tuning on target images without the square",
        results.biased("fine-tuned"),
    ),
    Claim(
        "An imbalanced source transfers worse than a balanced one of the same size.",
        "“Do biased datasets affect transfer? Turns out yes”",
        "lecture, concerns about big transfer",
        f"a source whose classes differ by a factor of {FACTOR} in size is worse than a balanced one of as many images",
        results.imbalanced,
    ),
]


STUDY = Study(
    name="transfer",
    title="Transfer learning",
    question="How much does pretraining help on another data set, and which factors decide that?",
    would_change="A source as large as the published one: the sources here are half of the digits, or Tiny ImageNet "
    "with short training. The imagenet scale tests the first three claims with a ResNet-50 from ImageNet on the five "
    "published data sets. A harder target, because networks from scratch classify nearly all digits correctly. At "
    "digits scale, more seeds for few labels, cues and imbalance.",
    cost={
        "digits": "23 runs and 13 measurements per seed: about 3 minutes per seed on 2 cores",
        "cifar": "tiny_imagenet32 and cifar10_jpeg in $TFDS_DATA_DIR; 25 runs and 16 measurements per seed: about "
        "40 minutes per seed on 2 cores",
        "imagenet": "$ABLATE_RESNET50 and the five data sets; 10 runs per seed: about 8 hours per seed on a GPU",
    },
    trials=trials,
    claims=CLAIMS,
    tables=results.tables,
    pictures=[
        Picture(
            "labels",
            "Accuracy on the target by labels per class; mean and standard deviation over seeds.",
            figures.draw_labels,
            (7.0, 4.4),
        ),
        Picture(
            "curves",
            "Learning curves from scratch and after pretraining (fine-tuned): mean over seeds, in a band of one "
            "standard deviation.",
            figures.draw_curves,
            (10.0, 4.4),
        ),
        Picture(
            "grid",
            "Accuracy of logistic regression on features, by the width of the network and the part of the source that "
            "it was trained on; mean and standard deviation over seeds.",
            figures.draw_grid,
            (6.5, 4.4),
        ),
        Picture(
            "sources",
            "Accuracy of logistic regression on features of networks that were trained on a part of the source, or on "
            "a biased source; mean and standard deviation over seeds.",
            figures.draw_sources,
            (8.0, 4.2),
        ),
        Picture(
            "embedding",
            "Features of test images in two dimensions (t-SNE), colored by class; first seed.",
            figures.draw_embedding,
            (10.5, 4.2),
        ),
    ],
)
