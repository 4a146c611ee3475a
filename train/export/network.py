"""The network that a run has trained, as it computes."""

import copy
import functools
from typing import Any, NamedTuple

import models
from models.compress import shrink
from models.layers import low_bit
from train import evaluate as scoring
from train import step
from train.data.image_feed import as_images
from train.optim import pruning, weight_sharing


class Network(NamedTuple):
    """What a file holds: `models.create(name, **fields)`, called with `inputs` (shape of one example), `variables`."""

    name: str
    fields: dict[str, Any]
    inputs: tuple[int, ...]
    variables: dict[str, Any]

    def create(self) -> Any:
        """The flax module."""
        return models.create(self.name, **self.fields)


def network(run: Any, state: Any) -> Network:
    """The network that a run has trained, as it computes: low-bit weights as they are used, pruned filters gone.

    Raises:
      UserError: filters that cannot be taken out; a network of sentences.
    """
    as_images(run.feed, f"export is for networks that take images, not {run.feed.unit}")
    config, model = run.config["model"], run.model
    fields = {**run.feed.fields, **{name: value for name, value in config.items() if name != "name"}}
    variables = low_bit.stored(model, state.evaluation_variables(), *models.abstract(run.feed.inputs))
    prune = pruning.plan(run.config["optimizer"]["prune"], run.durations.steps, run.total)
    if prune and prune.structure == "filters":
        model, variables = shrink.shrink(model, variables, pruning.masks_of(state.opt_state), run.feed.inputs)
        fields["widths"] = model.widths
    return Network(config["name"], fields, run.feed.inputs, variables)


def shared(network: Network, text: str) -> Network:
    """The network with the weights of each layer at the values of a codebook, see train/optim/weight_sharing.py."""
    params = weight_sharing.plan(text).snap(network.variables["params"])
    return network._replace(variables={**network.variables, "params": params})


def evaluate(run: Any, state: Any, network: Network) -> dict[str, Any]:
    """Metrics of a network on the test set of a run, as the run's own evaluation has them."""
    variables, call = dict(network.variables), run.evaluation_call
    if network.create() != run.model:
        call = run.parallel.lift_evaluation(
            functools.partial(step.evaluation_call, prepare=run.feed.prepare_evaluation, task=_task(run, network))
        )
    state = state.replace(params=variables.pop("params"), model_state=variables, ema={}, opt_state={})
    return scoring.evaluate(call, run.parallel.place(state), run.feed.evaluation_calls(), run.feed.test_weight)


def _task(run: Any, network: Network) -> Any:
    """The run's task, on that network."""
    task = copy.copy(run.task)
    task.model = network.create()
    return task
