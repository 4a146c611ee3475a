"""Ingredients: the fields that every network has, which studies exchange, and the layers that they resolve to."""

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
from models.layers.int8 import Int8Conv, Int8Dense
from models.layers.low_bit import BinaryWeightConv, BinaryWeightDense, TernaryConv, TernaryDense, XnorConv, XnorDense
from models.layers.norm import norm, separates_channels, synchronizes

SYNC_AXIS = "batch"  # name of the device axis of a training step
CONVS = {
    "standard": Conv,
    "standardized": StandardizedConv,
    "ternary": TernaryConv,
    "binary_weight": BinaryWeightConv,
    "xnor": XnorConv,
    "int8": Int8Conv,
}
DENSES = {
    "standard": Dense,
    "ternary": TernaryDense,
    "binary_weight": BinaryWeightDense,
    "xnor": XnorDense,
    "int8": Int8Dense,
}
LOW_BIT = ("ternary", "binary_weight", "xnor")  # names in CONVS and DENSES that `Sites` restricts
MAX_SMALLEST = 1024  # largest image size, in pixels, to try if images are too small
HEAD = "head"  # name of every network's last layer


class Ingredients(NamedTuple):
    """Constructors of the layers for one call of a model, with the model's fields bound, and the activation.

    Attributes:
      conv: conv(features, kernel_size, strides=1, ..., name=...); it has a bias only without normalization, unless the
        network passes `use_bias`. Networks without convolutions have a constructor that raises TypeError.
      dense: dense(features, name=...), with a bias.
      norm: norm(name=..., scale_init=...).
      act: Function of an array.
    """

    conv: Callable
    dense: Callable
    norm: Callable
    act: Callable


class Sites:
    """Decides which layers are quantized in one forward pass: every layer except the first and the head.

    These remain standard, as in the papers (Zhu 2017, section 5; Rastegari 2016, section 4.1).

    Args:
      first: Whether the first layer is a convolution or dense layer; in some networks it is an embedding.
    """

    def __init__(self, first: bool = True):
        self._first = first
        self._unused: dict[str, str] = {}  # {field: spec} that have not made a low-bit layer yet

    def constructor(self, field: str, spec: str | Callable, constructors: dict[str, Callable]) -> Callable:
        """Returns the constructor of the layers for a field.

        Args:
          field: Name of the field, for errors.
          spec: A name in `constructors`, FILE.py:NAME, or a class.
          constructors: Layers by name.

        Raises:
          UserError: The name is unknown.
        """
        layer = plugins.load(spec)
        if not callable(layer) and layer not in constructors:
            raise choice_error(field, layer, constructors, own=True)
        layer_constructor = layer if callable(layer) else constructors[layer]
        low_bit = not callable(layer) and layer in LOW_BIT
        if low_bit:
            self._unused[field] = str(layer)

        def construct(*args, name: str | None = None, **kwargs):
            first, self._first = self._first, False
            if low_bit and not first and name != HEAD:
                self._unused.pop(field, None)
                return layer_constructor(*args, name=name, **kwargs)
            if name == HEAD and self._unused:
                unused_field, unused_spec = next(iter(self._unused.items()))
                raise UserError(
                    f"{unused_field}='{unused_spec}' has no effect: the first layer and the head remain "
                    "standard, and this network has no other layer of this kind"
                )
            return (constructors["standard"] if low_bit else layer_constructor)(*args, name=name, **kwargs)

        return construct


