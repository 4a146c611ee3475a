"""Cost of a network: parameters, mult-adds, activation memory and receptive fields, from its traced program.

The program is the jaxpr of one forward pass of one example; nothing is computed or allocated. Each operation belongs to
the innermost module on its name stack, so the numbers are correct for modules of any class.

  mult-adds         multiply-adds of convolutions and matrix products (including attention and products with padding);
                    a scan multiplies its body by its length, a while loop counts its body once, and a conditional
                    counts only its most expensive branch
  output bytes      outputs of the layers in the forward pass
  kept bytes        values that `jax.vjp` of the training pass stores for the backward pass and that depend on the
                    images; XLA may store less. Operations between two layers (activations, pooling, sums) count with
                    the first of them
  receptive field   field, stride and start of one output pixel, in pixels, by the recurrences of Araujo, Norris & Sim
                    (Distill 2019, doi 10.23915/distill.00021): the union over all paths through convolution, pooling
                    and slicing. Statistics over the whole image that scale a map (normalization, squeeze and excite)
                    do not count. Outputs that see the whole image, as in attention, have no receptive field (None)
"""

import csv
import dataclasses
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.extend.core import ClosedJaxpr, Literal
from rich.table import Table

import models
from models.analysis import jaxpr
from models.errors import UserError
from models.kernels.tracing import lowering
from models.layers.endpoint import Endpoint, capture
from models.layers.norm import example_stands_for_batch

Path = jaxpr.Path


@dataclasses.dataclass(frozen=True)
class Layer:
    """Cost of one module for one example, without its submodules.

    Attributes:
      path: Names from the root, joined by slashes; "" for the model itself.
      type: Name of the class.
      output_shape: Shape of the (first) result, [1, ...].
      params: Number of parameters.
      mult_adds: Number of multiply-adds.
      output_bytes: Size of the results. It is 0 for a module with submodules, because each submodule counts its own.
      kept_bytes: Size of the values stored for the backward pass.
      receptive_field, stride, start: (height, width) in pixels of the input, as in `jaxpr.View`; None if an output sees
        the whole image.
    """

    path: str
    type: str
    output_shape: tuple[int, ...]
    params: int
    mult_adds: int
    output_bytes: int
    kept_bytes: int
    receptive_field: tuple[int, int] | None
    stride: tuple[int, int] | None
    start: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class Complexity:
    """Cost of one example through a model, with totals.

    Attributes:
      name: Class of the model.
      input_shape: Shape of the first input.
      layers: Layers in the order of the computation.
      endpoints: Endpoints by name, as Layers of which only shape, receptive field, stride and start are set.
    """

    name: str
    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    endpoints: dict[str, Layer]

    @property
    def params(self) -> int:
        """The number of parameters."""
        return sum(layer.params for layer in self.layers)

    @property
    def mult_adds(self) -> int:
        """The number of multiply-adds."""
        return sum(layer.mult_adds for layer in self.layers)

    @property
    def output_bytes(self) -> int:
        """The size of the outputs of the layers."""
        return sum(layer.output_bytes for layer in self.layers)

    @property
    def kept_bytes(self) -> int:
        """The size of the values stored for the backward pass."""
        return sum(layer.kept_bytes for layer in self.layers)

    @property
    def receptive_field(self) -> tuple[int, int] | None:
        """The largest receptive field of a layer or endpoint that does not see the whole image, or None."""
        return max((r.receptive_field for r in self._rows() if r.receptive_field), default=None)

    @property
    def stride(self) -> tuple[int, int] | None:
        """The largest stride of a layer or endpoint that does not see the whole image, or None."""
        return max((r.stride for r in self._rows() if r.stride), default=None)

    def _rows(self) -> tuple[Layer, ...]:
        return (*self.layers, *self.endpoints.values())

    @property
    def summary(self) -> str:
        """The totals in one line."""
        return (
            f"{self.name} at {' x '.join(map(str, self.input_shape[1:]))}: {self.params:,} parameters, "
            f"{short(self.mult_adds)} mult-adds, activations {short(self.output_bytes)}B forward and "
            f"{short(self.kept_bytes)}B kept for backward, receptive field {_pixels(self.receptive_field)}, "
            f"stride {_pixels(self.stride)}"
        )

    def table(self) -> Table:
        """Returns a table with a row per layer, a section per stage, and totals at the bottom."""
        table = Table(title=self.summary, title_justify="left", show_footer=True)
        totals = (
            "total",
            "",
            "",
            f"{self.params:,}",
            short(self.mult_adds),
            short(self.output_bytes),
            short(self.kept_bytes),
            _pixels(self.receptive_field),
            _pixels(self.stride),
        )
        columns = ("layer", "type", "output", "parameters", "mult-adds", "output B", "kept B", "field", "stride")
        for column, total in zip(columns, totals, strict=True):
            justify = "left" if column in columns[:3] else "right"
            table.add_column(column, footer=total, justify=justify, overflow="fold")
        for layer, following in zip(self.layers, (*self.layers[1:], None), strict=True):
            stage = layer.path.split("/")[0]
            table.add_row(
                layer.path or "(model)",
                layer.type,
                " x ".join(map(str, layer.output_shape[1:])),
                f"{layer.params:,}" if layer.params else "",
                short(layer.mult_adds),
                short(layer.output_bytes),
                short(layer.kept_bytes),
                _pixels(layer.receptive_field),
                _pixels(layer.stride),
                end_section=following is not None
                and "/" in layer.path + following.path
                and following.path.split("/")[0] != stage,
            )
        return table

    def write_csv(self, file: str) -> None:
        """Writes the layers, one per line, with the fields of `Layer` as columns."""
        with open(file, "w", newline="") as out:
            writer = csv.DictWriter(out, [field.name for field in dataclasses.fields(Layer)])
            writer.writeheader()
            for layer in self.layers:
                row = dataclasses.asdict(layer)
                writer.writerow({name: "x".join(map(str, v)) if isinstance(v, tuple) else v for name, v in row.items()})


