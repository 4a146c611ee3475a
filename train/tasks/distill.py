"""Knowledge distillation (Hinton 2015, arXiv 1503.02531): a network learns from labels and from a trained teacher.

The teacher is a constant of the training program: it is on every device, and in no optimizer and no checkpoint.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax

import models
from models.errors import UserError, choice_error
from models.explain import method
from models.layers.endpoint import capture
from train.setup.config import Reader
from train.tasks.classify import Classify

TEMPERATURE = 4.0
_LOGITS, _MAPS = "teacher_logits", "teacher_attention"  # entries of an annotated batch


class Distill(Classify):
    """Classification with a teacher, which sees the same augmented images and does not learn.

    The loss is (1 - weight) L + weight T^2 KL(teacher || student), where L is the loss of `Classify` and both
    distributions are softmax(logits / T); the factor keeps the size of the gradient as T changes (Hinton 2015, section
    2). With `hard`, the second term is the cross-entropy with the teacher's class (Touvron 2021, "DeiT", arXiv
    2012.12877, equation 3). `features` adds attention transfer (Zagoruyko 2017, arXiv 1612.03928, equation 2): the mean
    square of channels at each position, divided by its norm over positions, is the same in both networks. It needs no
    regressor between different numbers of channels, as hints do (Romero 2015), so a student has no weights that only
    its training needs.

    It has these metrics of training besides those of `Classify`:

    divergence          mean of the second term, without its weight
    agreement           share of images for which both networks predict the same class
    attention           sum over pairs of endpoints of the mean squared difference, with `features`

    Args:
      model: the flax module.
      num_classes: number of classes of the data.
      config: the section `task`.
      to_steps: converts durations to steps.
      teacher: a trained network: anything that init_from takes.
      temperature: T.
      weight: share of the teacher's term.
      hard: whether the teacher's class takes the place of its distribution.
      features: names of endpoints, e.g. "stage2|stage3"; "stage3:stage4" pairs the student's and the teacher's.
      attention: factor of attention transfer (beta; 1e3 in the authors' code).
      views: see `Classify`.
      loss: see `Classify`.
      threshold: see `Classify`.
    """

    def __init__(
        self,
        model: Any,
        num_classes: int,
        config: Reader,
        to_steps: Any = None,
        *,
        teacher: str,
        temperature: float = TEMPERATURE,
        weight: float = 0.9,
        hard: bool = False,
        features: str = "",
        attention: float = 1000.0,
        views: str = "one",
        loss: str = "cross_entropy",
        threshold: float | None = 0.0,
    ):
        if not temperature > 0:
            raise ValueError(f"temperature={temperature} must be above 0")
        if hard and temperature != TEMPERATURE:
            raise ValueError(f"hard=True uses the teacher's class, which temperature={temperature} does not change")
        if not 0 <= weight <= 1:
            raise ValueError(f"weight={weight} must be in [0, 1]")
        if not attention > 0:
            raise ValueError(f"attention={attention} must be above 0")
        super().__init__(model, num_classes, config, to_steps, views=views, loss=loss, threshold=threshold)
        self._where, self._temperature, self._weight, self._hard = teacher, temperature, weight, hard
        self._pairs, self._attention = _pairs(features), attention

    def constants(self, feed):
        """Opens the teacher, checks that it fits the data and the student, and returns its variables."""
        if self.teacher is None:
            self.teacher = self._fitted(feed)
        return self.teacher.variables

    def _fitted(self, feed):
        """Returns the teacher, after checks that it fits the data and the student."""
        from train.setup import teacher as teachers  # it reads checkpoints; --help need not wait for that

        teacher, shape = teachers.load(self._where, getattr(self.model, "dtype", None)), feed.image_shape
        if line := teacher.check(shape, feed.classes):
            print(line, file=sys.stderr)
        drawn = jax.eval_shape(lambda key: models.initialize(self.model, key, feed.inputs), jax.random.key(0))
        student = method.outline(self.model, drawn, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
        self._sizes = {ours: _grid("the student", student, ours) for ours in self._pairs}
        for theirs in self._pairs.values():
            _grid("the teacher", teacher.outline(shape), theirs)
        self._normalization = feed.mean, feed.std
        return teacher

    def annotated(self, constants, batch):
        """Returns a batch with the teacher's logits, and its attention at each position of the student's endpoints."""
        images = self.teacher.seen(batch["image"], *self._normalization)
        logits, maps = capture(self.teacher.model, constants, images, names=set(self._pairs.values()), train=False)
        attention = {ours: _attention(maps[theirs], self._sizes[ours]) for ours, theirs in self._pairs.items()}
        return {**batch, _LOGITS: logits, _MAPS: attention}

    def loss(self, params, model_state, task_state, batch, key, step):
        """Returns the weighted loss of labels, teacher and attention; see `Task.loss`."""
        del step
        (logits, model_state), maps = capture(
            self.model,
            {"params": params, **model_state},
            batch["image"],
            names=self._pairs,
            train=True,
            rngs={"dropout": key},
            mutable=list(model_state),
        )
        loss, metrics = self.scored(logits, batch)
        mask = batch["mask"]
        rows, weight = len(mask), jnp.sum(mask)
        # Divided by the number of rows, as in `scored`
        divergence = jnp.sum(self.divergence(logits, batch[_LOGITS]) * mask)
        loss = (1 - self._weight) * loss + self._weight * divergence / rows
        same = jnp.sum((jnp.argmax(logits, -1) == jnp.argmax(batch[_LOGITS], -1)) * mask)
        metrics |= {"divergence": (divergence, weight), "agreement": (same, weight)}
        if self._pairs:
            differences = [
                jnp.mean((_attention(maps[name], self._sizes[name]) - theirs) ** 2, -1)
                for name, theirs in batch[_MAPS].items()
            ]
            attention = jnp.sum(sum(differences) * mask)
            loss += self._attention * attention / rows
            metrics["attention"] = attention, weight
        metrics["loss"] = loss * rows, weight
        return loss, (metrics, model_state, task_state)

    def divergence(self, logits: jax.Array, teacher: jax.Array) -> jax.Array:
        """Returns the teacher's term of the loss for each example, [B], of logits [B, num_classes] of both."""
        if self._hard:
            return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.argmax(teacher, -1))
        ours, theirs = (jax.nn.log_softmax(x / self._temperature) for x in (logits, teacher))
        return self._temperature**2 * jnp.sum(jnp.exp(theirs) * (theirs - ours), -1)


def _pairs(features: str) -> dict[str, str]:
    """Returns {the student's endpoint: the teacher's} of "stage2|stage3:stage4"."""
    names = [part.strip().partition(":") for part in features.split("|") if part.strip()]
    return {ours.strip(): (theirs or ours).strip() for ours, _, theirs in names}


def _grid(whose: str, outline: method.Outline, name: str) -> tuple[int, int]:
    """Returns height and width of an endpoint; raises UserError if it has no positions, or there is none."""
    grids = {endpoint: size for endpoint, shape in outline.endpoints.items() if (size := method.grid(shape))}
    if name not in grids:
        raise UserError(f"features of distill: {choice_error(f'endpoint with positions of {whose}', name, grids)}")
    height, width, _ = grids[name]
    return height, width


def _attention(activation: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Returns the attention of an activation [B, h, w, C] or [B, tokens, C], resized, float32 [B, H W] of norm 1."""
    energy = jnp.mean(method.as_maps(activation) ** 2, -1)
    if energy.shape[1:] != size:
        energy = method.resized(energy, size)
    flat = energy.reshape(len(energy), -1)
    return flat / jnp.sqrt(jnp.sum(flat**2, -1, keepdims=True) + 1e-12)
