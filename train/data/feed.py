"""The protocol between a data set and the loop, by which batches reach the devices."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax

from models.errors import UserError

Batch = Mapping[str, Any]  # arrays by name, with the examples along the first axis


class Changed(UserError):
    """An error of a run whose data set is no longer the one that it was trained and tested on."""


class Feed(Protocol):
    """The data of one run, as the loop uses them: `ImageFeed` (image_feed.py) or `TextFeed` (text_feed.py).

    One call of a compiled program (a "dispatch") runs one or more steps, and receives one "item" for each step. In the
    compiled program, `gather` makes the batch of a step from the step's item and from `data`, which stays on the
    devices. Batch t is a pure function of (seed, t).
    """

    @property
    def unit(self) -> str:
        """Name of the examples: "images" or "sentences"."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Lines to print when the run starts."""
        ...

    @property
    def prepare(self) -> Callable[..., dict[str, jax.Array]]:
        """Augmentation and normalization: (key, batch, index of the first example in the global batch) -> batch."""
        ...

    @property
    def prepare_evaluation(self) -> Callable[..., dict[str, jax.Array]]:
        """Normalization: batch -> batch to evaluate."""
        ...

    @property
    def data(self) -> Any:
        """Arrays that stay on the devices during the whole run; {} if batches are streamed."""
        ...

    def gather(self, data: Any, item: Any) -> dict[str, jax.Array]:
        """Makes the batch of a step from `data` and the step's item, in the compiled program."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, or tokens of the vocabulary."""
        ...

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Shape of a label: () for one label per example, (num_classes,) for several."""
        ...

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of the model that the data determine."""
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
        """Numbers of skipped examples, by split; all processes must read it together."""
        ...

    def calls(self, step: int, total: int) -> Iterator[tuple[int, Any]]:
        """Yields (number of steps, items on the devices) from `step` to `total`."""
        ...

    def evaluation_calls(self) -> Iterator[Any]:
        """Yields the items of the evaluation calls: each test example once, padded with masked examples."""
        ...

    def test_batches(self) -> Iterator[dict[str, Any]]:
        """Yields the test set as numpy batches with "mask"; every process gets the whole set."""
        ...

    def test_size(self) -> int:
        """Returns the number of examples in the test split."""
        ...

    def test_count(self) -> int:
        """Returns the number of test examples in the last pass over `evaluation_calls`, without skipped ones."""
        ...

    def test_weight(self) -> int:
        """Returns the total weight of the loss in the last evaluation: the number of images, or of target tokens."""
        ...

    def training_images(self, count: int, size: int) -> Iterator[jax.Array]:
        """Yields `count` batches of `size` training images, normalized but not augmented.

        Raises:
          UserError: the examples are not images.
        """
        ...

    @property
    def heaviest_step(self) -> int:
        """The first step whose examples are as large as any: 0 unless sizes grow during training."""
        ...

    def shapes(self) -> tuple[Sequence[Any], Any]:
        """Returns the shapes of the items of training calls and of an evaluation call, as `Parallel.lift` takes them.

        There is one entry for each size of training examples, the largest first.
        """
        ...

    def record(self) -> dict[str, Any]:
        """Returns the record of the data that a run keeps, as JSON; it must not change when the run resumes."""
        ...

    def skipped_line(self) -> str:
        """Returns a line about skipped examples, "" if there are none; all processes must call it together."""
        ...
