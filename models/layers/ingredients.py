"""The fields that every network has, and what they resolve to: the ingredients that studies exchange."""

import bisect
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import plugins
from models.errors import UserError, choice_error, has_type
from models.kernels.lowerings import EmptyMap
from models.kernels.tracing import lowering
from models.layers.activation import activation
from models.layers.conv import Conv, Dense, StandardizedConv
from models.layers.init import init
from models.layers.low_bit import BinaryWeightConv, BinaryWeightDense, TernaryConv, TernaryDense, XnorConv, XnorDense
from models.layers.norm import norm, separates_channels, synchronizes

SYNC_AXIS = "batch"  # the device axis of a training step
CONVS = {
    "standard": Conv,
    "standardized": StandardizedConv,
    "ternary": TernaryConv,
    "binary_weight": BinaryWeightConv,
    "xnor": XnorConv,
}
DENSES = {"standard": Dense, "ternary": TernaryDense, "binary_weight": BinaryWeightDense, "xnor": XnorDense}
LOW_BIT = ("ternary", "binary_weight", "xnor")  # of the two: see Sites
MAX_SMALLEST = 1024  # pixels: the largest size that is tried where images are too small
HEAD = "head"  # the name of every network's last layer


class Ingredients(NamedTuple):
    """Constructors of the layers of one call of a model, the model's fields bound; only `act` is a function of arrays.

    Attributes:
      conv: conv(features, kernel_size, strides=1, ..., name=...), with a bias only where there is no normalization,
        unless the network says `use_bias`; None in a network that has no convolutions.
      dense: dense(features, name=...), with a bias.
      norm: norm(name=..., scale_init=...).
      act: of an array.
    """

    conv: Callable
    dense: Callable
    norm: Callable
    act: Callable


class Sites:
    """Which layers of one call of a network are low-bit where a name asks for that: all but the first and the head,
    which remain standard, as in the papers (Zhu 2017, section 5; Rastegari 2016, section 4.1).

    Args:
      first: whether a layer comes first; in some networks that is an embedding.
    """

    def __init__(self, first: bool = True):
        self._first = first
        self._wanted: dict[str, str] = {}  # fields that have made no low-bit layer yet

    def constructor(self, field: str, spec: str | Callable, known: dict[str, Callable]) -> Callable:
        """Of the layers that `spec`, a name in `known`, FILE.py:NAME or a class, asks for in `field`; UserError for
        other names.
        """
        spec = plugins.load(spec)
        if not callable(spec) and spec not in known:
            raise choice_error(field, spec, known)
        chosen = spec if callable(spec) else known[spec]
        low_bit = not callable(spec) and spec in LOW_BIT
        if low_bit:
            self._wanted[field] = spec

        def construct(*args, name: str | None = None, **kwargs):
            first, self._first = self._first, False
            if low_bit and not first and name != HEAD:
                self._wanted.pop(field, None)
                return chosen(*args, name=name, **kwargs)
            if name == HEAD and self._wanted:
                field_left, spec_left = next(iter(self._wanted.items()))
                raise UserError(
                    f"{field_left}='{spec_left}' is without effect: the first layer and the head remain "
                    "standard, and this network has no other of its kind"
                )
            return (known["standard"] if low_bit else chosen)(*args, name=name, **kwargs)

        return construct


