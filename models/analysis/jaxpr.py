"""Walks a traced program (jaxpr) and collects mult-adds and receptive fields of its operations by module."""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import cast

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

Path = tuple[str, ...]
Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class View:
    """The pixels of the image that the elements of an array see.

    Attributes:
      axes: Axes of the array that correspond to the image's height and width; None if each element may see the whole
        image.
      field, stride, start: Element i along one of these axes sees the `field` pixels from start + i stride on. Padding
        counts as pixels, so start may be negative.
    """

    axes: Pair | None = None
    field: Pair = (1, 1)
    stride: Pair = (1, 1)
    start: Pair = (0, 0)


WHOLE = View()


class Walk:
    """A walk through programs, which adds up the cost of their operations.

    Attributes:
      mult_adds: Mult-adds of each module's own operations, by path.
      views: View of the last array that a module or its submodules compute from the image, by path.
    """

    def __init__(self, modules: Collection[Path]):
        self._modules = set(modules)
        self.mult_adds: dict[Path, int] = defaultdict(int)
        self.views: dict[Path, View] = {}

    def run(
        self, jaxpr: Jaxpr | ClosedJaxpr, views: Sequence[View | None], path: Path = (), times: int = 1
    ) -> list[View | None]:
        """Walks a program.

        Args:
          jaxpr: The program.
          views: Views of its inputs; None for inputs that do not depend on the image.
          path: Module that runs the program.
          times: Number of times that the program runs.

        Returns:
          The views of its outputs.
        """
        jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
        view_of = dict(zip(jaxpr.invars, views, strict=True))

        def view(atom):
            return None if isinstance(atom, Literal) else view_of.get(atom)

        for eqn in jaxpr.eqns:
            inside = self.module_of(eqn, path)
            results = self._operation(eqn, [view(atom) for atom in eqn.invars], inside, times)
            view_of.update(zip(eqn.outvars, results, strict=True))
            result = next((v for v in results if v is not None), None)
            if result is not None:
                for depth in range(len(inside) + 1):
                    self.views[inside[:depth]] = result
        return [view(atom) for atom in jaxpr.outvars]

    def module_of(self, eqn: JaxprEqn, path: Path = ()) -> Path:
        """Returns the innermost known module on the name stack of an operation inside the module `path`.

        Names that are not modules (transformations, methods, functions) are skipped. A module that is called inside a
        module other than its parent, such as an exit inside a stage, belongs to its parent.
        """
        for name in re.split(r"[/()]", str(eqn.source_info.name_stack)):
            candidates = ((*path[:depth], name) for depth in range(len(path), -1, -1))
            path = next((module for module in candidates if module in self._modules), path)
        return path

    def _operation(self, eqn, views, path, times):
        name, params = eqn.primitive.name, eqn.params
        if name == "scan":
            return self._scan(eqn, views, path, times)
        if name == "cond":
            return self._branches(params["branches"], views[1:], path, times)
        if name == "while":
            return self.run(params["body_jaxpr"], views[params["cond_nconsts"] :], path, times)
        body = called(eqn)
        if body is not None:
            return self.run(body, views, path, times)
        if name == "conv_general_dilated":
            self.mult_adds[path] += times * conv_mult_adds(eqn)
        elif name == "dot_general":
            self.mult_adds[path] += times * dot_mult_adds(eqn)
        if all(view is None for view in views):
            return [None] * len(eqn.outvars)
        if all(view is None or view.axes is None for view in views):
            return [WHOLE] * len(eqn.outvars)
        return [_RULES.get(name, _elementwise)(eqn, views)] * len(eqn.outvars)

    def _scan(self, eqn, views, path, times):
        consts, carries, length = (eqn.params[key] for key in ("num_consts", "num_carry", "length"))
        fixed, carry = views[:consts], views[consts : consts + carries]
        rows = [_shift(view, -1) for view in views[consts + carries :]]  # a scan reads and stacks rows of its arrays
        body = Walk(self._modules)
        stacked: list[View | None] = [None] * (len(eqn.outvars) - carries)
        for _ in range(length):
            body.mult_adds.clear()
            results = body.run(eqn.params["jaxpr"], [*fixed, *carry, *rows], path, times * length)
            before, carry, stacked = carry, results[:carries], results[carries:]
            if carry == before:
                break
        self._take(body)
        return [*carry, *(_shift(view, 1) for view in stacked)]

    def _branches(self, branches, views, path, times):
        walks = []
        for branch in branches:
            walk = Walk(self._modules)
            results = walk.run(branch, views, path, times)
            walks.append((sum(walk.mult_adds.values()), walk, results))
        self._take(max(walks, key=lambda entry: entry[0])[1])
        return [join(column) for column in zip(*(results for _, _, results in walks), strict=True)]

    def _take(self, other: "Walk") -> None:
        for path, count in other.mult_adds.items():
            self.mult_adds[path] += count
        self.views |= other.views


