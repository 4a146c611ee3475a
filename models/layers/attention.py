"""Attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2): an operation on sets of vectors.

It is `jax.nn.dot_product_attention`, but for float32 on a CPU: there `attend` puts the heads before the tokens, so that
XLA multiplies contiguous matrices, and divides by the softmax's sum after the product with the values. In ms, 2 cores
with AVX-512, jax 0.10.2, jax.nn's and this one, forward and gradient:
  ViT-S, 8 x 197 tokens, 6 heads    13.7 and  7.1     42.1 and 21.4
  ViT-B, 8 x 256 tokens, 12 heads   43.8 and 17.8    141.4 and 77.5
  Swin-T, 512 x 49 tokens, 3 heads  26.3 and 16.9     92.8 and 60.1
"""

import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from models.kernels.tracing import custom_vjp, plain_wanted, reverse_only


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None = None, mask: jax.Array | None = None
) -> jax.Array:
    """Scaled dot-product attention, softmax(q k' / sqrt(D) + bias) v for each head.

    Half precision on a GPU goes through cuDNN's flash attention where its kernels allow the shapes, so that no
    [T, S] matrix is stored.

    Args:
      q: [N, T, H, D].
      k, v: [N, S, H, D].
      bias: added to the logits, any shape that broadcasts to [N, H, T, S].
      mask: bool, likewise; False where a query does not see a key. A query that sees none sees all.

    Returns:
      [N, T, H, D], of q's type; the softmax is float32.
    """
    if jax.default_backend() == "cpu" and q.dtype == jnp.float32 and not plain_wanted():
        return _weigh(_logits(q, k, bias, mask), v.swapaxes(1, 2)).swapaxes(1, 2)
    lengths = (1, 1, q.shape[1], k.shape[1])  # cuDNN broadcasts over N and H alone
    bias, mask = (
        None if x is None else jnp.broadcast_to(x, jnp.broadcast_shapes(x.shape, lengths)) for x in (bias, mask)
    )
    bias = None if bias is None else bias.astype(q.dtype)
    if _flash(q, k, biased=bias is not None or mask is not None):
        return _even(reverse_only(q), k, v, bias, mask, implementation="cudnn")
    return jax.nn.dot_product_attention(q, k, v, bias, mask, implementation="xla")


def _logits(q, k, bias, mask) -> jax.Array:
    """What the softmax of `attend` is of, float32 [N, H, T, S]."""
    q, k = (x.astype(jnp.float32).swapaxes(1, 2) for x in (q, k))
    logits = jnp.einsum("nhtd,nhsd->nhts", q * q.shape[-1] ** -0.5, k)
    logits = logits if bias is None else logits + bias
    return logits if mask is None else jnp.where(mask, logits, jnp.finfo(jnp.float32).min)


@custom_vjp
def _weigh(logits, v):
    """softmax(logits) v, float32; logits [N, H, T, S], v [N, H, S, D]."""
    return _weigh_forward(logits, v)[0]


def _weigh_forward(logits, v):
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    total = weights.sum(-1, keepdims=True)
    y = jnp.einsum("nhts,nhsd->nhtd", weights, v) / total
    return y, (weights, total, v, y)


def _weigh_backward(residuals, dy):
    weights, total, v, y = residuals
    dy = dy / total
    dlogits = weights * (jnp.einsum("nhtd,nhsd->nhts", dy, v) - (y * dy).sum(-1, keepdims=True))
    return dlogits, jnp.einsum("nhts,nhtd->nhsd", weights, dy)


_weigh.defvjp(_weigh_forward, _weigh_backward)


def _flash(q, k, biased) -> bool:
    """Returns whether cuDNN has kernels: for heads of a multiple of 8 and at most 128. Gradients with a bias or a mask,
    which it takes as a bias, want even lengths; those without go through `_even`.
    """
    if jax.default_backend() != "gpu" or plain_wanted() or q.dtype not in (jnp.bfloat16, jnp.float16):
        return False
    even = q.shape[1] % 2 == k.shape[1] % 2 == 0
    return q.size > 0 and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128 and (even or not biased)


