"""Every family of architectures, every method, and the pairs that do not work together: the only place that lists them.

test_any_network.py tries every pair: a pair in REFUSED must end with its one-line error, and every other pair must
work. The table in docs/troubleshooting.md is `table()`.
"""

from typing import Any, NamedTuple

from models.layers.init import INITS
from tests.networks import SMALL

SIDE = 16  # pixels


class Family(NamedTuple):
    """The smallest network with everything that its family has.

    Attributes:
      name, fields: for `models.create`.
      low_bit: fields that can make low-bit layers.
      task: by which all of it learns.
    """

    name: str
    fields: dict[str, Any]
    low_bit: tuple[str, ...] = ("conv",)
    task: str = "classify"


def _small(kind: str, low_bit: tuple[str, ...] = ("conv",), task: str = "classify", **fields: Any) -> Family:
    """Returns one of SMALL with the norm "batch", made smaller still by `fields`."""
    name, own = SMALL[kind]
    return Family(name, {**own, "num_classes": 10, "image_size": SIDE, "norm": "batch", **fields}, low_bit, task)


BOTH = ("conv", "dense")
FAMILIES = {
    "LeNet": _small("lenet", BOTH),
    "AlexNet": _small("alexnet", BOTH),
    "VGG": _small("vgg", BOTH),
    "airbench": _small("airbench"),
    "plain": Family("plain8", {"stage_sizes": (1,), "width": 8, "image_size": SIDE}),
    "ResNet": Family("resnet18", {"stage_sizes": (1, 1), "width": 8, "num_classes": 10, "image_size": SIDE}),
    "pre-activation": _small("preact", stage_sizes=(1,)),
    "BiT": _small("bit", stage_sizes=(1,)),
    "ResNeXt": _small("bottleneck", stage_sizes=(1,)),
    "DenseNet": _small("dense", stage_sizes=(1, 1)),
    "MobileNet v1": _small("separable", stage_sizes=(1, 1)),
    "MobileNet v2": _small("inverted", stage_sizes=(1, 1)),
    "EfficientNet-Lite": _small("lite", stage_sizes=(1, 1, 1)),
    "ladder": _small("ladder_inverted", stage_sizes=(2,)),
    "ConvNeXt": _small("convnext", BOTH, stage_sizes=(1,)),
    "Swin": _small("swin", BOTH, stage_sizes=(1, 1), window=2),
    "ViT": _small("vit", ("dense",), patch_size=4, depth=1),
    "ViT_C": _small("vit_c", BOTH),
    "ConvNet-AIG": _small("gated", BOTH, "gated", stage_sizes=(1,), rates=()),
    "BlockDrop": _small("blockdrop", task="policy(joint=True)", stage_sizes=(1,), policy_sizes=(1,)),
    "early exit": _small("early_exit", task="multi_exit", stage_sizes=(2,)),
    "MSDNet": _small("multi_scale", task="multi_exit", base=1),
    "Transformer": Family(
        "transformer_base",
        {"vocab_size": 12, "width": 8, "heads": 2, "layers": 1, "ff_width": 12, "max_length": 8, "norm": "batch"},
        ("dense",),
        "translate",
    ),
}
# Layers whose filters can be removed, where they differ from those of networks.PERTURBED.
FILTERS = {
    "AlexNet": "hidden1",
    "ResNeXt": "stem_conv",
    "ladder": "stage1/block0/conv2",
    "Transformer": "encoder/block0/expand",
}
NORMS = ("batch", "frozen_batch", "layer", "instance", "group:2", "channel", "none")
ALL_INITS = (*INITS, "normal", "truncated_normal")
LOW_BIT = ("ternary", "binary_weight", "xnor")
FORMATS = ("safetensors", "torch", "onnx", "stablehlo", "compressed")
METHODS = (
    "trained in float32", "trained in bfloat16", *(f"norm={norm}" for norm in NORMS),
    *(f"init={init}" for init in ALL_INITS), "data_init=lsuv", "data_init=whiten",
    *(f"{field}={kind}" for kind in LOW_BIT for field in BOTH), "prune weights", "prune filters", "share", "new head",
    "resume", "fold", "grad_cam", "cam", "occlusion", "attention_rollout", "receptive field",
    *(f"export {format}" for format in FORMATS),
)  # fmt: skip
# Compilation takes most of the tests' time, so `make test` tries every method on these families only. On the others it
# takes one float32 step and tries the methods that compile no program of their own. `make test-all` tries all pairs.
WHOLE = ("ResNet", "ViT", "Transformer")
LIGHT = ("new head", "receptive field", *(f"export {format}" for format in ("safetensors", "torch", "compressed")))
STEPPED = ("trained in float32", "norm=batch", "resume", *LIGHT)
# Families that share their blocks with another family take no step.
RELATIVES = (
    "AlexNet", "plain", "pre-activation", "BiT", "ResNeXt", "MobileNet v1", "ladder", "ViT_C", "BlockDrop",
    "early exit",
)  # fmt: skip


class Refusal(NamedTuple):
    """Families that refuse methods with the same error, its regular expression, and the reason."""

    methods: tuple[str, ...]
    families: tuple[str, ...]
    line: str
    why: str


