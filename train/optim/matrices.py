"""Muon: hidden matrices by orthogonalized momentum, all other parameters by AdamW.

  Jordan 2024    Muon: an optimizer for hidden layers in neural networks, github.com/KellerJordan/Muon

A kernel of a convolution is a matrix of kernel size x inputs by outputs, as in the authors' code.
"""

import re
from typing import Any

import jax
import optax
import optax.contrib
from optax.contrib import MuonDimensionNumbers

from train.optim.optimizers import DecayMask, Schedule, check_fractions
from train.optim.parameters import parameter_name, pattern

# The readme of the authors: "you should use Muon to optimize all the convolutional filters except the first one, and
# AdamW to optimize everything else", that is, classifier heads, embeddings, and gains and biases, which are no kernels.
NOT_HIDDEN = r"(.*/)?head/.*|(policy/)?stem_conv1?/.*|(block1/stem/|stage1/)?conv1/.*|.*embed.*"
ADAM = 0.015  # AdamW's learning rate as a fraction of Muon's, 3e-4 / 0.02 in the readme of the authors


def muon(
    learning_rate: Schedule,
    weight_decay: float,
    decay_mask: DecayMask,
    beta: float = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    eps: float = 1e-8,
    adaptive: bool = False,
    adam: str = "",
    adam_factor: float = ADAM,
    adam_b1: float = 0.9,
    adam_b2: float = 0.95,
) -> optax.GradientTransformation:
    """Builds Muon (Jordan 2024) with decoupled weight decay, in both parts.

    Kernels are seen as matrices: those of convolutions [kh, kw, in, out] as [kh kw in, out], depthwise ones included.
    AdamW trains all other parameters, and those whose full name matches `adam` ("" stands for NOT_HIDDEN). Its learning
    rate is `adam_factor` times that of Muon. The update of a matrix is scaled by sqrt(max(1, out / in)).

    Raises:
      ValueError: an argument is out of range.
    """
    check_fractions(beta=beta, adam_b1=adam_b1, adam_b2=adam_b2)
    if ns_steps < 1 or adam_factor < 0:
        raise ValueError(f"ns_steps={ns_steps} must be at least 1, and adam_factor={adam_factor} at least 0")
    by_adam = pattern(adam or NOT_HIDDEN, "optimizer.name muon: adam")

    def matrices(tree):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: _matrix(parameter_name(path), leaf.ndim, by_adam), tree
        )

    def labels(tree):
        return jax.tree.map(
            lambda matrix: "adam" if matrix is None else "muon",
            matrices(tree),
            is_leaf=lambda node: node is None or isinstance(node, MuonDimensionNumbers),
        )

    hidden = optax.contrib.muon(
        learning_rate,
        ns_steps=ns_steps,
        beta=beta,
        eps=eps,
        weight_decay=weight_decay,
        weight_decay_mask=decay_mask,
        nesterov=nesterov,
        adaptive=adaptive,
        muon_weight_dimension_numbers=matrices,
    )
    # optax's own part by Adam has Nesterov's momentum and no decay mask
    others = optax.adamw(
        lambda step: adam_factor * learning_rate(step),
        adam_b1,
        adam_b2,
        eps,
        weight_decay=weight_decay,
        mask=decay_mask,
    )
    return optax.partition({"muon": hidden, "adam": others}, labels)


def _matrix(name: str, axes: int, by_adam: re.Pattern) -> Any:
    """Returns which axes of a parameter are the rows and columns of a matrix; None if AdamW trains it."""
    if not name.endswith("kernel") or axes < 2 or by_adam.fullmatch(name):
        return None
    return MuonDimensionNumbers(tuple(range(axes - 1)), axes - 1)
