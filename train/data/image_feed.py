"""Batches of images: a dispatch gets indices of a resident data set, or the batches of a streamed one."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.errors import UserError
from models.kernels import runtime
from train import config as config_lib
from train.data import augment, decode, load, resident, shuffle, source, splits, stream
from train.data.feed import Changed, Feed
from train.devices import multihost
from train.devices.parallel import Parallel

MOST_WORKERS = 1024


_NAMED = 3  # skipped images that are named


class ImageFeed:
    """The data of one run: items of every call, and how the compiled call makes batches of them.

    Attributes:
      unit: what an example is, for people.
      classes: names of the classes, by label.
      image_shape: (H, W, C) of what the network sees.
      label_shape: () for one class per image, (num_classes,) for several; see `train.data.source.Source`.
      decoder: how the file of a test image becomes pixels.
      train_count: examples of the training set.
      prepare: (key, batch, index of the first example in the global batch) -> batch to train on: augmented, normalized.
      prepare_evaluation: batch -> batch to evaluate: normalized.
      notes: lines to tell the user when the run starts: what was found in the data and what was left out.
    """

    unit = "images"
    notes: Sequence[str]

    def __init__(
        self,
        config: Any,
        parallel: Parallel,
        *,
        batch_size: int,
        eval_batch_size: int,
        steps_per_call: int,
        seed: int,
        recorded: Mapping[str, Any] | None = None,
    ):
        """Opens the data set, or describes it from a record.

        Args:
          config: the section `data`; see `train.data.source.Options`.
          parallel: the devices.
          batch_size: examples per step, over all devices.
          eval_batch_size: examples per evaluation call, over all devices.
          steps_per_call: steps per dispatch.
          seed: of the order and of crops while decoding.
          recorded: `record()` of a run that is reopened. The run's facts come from it, and a split is opened only when
            it is used, and compared with the record then.

        Raises:
          UserError: for a data set that is not there, sizes that do not fit, a pipeline that cannot do what is asked.
        """
        source.Options.read(config)  # also where nothing is opened yet
        self._config, self._recorded, self._opened, self._pipeline = config, recorded, {}, config.pipeline
        if not 0 <= config.workers <= MOST_WORKERS:
            raise UserError(f"data.workers={config.workers} must be in [0, {MOST_WORKERS}]")
        self._parallel, self._seed, self._workers = parallel, seed, config.workers
        self._batch_size, self._eval_batch_size, self._steps_per_call = batch_size, eval_batch_size, steps_per_call
        self._shard = (jax.process_index(), jax.process_count())
        self._unreadable = {"train": set(), "test": set()}  # indices that data.on_error=skip left out here
        self.notes = []
        if recorded:
            self.classes, self.train_count = tuple(recorded["classes"]), recorded["identity"]["train"]["images"]
            self.image_shape, self.label_shape = tuple(recorded["image_shape"]), tuple(recorded["label_shape"])
            self.decoder = decode.Decoder(
                **{
                    name: tuple(value) if isinstance(value, list) else value
                    for name, value in recorded["decoder"].items()
                }
            )
        else:
            comparison = splits.compare(self.train, self.test, config.source)
            # One folder of which a part is held out has one report
            self.notes = [*dict.fromkeys(filter(None, (self.train.report, self.test.report))), *comparison]
            self.classes, self.train_count = self.train.classes, len(self.train)
            self.image_shape, self.label_shape = self.train.image_shape, self.train.label_shape
            self.decoder = self.test.decoder
            if steps_per_call < 1 or (steps_per_call > 1 and not self._is_resident):
                raise UserError(
                    f"steps_per_call={steps_per_call}: must be 1 where data are streamed, 1 or more elsewhere"
                )
        self._check_memory()
        self._order = shuffle.Order(self.train_count, seed)
        augmentation = augment.build(config.augment, len(self.classes), self.image_shape, config.mean)
        if self.label_shape and augmentation.mix:
            raise UserError(
                f"data.augment='{config.augment}': mixup and cutmix are for images of one class, and "
                f"those of data.source={config.source} have several"
            )
        self._mirrors = "mirrored" in augmentation.given
        normalize = functools.partial(augment.normalize, mean=config.mean, std=config.std)

        def prepare(key, batch, first):
            batch = augmentation(key, batch, first)
            return {**batch, "image": normalize(batch["image"])}

        self.prepare = prepare
        self.prepare_evaluation = lambda batch: {**batch, "image": normalize(batch["image"])}

    def _check_memory(self) -> None:
        """Raises UserError where the images of a batch, or the indices of a call, exceed this machine's memory."""
        memory = runtime.memory()
        each = 4 * math.prod(self.image_shape)
        sizes = {
            "batch_size": self._batch_size * each,
            "eval_batch_size": self._eval_batch_size * each,
            "steps_per_call": self._steps_per_call * self._batch_size * 4,
        }
        for key, size in sizes.items():
            if size / self._shard[1] > memory:
                raise UserError(
                    f"{key}={getattr(self, f'_{key}')}: the arrays take {size / 2**30:,.0f} GiB, and this "
                    f"machine has {memory / 2**30:,.0f} GiB of memory"
                )

    @property
    def train(self) -> source.Source:
        """The training set."""
        return self.split("train")

    @property
    def test(self) -> source.Source:
        """The test set."""
        return self.split("test")

    def split(self, name: str, **changes: Any) -> source.Source:
        """Opens a split of the run's data: "train", "test", or any other that its source has.

        Args:
          name: the split.
          changes: other values for keys of the section `data`, for splits other than "train" and "test".

        Raises:
          UserError: the split is not there.
          Changed: the data of a reopened run are not those that it was trained and tested on.
        """
        key = (name, *changes.items())
        if key not in self._opened:
            is_other = name not in ("train", "test")
            opened = (
                load.load_test(self._config.to_dict(), test_split=name, **changes)
                if is_other
                else (load.load(self._config, name))
            )
            if is_other or self._recorded:
                self._compare(name, opened)
            self._opened[key] = opened
        return self._opened[key]

    def _compare(self, name: str, opened: source.Source) -> None:
        """Raises Changed where a split is not what the run has recorded, or not of its classes and shapes."""
        before = {fact: list(getattr(self, fact)) for fact in ("classes", "image_shape", "label_shape")}
        now = {fact: list(getattr(opened, fact)) for fact in before}
        if name != "train" and now["classes"] == before["classes"][: len(now["classes"])]:
            now["classes"] = before["classes"]  # the first ones are enough for a split that is not trained on
        if self._recorded and name in self._recorded["identity"]:
            before |= self._recorded["identity"][name]
            now |= opened.identity()
        if lines := config_lib.difference(before, now):
            raise Changed(
                f"data.source={self._config.source}: split '{name}' is not what the run was trained on "
                f"({'; '.join(lines)}); predicting files and explaining --image need no data set"
            )

    @functools.cached_property
    def _is_resident(self) -> bool:
        # A reopened run is evaluated, and does not need the training set for that.
        return resident.choose(self._pipeline, self.test if self._recorded else self.train) == "resident"

    @functools.cached_property
    def data(self) -> dict[str, jax.Array]:
        """Arrays that stay on the devices during the whole run; {} for a stream."""
        if not self._is_resident:
            return {}
        kept = resident.Resident(self.train)
        self._unreadable["train"].update(kept.skipped.tolist())
        return self._parallel.replicate(kept.arrays)

    def gather(self, data: Any, item: Any) -> dict[str, jax.Array]:
        """Makes the batch of a step from `data` and the step's item, inside the compiled call."""
        return _gather(data, item) if self._is_resident else item

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of the model that the data decide."""
        return {"num_classes": len(self.classes), "image_size": self.image_shape[0]}

    @property
    def inputs(self) -> tuple[int, ...]:
        """What the network is called with, for one example, as `models.initialize` takes it."""
        return (1, *self.image_shape)

    def calls(self, step: int, total: int) -> Iterator[tuple[int, Any]]:
        """Pairs (steps, items on the devices) from `step` to `total`.

        Calls start at multiples of steps_per_call, so that a run which goes on from a checkpoint dispatches the same
        programs as one that was never interrupted.
        """
        return self._resident_calls(step, total) if self._is_resident else self._streamed_calls(step, total)

    def _resident_calls(self, step, total):
        rows = shuffle.rows(self._batch_size, self._shard)
        while step < total:
            count = min(self._steps_per_call, total - step)
            positions = step * self._batch_size, count * self._batch_size
            items = {"index": self._order.indices(*positions).astype(np.int32)}
            if self._mirrors:
                items["mirrored"] = self._order.mirrored(*positions)
            yield (
                count,
                self._parallel.shard(
                    {
                        name: item.reshape(count, self._batch_size)[:, rows.start : rows.stop]
                        for name, item in items.items()
                    }
                ),
            )
            step += count

    def _streamed_calls(self, step, total):
        for batch in stream.stream(
            self.train, self._order, self._batch_size, step, total - step, self._workers, self._shard, self._seed
        ):
            self._unreadable["train"].update(batch.pop("skipped").tolist())
            if self._mirrors:
                rows = len(batch["mask"])
                batch["mirrored"] = self._order.mirrored(step * self._batch_size + self._shard[0] * rows, rows)
            step += 1
            yield 1, self._parallel.shard(jax.tree.map(lambda x: x[None], batch))

    def evaluation_calls(self) -> Iterator[Any]:
        """Items of the evaluation calls: each test example once, padded by masked ones."""
        self._unreadable["test"].clear()
        for batch in self._kept_test_batches if self._is_resident else self._test_batches(self._shard):
            self._unreadable["test"].update(batch["skipped"].tolist())
            batch = {name: batch[name][None] for name in ("image", "label", "mask")}
            yield self._parallel.shard(batch)

    def test_size(self) -> int:
        """Number of images in the test split."""
        return len(self.test)

    def test_count(self) -> int:
        """Examples, of all processes, that the last pass over `evaluation_calls` had to count."""
        return len(self.test) - len(self._all_unreadable("test"))

    def test_weight(self) -> int:
        """What the weights of the loss add up to over that pass."""
        return self.test_count()

    def shapes(self) -> tuple[Any, Any]:
        """Shapes of the items of a training call and of an evaluation call, as `Parallel.lift` takes them."""

        def batch(size):
            image = jax.ShapeDtypeStruct((1, size, *self.image_shape), np.uint8)
            return {
                "image": image,
                "label": jax.ShapeDtypeStruct((1, size, *self.label_shape), np.int32),
                "mask": jax.ShapeDtypeStruct((1, size), np.float32),
            }

        leading = self._steps_per_call, self._batch_size
        items = batch(self._batch_size)
        if self._is_resident:
            items = {"index": jax.ShapeDtypeStruct(leading, np.int32)}
        if self._mirrors:
            items["mirrored"] = jax.ShapeDtypeStruct(leading, np.bool_)
        return self._parallel.shapes(items), self._parallel.shapes(batch(self._eval_batch_size))

    def record(self) -> dict[str, Any]:
        """Returns what a run has to remember of its data, as JSON holds it: see `recorded`.

        Nothing of it may change between an interrupted run and its continuation.
        """
        return self._recorded or {
            "classes": list(self.classes),
            "image_shape": list(self.image_shape),
            "label_shape": list(self.label_shape),
            "decoder": config_lib.plain(dataclasses.asdict(self.decoder)),
            "identity": {name: self.split(name).identity() for name in ("train", "test")},
        }

    def _all_unreadable(self, split: str) -> list[int]:
        """Indices that any process left out; all processes ask for them."""
        return sorted(set().union(*multihost.gather(sorted(self._unreadable[split]))))

    @property
    def skipped(self) -> dict[str, int]:
        """How many different images could not be decoded and were left out, by data.on_error=skip, on all processes,
        which all ask for it: "test" in the last pass, "train" since these processes were started (a run that goes on
        from a checkpoint meets them again within an epoch).
        """
        return {split: len(self._all_unreadable(split)) for split in self._unreadable}

    def skipped_line(self) -> str:
        """A line for the user that names the first of the images that `skipped` counts, "" for none; all processes ask
        for it.
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
        """The test set as numpy batches {"image", "label", "mask"}, in order, whole on every process."""
        return self.batches(self.test)

    def batches(self, source: source.Source) -> Iterator[dict[str, np.ndarray]]:
        """The images of any source that the run's could come from, as `test_batches`."""
        for batch in stream.evaluation_batches(source, self._eval_batch_size, self._workers):
            yield {name: batch[name] for name in ("image", "label", "mask")}

    def _test_batches(self, shard):
        return stream.evaluation_batches(self.test, self._eval_batch_size, self._workers, shard)

    @functools.cached_property
    def _kept_test_batches(self):
        return list(self._test_batches(self._shard))  # small sets are decoded once

    def examples(self, count: int, multiple: int = 1) -> dict[str, jax.Array]:
        """A batch {"image", "label", "mask"} of at most `count` training images, as many as `multiple` divides: always
        the same random ones, normalized, not augmented.
        """
        size = min(count, self.train_count) // multiple * multiple
        found = self.train.read(np.random.default_rng(0).permutation(self.train_count)[:size], replace=True)
        return self.prepare_evaluation({name: jnp.asarray(found[name]) for name in ("image", "label", "mask")})

    def training_images(self, count: int, size: int) -> Iterator[jax.Array]:
        """`count` batches of `size` training images in training order, not augmented, normalized, on every process."""
        for t in range(count):
            batch = self.train.read(self._order.indices(t * size, size), replace=True)
            yield self.prepare_evaluation({"image": jnp.asarray(batch["image"])})["image"]


def _gather(data: dict[str, jax.Array], item: dict[str, jax.Array]) -> dict[str, jax.Array]:
    index, given = item["index"], {name: array for name, array in item.items() if name != "index"}
    return {**resident.Resident.gather(data, index), "mask": jnp.ones(index.shape, jnp.float32), **given}


def as_images(feed: Feed, message: str = "this is for images") -> ImageFeed:
    """Returns the feed, whose examples are images.

    Raises:
      UserError: they are something else; `message` says what asked for images.
    """
    if not isinstance(feed, ImageFeed):
        raise UserError(message)
    return feed
