"""Activation functions by name."""

from collections.abc import Callable

import flax.linen as nn
import jax

from models.errors import choice_error

ACTIVATIONS = {
    "relu": nn.relu,  # Nair & Hinton 2010
    "gelu": lambda x: nn.gelu(x, approximate=False),  # Hendrycks & Gimpel 2016, arXiv 1606.08415: x Phi(x), exactly
    "silu": nn.silu,  # the same paper, section 4: x sigmoid(x)
    "relu6": nn.relu6,  # Howard et al. 2017: min(max(x, 0), 6)
}


def activation(spec: str | Callable) -> Callable[[jax.Array], jax.Array]:
    """Resolves `spec`, a name in ACTIVATIONS or any function of an array; UserError where it is neither."""
    if callable(spec):
        return spec
    if spec not in ACTIVATIONS:
        raise choice_error("act", spec, ACTIVATIONS)
    return ACTIVATIONS[spec]
