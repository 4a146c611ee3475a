"""Names of the networks in torchvision and timm, and the arguments that create them there."""

from typing import Any

import flax.linen as nn

from models import weights
from models.errors import UserError
from models.mobilenet import MobileNet

# Names in the library that differ from the names here.
TORCHVISION = {
    f"vit_{size}_patch{patch}": f"vit_{size[0]}_{patch}"
    for size, patch in (("base", 16), ("base", 32), ("large", 16), ("large", 32), ("huge", 14))
}
TIMM = {
    **{
        f"vit_{size}_patch{patch}": f"vit_{size}_patch{patch}_224"
        for size, patch in (
            ("tiny", 16),
            ("small", 16),
            ("small", 32),
            ("base", 16),
            ("base", 32),
            ("large", 14),
            ("large", 16),
            ("large", 32),
            ("huge", 14),
        )
    },
    **{f"swin_{size[0]}": f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base", "large")},
    "mobilenet_v1": "mobilenetv1_100",
    "mobilenet_v2": "mobilenetv2_100",
    **{f"mobilenet_v2_{width}": f"mobilenetv2_{width}" for width in ("035", "050", "075", "140")},
    **{f"efficientnet_lite{size}": f"tf_efficientnet_lite{size}" for size in range(5)},
}
NAMES = {"torchvision": TORCHVISION, "timm": TIMM}
# The argument for the image size, by the beginning of the name in the library.
_SIZES = {"torchvision": {"vit_": "image_size"}, "timm": {"vit_": "img_size", "swin_": "img_size"}}


def constructor(name: str, model: nn.Module, library: str = "") -> tuple[str, str, dict[str, Any]]:
    """Returns the library, the name there, and the arguments of its `create_model` (timm) or `get_model` (torchvision).

    Args:
      name: Name of the network here.
      model: The network, with its fields.
      library: "torchvision" or "timm"; "" chooses the first for which the network has a layout.

    Raises:
      UserError: The network has no layout of the library, or of neither.
    """
    libraries = [layout for layout in weights.layouts(model) if layout in NAMES]
    if library not in ("", *libraries):
        raise UserError(
            f"{name} has no layout '{library}'; "
            + (f"allowed: {', '.join(libraries)}" if libraries else "torchvision and timm have no such network")
        )
    if not libraries:
        raise UserError(f"{name} has no layout of a PyTorch library: torchvision and timm have no such network")
    library = library or libraries[0]
    theirs = NAMES[library].get(name, name)
    sizes = {argument: model.image_size for start, argument in _SIZES[library].items() if theirs.startswith(start)}
    return library, theirs, {"num_classes": model.num_classes, **sizes, **_mobile(library, theirs, model)}


def _mobile(library: str, theirs: str, model: nn.Module) -> dict[str, Any]:
    """Returns timm's arguments for the padding and the epsilon of a mobile network that differ from its defaults."""
    if library != "timm" or not isinstance(model, MobileNet):
        return {}
    of_tensorflow = theirs.startswith("tf_")
    defaults = {"pad_type": "same" if of_tensorflow else "", "bn_eps": 1e-3 if of_tensorflow else 1e-5}
    arguments = {
        "pad_type": "same" if model.padding == "tf" else "",
        "bn_eps": 1e-5 if model.norm_epsilon is None else model.norm_epsilon,
    }
    return {name: value for name, value in arguments.items() if value != defaults[name]}
