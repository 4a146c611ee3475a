"""Attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2): an operation on sets of vectors."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.layers.conv import plain_wanted


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None = None, mask: jax.Array | None = None
) -> jax.Array:
    """Scaled dot-product attention, softmax(q k' / sqrt(D) + bias) v for each head, by `jax.nn.dot_product_attention`.

    Half precision on a GPU goes through cuDNN's flash attention where its kernels allow the shapes, so that no
    [T, S] matrix is stored.

    Args:
      q: [N, T, H, D].
      k, v: [N, S, H, D].
      bias: added to the logits, any shape that broadcasts to [N, H, T, S].
      mask: bool, likewise; False where a query does not see a key.

    Returns:
      [N, T, H, D], of q's type; the softmax is float32.
    """
    implementation = "cudnn" if _flash(q, k, bias) else "xla"
    bias = None if bias is None else bias.astype(q.dtype)
    return jax.nn.dot_product_attention(q, k, v, bias, mask, implementation=implementation)


def _flash(q, k, bias) -> bool:
    """Whether cuDNN has kernels: heads of a multiple of 8 and at most 128; gradients of a bias want even lengths."""
    if jax.default_backend() != "gpu" or plain_wanted() or q.dtype not in (jnp.bfloat16, jnp.float16):
        return False
    even = q.shape[1] % 2 == k.shape[1] % 2 == 0
    return q.shape[-1] % 8 == 0 and q.shape[-1] <= 128 and (bias is None or even)


class SelfAttention(nn.Module):
    """Multi-head self-attention: x [N, T, C] -> [N, T, C].

    Attributes:
      dense: constructor of dense layers: "qkv" [C, 3 C], in the order query, key, value, each of them by head, and
        "out" [C, C].
      heads: their number, a divisor of C.
    """

    dense: Callable
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array | None = None, mask: jax.Array | None = None) -> jax.Array:
        """bias, mask: as in `attend`."""
        batch, length, channels = x.shape
        qkv = self.dense(3 * channels, name="qkv")(x).reshape(batch, length, 3, self.heads, channels // self.heads)
        y = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], bias, mask)  # [N, T, H, C / H]
        return self.dense(channels, name="out")(y.reshape(batch, length, channels))
