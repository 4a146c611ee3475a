"""Explanations: whether maps over images show where the object is, and which pixels the network uses.

  Zhou et al. 2016         Learning deep features for discriminative localization, arXiv 1512.04150
  Selvaraju et al. 2017    Grad-CAM, arXiv 1610.02391
  Adebayo et al. 2018      Sanity checks for saliency maps, arXiv 1810.03292
  Luo et al. 2016          Understanding the effective receptive field, arXiv 1701.04128

The images are canvases with one object, or with two of different classes, at known places among fragments of other
objects (train/data/composite.py). There are three kinds of network: ResNet, which ends in average pooling; VGG, which
ends in dense layers; and ViT, with a class token and a convolutional stem. Grad-CAM uses the default endpoint: the last
map, or for the ViT the input tokens of its last block.

digits     scikit-learn's digits on canvases of 32x32
cifar      cifar10_jpeg, a lossy TFDS set that $TFDS_DATA_DIR must contain, on canvases of 48x48

All seeds are measured on the same test images: 96 on digits and 500 on cifar10_jpeg for localization and the pointing
game, 48 for the other measures. So intervals are over seeds, and leave out the sampling of images.
"""

from collections.abc import Sequence

from experiments.studies.explanation import figures, results
from experiments.studies.explanation.measures import effective, faithfulness, gallery, localization, sanity, two_objects
from experiments.studies.networks import Network, config
from experiments.study import Claim, Picture, Study, Trial

CANVAS = {"digits": 32, "cifar": 48}
COPIES = {"digits": 4, "cifar": 1}  # canvases per image
MEASURES = (localization, two_objects, faithfulness, sanity, effective, gallery)


