"""Attention rollout: the contribution of each patch to the token from which a transformer reads its class.

Abnar & Zuidema 2020    Quantifying attention flow in transformers, arXiv 2005.00928
"""

import functools
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.errors import UserError
from models.explain.method import Explanation, explains, grid, resolved
from models.layers.attention import attention_weights


@explains
def attention_rollout(model: nn.Module, variables: Any, images: jax.Array, target: jax.Array) -> Explanation:
    """Returns the product over the blocks of A / 2 + I / 2, where A are attention weights averaged over heads.

    The values are the row of the class token, or the mean over rows without one (Abnar & Zuidema 2020, section 3). They
    are the same for every class; `target` is only returned.

    Args:
      model: A network whose attention layers all see all tokens, such as ViT.
      variables: Its variables.
      images: [N, H, W, C].
      target: One class for all images, a class per image, or None for the most probable class.

    Returns:
      values float32 [N, h, w], on the grid of patches; with the class token's own value, those of an image sum to 1.

    Raises:
      UserError: The network has no attention, or attention in windows.
    """
    if getattr(model, "remat", False):  # activations inside rematerialized blocks cannot be read
        model = model.clone(remat=False)
    logits, weights = attention_weights(model, variables, images)
    rolled = rollout(model, weights, len(images))  # [N, T, T]
    height, width, before = cast(tuple[int, int, int], grid(rolled.shape))
    rows = rolled[:, 0, 1:] if before else rolled.mean(1)
    return Explanation(rows.reshape(-1, height, width), logits, resolved(target, logits))


def rollout(model: nn.Module, weights: dict[str, jax.Array], count: int) -> jax.Array:
    """Multiplies weights [N, H, T, T] of `count` images from `attention_weights` to [N, T, T], whose rows sum to 1."""
    shapes = {(len(weight), *weight.shape[2:]) for weight in weights.values()}
    batch, queries, keys = shapes.pop() if len(shapes) == 1 else (0, 0, 0)
    if batch != count or queries != keys or not grid((batch, queries, keys)):
        raise UserError(
            "attention_rollout needs a network whose attention layers see all tokens, such as ViT; "
            f"{type(model).__name__} has {'no attention' if not weights else 'other attention layers'}: use grad_cam"
        )
    mixed = [(weight.mean(1) + jnp.eye(queries)) / 2 for weight in weights.values()]  # [N, H, T, T] -> [N, T, T]
    return functools.reduce(lambda earlier, later: jnp.matmul(later, earlier, precision="highest"), mixed)
