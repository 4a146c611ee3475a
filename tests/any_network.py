"""Networks of tests/combinations.py and their training steps, each compiled once; used by test_any_network.py."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import models
from models.layers import init
from models.layers import low_bit as lowbit
from models.layers.norm import norm
from tests import tiny
from tests.combinations import ALL_INITS, FAMILIES, TEXT, norms_of
from tests.golden import drawn
from train import step, tasks
from train.devices.parallel import Parallel
from train.optim import build as optimizer
from train.optim import pruning as prune
from train.optim import weight_sharing
from train.optim.parameters import named
from train.setup import config as configs
from train.state import initial_state

BATCH = 4
PARALLEL = Parallel("pmap", 1)


# -- networks ------------------------------------------------------------------------------------------------------


class AlternatingNorm(nn.Module):
    """A normalization layer that applies a different one of `norms` at each place of a network, in turn.

    `number` maps a module's path to a number, so every call sees the same network. Where a channel holds a single value
    per feature, the next norm replaces "instance".
    """

    norms: tuple[str, ...]
    number: Callable
    train: bool
    dtype: Any = None
    axis_name: str | None = None
    scale_init: Callable = nn.initializers.ones_init()
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x):
        number = self.number([part for part in self.path if part != "policy"])  # a task also calls the policy alone
        if self.norms[number % len(self.norms)] == "instance" and math.prod(x.shape[1:-1]) == 1:
            number += 1
        make = norm(self.norms[number % len(self.norms)], train=self.train, dtype=self.dtype, axis_name=self.axis_name)
        return make(name="dealt", scale_init=self.scale_init, epsilon=self.epsilon)(x)


class Places:
    """Numbers paths in the order of their first use."""

    def __init__(self):
        self.known = {}

    def __call__(self, path):
        return self.known.setdefault("/".join(path), len(self.known))


def alternating_norms(family, *norms):
    """Returns a value for the field `norm`: those norms that the family accepts, or its own where it accepts none."""
    allowed = tuple(norm for norm in norms if norm in norms_of(family))
    if len(allowed) < 2:
        return {"norm": allowed[0]} if allowed else {}
    return {"norm": functools.partial(AlternatingNorm, allowed, Places())}


class Inits:
    """An initializer that draws each kernel by a different one of ALL_INITS, in turn, starting at number `first`."""

    def __init__(self, first):
        self.next, self.used = first, {}

    def __call__(self, key, shape, dtype):
        name = ALL_INITS[self.next % len(ALL_INITS)]
        self.next += 1
        self.used.setdefault(name, shape)
        return init.init(name)(key, shape, dtype)


def low_bit(family, kind):
    fields = dict.fromkeys(FAMILIES[family].low_bit, kind)
    return {**fields, "act": "identity"} if kind == "xnor" else fields  # the sign of the input is the activation


PROGRAMS = {  # family fields for each of them
    "whole": lambda family: {},
    "ternary": lambda family: {
        **low_bit(family, "ternary"),
        **alternating_norms(family, "layer", "frozen_batch", "instance"),
        "dtype": "bfloat16",
    },
    "xnor": lambda family: {**low_bit(family, "xnor"), **alternating_norms(family, "channel", "group:2", "none")},
}


def create(family, **fields):
    entry = FAMILIES[family]
    return models.create(entry.name, **{**entry.fields, **fields})


def is_text(family):
    return family in TEXT


@functools.cache
def batch_of(family):
    if is_text(family):
        source, target = np.random.default_rng(0).integers(3, 12, (2, BATCH, 6), np.int32)
        return {
            "source": source,
            "target": target,
            "mask": np.ones(BATCH, np.float32),
            "tokens": np.full(BATCH, 5, np.float32),
        }
    shape = (BATCH, *create(family).example()[0].shape[1:])
    return {
        "image": drawn.images(family, shape),
        "label": np.arange(BATCH, dtype=np.int32),
        "mask": np.ones(BATCH, np.float32),
    }


def inputs_of(family):
    """Returns the inputs that the network is called with."""
    batch = batch_of(family)
    return (batch["source"], batch["target"][:, :-1]) if is_text(family) else (batch["image"],)


class Subject(NamedTuple):
    """A network, the task that trains it, its initial variables, and the initializers that drew each kernel shape."""

    model: Any
    task: Any
    variables: Any
    task_state: Any
    inits: Any = None


def with_task(family, model):
    section = tiny.config(task__name=FAMILIES[family].task).task
    return tasks.create(section, model, 10, "sentences" if is_text(family) else "images")


@functools.cache
def whole(family):
    """Returns the network in float32, its kernels initialized by several of ALL_INITS."""
    task, inits = with_task(family, create(family)), Inits(0)
    variables, task_state = with_task(family, create(family, init=inits)).init(jax.random.key(0), task.model.example())
    return Subject(task.model, task, jax.tree.map(np.asarray, variables), task_state, inits.used)


@functools.cache
def subject(family, program):
    """Returns the subject for one of PROGRAMS, or for fields given as ((name, value), ...)."""
    if program == "whole":
        return whole(family)
    fields = PROGRAMS[program](family) if program in PROGRAMS else dict(program)
    task = with_task(family, create(family, **fields))
    shapes = jax.eval_shape(task.model.init, jax.random.key(0), *task.model.example())
    return Subject(task.model, task, drawn.filled(shapes, weight), whole(family).task_state)


def weight(path, shape):
    """Returns `drawn.weight`, except that the scales of ternary layers are positive."""
    return np.float32(0.5) if path.split("/")[-1] in lowbit.SCALES else drawn.weight(path, shape)


# -- training steps ------------------------------------------------------------------------------------------------


class Stepped(NamedTuple):
    """The states before and after a step, the gradients by name, and the mean loss."""

    before: Any
    after: Any
    gradients: dict[str, Any]
    loss: float


@functools.cache
def gradients_of(family, program):
    """Returns `train.step.gradients`, compiled."""
    task = subject(family, program).task

    def compute(state, data, items):
        del data
        return step.gradients(
            state, jax.tree.map(lambda x: x[0], items), task=task, prepare=lambda key, batch, first: batch
        )

    return PARALLEL.lift(compute)


@functools.cache
def updates(tx):
    """Returns `train.step.update`, compiled."""
    return jax.jit(functools.partial(step.update, optimizer=tx, learning_rate=lambda count: jnp.float32(0.1)))


to_steps = functools.partial(configs.steps, batch_size=BATCH, examples=BATCH, total=2)


def optimizer_of(params, coupled=None, **changes):
    section = tiny.config(
        **{
            f"optimizer__{key}": value
            for key, value in {
                "name": "sgd(momentum=0.0)", "weight_decay": 0.0, "decay": ".*", "schedule": "constant",
                "warmup": "0 steps", "learning_rate": 0.1, "groups": ((".*", 1.0),), **changes,
            }.items()
        }
    )  # fmt: skip
    pruning, sharing = prune.plan(section.optimizer.prune, to_steps, 2), weight_sharing.plan(section.optimizer.share)
    return optimizer.create(section.optimizer, params, to_steps, 2, pruning, sharing, coupled)[0]


PLAIN = optimizer_of({"kernel": np.zeros(1)})


def start(family, variables, tx=PLAIN, program="whole"):
    return jax.tree.map(np.asarray, initial_state(variables, subject(family, program).task_state, tx, 0, False))


def take_step(family, state, tx=PLAIN, program="whole"):
    items = PARALLEL.shard({name: leaf[None] for name, leaf in batch_of(family).items()})
    grads, rest = jax.tree.map(
        np.asarray, gradients_of(family, program)(state.replace(opt_state=()), {}, items)
    )  # the gradients do not depend on them: one program serves all optimizers
    after, metrics = jax.tree.map(np.asarray, updates(tx)(state, grads, *rest))
    total, weight = metrics["loss"]
    return Stepped(state, after, named(grads), float(total / weight))


@functools.cache
def stepped(family, program):
    return take_step(family, start(family, subject(family, program).variables, program=program), program=program)


def assert_learns(result):
    """Asserts that the loss and all arrays are finite float32 and that every parameter moves against its gradient."""
    assert math.isfinite(result.loss)
    before, after = named(result.before.params), named(result.after.params)
    for name, gradient in result.gradients.items():
        assert gradient.dtype == after[name].dtype == np.float32, name
        assert np.isfinite(after[name]).all(), name
        assert gradient.any(), name
        np.testing.assert_allclose(after[name], before[name] - 0.1 * gradient, 1e-5, 1e-6, err_msg=name)


@functools.cache
def all_inits(family):
    """Returns (shapes drawn, variables) pairs until each of ALL_INITS has drawn a kernel.

    The first pair comes from `whole`.
    """
    draws, init_names = [(whole(family).inits, whole(family).variables)], set(whole(family).inits)
    while len(init_names) < len(ALL_INITS):
        inits = Inits(len(init_names))
        model = create(family, init=inits)
        variables = models.initialize(model, jax.random.key(1), model.example())
        init_names |= inits.used.keys()
        draws.append((inits.used, jax.tree.map(np.asarray, variables)))
    return draws


@functools.cache
def stepped_from(family, number):
    if number == 0:
        return stepped(family, "whole")
    return take_step(family, start(family, all_inits(family)[number][1]))
