"""The contract between a data set and the loop: how batches reach the devices."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax

from models.errors import UserError

Batch = Mapping[str, Any]  # arrays by name, with the examples along the first axis


class Changed(UserError):
    """The data set of a finished run is no longer what the run was trained and tested on."""


class Feed(Protocol):
    """The data of one run, as the loop uses them: `ImageFeed` (image_feed.py) or `TextFeed` (text_feed.py).

    A dispatch gets "items". Inside the compiled call, `gather` makes the batch of a step from the step's item and from
    `data`, which stays on the devices. Batch t is a pure function of (seed, t).

    Attributes:
      unit: what an example is, for people: "images" or "sentences".
      notes: lines to tell the user when the run starts.
      data: arrays that stay on the devices during the whole run; {} where batches are streamed.
      gather: (data, item) -> batch.
      prepare: (key, batch, index of the first example in the global batch) -> batch to train on: augmented, normalized.
      prepare_evaluation: batch -> batch to evaluate: normalized.
    """

    @property
    def unit(self) -> str:
        """See the class."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """See the class."""
        ...

    @property
    def prepare(self) -> Callable[..., dict[str, jax.Array]]:
        """See the class."""
        ...

    @property
    def prepare_evaluation(self) -> Callable[..., dict[str, jax.Array]]:
        """See the class."""
        ...

    @property
    def data(self) -> Any:
        """See the class."""
        ...

    def gather(self, data: Any, item: Any) -> dict[str, jax.Array]:
        """See the class."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, or the tokens of the vocabulary."""
        ...

    @property
    def label_shape(self) -> tuple[int, ...]:
        """() for one label per example, (num_classes,) for several."""
        ...

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of the model that the data decide."""
        ...

    @property
    def inputs(self) -> Any:
        """Shapes of one example's inputs, as `models.initialize` takes them."""
        ...

    @property
    def train_count(self) -> int:
        """Number of training examples."""
        ...

    @property
    def skipped(self) -> dict[str, int]:
        """Numbers of examples that were left out, by split; all processes ask for it."""
        ...

    def calls(self, step: int, total: int) -> Iterator[tuple[int, Any]]:
        """Yields (number of steps, items on the devices) from `step` to `total`."""
        ...

    def evaluation_calls(self) -> Iterator[Any]:
        """Yields the items of the evaluation calls: each test example once, padded by masked ones."""
        ...

    def test_batches(self) -> Iterator[dict[str, Any]]:
        """Yields the test set as numpy batches with "mask", whole on every process."""
        ...

    def test_size(self) -> int:
        """Number of examples in the test split."""
        ...

    def test_count(self) -> int:
        """Number of test examples that the last pass over `evaluation_calls` had to count."""
        ...

    def test_weight(self) -> int:
        """Sum of the weights of the loss over that pass."""
        ...

    def training_images(self, count: int, size: int) -> Iterator[jax.Array]:
        """Yields `count` batches of `size` training images, normalized, not augmented.

        Raises:
          UserError: the examples are no images.
        """
        ...

    def shapes(self) -> tuple[Any, Any]:
        """Shapes of the items of a training call and of an evaluation call, as `Parallel.lift` takes them."""
        ...

    def record(self) -> dict[str, Any]:
        """Returns what a run remembers of its data, as JSON holds it.

        Nothing in it may change between an interrupted run and its continuation.
        """
        ...

    def skipped_line(self) -> str:
        """Returns a line that names examples that `skipped` counts, "" for none; all processes ask for it."""
        ...
