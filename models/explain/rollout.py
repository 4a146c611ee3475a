"""Attention rollout: how much of each patch is in what a transformer reads its class from.

Abnar & Zuidema 2020    Quantifying attention flow in transformers, arXiv 2005.00928
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.errors import UserError
from models.explain.method import Explanation, explains, grid, resolved
from models.layers.attention import attention_weights


@explains
def attention_rollout(model: nn.Module, variables: Any, images: jax.Array, target: jax.Array) -> Explanation:
    """The product over the blocks of A / 2 + I / 2, A the mean over the heads of what the tokens weigh each other by
    (Abnar & Zuidema 2020, section 3): the class token's row of it, or the mean over the rows where there is none.

    It is the same for every class; `target` is only returned.

    Args:
      model: a network whose attentions all see all tokens, as ViT's.
      variables, images: as for the network.
      target: a class for all, one for each, or None for the most probable.

    Returns:
      values float32 [N, h, w], of the grid of patches; those of an image sum to 1, with the class token's own share.

    Raises:
      UserError: the network has no attention, or in windows.
    """
    if getattr(model, "remat", False):  # what is computed in such blocks cannot be read
        model = model.clone(remat=False)
    logits, found = attention_weights(model, variables, images)
    rolled = rollout(model, found, len(images))  # [N, T, T]
    height, width, before = grid(rolled.shape)
    rows = rolled[:, 0, 1:] if before else rolled.mean(1)
    return Explanation(rows.reshape(-1, height, width), logits, resolved(target, logits))


def rollout(model: nn.Module, weights: dict[str, jax.Array], count: int) -> jax.Array:
    """The product of what `attention_weights` found of `count` images, [N, H, T, T] each: [N, T, T], rows sum to 1."""
    shapes = {(len(weight), *weight.shape[2:]) for weight in weights.values()}
    batch, queries, keys = shapes.pop() if len(shapes) == 1 else (0, 0, 0)
    if batch != count or queries != keys or not grid((batch, queries, keys)):
        raise UserError(
            "attention_rollout is for networks whose attentions see all tokens, as ViT's; "
            f"{type(model).__name__} has {'none' if not weights else 'others'}: use grad_cam"
        )
    mixed = [(weight.mean(1) + jnp.eye(queries)) / 2 for weight in weights.values()]  # [N, H, T, T] -> [N, T, T]
    return functools.reduce(lambda earlier, later: jnp.matmul(later, earlier, precision="highest"), mixed)
