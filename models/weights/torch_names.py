"""Which network of torchvision or timm is ours, and how it is made there."""

from typing import Any

import flax.linen as nn

from models import weights
from models.errors import UserError

# Theirs where it is not the same; of the others, whatever has our name.
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
}
NAMES = {"torchvision": TORCHVISION, "timm": TIMM}
# The argument that a network takes for images of another size, by the beginning of its name there.
_SIZES = {"torchvision": {"vit_": "image_size"}, "timm": {"vit_": "img_size", "swin_": "img_size"}}


def constructor(name: str, model: nn.Module, library: str = "") -> tuple[str, str, dict[str, Any]]:
    """Library, name there and arguments of its `create_model` (timm) or `get_model` (torchvision).

    Args:
      name: ours.
      model: of that name, with the fields that it has.
      library: "torchvision" or "timm"; "" for the first in whose layout the network is.

    Raises:
      UserError: the network is in the layout of none of them, or not of that one.
    """
    known = [layout for layout in weights.layouts(model) if layout in NAMES]
    if library not in ("", *known):
        raise UserError(
            f"{name} has no layout '{library}'; "
            + (f"allowed: {', '.join(known)}" if known else "torchvision and timm have no such network")
        )
    if not known:
        raise UserError(f"{name} is in the layout of no PyTorch library: torchvision and timm have no such network")
    library = library or known[0]
    theirs = NAMES[library].get(name, name)
    sizes = {argument: model.image_size for start, argument in _SIZES[library].items() if theirs.startswith(start)}
    return library, theirs, {"num_classes": model.num_classes, **sizes}