class Network(nn.Module):
    """Base of every network, with the ingredients that all of them share.

    Attributes:
      norm: Normalization; see layers/norm.py.
      act: Activation; see layers/activation.py.
      kernel_init: Initializer of every kernel, including stem and head; see layers/init.py. Biases start at zero.
        `models.create` and configs call this field `init`, a name that flax modules use themselves.
      dense: "standard", "int8" (int8.py), or a class with the fields of layers/conv.py's Dense, for every such layer;
        or "ternary", "binary_weight" or "xnor" (low_bit.py), for every such layer except the network's first layer and
        its head.
      dtype: Type of the computation, e.g. "bfloat16"; None uses float32. Parameters, statistics and logits stay
        float32.

    Raises:
      UserError: The value of a field is not allowed, or has no effect because of other fields.
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
        """Raises UserError if fields of the family have bad values or contradict each other."""

    def _need_at_least(self, least: int, *fields: str) -> None:
        for field in fields:
            if getattr(self, field) < least:
                raise UserError(f"{field}={getattr(self, field)} must be at least {least}")

    def _need_rates(self, *fields: str) -> None:
        for field in fields:
            if not 0 <= getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)} must be at least 0 and below 1")

    def _need_mean_over_space(self, channels: int) -> None:
        """Raises UserError if the mean over space of the norm's output is the same for all images."""
        if separates_channels(self.norm, channels):
            raise UserError(
                f"norm='{self.norm}' normalizes each channel separately, so the spatial mean, which the head "
                "classifies, is the same for every image: use another norm"
            )

    def _need_choice(self, field: str, allowed: Collection[str]) -> None:
        if getattr(self, field) not in allowed:
            raise choice_error(field, getattr(self, field), allowed)

    def _need_numbers(
        self, field: str, example: Sequence[int], *, empty: bool = False, count: int | None = None, least: int = 1
    ) -> None:
        """Raises UserError unless the field holds `count` (or any number of) whole numbers; () needs `empty`."""
        value = getattr(self, field)
        if (
            not isinstance(value, (tuple, list))
            or any(not has_type(n, int) or n < least for n in value)
            or (not value and not empty)
            or count not in (None, len(value))
        ):
            many = "" if count is None else f"{count} "
            raise UserError(f"{field}={value} must be {many}whole numbers of at least {least}, e.g. {tuple(example)}")

    def example(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Returns shapes and types of the network's inputs for one example."""
        raise NotImplementedError

    def ingredients(self, train: bool) -> Ingredients:
        """Resolves the fields for one forward pass."""
        return self._ingredients(train, Sites())

    def _ingredients(self, train: bool, sites: Sites) -> Ingredients:
        kernels = {"kernel_init": init(self.kernel_init), "dtype": _dtype(self.dtype)}
        return Ingredients(
            conv=_no_convolutions,
            dense=functools.partial(sites.constructor("dense", self.dense, DENSES), **kernels),
            norm=norm(self.norm, train=train, dtype=kernels["dtype"], axis_name=self._norm_axis(train)),
            act=activation(self.act),
        )

    def _norm_axis(self, train: bool) -> str | None:
        return None


def _no_convolutions(*args: Any, **kwargs: Any) -> nn.Module:
    raise TypeError("this network has no convolutions")


class Classifier(Network):
    """Base of the networks from images [N, H, W, C] to logits [N, num_classes], float32.

    A subclass adds fields, and `__call__(self, images, train=False)` under `nn.compact`, which

      takes its layers from `layers = self.ingredients(train)` (see Ingredients) and names each of them: the name is the
        path of the parameters, which widths, freezing and imported weights use;
      marks activations by `x = Endpoint("stage1")(x)` (layers/endpoint.py): maps [N, h, w, C], the last of which
        Grad-CAM explains, and "pre_logits" [N, C], the features for transfer;
      ends in a dense layer named "head", which transfer replaces, with a float32 result.

    It has the fields of Network, and:

    Attributes:
      num_classes: Number of classes.
      image_size: Height and width of the images that the network is designed for. Networks whose parameters depend on
        it say so. All others take any size, and tools use this one by default.
      conv: "standard", "standardized" (weight standardization), "int8" (int8.py), or a class with the fields of
        layers/conv.py's Conv, for every convolution; or "ternary", "binary_weight" or "xnor" (low_bit.py), for every
        convolution except the network's first layer. The sign of a convolution's input is the activation of an XNOR
        network. With act="identity", preresnets have the paper's block: normalize, binarize, convolve, pool (section
        3.2). So do networks that pool after normalization, because the maximum commutes with norms of positive scale.
      sync_norm: Whether batch statistics are averaged over the devices of a training step.
      widths: Output features of layers by path, (("stage1/block0/conv1", 12), ...), which replace those of the family.
        The next layer adapts its input. `models.create` checks that such layers exist.
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
            raise UserError(f"sync_norm=True needs norm 'batch'; norm '{self.norm}' has nothing to synchronize")
        self._need_at_least(1, "num_classes", "image_size")
        super().__post_init__()

    def _norms(self) -> tuple[str | Callable | None, ...]:
        """Returns the normalizations in the fields."""
        return (self.norm,)

    def example(self, size: int | None = None, channels: int = 3) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Returns the shape and type of images [1, size, size, channels]; size None is `image_size`."""
        size = self.image_size if size is None else size
        return (jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32),)

    def _ingredients(self, train: bool, sites: Sites) -> Ingredients:
        layers = super()._ingredients(train, sites)
        widths = {"widths": self.widths} if self.widths else {}  # a user's class may lack this field
        dense = functools.partial(layers.dense, **widths)
        conv = sites.constructor("conv", self.conv, CONVS)
        return layers._replace(
            dense=dense, conv=functools.partial(conv, use_bias=self.norm == "none", **dense.keywords)
        )

    def _norm_axis(self, train: bool) -> str | None:
        return SYNC_AXIS if self.sync_norm and train else None


def _naming_smallest(call: Callable) -> Callable:
    """Wraps a network's `__call__` so that errors for too small images name the smallest possible size."""

    @functools.wraps(call)
    def checked(self, images, *args, **kwargs):
        try:
            return call(self, images, *args, **kwargs)
        except EmptyMap:
            is_part = isinstance(self.parent, nn.Module)  # a part does not see the images of the whole network
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
    """Returns the smallest height and width that leave no map empty, or None if they exceed MAX_SMALLEST."""
    part = nn.Sequential([network.clone(parent=None, name=None)])  # as a part, it lets EmptyMap propagate

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
    """Converts `Classifier.widths`, which may be lists in a config, to tuples; raises UserError for bad values."""
    try:
        pairs = tuple((path, features) for path, features in widths)
    except (TypeError, ValueError):
        pairs = None
    if (
        pairs is None
        or len({path for path, _ in pairs}) < len(pairs)
        or any(not isinstance(path, str) or not has_type(n, int) or n < 1 for path, n in pairs)
    ):
        raise UserError(
            f"widths={widths} must be pairs (layer, number of features), e.g. (('stage1/block0/conv1', 12),)"
        )
    return pairs


def _dtype(spec: Any) -> Any:
    try:
        dtype = None if spec is None else jnp.dtype(spec)
    except TypeError:
        dtype = None
    if spec is not None and (dtype is None or not jnp.issubdtype(dtype, jnp.floating)):
        raise choice_error("dtype", spec, ("float32", "bfloat16", "float16"))
    return dtype
