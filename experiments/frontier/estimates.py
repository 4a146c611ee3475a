"""Cost of each candidate before it is trained: mult-adds, bytes of its file, time of its untrained program."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import models
from experiments.frontier.dense import Dense
from experiments.frontier.methods import Candidate, model_of
from models.analysis import timing
from models.analysis.cost import analyze
from models.errors import UserError

MEASURES = {"time": "ms per image", "bytes": "bytes of the file", "mult_adds": "mult-adds per image"}
ROUNDS = 15  # calls of each untrained program
BACKWARD = 3  # forward passes that a training step costs


class Estimate(NamedTuple):
    """The estimated cost of a candidate.

    Attributes:
      mult_adds: Of the average image.
      bytes: Of its file.
      milliseconds: Of its untrained program, for one image; NaN unless the measure is time.
      training: Mult-adds of its training.
    """

    mult_adds: float
    bytes: float
    milliseconds: float
    training: float

    def cost(self, measure: str) -> float:
        """Returns the number of a measure."""
        return {"time": self.milliseconds, "bytes": self.bytes, "mult_adds": self.mult_adds}[measure]


class Size(NamedTuple):
    """Mult-adds of a network, and its numbers: those in kernels, and the others."""

    mult_adds: int
    kernels: int
    others: int


def estimate(dense: Dense, candidates: Sequence[Candidate], measure: str) -> tuple[dict[str, Estimate], dict[str, str]]:
    """Returns {name: estimate} of candidates, and {name: reason} for those whose network cannot be created."""
    refused, programs, sizes, keys = {}, {}, {}, {}
    for candidate in candidates:
        # Low-bit layers compute with float32 numbers
        plain = {name: value for name, value in candidate.model.items() if name not in ("conv", "dense")}
        key = repr(sorted(plain.items()))
        try:
            if key not in sizes:
                model = model_of(dense, plain if candidate.bits < 32 else candidate.model)
                sizes[key] = _size(dense, model)
                if measure == "time":
                    programs[key] = _program(dense, model)
            keys[candidate.name] = key
        except UserError as error:
            refused[candidate.name] = str(error).splitlines()[0]
    seconds = timing.medians(programs, ROUNDS, warm_up=1)
    whole = analyze(dense.model, dense.portable.inputs).mult_adds
    fitting = [candidate for candidate in candidates if candidate.name in keys]
    return {
        one.name: _estimate(dense, one, sizes[keys[one.name]], seconds.get(keys[one.name], math.nan), whole)
        for one in fitting
    }, refused


def _size(dense: Dense, model: Any) -> Size:
    shapes = jax.eval_shape(model.init, jax.random.key(0), *models.abstract(dense.portable.inputs))
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    sizes = [(getattr(path[-1], "key", "") == "kernel", leaf.size) for path, leaf in leaves]
    kernels = sum(size for is_kernel, size in sizes if is_kernel)
    return Size(analyze(model, dense.portable.inputs).mult_adds, kernels, sum(size for _, size in sizes) - kernels)


def _estimate(dense: Dense, candidate: Candidate, size: Size, seconds: float, whole: int) -> Estimate:
    training, share = 0.0, candidate.exits or 1.0
    for one in candidate.trainings:
        steps = int(str(one.changes.get("duration", f"{dense.steps} steps")).split()[0])
        training += steps * (BACKWARD * size.mult_adds + one.is_taught * whole)
    return Estimate(
        size.mult_adds * share,
        size.kernels * candidate.kept * candidate.bits / 8 + 4 * size.others,
        1000 * share * candidate.time * seconds,
        training * dense.config.batch_size,
    )


def _program(dense: Dense, model: Any) -> Any:
    """Returns the call of a network on one image, with weights that are not 0, since blocks of zeros are skipped."""
    from train.export import formats, write

    shapes = jax.eval_shape(model.init, jax.random.key(0), *models.abstract(dense.portable.inputs))
    small = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.01, leaf.dtype), dict(shapes))
    inputs, preprocessing = list(dense.portable.inputs), write.preprocessing(dense.network)
    facts = {"inputs": inputs, "preprocessing": preprocessing, "probabilities": "softmax"}
    opened = formats.of_variables(model, small, facts)
    image = np.zeros((1, *dense.network.images.image_shape), np.uint8)
    return lambda: opened(image)
