"""Normalization: the sets that it averages over, the number of images that it needs, and its effect on the loss.

  Ioffe & Szegedy 2015     Batch normalization, arXiv 1502.03167
  Ba et al. 2016           Layer normalization, arXiv 1607.06450
  Ulyanov et al. 2016      Instance normalization, arXiv 1607.08022
  Ioffe 2017               Batch renormalization, arXiv 1702.03275
  Wu & He 2018             Group normalization, arXiv 1803.08494
  Santurkar et al. 2018    How does batch normalization help optimization?, arXiv 1805.11604

Wu & He train on 8 GPUs with 32 to 2 images per GPU, a learning rate proportional to the batch, and a fixed number of
epochs. We do the same, but where they have GPUs, one device splits a batch into PARTS, and batch norm sees one part at
a time. "BN, same steps" keeps the batch and the learning rate of 32 images and splits the batch into smaller parts, so
that only the noise of the statistics changes.
"""

from collections.abc import Sequence
from typing import Any

from experiments.studies.measures import gap, smoothness
from experiments.studies.normalization import results
from experiments.studies.normalization.results import POINTS, SIZES
from experiments.study import Claim, Picture, Study, Trial, recipe

NETWORKS = {"digits": "resnet8", "cifar": "resnet8", "cifar10": "resnet20", "imagenet": "resnet50"}
# For the smoothness of the loss.
PLAIN = {"digits": "plain14", "cifar": "plain14", "cifar10": "plain20", "imagenet": "plain18"}
# Channels of the narrowest layer; GN has half as many groups.
WIDTHS = {"digits": 8, "cifar": 16, "cifar10": 16, "imagenet": 64}
PARTS = {"digits": (1, 2), "cifar": (1, 4), "cifar10": (1, 4), "imagenet": (8, 1)}  # (devices, accumulate)
EPOCHS = {"digits": 6, "cifar": 5, "cifar10": 60, "imagenet": 90}
# Epochs of the run whose beginnings are the shorter ones, and steps of an epoch; without it, each length is a run
SHARED = {"cifar": (max(POINTS), 391)}
SMOOTH_RATE = 0.02  # learning rate at which networks without normalization do not diverge


def trials(scale: str, seeds: Sequence[int]) -> list[Trial]:
    """Lists all norms by images per device, BN in smaller parts of one batch, numbers of groups, and smoothness.

    At the cifar scale, only the norms that claims compare by the number of images have all numbers.
    """
    width, planned = WIDTHS[scale], []
    specs = {"BN": "batch", "GN": f"group:{width // 2}", "LN": "layer", "IN": "instance", "none": "none"}
    for seed in seeds:
        for label, spec in specs.items():
            by_images = label in ("BN", "GN")
            measures = (gap,) if by_images else ()
            for images in SIZES if by_images or scale != "cifar" else SIZES[:1]:
                labels = {"part": "size", "norm": label, "images": images, "seed": seed}
                planned.append(Trial(labels, _config(scale, spec, images, seed), measures=measures))
        for images in SIZES[1:] if scale != "cifar" else ():
            labels = {"part": "size", "norm": "BN, same steps", "images": images, "seed": seed}
            planned.append(Trial(labels, _config(scale, "batch", images, seed, same_steps=True), measures=(gap,)))
        for groups in (2**i for i in range(width.bit_length())):
            labels = {"part": "groups", "groups": groups, "images": SIZES[0], "seed": seed}
            planned.append(Trial(labels, _config(scale, f"group:{groups}", SIZES[0], seed)))
        for label in ("BN", "none"):
            for epochs in POINTS:
                labels = {"part": "smoothness", "norm": label, "epochs": epochs, "images": SIZES[0], "seed": seed}
                whole, steps = SHARED.get(scale, (epochs, 0))
                config = _smooth(scale, specs[label], whole, seed)
                until = epochs * steps if epochs < whole else 0
                planned.append(Trial(labels, config, measures=(smoothness,), until=until))
    return planned


def _config(scale: str, norm: str, images: int, seed: int, same_steps: bool = False, model: str = "") -> Any:
    """Returns the config of a network that normalizes `images` images at once."""
    devices, parts = PARTS[scale]
    model = model or NETWORKS[scale]
    c = recipe(f"configs/study.py:{scale},model={model},norm={norm},seed={seed},epochs={EPOCHS[scale]}")
    c.devices, c.batch_size = devices, devices * parts * SIZES[0]
    c.accumulate = parts * SIZES[0] // images if same_steps else parts
    if norm == "none":
        c.optimizer.learning_rate /= 5  # a network without normalization diverges at the recipe's rate
    if not same_steps:
        c.batch_size = c.batch_size * images // SIZES[0]
        c.optimizer.learning_rate *= images / SIZES[0]
    return c


def _smooth(scale: str, norm: str, epochs: int, seed: int) -> Any:
    """Returns the config of a plain network at a constant rate: shorter runs are the beginnings of longer ones."""
    c = _config(scale, norm, SIZES[0], seed, model=PLAIN[scale])
    c.duration, c.optimizer.learning_rate = f"{epochs} epochs", SMOOTH_RATE
    c.optimizer.schedule, c.optimizer.warmup, c.data.resolutions = "constant", "0 steps", ""
    if scale == "imagenet":
        c.model.zero_gamma = False  # the recipe sets it, for networks with shortcuts
    return c


