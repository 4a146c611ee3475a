"""Batches of parallel text."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from models.errors import UserError, has_type
from train.data import shuffle
from train.data.feed import Changed, Feed
from train.data.sources import text
from train.devices.parallel import Parallel
from train.setup.config import Reader, difference


class TextFeed:
    """A feed of pairs of sentences, always streamed, in batches of one width.

    A batch is {"source": int32 [B, W], "target": int32 [B, W + 1] from BOS to EOS, "mask": float32 [B], 0 for padding
    rows, "tokens": float32 [B]}. W is the first of `buckets` that holds the batch, so that one program per bucket is
    compiled. "tokens", equal in all rows, is the mean number of target tokens per sentence over the global batch. The
    loss is divided by it, and not by a device's own mean, which may differ between devices.

    Attributes:
      tokenizer: the tokenizer of both languages.
      buckets: the widths of training, and one more if the test split has longer sentences.
    """

    unit = "sentences"
    label_shape: tuple[int, ...] = ()
    notes: Sequence[str] = ()

    def __init__(
        self,
        source: str,
        config: Reader,
        parallel: Parallel,
        *,
        batch_size: int,
        eval_batch_size: int,
        steps_per_call: int,
        seed: int,
        recorded: Mapping[str, Any] | None = None,
    ):
        """Reads the text, and learns the vocabulary unless it is cached.

        Args:
          source: "text:FOLDER" or "grammar".
          config: the section `text`; see configs/translation.py.
          parallel: the devices.
          batch_size: pairs per step, over all devices.
          eval_batch_size: pairs per evaluation call, over all devices.
          steps_per_call: must be 1.
          seed: seed of the order.
          recorded: `record()` of a run that is reopened; the text is compared with it.

        Raises:
          UserError: the text does not exist or is invalid, or an option is.
          Changed: the text differs from the one that a reopened run was trained on.
        """
        if steps_per_call != 1:
            raise UserError(f"steps_per_call={steps_per_call}: must be 1 for text, whose batches vary in length")
        buckets = config.buckets
        if not (
            isinstance(buckets, (tuple, list))
            and buckets
            and all(has_type(b, int) and b > 1 for b in buckets)
            and list(buckets) == sorted(set(buckets))
        ):
            raise UserError(f"text.buckets={buckets} must be increasing numbers of tokens, e.g. (16, 32, 64)")
        self._parallel, self._seed, self._source = parallel, seed, source
        self._batch_size, self._eval_batch_size = batch_size, eval_batch_size
        self._shard = (jax.process_index(), jax.process_count())
        languages = (config.source, config.target)
        texts = {
            name: text.read(source, languages, split)
            for name, split in (("train", config.train_split), ("test", config.test_split))
        }
        self.tokenizer = text.vocabulary(texts["train"], config.vocab_size)
        self.train = text.Corpus(texts["train"], self.tokenizer, longest=buckets[-1])
        self.test = text.Corpus(texts["test"], self.tokenizer)
        if not len(self.train):
            raise UserError(f"text.buckets={buckets}: no training sentence is that short")
        self.skipped = {"train": self.train.skipped, "test": 0}
        longest = -(-int(self.test.lengths.max()) // 8) * 8
        self.buckets = (*buckets, *([longest] if longest > buckets[-1] else []))
        self.data: dict[str, jax.Array] = {}
        if recorded and (lines := difference(recorded["identity"], self.record()["identity"])):
            raise Changed(f"data.source={source} changed since the run was trained ({'; '.join(lines)})")

    def gather(self, data: Any, item: Any) -> dict[str, jax.Array]:
        """Returns the item, which is the batch."""
        del data
        return item

    def prepare(self, key: jax.Array, batch: Any, first: Any) -> dict[str, jax.Array]:
        """Returns the batch unchanged; text is not augmented."""
        del key, first
        return batch

    def prepare_evaluation(self, batch: Any) -> dict[str, jax.Array]:
        """Returns the batch unchanged."""
        return batch

    @property
    def train_count(self) -> int:
        """Number of pairs in the training split."""
        return len(self.train)

    @property
    def classes(self) -> tuple[str, ...]:
        """The tokens of the vocabulary."""
        return tuple(str(self.tokenizer.id_to_token(i)) for i in range(self.tokenizer.get_vocab_size()))

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of the model that the text determines."""
        return {"vocab_size": self.tokenizer.get_vocab_size(), "max_length": self.buckets[-1]}

    @property
    def inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of source and target [1, W] for one pair of the greatest width."""
        return (jax.ShapeDtypeStruct((1, self.buckets[-1]), np.int32),) * 2

    def decode(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        """Decodes sentences of tokens, without BOS, EOS and PAD."""
        return [line.strip() for line in self.tokenizer.decode_batch(tokens)]

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Decodes each token by itself; tokens that continue a word are prefixed with "·"."""
        texts = [self.tokenizer.decode([token], skip_special_tokens=False) for token in tokens]
        return [text.strip() if text[:1] == " " or not text.isalnum() else f"·{text}" for text in texts]

    def calls(self, step: int, total: int) -> Iterator[tuple[int, Any]]:
        """Yields (1, items on the devices) from `step` to `total`."""
        batches = text.Batches(self.train.lengths, self._batch_size, self._seed)
        for t in range(step, total):
            yield 1, self._items(self.train, batches[t])

    def evaluation_calls(self) -> Iterator[Any]:
        for indices in self._test_indices():
            yield self._items(self.test, indices)

    def _test_indices(self) -> Iterator[np.ndarray]:
        """Yields indices int64 [eval_batch_size] of test pairs, shortest first; the last array is padded with -1."""
        order = np.argsort(self.test.lengths, kind="stable")
        order = np.pad(order, (0, -len(order) % self._eval_batch_size), constant_values=-1)
        return iter(order.reshape(-1, self._eval_batch_size))

    def _items(self, corpus: text.Corpus, indices: np.ndarray) -> Any:
        """Returns this process's rows of the batch, on its devices."""
        batch, rows = self._batch(corpus, indices), shuffle.process_rows(len(indices), self._shard)
        return self._parallel.shard({name: x[None, rows.start : rows.stop] for name, x in batch.items()})

    def _batch(self, corpus: text.Corpus, indices: np.ndarray) -> dict[str, np.ndarray]:
        unmasked = indices >= 0
        width = text.width(corpus.lengths[indices[unmasked]], self.buckets)
        tokens = (corpus.target.lengths[indices[unmasked]] - 1).mean()
        return {
            **corpus.batch(indices, width),
            "mask": unmasked.astype(np.float32),
            "tokens": np.full(len(indices), tokens, np.float32),
        }

    def test_batches(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields the test split as numpy batches with "index" [B], -1 for padding; every process gets all of it."""
        for indices in self._test_indices():
            yield {**self._batch(self.test, indices), "index": indices}

    def test_size(self) -> int:
        return len(self.test)

    def test_count(self) -> int:
        return len(self.test)

    def skipped_line(self) -> str:
        """Returns "", because the config, not an error, excludes pairs that are too long."""
        return ""

    def test_weight(self) -> int:
        """Returns the number of tokens to predict in the test split."""
        return int((self.test.target.lengths - 1).sum())

    heaviest_step = 0

    def shapes(self) -> tuple[Sequence[Any], Any]:
        """Returns the shapes of the items of a training call and of an evaluation call, for the greatest width."""

        def batch(size):
            pair = {
                name: jax.ShapeDtypeStruct((1, size, self.buckets[-1] + more), np.int32)
                for name, more in (("source", 0), ("target", 1))
            }
            return self._parallel.shapes(
                pair | {name: jax.ShapeDtypeStruct((1, size), np.float32) for name in ("mask", "tokens")}
            )

        return [batch(self._batch_size)], batch(self._eval_batch_size)

    def record(self) -> dict[str, Any]:
        """Returns the record of the text that a run keeps, as JSON; it must not change when the run resumes."""
        names = "\n".join(
            [
                self.tokenizer.to_str(),
                *(line for split in (self.train, self.test) for lines in split.texts for line in lines),
            ]
        )
        return {
            "identity": {
                "training sentences": len(self.train),
                "test sentences": len(self.test),
                "text and vocabulary": f"{zlib.crc32(names.encode()):08x}",
            }
        }

    def training_images(self, count: int, size: int) -> Iterator[jax.Array]:
        """Raises UserError, because text has no images; data_init asks for them."""
        del count, size
        raise UserError(f"data.source={self._source} is text, but data_init requires images")


def as_text(feed: Feed, message: str = "this is for parallel text") -> TextFeed:
    """Returns the feed as a feed of parallel text.

    Raises:
      UserError: its examples are not pairs of sentences. The text is `message`.
    """
    if not isinstance(feed, TextFeed):
        raise UserError(message)
    return feed