class Network(nn.Module):
    """Base of every network: the ingredients that all of them have.

    Attributes:
      norm: see layers/norm.py.
      act: see layers/activation.py.
      kernel_init: of every kernel, stem and head included, see layers/init.py; biases start at zero. `models.create`
        and configs call it `init`, a name that flax modules have taken.
      dense: "standard", or a class with the fields of layers/conv.py's Dense, for every such layer; "ternary",
        "binary_weight" or "xnor" (low_bit.py), for every one but the network's first layer and its head.
      dtype: of the computation, e.g. "bfloat16"; None for float32. Parameters, statistics and logits stay float32.

    Raises:
      UserError: a field has a value that it cannot have, or that other fields leave without effect.
    """

    norm: str | Callable = "batch"
    act: str | Callable = "relu"
    kernel_init: str | Callable = "msra"
    dense: str | Callable = "standard"
    dtype: Any = None

    def __post_init__(self):
        self.ingredients(train=False)
        self.check()
        super().__post_init__()

    def check(self) -> None:
        """Raises UserError where the fields of a family contradict each other; the `_need_` methods are for it."""

    def _need_at_least(self, least: int, *fields: str) -> None:
        for field in fields:
            if getattr(self, field) < least:
                raise UserError(f"{field}={getattr(self, field)} must be at least {least}")

    def _need_rates(self, *fields: str) -> None:
        for field in fields:
            if not 0 <= getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)} must be at least 0 and below 1")

    def _need_mean_over_space(self, channels: int) -> None:
        """That of what the norm puts out is not the same for all images."""
        if separates_channels(self.norm, channels):
            raise UserError(
                f"norm='{self.norm}', which averages each channel by itself, is 0 in the mean over space "
                "that is classified, whatever the image: use another norm"
            )

    def _need_choice(self, field: str, allowed: Collection[str]) -> None:
        if getattr(self, field) not in allowed:
            raise choice_error(field, getattr(self, field), allowed)

    def _need_numbers(
        self, field: str, example: Sequence[int], *, empty: bool = False, count: int | None = None, least: int = 1
    ) -> None:
        """Whole numbers: `count` of them where given, and none at all only if `empty`."""
        value = getattr(self, field)
        if (
            not isinstance(value, (tuple, list))
            or any(not has_type(n, int) or n < least for n in value)
            or (not value and not empty)
            or count not in (None, len(value))
        ):
            many = "" if count is None else f"{count} "
            raise UserError(f"{field}={value} must be {many}whole numbers of at least {least}, as {tuple(example)}")

    def example(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes and types of what the network is called with, for one example."""
        raise NotImplementedError

    def ingredients(self, train: bool) -> Ingredients:
        """Resolves the fields for one call."""
        return self._ingredients(train, Sites())

    def _ingredients(self, train: bool, sites: Sites) -> Ingredients:
        kernels = {"kernel_init": init(self.kernel_init), "dtype": _dtype(self.dtype)}
        return Ingredients(
            conv=None,
            dense=functools.partial(sites.constructor("dense", self.dense, DENSES), **kernels),
            norm=norm(self.norm, train=train, dtype=kernels["dtype"], axis_name=self._norm_axis(train)),
            act=activation(self.act),
        )

    def _norm_axis(self, train: bool) -> str | None:
        return None


class Classifier(Network):
    """Base of the networks from images [N, H, W, C] to logits [N, num_classes], float32.

    A subclass has fields of its own, and `__call__(self, images, train=False)` under `nn.compact`, in which it

      takes its layers from `layers = self.ingredients(train)` (see Ingredients), each with a name: that is the path
        of its parameters, and what widths, freezing and imported weights call it by;
      marks what others may read by `x = Endpoint("stage1")(x)` (layers/endpoint.py): maps [N, h, w, C], of which the
        last is what Grad-CAM explains, and "pre_logits" [N, C], the features of transfer;
      ends in a dense layer named "head", which transfer replaces, in float32.

    It has the fields of Network, and:

    Attributes:
      num_classes: of the logits.
      image_size: height and width of the images that the network is made for. Networks whose parameters depend on it
        say so; all others take any size, and this is what tools choose where nobody says.
      conv: "standard", "standardized" (weight standardization), or a class with the fields of layers/conv.py's Conv,
        for every convolution; "ternary", "binary_weight" or "xnor" (low_bit.py), for every one but the
        network's first layer. An XNOR network's activation is the sign of its convolutions' input: with act="identity"
        preresnets have the paper's block, normalize, binarize, convolve, pool (section 3.2), and so have networks that
        pool what they have normalized, as the maximum commutes with norms of positive scale.
      sync_norm: whether batch statistics are averaged over the devices of a training step.
      widths: output features of layers by path, (("stage1/block0/conv1", 12), ...), where the family has others; what
        follows a layer takes what it gives. `models.create` checks that there are such layers.
    """

    num_classes: int = 1000
    image_size: int = 224
    conv: str | Callable = "standard"
    sync_norm: bool = False
    widths: Sequence[tuple[str, int]] = ()

    def __init_subclass__(cls, **kwargs):
        if "__call__" in vars(cls):  # before flax wraps it
            cls.__call__ = _naming_smallest(cls.__call__)
        super().__init_subclass__(**kwargs)

    def __post_init__(self):
        self.widths = _pairs(self.widths)
        if self.sync_norm and not any(synchronizes(norm) for norm in self._norms() if norm is not None):
            raise UserError(f"sync_norm=True is for norm 'batch'; norm '{self.norm}' has nothing to synchronize")
        self._need_at_least(1, "num_classes", "image_size")
        super().__post_init__()

    def _norms(self) -> tuple[str | Callable | None, ...]:
        """The normalizations that the fields ask for."""
        return (self.norm,)

    def example(self, size: int | None = None, channels: int = 3) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Images [1, size, size, channels]; size `image_size` if None."""
        size = self.image_size if size is None else size
        return (jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32),)

    def _ingredients(self, train: bool, sites: Sites) -> Ingredients:
        layers = super()._ingredients(train, sites)
        widths = {"widths": self.widths} if self.widths else {}  # a class of a user's may have no such field
        dense = functools.partial(layers.dense, **widths)
        conv = sites.constructor("conv", self.conv, CONVS)
        return layers._replace(
            dense=dense, conv=functools.partial(conv, use_bias=self.norm == "none", **dense.keywords)
        )

    def _norm_axis(self, train: bool) -> str | None:
        return SYNC_AXIS if self.sync_norm and train else None