STUDY = Study(
    name="normalization",
    title="Normalization",
    question="How do batch, layer, instance, group and no normalization depend on the number of images that a "
    "device sees? Does batch normalization make the loss smoother?",
    would_change="For the order of group, layer and instance norm, more test images: on 360 images, seeds differ by as "
    "much as norms do. For the smoothness of the loss, a depth and a learning rate at which the plain network without "
    "normalization learns, because its loss is flat as long as it has hardly begun to learn.",
    cost={
        "digits": "about 7 minutes on 2 cores for 3 seeds",
        "cifar": "cifar10_jpeg in $TFDS_DATA_DIR; 18 runs per seed of 5 epochs of ResNet-8, and 2 of 8 epochs of a "
        "plain network",
        "cifar10": "41 runs per seed, 33 of them 60 epochs of ResNet-20: about 7 hours of one GPU per seed. A run has "
        "only 0.7 PFLOP, but small batches take long: 375,000 steps at 2 images",
        "imagenet": "43 runs per seed, 35 of them 90 epochs of ResNet-50 on 8 GPUs: at 2.8e18 FLOP per run about 500 "
        "GPU hours per seed",
    },
    trials=trials,
    claims=(
        Claim(
            "Batch normalization's accuracy falls as a device sees fewer images.",
            "error 23.6 / 23.7 / 24.8 / 27.3 / 34.7 % at 32 / 16 / 8 / 4 / 2",
            "Wu & He 2018, table 2",
            "over 32, 16, 8, 4 and 2 images, BN's accuracy falls with the logarithm of their number",
            results.bn_small,
            results.published_rise("BN"),
        ),
        Claim(
            "Group normalization is as accurate when a device sees few images.",
            "error 24.1 / 24.2 / 24.0 / 24.2 / 24.1 % at 32 / 16 / 8 / 4 / 2",
            "Wu & He 2018, table 2",
            "with fewer images than 32, GN loses less than a quarter of the accuracy that BN loses from 32 to 2; "
            "undecided where BN loses nothing",
            results.gn_flat,
        ),
        Claim(
            "With 2 images group normalization is far better than batch normalization.",
            "10.6 points lower error",
            "Wu & He 2018, abstract",
            "GN's accuracy at 2 images is above BN's",
            results.gn_at_2,
            0.106,
        ),
        Claim(
            "With 32 images group normalization is better than layer, and that than instance normalization.",
            "error: BN 23.6, GN 24.1, LN 25.3, IN 28.4 %",
            "Wu & He 2018, table 1",
            "GN is more accurate than LN, and LN than IN; between GN and LN, differences below 0.6 points, half of the "
            "published one, do not matter",
            results.order,
        ),
        Claim(
            "Batch normalization computes differently in training and in inference, the more so with small batches.",
            "no number: differences between training and inference",
            "Ioffe 2017, abstract",
            "on the same training images, the accuracies of the two modes differ more at 2 images than at 32",
            results.discrepancy,
        ),
        Claim(
            "Statistics of the training set, computed after training, serve inference.",
            "no number: algorithm 2, with population statistics",
            "Ioffe & Szegedy 2015, section 3.1",
            "runs with 2 images are more accurate with recalibrated statistics than with their running averages",
            results.recalibrated,
        ),
        Claim(
            "The number of groups matters little, and one group, which is layer normalization, is the worst.",
            "every G > 1 below the error of G = 1",
            "Wu & He 2018, table 3",
            "each seed's mean accuracy over all G > 1 is above that of G = 1, and the accuracies of any two G > 1 are "
            f"equivalent within {100 * results.ALIKE:.0f} points; differences to G = 1 below 0.6 points, half of the "
            "published one of G = 32, do not matter",
            results.groups,
        ),
        Claim(
            "Batch normalization speeds training up.",
            "the same accuracy with 14 times fewer steps",
            "Ioffe & Szegedy 2015, abstract",
            "at 32 images, the training loss over the first third is lower with BN than with none; differences below "
            f"{results.NATS} nats do not matter",
            results.faster,
        ),
        Claim(
            "With batch normalization the loss varies less along the gradient.",
            "no number: narrower bands",
            "Santurkar 2018, fig. 4a",
            "the range of the loss over steps of 1/2 to 4 learning rates along the gradient is smaller with BN; "
            "its logarithm is averaged over the points of training, and differences below "
            f"{results.DECADES} decades do not matter",
            results.smoother("loss"),
        ),
        Claim(
            "With batch normalization the gradient changes less over the same distance.",
            "no number: lower effective smoothness",
            "Santurkar 2018, fig. 4c",
            "averaged in the same way, the largest change of the gradient divided by the distance is smaller with BN; "
            f"differences below {results.DECADES} decades do not matter",
            results.smoother("smoothness"),
        ),
    ),
    tables=results.tables,
    pictures=(
        Picture(
            "sizes",
            "Left: test accuracy by the number of images that are normalized together; the learning rate is "
            "proportional to the batch size. Dashed, where the scale has it: batch norm on smaller parts of the same "
            "batch. Right: test accuracy by the number of groups. Mean and standard deviation over seeds; points of "
            "one number of images stand side by side.",
            results.draw_sizes,
            (10.0, 4.4),
        ),
        Picture(
            "gap",
            "Accuracy in training mode and in evaluation mode, on training and test images; mean and "
            "standard deviation over seeds.",
            results.draw_gap,
            (10.5, 4.4),
        ),
        Picture(
            "smoothness",
            "Steps of 1/2 to 4 learning rates along the gradient, after several numbers of epochs of plain networks "
            "with batch norm (BN) and without normalization. Left and middle: range of the loss, and range of the "
            "change of the gradient, one line per run. Right: the largest change divided by the distance; points are "
            "runs, and lines join geometric means.",
            results.draw_smoothness,
            (10.5, 4.2),
        ),
    ),
)
