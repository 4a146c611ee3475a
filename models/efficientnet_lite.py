"""EfficientNet-Lite: inverted residuals with 3x3 and 5x5 kernels, scaled in width, depth and image size together.

  Tan & Le 2019    EfficientNet: rethinking model scaling for convolutional neural networks, arXiv 1905.11946
  Liu et al. 2020  Higher accuracy on vision models with EfficientNet-Lite, TensorFlow's blog; code in
                   github.com/tensorflow/tpu, models/official/efficientnet/lite             efficientnet_lite0 to 4

The Lite networks are EfficientNets for integer arithmetic: they have no squeeze-and-excitation, ReLU6 instead of SiLU,
and neither the stem nor the last convolution grows with the width. They were trained in TensorFlow, so its padding and
its epsilon are the defaults; timm's networks of the same names with "tf_" in front are equal to them.
"""

import functools
import math
from collections.abc import Mapping, Sequence

from models.errors import UserError
from models.mobilenet import MobileNetV2
from models.mobilenet import layouts as mobilenet_layouts
from models.weights.layouts import Layout

STAGES = ((16, 1), (24, 2), (40, 2), (80, 2), (112, 1), (192, 2), (320, 1))  # channels, stride: Tan & Le, table 1
SIZES = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage, same table


class EfficientNetLite(MobileNetV2):
    """Stages of inverted residuals, then a 1x1 convolution to 1280 channels.

    It has the fields of `MobileNetV2` and the one below. `width_multiplier` changes neither the 32 channels of the stem
    nor the 1280 of the last convolution.

    Attributes:
      kernel_sizes: Kernel size of the depthwise convolutions of each stage.
    """

    stage_sizes: Sequence[int] = SIZES
    padding: str = "tf"
    norm_epsilon: float | None = 1e-3
    kernel_sizes: Sequence[int] = (3, 3, 5, 3, 5, 5, 3)  # Tan & Le, table 1

    def check(self) -> None:
        super().check()
        self._need_numbers("kernel_sizes", (3, 3, 5, 3, 5, 5, 3))
        if any(size % 2 == 0 for size in self.kernel_sizes) or len(self.kernel_sizes) < len(self.stage_sizes):
            raise UserError(
                f"kernel_sizes={self.kernel_sizes} must be an odd number for each of the {len(self.stage_sizes)} stages"
            )

    def _stages(self) -> Sequence[tuple[int, int, int]]:
        return [(*row, kernel_size) for row, kernel_size in zip(STAGES, self.kernel_sizes, strict=False)]

    def _stem_channels(self) -> int:
        return 32

    def _last_channels(self) -> int:
        return 1280


def _lite(width: float, depth: float, image_size: int, dropout: float) -> functools.partial:
    """Returns a network with `depth` times the blocks, rounded up, in all stages but the first and the last."""
    sizes = (1, *(math.ceil(depth * size) for size in SIZES[1:-1]), 1)
    return functools.partial(
        EfficientNetLite, stage_sizes=sizes, width_multiplier=width, image_size=image_size, dropout=dropout
    )


# The authors' efficientnet_lite_builder.py: width, depth, image size, dropout
VARIANTS = {
    "efficientnet_lite0": _lite(1.0, 1.0, 224, 0.2),
    "efficientnet_lite1": _lite(1.0, 1.1, 240, 0.2),
    "efficientnet_lite2": _lite(1.1, 1.2, 260, 0.3),
    "efficientnet_lite3": _lite(1.2, 1.4, 280, 0.3),
    "efficientnet_lite4": _lite(1.4, 1.8, 300, 0.3),
}


def layouts(model: EfficientNetLite) -> Mapping[str, Layout]:
    """Returns timm's layout; torchvision has no such network."""
    return {name: layout for name, layout in mobilenet_layouts(model).items() if name == "timm"}
