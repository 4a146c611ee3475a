"""Augmentation, inside the compiled step, from one line of a config: "crop(4)|flip|cutout(8)".

Operations are joined by "|" and applied from left to right, each with its own random key for each example, derived
from the example's place in the global batch: results do not depend on how a batch is split over devices.

    crop(pad, mode="zero")       pad, then crop at random to the size before (He 2016, section 4.2); mode "reflect" too
    flip(p=0.5)                  left to right
    cutout(size)                 a square of the mean colour around a uniform pixel, cut at the border (DeVries 2017)
    erase(p)                     a random rectangle of noise (Zhong 2020, "random erasing"; area 2-40%, aspect 0.3-3.3)
    randaugment(ops, magnitude)  Cubuk 2020; operations and magnitudes 0..30 as in torchvision
    jitter(b, c=0, s=0, h=0)     brightness, contrast, saturation, hue, in random order, as torchvision's ColorJitter
    grayscale(p)                 three channels of luma
    resize(size)                 bilinear, antialiased
    mixup(a), cutmix(a), mixup_cutmix(a, b)    once, at the end (mix.py): "image" becomes float, and "target" is made
"""

import ast
import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.errors import UserError, choice_error
from train.data import mix, pixels
from train.data.randaugment import BINS, randaugment

Op = Callable[[jax.Array, jax.Array], jax.Array]  # (key, uint8 [H, W, C]) -> uint8 [H', W', C]