def called(eqn: JaxprEqn) -> Jaxpr | ClosedJaxpr | None:
    """Returns the program that an operation calls on its own inputs (jit, remat, custom_vjp, ...), or None."""
    for value in eqn.params.values():
        if isinstance(value, (Jaxpr, ClosedJaxpr)):
            invars = (value.jaxpr if isinstance(value, ClosedJaxpr) else value).invars
            if list(map(_shape, invars)) == list(map(_shape, eqn.invars)):
                return value
    return None


def _shape(atom: Var | Literal) -> tuple[int, ...]:
    return getattr(atom.aval, "shape", ())


def conv_mult_adds(eqn: JaxprEqn) -> int:
    """Returns output elements times weights per output channel, without zeros from dilation of the input."""
    numbers = eqn.params["dimension_numbers"]
    kernel = _shape(eqn.invars[1])
    per_output = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    return math.prod(_shape(eqn.outvars[0])) * per_output // math.prod(eqn.params["lhs_dilation"])


def dot_mult_adds(eqn: JaxprEqn) -> int:
    """Returns output elements times the length of the sums."""
    (contracted, _), _ = eqn.params["dimension_numbers"]
    shape = _shape(eqn.invars[0])
    return math.prod(_shape(eqn.outvars[0])) * math.prod(shape[axis] for axis in contracted)


def join(views: Sequence[View | None]) -> View | None:
    """Returns the view of elements that combine one element of each array: the union of their views.

    A map that is combined with values that see the whole image (statistics that normalize or gate it) keeps its view.
    """
    maps = [view for view in views if view is not None and view.axes is not None]
    if not maps:
        return WHOLE if any(view is not None for view in views) else None
    if len({(view.axes, view.stride) for view in maps}) > 1:
        return WHOLE
    starts, fields = ([getattr(view, key) for view in maps] for key in ("start", "field"))
    start = _pair(map(min, zip(*starts, strict=True)))
    end = [max(s[i] + f[i] for s, f in zip(starts, fields, strict=True)) for i in (0, 1)]
    return View(maps[0].axes, _pair(e - s for e, s in zip(end, start, strict=True)), maps[0].stride, start)


def _pair(numbers: Iterable[float]) -> Pair:
    """Returns two numbers, with whole numbers as int."""
    height, width = (int(n) if n == int(n) else n for n in numbers)
    return cast(Pair, (height, width))  # strides are fractions only inside transposed convolutions


def _shift(view: View | None, by: int) -> View | None:
    if view is None or view.axes is None:
        return view
    axes = tuple(axis + by for axis in view.axes)
    return WHOLE if min(axes) < 0 else dataclasses.replace(view, axes=axes)


def _moved(view: View | None, target: Callable[[int], int | None]) -> View | None:
    """Returns the view after each axis a has moved to target(a).

    If target(a) is None, axis a is gone. A view that loses one of its axes becomes WHOLE.
    """
    if view is None or view.axes is None:
        return view
    axes = tuple(target(axis) for axis in view.axes)
    return WHOLE if None in axes else dataclasses.replace(view, axes=axes)


def _windowed(view, axes, sizes, strides, padding, dilations, base_dilations):
    """Returns the view of a window of `sizes` along two axes, which moves by `strides` on an array with padding."""
    if view.axes != axes:
        return WHOLE
    steps = [step / base for step, base in zip(view.stride, base_dilations, strict=True)]
    field = [f + (k - 1) * d * step for f, k, d, step in zip(view.field, sizes, dilations, steps, strict=True)]
    stride = [step * s for step, s in zip(steps, strides, strict=True)]
    start = [first - before * step for first, (before, _), step in zip(view.start, padding, steps, strict=True)]
    return View(axes, _pair(field), _pair(stride), _pair(start))