def _networks(scale: str) -> dict[str, tuple[Network, int, float, str]]:
    """Returns networks whose last units see most of a canvas: (network, epochs, learning rate, optimizer).

    A ViT on plain patches hardly learns from so few images. So ours has a convolutional stem (Xiao 2021) and trains
    longer.
    """
    vgg = {"width": 16, "stage_sizes": (2, 2, 2), "classifier": (256,), "norm": "batch", "dropout": 0.0}
    vit = {"stem_channels": (32, 64), "patch_size": 4, "depth": 4, "width": 64, "heads": 4, "mlp_width": 128}
    long = {"digits": 24, "cifar": 12}[scale]
    return {
        "ResNet": (Network("resnet14", {"width": 16}), long // 3, 0.1, "sgd(momentum=0.9)"),
        "VGG": (Network("vgg11_cifar", vgg), long // 2, 5e-4, "adamw"),
        "ViT": (Network("vit_c_1gf", vit), long, 1e-3, "adamw"),
    }


def trials(scale: str, seeds: Sequence[int]) -> list[Trial]:
    """Lists the three networks with every seed."""
    planned = []
    for seed in seeds:
        for kind, (network, epochs, rate, optimizer) in _networks(scale).items():
            c = config(scale, network, seed, epochs)
            c.data.select = f"place({CANVAS[scale]}, copies={COPIES[scale]})"
            c.data.select_test = f"place({CANVAS[scale]})"
            c.data.augment, c.data.resolutions = "crop(4)", ""
            c.optimizer.name, c.optimizer.learning_rate = optimizer, rate
            if optimizer == "adamw":
                c.optimizer.weight_decay = 0.05
            planned.append(Trial({"network": kind, "seed": seed}, c, measures=MEASURES))
    return planned


CLAIMS = [
    Claim(
        "Class activation maps localize the object better than gradients.",
        "top-1 localization error on ILSVRC: GoogLeNet-GAP 56.40 %, backprop on GoogLeNet 61.31 %",
        "Zhou 2016, table 2",
        "in ResNet, the localization error is lower with CAM than with the gradient, over seeds on "
        "the same test images",
        results.cam_localizes,
        0.0491,
    ),
    Claim(
        "Grad-CAM localizes the object better than gradients where layers are dense.",
        "VGG-16 56.51 %; backprop on VGGnet 61.12 %",
        "Selvaraju 2017, table 1; Zhou 2016, table 2",
        "in VGG, the localization error is lower with Grad-CAM than with the gradient, over seeds on "
        "the same test images",
        results.grad_cam_localizes,
        0.0461,
    ),
    Claim(
        "Guided backprop shows all objects, guided Grad-CAM that of the class.",
        "cat and dog (figure only)",
        "Selvaraju 2017, figure 1",
        "with two objects, guided Grad-CAM points at the requested one at least 10 points more often than guided "
        "backprop, mean over the networks, over seeds on the same test images",
        results.tells_classes_apart,
    ),
    Claim(
        "Grad-CAM agrees with occlusion better than guided backprop.",
        "rank correlation 0.254 against 0.168 (guided Grad-CAM 0.261, CAM 0.208)",
        "Selvaraju 2017, section on faithfulness",
        f"in VGG, the rank correlation of Grad-CAM is higher; differences below {results.CORRELATION} do not matter",
        results.agrees_with_occlusion,
        0.086,
    ),
    Claim(
        "Guided backprop hardly depends on what the upper layers have learned, Grad-CAM does.",
        "rank correlations and pictures (figures only)",
        "Adebayo 2018, section 3.1",
        "in VGG with the upper half of its layers reinitialized, the rank correlation of guided backprop is at least "
        "0.2 higher",
        results.insensitive,
    ),
    Claim(
        "The effective receptive field is smaller than the theoretical one, and grows in training.",
        "figures only",
        "Luo 2016, section 4",
        "in ResNet, in the last map that sees no more than a canvas, the effective field is at most two thirds as wide "
        "as the theoretical one, and larger after training than before; differences below "
        f"{results.PIXEL:g} pixel do not matter",
        results.effective_field,
    ),
]

STUDY = Study(
    name="explanation",
    title="Explanations",
    question="Do the maps that explain a decision show what the network bases it on?",
    would_change="For CAM against gradients, smaller objects or photographs with boxes, because on canvases both "
    "methods rarely err. For guided Grad-CAM against guided backprop, more seeds. For the effective receptive field, "
    "training on photographs, because digits are small here and the field does not grow.",
    cost={
        "digits": "3 runs per seed: about 10 minutes per seed on 2 cores",
        "cifar": "cifar10_jpeg in $TFDS_DATA_DIR; 3 runs per seed: hours per seed on 2 cores",
    },
    trials=trials,
    claims=CLAIMS,
    tables=results.tables,
    pictures=[
        Picture(
            "gallery",
            "All methods on the same two images, by three networks (first seed). One image has one object; the other "
            "has two of different classes, and each class is explained in turn (box). Colors: evidence over the image "
            "(the first methods), magnitudes (black to white), or signed effects (gray is 0). Without max-pooling, the "
            "deconvnet hardly depends on the image.",
            figures.draw_gallery,
            (11.0, 11.0),
        ),
        Picture(
            "localization",
            "How often the maximum of the map is on the only object (left), and on the requested one of two objects "
            "(right): mean and standard deviation over seeds. The dotted line is the middle of the image.",
            figures.draw_localization,
            (10.0, 4.8),
        ),
        Picture(
            "curves",
            "Probability of the class as pixels are deleted (above) or inserted (below), the most important ones "
            "first. Mean over images and seeds, in a band of one standard deviation over seeds.",
            figures.draw_curves,
            (10.5, 6.6),
        ),
        Picture(
            "sanity",
            "Rank correlation of the map with that of the trained network as layers are reinitialized, from the logits "
            "down to the image. Mean over images and seeds, in a band of one standard deviation over seeds.",
            figures.draw_sanity,
            (10.5, 4.4),
        ),
        Picture(
            "effective",
            "Effective receptive field of the middle unit of the last map that sees no more than a canvas, before and "
            "after training (first seed). The box is the theoretical receptive field. Effective sizes are means and "
            "standard deviations over seeds.",
            figures.draw_effective,
            (9.0, 6.4),
        ),
    ],
)