def short(number: float) -> str:
    """Formats a number for a unit to follow: 4089184256 becomes "4.089 G", and 0 becomes ""."""
    for scale, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= scale:
            return f"{number / scale:.4g} {prefix}"
    return f"{number:g} " if number else ""


def _pixels(pair: tuple[int, int] | None) -> str:
    if pair is None:
        return "all"
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]} x {pair[1]}"


def analyze(model: nn.Module, inputs: Sequence[int] | Sequence[jax.ShapeDtypeStruct]) -> Complexity:
    """Traces a model on abstract values and adds up its cost for one example.

    Args:
      model: A module with `__call__(*inputs, train=False)`; it gets the rng streams "params" and "dropout".
      inputs: [1, H, W, C], the shape of float32 images; or shapes and types of all inputs, as from `model.example()`.
        Receptive fields are those on the first input, if it has four axes.

    Raises:
      UserError: The inputs are not those of one example.
    """
    inputs = models.abstract(inputs)
    input_shape = inputs[0].shape
    if not input_shape or any(x.shape[0] != 1 for x in inputs):
        raise UserError(f"analyze: input_shape {input_shape} must begin with 1, a batch of one example")
    key = jax.eval_shape(lambda: jax.random.key(0))
    with lowering("plain"):
        variables = jax.eval_shape(model.init, key, *inputs)
        program, modules, endpoints = _trace(model, variables, inputs)
    walk = jaxpr.Walk(modules)
    of_image = jaxpr.View(axes=(1, 2)) if len(input_shape) == 4 else jaxpr.WHOLE
    input_views = [of_image, *[jaxpr.WHOLE] * (len(inputs) - 1)]
    views = walk.run(program, [None] * len(jax.tree.leaves(variables)) + input_views)
    endpoint_views = dict(zip(endpoints, views[len(views) - len(endpoints) :], strict=True))
    params = _params(variables["params"], modules)
    parents = {path[:depth] for path in modules for depth in range(len(path))}
    with lowering("plain"), example_stands_for_batch():
        kept_bytes = _kept_bytes(model, variables, inputs, key, modules, {*modules} - parents | {*walk.mult_adds})

    def layer(path, kind, shape, output_bytes=0):
        pixels = _limits(walk.views.get(path))
        return Layer(
            "/".join(path),
            kind,
            shape,
            params.get(path, 0),
            walk.mult_adds.get(path, 0),
            output_bytes,
            kept_bytes.get(path, 0),
            *pixels,
        )

    return Complexity(
        name=type(model).__name__,
        input_shape=input_shape,
        layers=tuple(
            layer(path, kind, shape, 0 if path in parents else size)
            for path, (kind, shape, size) in modules.items()
            if any(path in costs for costs in (params, walk.mult_adds, kept_bytes))
        ),
        endpoints={
            name: Layer(name, "Endpoint", shape, 0, 0, 0, 0, *_limits(endpoint_views[name]))
            for name, shape in endpoints.items()
        },
    )