@dataclasses.dataclass(frozen=True)
class Augment:
    """A parsed specification. ops: on one image each; mix: on a pair, or None."""

    spec: str
    num_classes: int
    ops: tuple[Op, ...]
    mix: Callable | None

    def __call__(self, key: jax.Array, batch: dict[str, jax.Array], first: jax.Array | int = 0) -> dict[str, jax.Array]:
        """Augments {"image": uint8 [B, H, W, C], "label": int32 [B], …}; `key` is of the step, `first` the place of
        the batch's first example in the global batch.

        "image" stays uint8; with mixup or cutmix it becomes float32 on the scale 0..255, and "target" float32
        [B, num_classes] is added. The rest of the batch is passed on.
        """
        images = batch["image"]
        places = first + jnp.arange(images.shape[0])
        keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(places)
        for number, op in enumerate(self.ops):
            op_keys = jax.vmap(lambda example_key, n=number: jax.random.fold_in(example_key, n))(keys)
            images = _each(op)(op_keys, images)
        batch = batch | {"image": images}
        return batch | self._mixed(keys, images, batch["label"]) if self.mix else batch

    def _mixed(self, keys: jax.Array, images: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        if len(images) % 2:
            raise UserError(f"data.augment='{self.spec}' mixes pairs: a device's batch must be even, not {len(images)}")
        pair_keys = jax.vmap(lambda pair_key: jax.random.fold_in(pair_key, len(self.ops)))(keys[::2])
        images = images.astype(jnp.float32).reshape(-1, 2, *images.shape[1:])  # [B, …] -> [B/2, 2, …]
        targets = jax.nn.one_hot(labels, self.num_classes).reshape(-1, 2, self.num_classes)
        images, targets = jax.vmap(self.mix)(pair_keys, images, targets)
        return {"image": images.reshape(-1, *images.shape[2:]), "target": targets.reshape(-1, self.num_classes)}


def build(
    spec: str, num_classes: int, image_shape: tuple[int, int, int], mean: Sequence[float] | None = None
) -> Augment:
    """Parses `spec` ("" augments nothing) for images uint8 [H, W, C] = image_shape.

    mean: the colour, on the scale 0..1, that cutout fills with (DeVries 2017 cuts normalized images, so the mean is
    their 0); None: black. Raises UserError that names the operation and its signature.
    """
    shape, ops, mixer = tuple(image_shape), [], None
    for name, arguments, keywords in _parse(spec):
        if name not in _OPS and name not in _MIXERS:
            raise choice_error("augmentation", name, [*_OPS, *_MIXERS])
        if mixer:
            raise UserError(f"augmentation {name}: mixup and cutmix come once, at the end of data.augment='{spec}'")
        if name in _MIXERS:
            mixer = _bind(name, _MIXERS[name], arguments, keywords)()
            continue
        context = _Context(shape, _colour(mean, shape[2]))
        op = _bind(name, _OPS[name], arguments, keywords)(context)
        shape = (op.keywords["size"],) * 2 + shape[2:] if name == "resize" else shape
        ops.append(op)
    return Augment(spec, num_classes, tuple(ops), mixer)


def normalize(
    images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: Any = jnp.float32
) -> jax.Array:
    """(images / 255 - mean) / std, for images on the scale 0..255, mean and std per channel on 0..1; in float32."""
    images = images.astype(jnp.float32) / 255
    return ((images - jnp.array(mean, jnp.float32)) / jnp.array(std, jnp.float32)).astype(dtype)


@dataclasses.dataclass(frozen=True)
class _Context:
    """What operations are built for: the shape [H, W, C] at their place, and the colour [C] of holes."""

    shape: tuple[int, int, int]
    colour: np.ndarray


def _colour(mean: Sequence[float] | None, channels: int) -> np.ndarray:
    return np.broadcast_to(np.round(255 * np.array(mean if mean is not None else 0.0)).astype(np.uint8), (channels,))


def _each(op: Op) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Applies an operation to every example. One that branches is mapped in turn on a CPU: there a branch not taken
    costs nothing, where vmap computes all of them, which an accelerator does faster than it loops.
    """
    if op.func in (_randaugment, _jitter) and jax.default_backend() == "cpu":
        return lambda keys, images: jax.lax.map(lambda example: op(*example), (keys, images))
    return jax.vmap(op)


def _parse(spec: str) -> list[tuple[str, list[Any], dict[str, Any]]]:
    """ "crop(4)|flip" -> [("crop", [4], {}), ("flip", [], {})], without evaluating anything."""
    if not spec.strip():
        return []

    def value(node: ast.expr) -> Any:
        return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)

    def calls(node: ast.expr) -> list[tuple[str, list[Any], dict[str, Any]]]:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return calls(node.left) + calls(node.right)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return [(node.func.id, [value(a) for a in node.args], {k.arg: value(k.value) for k in node.keywords})]
        if isinstance(node, ast.Name):
            return [(node.id, [], {})]
        raise ValueError(ast.unparse(node))

    try:
        return calls(ast.parse(spec.strip(), mode="eval").body)
    except (SyntaxError, ValueError) as error:
        raise UserError(f"data.augment='{spec}': want operations joined by '|', as crop(4)|flip") from error


def _bind(name: str, factory: Callable, arguments: list[Any], keywords: dict[str, Any]) -> Callable:
    """`factory` with the arguments of a call in a specification, checked against its signature."""
    signature = inspect.signature(factory)
    allowed = signature.replace(
        parameters=[p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in signature.parameters.values() if p.name != "context"],
        return_annotation=inspect.Signature.empty,
    )
    try:
        bound = allowed.bind(*arguments, **keywords).arguments
        for argument, given in bound.items():
            wanted = allowed.parameters[argument].annotation
            number = isinstance(given, int | float) and not isinstance(given, bool)
            if not (isinstance(given, wanted) or (wanted is float and number)) or (wanted is int and not number):
                raise TypeError(f"{argument} must be {wanted.__name__}, not {given!r}")
        return functools.partial(_checked, name, allowed, factory, bound)
    except TypeError as error:
        raise UserError(f"augmentation {name}: {error}; want {name}{allowed}") from error


def _checked(name: str, signature: inspect.Signature, factory: Callable, bound: dict[str, Any], *context: Any) -> Op:
    try:
        return factory(*context, **bound)
    except ValueError as error:
        raise UserError(f"augmentation {name}: {error}; want {name}{signature}") from error


def _want(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
