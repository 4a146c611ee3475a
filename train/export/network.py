"""The network that a run has trained, with the weights that it computes with."""

import copy
import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
from flax import traverse_util

import models
from models.compress import shrink, two_four
from models.errors import UserError
from models.layers import low_bit
from train.data.image_feed import as_images
from train.optim import pruning, weight_sharing
from train.run import Network
from train.state import TrainState


class PortableNetwork(NamedTuple):
    """A network and its variables.

    Attributes:
      name: first argument of `models.create`.
      fields: its other arguments.
      inputs: shape of one example, (1, H, W, C).
      variables: the variables of the flax module.
    """

    name: str
    fields: dict[str, Any]
    inputs: tuple[int, ...]
    variables: dict[str, Any]

    def create(self) -> nn.Module:
        """Returns the flax module."""
        return models.create(self.name, **self.fields)


def network(run: Network, state: TrainState) -> PortableNetwork:
    """Returns the network that a run has trained, with low-bit weights as they are used and without pruned filters.

    Raises:
      UserError: filters cannot be removed, or the network does not take images.
    """
    as_images(run.feed, f"export is for networks that take images, not {run.feed.unit}")
    config, model = run.config["model"], run.model
    fields = {**run.feed.fields, **{name: value for name, value in config.items() if name != "name"}}
    variables = low_bit.stored(model, state.evaluation_variables(), *models.abstract(run.feed.inputs))
    prune = pruning.plan(run.config["optimizer"]["prune"], run.durations.steps, run.total)
    if prune and prune.structure == "filters":
        model, variables = shrink.shrink(model, variables, pruning.masks_of(state.opt_state), run.feed.inputs)
        fields["widths"] = model.widths
    return PortableNetwork(config["name"], fields, run.feed.inputs, variables)


def shared(network: PortableNetwork, text: str) -> PortableNetwork:
    """Returns the network with each layer's weights rounded to a codebook, see train/optim/weight_sharing.py."""
    plan = weight_sharing.plan(text)
    assert plan is not None  # it is None only for an empty text
    return network._replace(variables={**network.variables, "params": plan.snap(network.variables["params"])})


def halved(network: PortableNetwork) -> PortableNetwork:
    """Returns the network with its 2:4 kernels rounded to float16, see models/compress/two_four.py.

    Raises:
      UserError: no kernel is 2:4, or a weight is too large for float16.
    """
    params = dict(traverse_util.flatten_dict(network.variables["params"], sep="/"))
    kernels = {name: leaf for name, leaf in params.items() if two_four.fits(leaf)}
    if not kernels:
        raise UserError(
            "format semi_structured needs kernels with two zeros in each four inputs, a multiple of "
            f"{two_four.ROWS} outputs and of {two_four.COLUMNS} products per output: train with "
            "optimizer.prune=\"magnitude(structure='2:4')\""
        )
    for name, kernel in kernels.items():
        try:
            params[name] = two_four.half(kernel)
        except OverflowError as error:
            raise UserError(f"format semi_structured: {name}: {error}") from None
    return network._replace(variables={**network.variables, "params": traverse_util.unflatten_dict(params, sep="/")})


def replaced(run: Network, state: TrainState, network: PortableNetwork) -> tuple[Network, TrainState]:
    """Returns a run and its state with another network in the place of the run's own, for evaluation."""
    variables, model = dict(network.variables), network.create()
    state = state.replace(params=variables.pop("params"), model_state=variables, ema={}, opt_state={})
    if model == run.model:
        return run, state
    task = copy.copy(run.task)
    task.model = model
    return dataclasses.replace(run, task=task), state


def evaluate(run: Network, state: TrainState, network: PortableNetwork) -> dict[str, Any]:
    """Evaluates a network on the test set of a run, and returns the metrics of the run's own evaluation."""
    run, state = replaced(run, state, network)
    return run.evaluate(run.parallel.place(state))