def _but(*families: str) -> tuple[str, ...]:
    return tuple(family for family in FAMILIES if family not in families)


WITH_DENSE = tuple(family for family, entry in FAMILIES.items() if "dense" in entry.low_bit)
TEXT = ("Transformer",)
REFUSED = (
    Refusal(
        ("norm=frozen_batch", "norm=layer", "norm=instance", "norm=group:2"),
        TEXT,
        "averages over a sequence",
        "a decoder would see what it is to predict",
    ),
    Refusal(
        ("norm=instance",),
        ("LeNet",),
        "averages over space, which the hidden layers of a LeNet do not have",
        "hidden layers have no places to average over",
    ),
    Refusal(
        ("norm=instance",),
        ("ConvNet-AIG",),
        "makes the input of each gate constant",
        "a gate sees one number a feature",
    ),
    Refusal(
        ("norm=instance",),
        ("ConvNeXt",),
        "at final_norm erases its input",
        "its last norm follows the pooling, one number a feature",
    ),
    Refusal(
        ("norm=instance",),
        ("Swin",),
        "normalizes each channel separately, so the spatial mean",
        "its last norm is averaged over space: 0, whatever the image",
    ),
    Refusal(
        ("norm=instance",),
        ("airbench",),
        "at stage3/norm1 erases its input",
        "images below 32 x 32 leave one place in its last stage",
    ),
    Refusal(
        tuple(f"dense={kind}" for kind in LOW_BIT),
        _but(*WITH_DENSE),
        "^dense='.*' has no effect: the first layer and the head remain standard",
        "its only dense layer is the head, which remains standard",
    ),
    Refusal(
        tuple(f"conv={kind}" for kind in LOW_BIT),
        ("ViT",),
        "^conv='.*' has no effect",
        "its only convolution is the first layer, which remains standard",
    ),
    Refusal(
        tuple(f"conv={kind}" for kind in LOW_BIT),
        TEXT,
        "unknown field of transformer_base 'conv'",
        "it has no convolutions",
    ),
    Refusal(
        ("data_init=lsuv",),
        ("ConvNet-AIG",),
        "would rescale the kernels of gates",
        "gates start near 0 so that they are open",
    ),
    Refusal(
        ("data_init=lsuv", "data_init=whiten"), TEXT, "is text, but data_init requires images", "they look at images"
    ),
    Refusal(("new head",), TEXT, "unknown field of transformer_base 'num_classes'", "its embedding gives the logits"),
    Refusal(("prune filters",), TEXT, "Transformer has no field widths", "only image networks can lose filters"),
    Refusal(
        ("prune filters",),
        ("BiT",),
        "computes something else; nor can those of any layer",
        "kernels are standardized over all that they get",
    ),
    Refusal(
        ("export torch",),
        (
            "LeNet", "AlexNet", "VGG", "airbench", "plain", "pre-activation", "DenseNet", "ladder", "ConvNet-AIG",
            "BlockDrop", "early exit", "MSDNet",
        ),
        "has no layout of a PyTorch library",
        "torchvision and timm have no such network (of AlexNet: two groups; of VGG: one hidden layer)",
    ),
    Refusal(
        ("cam",),
        ("LeNet", "AlexNet", "VGG", "airbench", "ConvNeXt", "ViT", "ViT_C", "MSDNet"),
        "and a linear layer; .* does not: use grad_cam",
        "it does not end in average pooling and a linear layer: use `grad_cam`",
    ),
    Refusal(
        ("grad_cam", "cam", "occlusion", "attention_rollout", "receptive field"),
        TEXT,
        r"must be a batch \[N, H, W, C\]",
        "images are explained",
    ),
    Refusal(
        tuple(f"export {format}" for format in FORMATS),
        TEXT,
        "export is for networks that take images",
        "networks of images are exported",
    ),
    Refusal(
        ("attention_rollout",),
        _but("ViT", "ViT_C", *TEXT),
        "such as ViT; .* has (no attention|other attention layers): use grad_cam",
        "no attention, or none that sees all tokens: use `grad_cam`",
    ),
)  # fmt: skip


def refusal(family: str, method: str) -> str | None:
    """Returns the error with which the family refuses the method; None where the two work together."""
    return next((one.line for one in REFUSED if family in one.families and method in one.methods), None)


def in_full(family: str, method: str) -> bool:
    """Returns whether only `make test-all` tries the pair; `make test` tries every pair that is refused."""
    if refusal(family, method) or family in WHOLE:
        return False
    return method not in (LIGHT if family in RELATIVES else STEPPED)


def norms_of(family: str) -> list[str]:
    """Returns the norms that the family accepts."""
    return [norm for norm in NORMS if not refusal(family, f"norm={norm}")]


def table() -> str:
    """Returns REFUSED as a Markdown table."""
    rows = []
    for one in REFUSED:
        others = _but(*one.families)
        families = f"all but {', '.join(others)}" if len(others) < len(one.families) else ", ".join(one.families)
        rows.append(f"| {', '.join(one.methods)} | {families} | {one.why} |")
    return "\n".join(("| method | not with | why |", "| --- | --- | --- |", *rows))