def _elementwise(eqn, views):
    shape = eqn.outvars[0].aval.shape
    axes = next(view.axes for view in views if view is not None and view.axes is not None)
    gate = eqn.invars[0] if eqn.primitive.name == "select_n" else None
    for atom, view in zip(eqn.invars, views, strict=True):
        sizes = atom.aval.shape
        if view is not None and view.axes is not None:  # other axes may be broadcast
            if len(sizes) != len(shape) or any(sizes[axis] != shape[axis] for axis in view.axes):
                return WHOLE
        elif view is not None and atom is not gate and len(sizes) == len(shape) and any(sizes[a] > 1 for a in axes):
            return WHOLE  # another map, such as the result of attention, and not statistics
    return join(views)


def _conv(eqn, views):
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    kernel = [eqn.invars[1].aval.shape[axis] for axis in numbers.rhs_spec[2:]]
    if views[1] is not None or len(kernel) != 2:
        return WHOLE
    seen = _windowed(
        views[0],
        tuple(numbers.lhs_spec[2:]),
        kernel,
        params["window_strides"],
        params["padding"],
        params["rhs_dilation"],
        params["lhs_dilation"],
    )
    return seen if seen.axes is None else dataclasses.replace(seen, axes=tuple(numbers.out_spec[2:]))


def _reduce_window(eqn, views):
    view, params = views[0], eqn.params
    height, width = view.axes
    keys = ("window_dimensions", "window_strides", "padding", "window_dilation", "base_dilation")
    return _windowed(view, view.axes, *([params[key][height], params[key][width]] for key in keys))


def _reduce(eqn, views):
    axes = eqn.params["axes"]
    return join(
        [
            _moved(view, lambda axis: None if axis in axes else axis - sum(other < axis for other in axes))
            for view in views
        ]
    )


def _broadcast(eqn, views):
    return _moved(views[0], lambda axis: eqn.params["broadcast_dimensions"][axis])


def _transpose(eqn, views):
    return _moved(views[0], eqn.params["permutation"].index)


def _squeeze(eqn, views):
    removed = eqn.params["dimensions"]
    return _moved(views[0], lambda axis: None if axis in removed else axis - sum(other < axis for other in removed))


def _reshape(eqn, views):
    old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    before = {math.prod(new[:axis]): axis for axis in reversed(range(len(new))) if new[axis] > 1}

    def target(axis):
        new_axis = before.get(math.prod(old[:axis]))
        return new_axis if new_axis is not None and new[new_axis] == old[axis] else None

    return _moved(views[0], target)


def _slice(eqn, views):
    view, first = views[0], eqn.params["start_indices"]
    strides = eqn.params["strides"] or (1,) * len(first)
    start = _pair(s + first[axis] * step for s, axis, step in zip(view.start, view.axes, view.stride, strict=True))
    stride = _pair(step * strides[axis] for step, axis in zip(view.stride, view.axes, strict=True))
    return dataclasses.replace(view, stride=stride, start=start)


def _pad(eqn, views):
    padding = [eqn.params["padding_config"][axis] for axis in views[0].axes]
    return join(
        [
            _windowed(
                views[0],
                views[0].axes,
                (1, 1),
                (1, 1),
                [(low, high) for low, high, _ in padding],
                (1, 1),
                [between + 1 for _, _, between in padding],
            ),
            *views[1:],
        ]
    )


def _concatenate(eqn, views):
    return WHOLE if any(eqn.params["dimension"] in view.axes for view in views if view and view.axes) else join(views)


def _rev(eqn, views):
    return WHOLE if set(eqn.params["dimensions"]) & set(views[0].axes) else views[0]


def _dot(eqn, views):
    (contracted, batch), outputs = eqn.params["dimension_numbers"], []
    free_before = len(batch[0])
    for view, atom, contract, shared in zip(views, eqn.invars, contracted, batch, strict=True):
        free = [axis for axis in range(atom.aval.ndim) if axis not in contract and axis not in shared]
        targets = {
            **dict(zip(shared, range(len(shared)), strict=True)),
            **{axis: free_before + i for i, axis in enumerate(free)},
        }
        outputs.append(_moved(view, targets.get))
        free_before += len(free)
    return join(outputs)


_RULES = {
    "conv_general_dilated": _conv,
    "dot_general": _dot,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "slice": _slice,
    **dict.fromkeys(("reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum"), _reduce_window),
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin"), _reduce),
    "pad": _pad,
    "concatenate": _concatenate,
    "rev": _rev,
}