def _even(q, k, v, bias, mask, implementation) -> jax.Array:
    """Returns `jax.nn.dot_product_attention` of even lengths: an odd one gets a token that nothing attends to.

    JAX hands cuDNN an empty array where there is no bias, and then refuses gradients of odd lengths, as with a bias.
    """
    batch, length = q.shape[:2]
    lengths = {}
    if length % 2 or k.shape[1] % 2:
        lengths = {"query_seq_lengths": jnp.full(batch, length), "key_value_seq_lengths": jnp.full(batch, k.shape[1])}
        q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    return jax.nn.dot_product_attention(q, k, v, bias, mask, implementation=implementation, **lengths)[:, :length]


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
    def __call__(
        self,
        x: jax.Array,
        bias: jax.Array | None = None,
        mask: jax.Array | None = None,
        place: int | jax.Array | None = None,
    ) -> jax.Array:
        """Attends to x; or, where `place` is given, to what is remembered and x.

        Args:
          x: [N, T, C].
          bias, mask: as in `attend`.
          place: of x's first token in the sequence that the collection "cache" (mutable) remembers, keys and values
            [N, S, H, C / H]: x's are put there, and `mask` [..., S] says which of them are seen. S is the mask's in
            the first call, which starts the cache.
        """
        batch, length, channels = x.shape
        qkv = self.dense(3 * channels, name="qkv")(x).reshape(batch, length, 3, self.heads, channels // self.heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]  # [N, T, H, C / H] each
        if place is not None:
            shape = (batch, mask.shape[-1], *k.shape[2:])
            k, v = (self._remembered(name, new, shape, place) for name, new in (("keys", k), ("values", v)))
        y = attend(q, k, v, bias, mask)  # [N, T, H, C / H]
        return self.dense(channels, name="out")(y.reshape(batch, length, channels))

    def _remembered(self, name, new, shape, place) -> jax.Array:
        cached = self.variable("cache", name, jnp.zeros, shape, new.dtype)
        cached.value = lax.dynamic_update_slice_in_dim(cached.value, new, place, 1)
        return cached.value


class CrossAttention(nn.Module):
    """Multi-head attention of x [N, T, C] to a memory [N, S, M]: -> [N, T, C].

    Attributes:
      dense: constructor of dense layers: "q" [C, C], "kv" [M, 2 C], in the order key, value, each of them by head, and
        "out" [C, C].
      heads: their number, a divisor of C.
    """

    dense: Callable
    heads: int

    @nn.compact
    def __call__(
        self, x: jax.Array, memory: jax.Array | None, mask: jax.Array | None = None, remember: bool = False
    ) -> jax.Array:
        """Attends to `memory`, whose keys and values `remember` puts into the collection "cache"; None: to those."""
        batch, length, channels = x.shape
        heads = (self.heads, channels // self.heads)
        q = self.dense(channels, name="q")(x).reshape(batch, length, *heads)
        if memory is None:
            k, v = self.get_variable("cache", "keys"), self.get_variable("cache", "values")  # [N, S, H, C / H]
        else:
            kv = self.dense(2 * channels, name="kv")(memory).reshape(batch, memory.shape[1], 2, *heads)
            k, v = kv[:, :, 0], kv[:, :, 1]
        if remember:
            self.put_variable("cache", "keys", k)
            self.put_variable("cache", "values", v)
        return self.dense(channels, name="out")(attend(q, k, v, mask=mask).reshape(batch, length, channels))


def attention_weights(
    model: nn.Module, variables: Any, *inputs: Any, **kwargs: Any
) -> tuple[Any, dict[str, jax.Array]]:
    """Applies a model, and computes again what its attentions weigh by, which `attend` does not give.

    It reads their queries and keys, bias and mask, so the model is as it was; under jit as well. Not for blocks that
    are rematerialized, nor for a decoder's cache.

    Args:
      model, variables, *inputs, **kwargs: as for `model.apply`.

    Returns:
      What `model.apply` returns, and {path of the module, "decoder/block0/cross": softmax(q k' / sqrt(D) + bias),
      float32 [N, H, T, S]} in the order of the computation.
    """
    projected: dict[tuple[str, ...], jax.Array] = {}
    found: dict[str, jax.Array] = {}

    def read(call, args, call_kwargs, context):
        module, y = context.module, call(*args, **call_kwargs)
        if context.method_name != "__call__":
            return y
        if isinstance(module.parent, (SelfAttention, CrossAttention)):
            projected[module.path] = y
        if isinstance(module, (SelfAttention, CrossAttention)):
            asked = inspect.signature(type(module).__call__).bind(module, *args, **call_kwargs).arguments
            if isinstance(module, SelfAttention):
                q, k, _ = jnp.split(projected[*module.path, "qkv"], 3, -1)  # [N, T, C] each
            else:
                q = projected[*module.path, "q"]
                k, _ = jnp.split(projected[*module.path, "kv"], 2, -1)
            q, k = (x.reshape(*x.shape[:2], module.heads, x.shape[2] // module.heads) for x in (q, k))
            found["/".join(module.path)] = jax.nn.softmax(_logits(q, k, asked.get("bias"), asked.get("mask")))
        return y

    with nn.intercept_methods(read):
        output = model.apply(variables, *inputs, **kwargs)
    return output, found
