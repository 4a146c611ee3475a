"""What a network costs: parameters, mult-adds, activation memory, receptive fields, read from the traced program.

The program is the jaxpr of one forward pass of one example; nothing is computed or allocated. Each operation belongs to
the innermost module whose name is on its name stack, so the numbers are right for any module, whatever its class.

  mult-adds         of convolutions and matrix products (attention's included), one multiply-add counted as 1, products
                    with padding included; a scan's body times its length, a while's body once, the costliest branch
  output bytes      of the layers, forward
  kept bytes        what `jax.vjp` of the training pass hands from forward to backward and depends on the images;
                    XLA may keep less. What is between two layers (activations, pooling, sums) counts with the first
  receptive field   of one output pixel, its stride and its start, in pixels, by the recurrences of Araujo, Norris &
                    Sim (Distill 2019, doi 10.23915/distill.00021): the union over all paths through convolution,
                    pooling and slicing. Statistics over the whole image (normalization, squeeze and excite) that scale
                    a map do not count; what sees the whole image, as by attention, has no receptive field (None).
"""

import csv
import dataclasses
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.extend.core import Literal
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
    """One module's own cost, without its submodules'.

    Attributes:
      path: names from the root, joined by slashes; "" for the model itself.
      type: class name.
      output_shape: of its (first) result, for one example: [1, ...].
      params: parameters.
      mult_adds: for one example.
      output_bytes: of its results; 0 for a module that has submodules, whose outputs are counted there.
      kept_bytes: kept for the backward pass, for one example.
      receptive_field, stride, start: (height, width) in pixels of the input, as in `traced.View`; None where an output
        sees the whole image.
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
    """Cost of one example through a model: `layers` in the order of the computation, `endpoints` by name (of a Layer,
    only shape, receptive field, stride and start are set), and totals.
    """

    name: str
    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    endpoints: dict[str, Layer]

    @property
    def params(self) -> int:
        return sum(layer.params for layer in self.layers)

    @property
    def mult_adds(self) -> int:
        return sum(layer.mult_adds for layer in self.layers)

    @property
    def output_bytes(self) -> int:
        return sum(layer.output_bytes for layer in self.layers)

    @property
    def kept_bytes(self) -> int:
        return sum(layer.kept_bytes for layer in self.layers)

    @property
    def receptive_field(self) -> tuple[int, int] | None:
        """The largest of any layer or endpoint; None where none is limited."""
        return max((r.receptive_field for r in self._rows() if r.receptive_field), default=None)

    @property
    def stride(self) -> tuple[int, int] | None:
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
        """A row a layer, a section a stage, totals at the bottom."""
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
        heads = ("layer", "type", "output", "parameters", "mult-adds", "output B", "kept B", "field", "stride")
        for head, total in zip(heads, totals, strict=True):
            table.add_column(head, footer=total, justify="left" if head in heads[:3] else "right", overflow="fold")
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
        """Writes the layers, one a line, fields of `Layer` as columns."""
        with open(file, "w", newline="") as out:
            writer = csv.DictWriter(out, [field.name for field in dataclasses.fields(Layer)])
            writer.writeheader()
            for layer in self.layers:
                row = dataclasses.asdict(layer)
                writer.writerow({name: "x".join(map(str, v)) if isinstance(v, tuple) else v for name, v in row.items()})


def short(number: float) -> str:
    """4089184256 -> "4.089 G", to put a unit after; "" for 0."""
    for scale, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
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
      model: a module with `__call__(*inputs, train=False)`; rng streams "params" and "dropout" are there for it.
      inputs: [1, H, W, C] of float32 images; or shapes and types of all that the model is called with, as
        `model.example()` gives them. Receptive fields are of the first, where it has four axes.

    Raises:
      UserError: the inputs are not those of one example.
    """
    inputs = models.abstract(inputs)
    input_shape = inputs[0].shape
    if not input_shape or any(x.shape[0] != 1 for x in inputs):
        raise UserError(f"analyze: input_shape {input_shape} must begin with 1, a batch of one example")
    key = jax.eval_shape(lambda: jax.random.key(0))
    modules: dict[Path, list] = {}  # path: [class name, shape, bytes], in the order of completion

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

    endpoints: dict[str, tuple[int, ...]] = {}
    with lowering("plain"):
        variables = jax.eval_shape(model.init, key, *inputs)
        with nn.intercept_methods(record):
            program = jax.make_jaxpr(forward)(variables, *inputs)
    walk = jaxpr.Walk(modules)
    seen = [jaxpr.View(axes=(1, 2)) if len(input_shape) == 4 else jaxpr.WHOLE] + [jaxpr.WHOLE] * (len(inputs) - 1)
    views = walk.run(program, [None] * len(jax.tree.leaves(variables)) + seen)
    endpoint_views = dict(zip(endpoints, views[len(views) - len(endpoints) :], strict=True))
    params = _params(variables["params"], modules)
    parents = {path[:depth] for path in modules for depth in range(len(path))}
    with lowering("plain"), example_stands_for_batch():
        kept = _kept_bytes(model, variables, inputs, key, modules, {*modules} - parents | {*walk.mult_adds})

    def layer(path, kind, shape, output_bytes=0):
        pixels = _limits(walk.views.get(path))
        return Layer(
            "/".join(path),
            kind,
            shape,
            params.get(path, 0),
            walk.mult_adds.get(path, 0),
            output_bytes,
            kept.get(path, 0),
            *pixels,
        )

    return Complexity(
        name=type(model).__name__,
        input_shape=input_shape,
        layers=tuple(
            layer(path, kind, shape, 0 if path in parents else size)
            for path, (kind, shape, size) in modules.items()
            if any(path in costs for costs in (params, walk.mult_adds, kept))
        ),
        endpoints={
            name: Layer(name, "Endpoint", shape, 0, 0, 0, 0, *_limits(endpoint_views[name]))
            for name, shape in endpoints.items()
        },
    )


def _limits(view: jaxpr.View | None) -> tuple[Any, Any, Any]:
    return (None,) * 3 if view is None or view.axes is None else (view.field, view.stride, view.start)


def _params(tree: Any, modules: Collection[Path]) -> dict[Path, int]:
    """Parameters by the innermost module that their path begins with."""
    counts = defaultdict(int)
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = tuple(key.key for key in keys)
        while path and path not in modules:
            path = path[:-1]
        counts[path] += leaf.size
    return dict(counts)


def _kept_bytes(model, variables, inputs, key, modules: Collection[Path], layers: Collection[Path]) -> dict[Path, int]:
    """Bytes of what the training pass keeps for its gradient, by the module that made it.

    What is made outside of any of `layers` counts with the one before: those without submodules, and with products of
    their own, as attention.

    Parameters, what is computed from them alone, and constants are not counted: they do not grow with the batch.
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
    made_by = dict.fromkeys(examples, ())
    grows = {*examples, noise}
    walk, layer = jaxpr.Walk(modules), ()
    for eqn in program.eqns:
        if any(not isinstance(atom, Literal) and atom in grows for atom in eqn.invars):
            module = walk.module_of(eqn)
            if module in layers:
                layer = module
            grows.update(eqn.outvars)
            made_by.update(dict.fromkeys(eqn.outvars, layer or module))
    kept = defaultdict(int)
    for var in {atom for atom in program.outvars if not isinstance(atom, Literal)}:
        if var in made_by:
            kept[made_by[var]] += var.aval.size * var.aval.dtype.itemsize
    return dict(kept)