def _trace(
    model: nn.Module, variables: Any, inputs: Sequence[jax.ShapeDtypeStruct]
) -> tuple[ClosedJaxpr, dict[Path, list], dict[str, tuple[int, ...]]]:
    """Traces a forward pass.

    Returns:
      The program, which also returns the endpoints; {path: [class name, output shape, output bytes]} of the modules in
      the order of completion; and {name: shape} of the endpoints.
    """
    modules: dict[Path, list] = {}
    endpoints: dict[str, tuple[int, ...]] = {}

    def record(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if context.method_name == "__call__" and not isinstance(context.module, Endpoint):
            leaves = jax.tree.leaves(result)
            entry = modules.setdefault(context.module.path, [type(context.module).__name__, (), 0])
            entry[1] = tuple(leaves[0].shape) if leaves else ()
            entry[2] += sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        return result

    def forward(variables, *inputs):
        logits, marks = capture(model, variables, *inputs)
        endpoints.update((name, mark.shape) for name, mark in marks.items())
        return logits, list(marks.values())

    with nn.intercept_methods(record):
        program = jax.make_jaxpr(forward)(variables, *inputs)
    return program, modules, endpoints


def _limits(view: jaxpr.View | None) -> tuple[jaxpr.Pair | None, jaxpr.Pair | None, jaxpr.Pair | None]:
    return (None, None, None) if view is None or view.axes is None else (view.field, view.stride, view.start)


def _params(tree: Any, modules: Collection[Path]) -> dict[Path, int]:
    """Counts the parameters of each module, by the innermost module that their path begins with."""
    counts = defaultdict(int)
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = tuple(key.key for key in keys)
        while path and path not in modules:
            path = path[:-1]
        counts[path] += leaf.size
    return dict(counts)


def _kept_bytes(model, variables, inputs, key, modules: Collection[Path], layers: Collection[Path]) -> dict[Path, int]:
    """Returns the bytes that the training pass stores for its gradient, by the module that computes them.

    `layers` are the modules without submodules, and those with products of their own, such as attention. Values that
    are computed outside them count with the preceding layer. Constants, parameters and values that depend only on
    parameters do not count, because they do not grow with the batch.
    """
    state = {name: tree for name, tree in variables.items() if name != "params"}

    def residuals(inputs, key, params, state):
        def apply(params):
            return model.apply(
                {"params": params, **state}, *inputs, train=True, mutable=list(state), rngs={"dropout": key}
            )

        return jax.tree.leaves(jax.vjp(apply, params, has_aux=True)[1])

    program = jax.make_jaxpr(residuals)(inputs, key, variables["params"], state).jaxpr
    examples, noise = program.invars[: len(inputs)], program.invars[len(inputs)]
    origins = dict.fromkeys(examples, ())
    grows = {*examples, noise}
    walk, layer = jaxpr.Walk(modules), ()
    for eqn in program.eqns:
        if any(not isinstance(atom, Literal) and atom in grows for atom in eqn.invars):
            module = walk.module_of(eqn)
            if module in layers:
                layer = module
            grows.update(eqn.outvars)
            origins.update(dict.fromkeys(eqn.outvars, layer or module))
    kept_bytes = defaultdict(int)
    for var in {atom for atom in program.outvars if not isinstance(atom, Literal)}:
        if var in origins:
            kept_bytes[origins[var]] += var.aval.size * var.aval.dtype.itemsize
    return dict(kept_bytes)
