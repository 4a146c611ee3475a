"""Attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2).

On a CPU, `attend` puts the heads of float32 before the tokens, so that XLA multiplies contiguous matrices, and divides
by the softmax's sum after the product with the values. On accelerators, it uses cuDNN's flash attention where that has
a kernel, and otherwise products in the type of the network.
Milliseconds of jax.nn's and this implementation, forward and gradient, on 2 cores with AVX-512, jax 0.10.2:
  ViT-S, 8 x 197 tokens, 6 heads    13.7 and  7.1     42.1 and 21.4
  ViT-B, 8 x 256 tokens, 12 heads   43.8 and 17.8    141.4 and 77.5
  Swin-T, 512 x 49 tokens, 3 heads  26.3 and 16.9     92.8 and 60.1
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from models.kernels.derivatives import custom_vjp
from models.kernels.tracing import plain_wanted, platform


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None = None, mask: jax.Array | None = None
) -> jax.Array:
    """Returns scaled dot-product attention, softmax(q k' / sqrt(D) + bias) v for each head.

    Half precision on a GPU uses cuDNN's flash attention if its kernels support the shapes, so that no [T, S] matrix is
    stored.

    Args:
      q: [N, T, H, D].
      k: [N, S, H, D].
      v: [N, S, H, D].
      bias: Added to the logits; any shape that broadcasts to [N, H, T, S].
      mask: bool, any shape that broadcasts to [N, H, T, S]; False where a query does not see a key. A query that sees
        no key attends to all of them.

    Returns:
      [N, T, H, D], of q's type; the softmax is float32.
    """
    if platform() == "cpu" and q.dtype == jnp.float32 and not plain_wanted():
        return _weigh(_logits(q, k, bias, mask), v.swapaxes(1, 2)).swapaxes(1, 2)
    if platform() != "cpu" and not plain_wanted() and not _flash(q, k, bias is not None or mask is not None):
        return _attend(q, k, v, bias, mask)
    lengths = (1, 1, q.shape[1], k.shape[1])  # cuDNN broadcasts only over N and H
    bias, mask = (
        None if x is None else jnp.broadcast_to(x, jnp.broadcast_shapes(x.shape, lengths)) for x in (bias, mask)
    )
    bias = None if bias is None else bias.astype(q.dtype)
    if _flash(q, k, biased=bias is not None or mask is not None):
        return _cudnn(q, k, v, bias, mask)
    return _plain(q, k, v, bias, mask)


def _attend(q, k, v, bias, mask) -> jax.Array:
    """Returns `attend` for an accelerator without a kernel for it.

    Products have the type of q in both directions; XLA's own gradient of a softmax in float32 would multiply in
    float32. What the gradient needs is stored in the type of q, too: without `lax.optimization_barrier`, XLA stores
    float32 matrices and rounds them in each product.
    """
    logits = _scores(q, k)
    logits = logits if bias is None else logits + bias
    logits = logits if mask is None else jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    return _mix(logits, v)


@custom_vjp
def _scores(q, k):
    """Returns q k' / sqrt(D), float32 [N, H, T, S], for q [N, T, H, D] and k [N, S, H, D]."""
    return _scores_forward(q, k)[0]


def _scores_forward(q, k):
    scores = jnp.einsum("nthd,nshd->nhts", q, k, preferred_element_type=jnp.float32)
    return scores * q.shape[-1] ** -0.5, (q, k)


def _scores_backward(residuals, gradient):
    q, k = residuals
    gradient = lax.optimization_barrier((gradient * q.shape[-1] ** -0.5).astype(q.dtype))
    return jnp.einsum("nhts,nshd->nthd", gradient, k), jnp.einsum("nhts,nthd->nshd", gradient, q)


_scores.defvjp(_scores_forward, _scores_backward)


@custom_vjp
def _mix(logits, v):
    """Returns softmax(logits) v, [N, T, H, D] of v's type, for logits [N, H, T, S] and v [N, S, H, D]."""
    return _mix_forward(logits, v)[0]


def _mix_forward(logits, v):
    weights = lax.optimization_barrier(jax.nn.softmax(logits).astype(v.dtype))
    y = jnp.einsum("nhts,nshd->nthd", weights, v)
    return y, (weights, v, y)


def _mix_backward(residuals, dy):
    weights, v, y = residuals
    total = (y.astype(jnp.float32) * dy.astype(jnp.float32)).sum(-1).swapaxes(1, 2)[..., None]  # [N, H, T, 1]
    dlogits = weights * (jnp.einsum("nthd,nshd->nhts", dy, v, preferred_element_type=jnp.float32) - total)
    return dlogits, jnp.einsum("nhts,nthd->nshd", weights, dy)


_mix.defvjp(_mix_forward, _mix_backward)


def _logits(q, k, bias, mask) -> jax.Array:
    """Returns the logits of the softmax in `attend`, float32 [N, H, T, S]."""
    q, k = (x.astype(jnp.float32).swapaxes(1, 2) for x in (q, k))
    logits = jnp.einsum("nhtd,nhsd->nhts", q * q.shape[-1] ** -0.5, k)
    logits = logits if bias is None else logits + bias
    return logits if mask is None else jnp.where(mask, logits, jnp.finfo(jnp.float32).min)


@custom_vjp
def _weigh(logits, v):
    """Returns softmax(logits) v, float32, for logits [N, H, T, S] and v [N, H, S, D]."""
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
    """Returns whether cuDNN has a kernel for these shapes on this GPU.

    The size of a head must be a multiple of 8 and at most 128. Gradients with a bias, or a mask, which cuDNN takes as a
    bias, need even lengths; `_even` handles odd lengths without a bias.
    """
    if platform() != "gpu" or plain_wanted() or q.dtype not in (jnp.bfloat16, jnp.float16) or not _has_flash():
        return False
    even = q.shape[1] % 2 == k.shape[1] % 2 == 0
    return q.size > 0 and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128 and (even or not biased)


def _has_flash() -> bool:
    """Returns whether cuDNN's flash attention supports the GPU: NVIDIA's of compute capability 8.0 (Ampere) or later.

    A program that is traced on another backend is for a GPU that has it.
    """
    if jax.default_backend() != "gpu":
        return True
    capability = str(getattr(jax.local_devices()[0], "compute_capability", ""))  # "9.0"; "gfx90a" of an AMD GPU
    return capability[:1].isdecimal() and float(capability) >= 8


def _even(q, k, v, bias, mask, implementation) -> jax.Array:
    """Returns `jax.nn.dot_product_attention`; odd lengths are padded with a token that nothing attends to.

    If there is no bias, JAX passes cuDNN an empty array in its place. JAX therefore refuses gradients of odd lengths,
    as if there were a bias.
    """
    batch, length = q.shape[:2]
    query_lengths = key_lengths = None
    if length % 2 or k.shape[1] % 2:
        query_lengths, key_lengths = jnp.full(batch, length), jnp.full(batch, k.shape[1])
        q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    y = jax.nn.dot_product_attention(
        q,
        k,
        v,
        bias,
        mask,
        implementation=implementation,
        query_seq_lengths=query_lengths,
        key_value_seq_lengths=key_lengths,
    )
    return y[:, :length]


def _plain(q, k, v, bias, mask) -> jax.Array:
    return jax.nn.dot_product_attention(q, k, v, bias, mask, implementation="xla")


@functools.partial(custom_vjp, plain=_plain)
def _cudnn(q, k, v, bias, mask) -> jax.Array:
    """Returns attention by cuDNN, whose gradient in JAX is for reverse mode."""
    return _even(q, k, v, bias, mask, implementation="cudnn")


def _cudnn_forward(q, k, v, bias, mask):
    y, pull = jax.vjp(lambda q, k, v, bias: _even(q, k, v, bias, mask, implementation="cudnn"), q, k, v, bias)
    return y, (pull, mask)


def _cudnn_backward(residuals, dy):
    pull, mask = residuals
    return *pull(dy), mask  # a mask has no gradient: the last value is not used


_cudnn.defvjp(_cudnn_forward, _cudnn_backward)


class _Attention(nn.Module):
    """Base of multi-head attention.

    Attributes:
      dense: Constructor of dense layers.
      heads: Number of heads, a divisor of C.
    """

    dense: Callable
    heads: int

    def _project(self, x: jax.Array, name: str, parts: int, channels: int) -> list[jax.Array]:
        """Applies the dense layer `name` to x [N, T, ...] and splits it into `parts` arrays [N, T, H, C / H]."""
        y = self.dense(parts * channels, name=name)(x)
        shape = (*x.shape[:2], self.heads, channels // self.heads)
        return [part.reshape(shape) for part in jnp.split(y, parts, -1)]  # XLA copies less than in the other order

    def _output(self, y: jax.Array) -> jax.Array:
        """Joins the heads of y [N, T, H, C / H] and applies the dense layer "out": [N, T, C]."""
        y = y.reshape(*y.shape[:2], y.shape[2] * y.shape[3])
        return self.dense(y.shape[-1], name="out")(y)


class SelfAttention(_Attention):
    """Multi-head self-attention: maps x [N, T, C] to the same shape.

    The dense layer "qkv" [C, 3 C] has the order query, key, value, each of which is split into heads; "out" is [C, C].
    """

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        bias: jax.Array | None = None,
        mask: jax.Array | None = None,
        place: int | jax.Array | None = None,
    ) -> jax.Array:
        """Attends to x, or with `place` to cached tokens and x.

        Args:
          x: [N, T, C].
          bias: See `attend`.
          mask: See `attend`. With `place`, it is required, and its last axis has the length S of the cache.
          place: Position of x's first token in the sequence that the mutable collection "cache" holds, as keys and
            values [N, S, H, C / H]. The keys and values of x are written there. The first call creates the cache.
        """
        q, k, v = self._project(x, "qkv", 3, x.shape[-1])
        if place is not None:
            assert mask is not None
            shape = (x.shape[0], mask.shape[-1], *k.shape[2:])
            k, v = (self._cached(name, new, shape, place) for name, new in (("keys", k), ("values", v)))
        return self._output(attend(q, k, v, bias, mask))

    def _cached(self, name, new, shape, place) -> jax.Array:
        cached = self.variable("cache", name, jnp.zeros, shape, new.dtype)
        cached.value = lax.dynamic_update_slice_in_dim(cached.value, new, place, 1)
        return cached.value


class CrossAttention(_Attention):
    """Multi-head attention of x [N, T, C] to a memory [N, S, M], with output [N, T, C].

    The dense layers are "q" [C, C]; "kv" [M, 2 C], in the order key, value, each of which is split into heads; and
    "out" [C, C].
    """

    @nn.compact
    def __call__(
        self, x: jax.Array, memory: jax.Array | None, mask: jax.Array | None = None, remember: bool = False
    ) -> jax.Array:
        """Attends to `memory`, or with None to the cached keys and values.

        Args:
          x: [N, T, C].
          memory: [N, S, M], or None.
          mask: See `attend`.
          remember: Whether to write the keys and values of `memory` to the collection "cache".
        """
        (q,) = self._project(x, "q", 1, x.shape[-1])
        if memory is None:
            k, v = self.get_variable("cache", "keys"), self.get_variable("cache", "values")  # [N, S, H, C / H]
        else:
            k, v = self._project(memory, "kv", 2, x.shape[-1])
        if remember:
            self.put_variable("cache", "keys", k)
            self.put_variable("cache", "values", v)
        return self._output(attend(q, k, v, mask=mask))


def attention_weights(
    model: nn.Module, variables: Any, *inputs: Any, **kwargs: Any
) -> tuple[Any, dict[str, jax.Array]]:
    """Applies a model and returns the weights of its attention layers, which `attend` does not return.

    The weights are recomputed from queries, keys, bias and mask, without a change to the model; it works under jit. It
    does not support rematerialized blocks or a decoder's cache.

    Args:
      model: The network.
      variables: Its variables.
      *inputs: Positional arguments of `model.apply`.
      **kwargs: Keyword arguments of `model.apply`.

    Returns:
      The result of `model.apply`, and {path of the module, e.g. "decoder/block0/cross": softmax(q k' / sqrt(D) + bias),
      float32 [N, H, T, S]} in the order of the computation.
    """
    projected: dict[tuple[str, ...], jax.Array] = {}
    weights: dict[str, jax.Array] = {}

    def read(call, args, call_kwargs, context):
        module, y = context.module, call(*args, **call_kwargs)
        if context.method_name != "__call__":
            return y
        if isinstance(module.parent, _Attention):
            projected[module.path] = y
        if isinstance(module, _Attention):
            arguments = inspect.signature(type(module).__call__).bind(module, *args, **call_kwargs).arguments
            if isinstance(module, SelfAttention):
                q, k, _ = jnp.split(projected[*module.path, "qkv"], 3, -1)  # [N, T, C] each
            else:
                q = projected[*module.path, "q"]
                k, _ = jnp.split(projected[*module.path, "kv"], 2, -1)
            q, k = (x.reshape(*x.shape[:2], module.heads, x.shape[2] // module.heads) for x in (q, k))
            logits = _logits(q, k, arguments.get("bias"), arguments.get("mask"))
            weights["/".join(module.path)] = jax.nn.softmax(logits)
        return y

    with nn.intercept_methods(read):
        output = model.apply(variables, *inputs, **kwargs)
    return output, weights
