"""Residual networks with early exits: the baseline for multi-scale dense networks (msdnet.py).

Huang et al. 2018    arXiv 1703.09844, section 5, "ResNet with multiple classifiers"
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from models import resnet
from models.errors import UserError
from models.layers.conditional import compacted
from models.layers.exit_router import Exit, Leaving
from models.resnet import ResNet
from models.weights.layouts import Layout, with_own


class EarlyExitResNet(ResNet):
    """A residual network with exits, with the fields of `ResNet` and those below.

    Endpoints: those of `ResNet`, and of `models.layers.exit_router.Leaving`.

    Attributes:
      exits: Number of blocks before each exit, without the exit at the end of the network.
      exit_width: Channels of the exits' convolutions; 0 uses the channels of the preceding block.
    """

    exits: Sequence[int] = (2, 4)
    exit_width: int = 128

    def check(self) -> None:
        super().check()
        self._need_numbers("exits", (2, 4))
        self._need_at_least(0, "exit_width")
        if list(self.exits) != sorted(set(self.exits)) or self.exits[-1] >= len(self.blocks):
            raise UserError(
                f"exits={self.exits} must be increasing and below {len(self.blocks)}, the number of blocks; the end "
                "of the network is always an exit"
            )
        if self.shortcut == "none":
            raise UserError("shortcut='none' does not work with skipped blocks, whose output is the shortcut")

    @property
    def num_exits(self) -> int:
        """The number of exits, including the last one."""
        return len(self.exits) + 1

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, leave: Any = None) -> jax.Array:
        """Maps images [N, H, W, C] to logits [N, num_classes], float32, of the last exit.

        With `leave`, float [num_exits - 1], the logits are those of the exit where each example left;
        `models.layers.exit_router.Leaving` describes it and its errors.
        """
        leaving, layers = Leaving(self, leave, self.num_exits, train), self.ingredients(train)
        new_exit = functools.partial(Exit, layers, self.num_classes, self.exit_width, parent=self)
        places = {self.blocks[after - 1]: number for number, after in enumerate(self.exits, 1)}

        def visit(block, x):
            x = block(x, leaving.stays)
            if number := places.get("/".join(block.path[-2:])):
                exit = new_exit(name=f"exit{number}")
                leaving.at(exit(x) if leaving.stays is None else compacted(Exit.__call__, exit, leaving.stays, x))
            return x

        return leaving.at(self._forward(layers, images, train, visit))


VARIANTS = {
    # 10 blocks at each of 3 resolutions, with exits after 4 and 8 of them.
    "early_exit_resnet62": functools.partial(
        EarlyExitResNet,
        **{**resnet.VARIANTS["resnet20"].keywords, "stage_sizes": (10, 10, 10), "exits": (4, 8, 14, 18, 24, 28)},
    )
}


def layouts(model: EarlyExitResNet) -> dict[str, Layout]:
    """Returns the layouts of the residual network; exits keep their names here.

    Importing weights with new="exit*" initializes the exits instead of reading them.
    """
    return with_own(resnet.layouts(model), r"exit\d+/.*")