def _naming_smallest(call: Callable) -> Callable:
    """Wraps a network's `__call__`: where images leave an empty map, the UserError names the smallest that do not."""

    @functools.wraps(call)
    def checked(self, images, *args, **kwargs):
        try:
            return call(self, images, *args, **kwargs)
        except EmptyMap:
            is_part = isinstance(self.parent, nn.Module)  # then these are not the images of the whole network
            smallest = None if is_part else _smallest_image(self, images.shape[-1])
            if smallest is None:
                raise
            height, width = images.shape[1:3]
            raise UserError(
                f"images of {height} x {width} are too small: this {type(self).__name__} takes images of "
                f"{smallest} x {smallest} or larger"
            ) from None

    return checked


def _smallest_image(network: Classifier, channels: int) -> int | None:
    """Returns the smallest height and width that leave no map empty, from shapes alone; None above MAX_SMALLEST."""
    part = nn.Sequential([network.clone(parent=None, name=None)])  # of which EmptyMap passes through

    def fits(size):
        try:
            with lowering("plain"):
                jax.eval_shape(part.init, jax.random.key(0), network.example(size, channels)[0])
        except EmptyMap:
            return False
        return True

    high = 1
    while not fits(high):
        if high >= MAX_SMALLEST:
            return None
        high *= 2
    low = high // 2 + 1
    return low + bisect.bisect_left(range(low, high), True, key=fits)


def _pairs(widths: Any) -> tuple[tuple[str, int], ...]:
    """`Classifier.widths` as tuples, of which a config may have made lists."""
    try:
        pairs = tuple((path, features) for path, features in widths)
    except (TypeError, ValueError):
        pairs = None
    if (
        pairs is None
        or len({path for path, _ in pairs}) < len(pairs)
        or any(not isinstance(path, str) or not has_type(n, int) or n < 1 for path, n in pairs)
    ):
        raise UserError(f"widths={widths} must be pairs of a layer and its features, as (('stage1/block0/conv1', 12),)")
    return pairs


def _dtype(spec: Any) -> Any:
    try:
        dtype = None if spec is None else jnp.dtype(spec)
    except TypeError:
        dtype = None
    if spec is not None and (dtype is None or not jnp.issubdtype(dtype, jnp.floating)):
        raise choice_error("dtype", spec, ("float32", "bfloat16", "float16"))
    return dtype
