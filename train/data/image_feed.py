"""Batches of images; items are indices of a resident data set, or the batches of a streamed one."""

import dataclasses
import functools
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from models.errors import UserError
from models.kernels import runtime
from train.data import background, decode, load, resident, resolutions, shuffle, source, splits, stream
from train.data.feed import Changed, Feed
from train.data.preparation import Preparation
from train.devices import multihost
from train.devices.parallel import Parallel
from train.setup.config import Durations, Reader, difference, plain

MOST_WORKERS = 1024
_NAMED = 3  # number of skipped images to name


class ImageFeed:
    """A feed of images; see `train.data.feed.Feed` for attributes that are not listed here.

    Attributes:
      image_shape: (H, W, C) of the network's input.
      decoder: decodes the files of test images.
      background: of the training images, see `train.data.background`.
      mean: subtracted from pixels in [0, 1], per channel or one for all.
      std: by which they are divided then.
      notes: lines to print when the run starts, about images that were skipped and splits that overlap.
    """

    unit = "images"
    notes: Sequence[str]
    classes: tuple[str, ...]
    train_count: int
    image_shape: tuple[int, int, int]
    label_shape: tuple[int, ...]
    decoder: decode.Decoder
    background: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(
        self,
        config: Reader,
        parallel: Parallel,
        *,
        batch_size: int,
        eval_batch_size: int,
        steps_per_call: int,
        seed: int,
        duration: str,
        recorded: Mapping[str, Any] | None = None,
    ):
        """Opens the data set, or describes it by a record.

        Args:
          config: the section `data`; see `train.data.source.Options`.
          parallel: the devices.
          batch_size: examples per step, over all devices.
          eval_batch_size: examples per evaluation call, over all devices.
          steps_per_call: steps per dispatch.
          seed: seed of the order, and of crops in decoding.
          duration: of the whole training, over which data.resolutions is laid.
          recorded: `record()` of a run that is reopened. It describes the data; a split is opened, and compared with
            the record, when it is first used.

        Raises:
          UserError: the data set does not exist, sizes do not fit, or the pipeline does not support a setting.
        """
        source.Options.read(config)  # checks the options even if nothing is opened yet
        self._config, self._recorded, self._opened, self._pipeline = config, recorded, {}, config.pipeline
        if not 0 <= config.workers <= MOST_WORKERS:
            raise UserError(f"data.workers={config.workers} must be in [0, {MOST_WORKERS}]")
        self._parallel, self._seed, self._workers = parallel, seed, config.workers
        self._batch_size, self._eval_batch_size, self._steps_per_call = batch_size, eval_batch_size, steps_per_call
        self._shard = (jax.process_index(), jax.process_count())
        # Indices of images that this process skipped by data.on_error=skip
        self._unreadable: dict[str, set[int]] = {"train": set(), "test": set()}
        self.notes = []
        if recorded:
            self._describe(recorded)
        else:
            self._inspect()
        durations = Durations(batch_size, self.train_count).with_total(duration)
        self._resolutions = resolutions.parse(config.resolutions, durations.steps, durations.total or 0)
        height, width, _ = self.image_shape
        if self.training_sizes and height != width:
            raise UserError(
                f"data.resolutions='{config.resolutions}' is for square images, and these are {height}x{width}: set "
                "data.image_size, and data.crop to resize them"
            )
        self._check_memory()
        # A reopened run trains no further, so that its training set need not be opened for its groups
        groups = None if recorded or self._is_resident else self.train.groups
        self._order = shuffle.Order(self.train_count, seed, groups, config.repeats, batch_size)
        shapes = {size: self._shape_at(size) for size in self.training_sizes or (0,)}
        self.prepare = Preparation(config, len(self.classes), self.label_shape, shapes)
        self.prepare_evaluation = self.prepare.evaluation
        self.mean, self.std = config.mean, config.std

    def _describe(self, recorded: Mapping[str, Any]) -> None:
        """Sets the facts of the data by a record."""
        self.classes, self.train_count = tuple(recorded["classes"]), recorded["identity"]["train"]["images"]
        height, width, channels = recorded["image_shape"]
        self.image_shape, self.label_shape = (height, width, channels), tuple(recorded["label_shape"])
        options: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in recorded["decoder"].items()
        }
        self.decoder = decode.Decoder(**options)
        self.background = recorded.get("background", "")  # runs of 0.1.0 did not record it

    def _inspect(self) -> None:
        """Sets the facts of the data by the data set itself, and checks them against each other."""
        train, test = self.train, self.test
        comparison = splits.compare(train, test, self._config.source)
        # A folder of which a part is held out gives both splits the same report.
        self.notes = [*dict.fromkeys(filter(None, (train.report, test.report))), *comparison]
        self.classes, self.train_count = train.classes, len(train)
        self.image_shape = cast(tuple[int, int, int], train.image_shape)  # complete, as `load` opens sources
        self.label_shape, self.decoder = train.label_shape, test.decoder
        self.background = background.of_training(train)
        if self._steps_per_call < 1 or (self._steps_per_call > 1 and not self._is_resident):
            raise UserError(
                f"steps_per_call={self._steps_per_call}: must be 1 for streamed data, and at least 1 for resident data"
            )

    @property
    def training_sizes(self) -> tuple[int, ...]:
        """Sizes of training images by data.resolutions, the largest first; () if it is empty."""
        return self._resolutions.sizes

    @property
    def heaviest_step(self) -> int:
        return self._resolutions.heaviest_step

    def _shape_at(self, size: int) -> tuple[int, int, int]:
        """Returns the shape of training images of a size; 0 stands for that of evaluation."""
        return (size, size, self.image_shape[2]) if size else self.image_shape

    def _check_memory(self) -> None:
        """Raises UserError if the images of a batch, or the indices of a call, exceed this machine's memory."""
        memory = runtime.memory()
        each = 4 * max(math.prod(self._shape_at(size)) for size in (0, *self.training_sizes))
        sizes = {
            "batch_size": self._batch_size * each,
            "eval_batch_size": self._eval_batch_size * each,
            "steps_per_call": self._steps_per_call * self._batch_size * 4,
        }
        for key, size in sizes.items():
            if size / self._shard[1] > memory:
                raise UserError(
                    f"{key}={getattr(self, f'_{key}')}: the arrays take {size / 2**30:,.0f} GiB, but this "
                    f"machine has {memory / 2**30:,.0f} GiB of memory"
                )

    @property
    def train(self) -> source.Source:
        """The training split."""
        return self.split("train")

    @property
    def test(self) -> source.Source:
        """The test split."""
        return self.split("test")

    def split(self, name: str, **changes: Any) -> source.Source:
        """Opens a split of the run's data: "train", "test", or any other split of its source.

        Args:
          name: the split.
          **changes: values that replace those of the section `data`, for splits other than "train" and "test".

        Raises:
          UserError: the split does not exist.
          Changed: the data of a reopened run differ from those that it was trained and tested on.
        """
        key = (name, *changes.items())
        if key not in self._opened:
            is_other = name not in ("train", "test")
            split = (
                load.load_test(self._config.to_dict(), test_split=name, **changes)
                if is_other
                else (load.load(self._config, name))
            )
            if is_other or self._recorded:
                self._compare(name, split)
            self._opened[key] = split
        return self._opened[key]

    def replace_test(self, test: source.Source) -> None:
        """Makes another source the test split, for evaluation alone; it has the run's classes and shapes."""
        self._opened["test",] = test

    def _compare(self, name: str, split: source.Source) -> None:
        """Raises Changed if a split differs from the run's record, or from the run's classes and shapes."""
        before = {fact: list(getattr(self, fact)) for fact in ("classes", "image_shape", "label_shape")}
        now = {fact: list(getattr(split, fact)) for fact in before}
        if name != "train" and now["classes"] == before["classes"][: len(now["classes"])]:
            now["classes"] = before["classes"]  # a split for evaluation may lack the last classes
        if self._recorded and name in self._recorded["identity"]:
            before |= self._recorded["identity"][name]
            now |= split.identity()
        if lines := difference(before, now):
            raise Changed(
                f"data.source={self._config.source}: split '{name}' is not what the run was trained on "
                f"({'; '.join(lines)}); predicting files and explaining --image need no data set"
            )

    @functools.cached_property
    def _is_resident(self) -> bool:
        # Reopened runs are only evaluated, which does not need the training set.
        return resident.choose(self._pipeline, lambda: self.test if self._recorded else self.train) == "resident"

    @functools.cached_property
    def data(self) -> dict[str, jax.Array]:
        """Arrays that stay on the devices during the whole run; {} if batches are streamed."""
        if not self._is_resident:
            return {}
        dataset = resident.Resident(self.train)
        self._unreadable["train"].update(dataset.skipped.tolist())
        return self._parallel.replicate(dataset.arrays)

    def gather(self, data: Any, item: Any) -> dict[str, jax.Array]:
        if not self._is_resident:
            return item
        indices, extra = item["index"], {name: array for name, array in item.items() if name != "index"}
        batch = resident.Resident.gather(data, indices, self.image_shape)
        return {**batch, "mask": jnp.ones(indices.shape, jnp.float32), **extra}

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of the model that the data determine."""
        return {"num_classes": len(self.classes), "image_size": self.image_shape[0]}

    @property
    def inputs(self) -> tuple[int, ...]:
        """Shape of the network's input for one example, as `models.initialize` takes it."""
        return (1, *self.image_shape)

    def calls(self, step: int, total: int) -> Iterator[tuple[int, Any]]:
        """Yields (number of steps, items on the devices) from `step` to `total`.

        Calls start at multiples of steps_per_call, so that a resumed run dispatches the same programs as an
        uninterrupted one.
        """
        return self._resident_calls(step, total) if self._is_resident else self._streamed_calls(step, total)

    def _resident_calls(self, step, total):
        rows = shuffle.process_rows(self._batch_size, self._shard)
        while step < total:
            size, end = self._resolutions.at(step, total)
            count = min(self._steps_per_call - step % self._steps_per_call, end - step)
            positions = step * self._batch_size, count * self._batch_size
            items = {"index": self._order.indices(*positions).astype(np.int32)}
            if self.prepare.mirrors:
                items["mirrored"] = self._order.mirrored(*positions)
            items = {
                name: item.reshape(count, self._batch_size)[:, rows.start : rows.stop] for name, item in items.items()
            }
            yield count, self._parallel.shard(items | size)
            step += count

    def _streamed_calls(self, step, total):
        while step < total:
            size, end = self._resolutions.at(step, total)
            train, count = self._train_at(size), end - step
            for batch in stream.stream(
                train, self._order, self._batch_size, step, count, self._workers, self._shard, self._seed
            ):
                self._unreadable["train"].update(batch.pop("skipped").tolist())
                if self.prepare.mirrors:
                    rows = len(batch["mask"])
                    batch["mirrored"] = self._order.mirrored(step * self._batch_size + self._shard[0] * rows, rows)
                step += 1
                yield 1, self._parallel.shard(jax.tree.map(lambda x: x[None], batch) | size)

    def _train_at(self, size: dict[str, resolutions.Size]) -> source.Source:
        """Returns the training split, decoded to a size where it is cropped; the step resizes other images."""
        if not size or self._config.crop == "none" or size["size"].pixels == self.image_shape[0]:
            return self.train
        options = {**self._config.to_dict(), "image_size": size["size"].pixels}
        return load.load(types.SimpleNamespace(**options), "train")

    def evaluation_calls(self) -> Iterator[Any]:
        self._unreadable["test"].clear()
        for batch in self._kept_test_batches if self._is_resident else self._test_batches(self._shard):
            self._unreadable["test"].update(batch["skipped"].tolist())
            batch = {name: batch[name][None] for name in ("image", "label", "mask")}
            yield self._parallel.shard(batch)

    def test_size(self) -> int:
        return len(self.test)

    def test_count(self) -> int:
        return len(self.test) - len(self._all_unreadable("test"))

    def test_weight(self) -> int:
        return self.test_count()

    def shapes(self) -> tuple[Sequence[Any], Any]:
        def batch(size, pixels=0):
            image = jax.ShapeDtypeStruct((1, size, *self._shape_at(pixels)), np.uint8)
            return {
                "image": image,
                "label": jax.ShapeDtypeStruct((1, size, *self.label_shape), np.int32),
                "mask": jax.ShapeDtypeStruct((1, size), np.float32),
            }

        leading, training = (self._steps_per_call, self._batch_size), []
        for pixels in self.training_sizes or (0,):
            items = batch(self._batch_size, 0 if self._config.crop == "none" else pixels)
            if self._is_resident:
                items = {"index": jax.ShapeDtypeStruct(leading, np.int32)}
            if self.prepare.mirrors:
                items["mirrored"] = jax.ShapeDtypeStruct(leading, np.bool_)
            size = {"size": resolutions.Size(pixels)} if pixels else {}
            training.append(self._parallel.shapes(items) | size)
        return training, self._parallel.shapes(batch(self._eval_batch_size))

    def record(self) -> dict[str, Any]:
        """Returns the record of the data that a run keeps, as JSON; it must not change when the run resumes."""
        if self._recorded:
            return dict(self._recorded)
        return {
            "classes": list(self.classes),
            "image_shape": list(self.image_shape),
            "label_shape": list(self.label_shape),
            "decoder": {k: v for k, v in plain(dataclasses.asdict(self.decoder)).items() if k != "exact" or v},
            **({"background": self.background} if self.background else {}),
            "identity": {name: self.split(name).identity() for name in ("train", "test")},
        }

    def _all_unreadable(self, split: str) -> list[int]:
        """Returns the indices that any process skipped; all processes must call it together."""
        return sorted(set().union(*multihost.gather(sorted(self._unreadable[split]))))

    @property
    def skipped(self) -> dict[str, int]:
        """Numbers of images, by split, that could not be decoded and were skipped by data.on_error=skip.

        "test" counts images of the last evaluation. "train" counts images since the processes started; after
        a resume, the same images are found and counted again within an epoch. All processes must read it together.
        """
        return {split: len(self._all_unreadable(split)) for split in self._unreadable}

    def skipped_line(self) -> str:
        """Returns a line that names the first skipped images, "" if there are none.

        All processes must call it together.
        """
        lines = []
        for split, name_of, effect in (
            ("train", self.train.name, "training images, replaced by others"),
            ("test", self.test.name, "test images, left out"),
        ):
            indices = self._all_unreadable(split)
            names = ", ".join(map(name_of, indices[:_NAMED])) + ", …" * (len(indices) > _NAMED)
            lines += [f"{len(indices):,} {effect}: {names}"] if indices else []
        return "images that cannot be decoded: " + "; ".join(lines) if lines else ""

    def test_batches(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields the test set as numpy batches {"image", "label", "mask"}; every process gets the whole set."""
        return self.batches(self.test)

    def batches(self, source: source.Source) -> Iterator[dict[str, np.ndarray]]:
        """Yields the images of any source, such as another split, as `test_batches` does."""
        for batch in stream.evaluation_batches(source, self._eval_batch_size, self._workers):
            yield {name: batch[name] for name in ("image", "label", "mask")}

    def _test_batches(self, shard):
        return stream.evaluation_batches(self.test, self._eval_batch_size, self._workers, shard)

    @functools.cached_property
    def _kept_test_batches(self):
        return list(self._test_batches(self._shard))  # a resident data set is decoded once

    def examples(self, count: int, multiple: int = 1) -> dict[str, jax.Array]:
        """Returns a fixed random batch {"image", "label", "mask"} of training images, normalized but not augmented.

        Args:
          count: the maximum number of images.
          multiple: the number of images is a multiple of this.
        """
        size = min(count, self.train_count) // multiple * multiple
        batch = self.train.read(np.random.default_rng(0).permutation(self.train_count)[:size], replace=True)
        return self.prepare_evaluation({name: jnp.asarray(batch[name]) for name in ("image", "label", "mask")})

    def training_images(self, count: int, size: int) -> Iterator[jax.Array]:
        """Yields batches of training images in training order, normalized but not augmented, on every process."""
        for t in range(count):
            batch = self.train.read(self._order.indices(t * size, size), replace=True)
            yield self.prepare_evaluation({"image": jnp.asarray(batch["image"])})["image"]


def as_images(feed: Feed, message: str = "this is for images") -> ImageFeed:
    """Returns the feed as a feed of images.

    Raises:
      UserError: its examples are not images. The text is `message`.
    """
    if not isinstance(feed, ImageFeed):
        raise UserError(message)
    return feed
