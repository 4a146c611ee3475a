"""Parallel text: sentences in two languages, their tokens, and the batches that they make.

A source is "text:FOLDER", with a file SPLIT.LANGUAGE or SPLIT.LANGUAGE.gz for each split and language, one sentence per
line, as in Multi30k and WMT; or "grammar", sentences made by grammar.py.

Tokens are byte-pair codes over bytes (Sennrich et al. 2016, arXiv 1508.07909), with one vocabulary for both languages
(Vaswani et al. 2017, section 5.1). The library `tokenizers` learns them on the training split. No text is unknown, and
decoding restores each space.
"""

import gzip
import hashlib
import itertools
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.errors import UserError, choice_error
from models.kernels import runtime
from models.transformer import BOS, EOS, PAD
from models.weights.foreign import check_size, most_bytes, reading
from train.data import shuffle
from train.data.sources import grammar
from train.storage.remote import fetched

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = ("<pad>", "<s>", "</s>")  # at positions PAD, BOS, EOS
LEAST_TOKENS = 256 + len(SPECIAL)  # any text can be written in bytes
POOL = 100  # batches cut from one list that is sorted by length


def is_text(source: Any) -> bool:
    """Returns True if `data.source` names a text."""
    return str(source) == "grammar" or str(source).startswith("text:")


def read(source: str, languages: Sequence[str], split: str) -> list[list[str]]:
    """Returns the sentences of a split, one list for each language, all of the same length.

    Raises:
      UserError: a folder, split or language is missing, files have different numbers of lines, or a file is not UTF-8.
    """
    if source == "grammar":
        return grammar.sentences(languages, split)
    folder = fetched(source.removeprefix("text:"))
    if not folder.is_dir():
        raise UserError(f"data.source={source}: there is no such folder")
    texts = [_lines(folder, f"{split}.{language}") for language in languages]
    counts = [len(lines) for lines in texts]
    if len(set(counts)) > 1 or not counts[0]:
        raise UserError(
            f"{folder}: "
            + ", ".join(
                f"{split}.{language} has {count} lines" for language, count in zip(languages, counts, strict=True)
            )
            + "; each needs one sentence per line, and the same number of lines"
        )
    return texts


def _lines(folder: Path, name: str) -> list[str]:
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)
    if path is None:
        names = sorted(path.name.removesuffix(".gz") for path in folder.iterdir() if path.is_file())
        raise choice_error(f"text in {folder}", name, names)
    is_packed, size = path.suffix == ".gz", path.stat().st_size
    with reading(path, ".gz" if is_packed else "UTF-8"):
        with gzip.open(path) if is_packed else path.open("rb") as file:
            data = file.read(most_bytes(size) + 1)
        check_size(len(data), size)
        return [line.strip() for line in data.decode().removesuffix("\n").split("\n")] if data else []


def vocabulary(texts: Sequence[Sequence[str]], size: int) -> "Tokenizer":
    """Returns a tokenizer of at most `size` tokens, learned on the texts of all languages together.

    The same texts give the same tokens. The tokenizer is cached in $XDG_CACHE_HOME/ablate (~/.cache/ablate), under a
    name that changes with the texts, the size and the library's version.

    Raises:
      UserError: `size` is less than LEAST_TOKENS.
    """
    import tokenizers

    if size < LEAST_TOKENS:
        raise UserError(
            f"text.vocab_size={size} must be at least {LEAST_TOKENS}, for all bytes and {', '.join(SPECIAL)}"
        )
    digest = hashlib.sha256(f"{tokenizers.__version__} {size} {SPECIAL}".encode())
    for line in itertools.chain(*texts):
        digest.update(line.encode() + b"\n")
    folder = runtime.cache_folder()
    path = folder / f"bpe-{digest.hexdigest()[:16]}.json"
    try:
        with reading(path, ".json"):
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except UserError:  # it was not learned before, or the file is damaged
        tokenizer = _learn(texts, size)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as temporary:  # other processes may be learning it as well
                tokenizer.save(f"{temporary}/bpe.json")
                os.replace(f"{temporary}/bpe.json", path)
        except OSError:  # the folder cannot be written, so the next run learns it again
            pass
    tokenizer.encode_special_tokens = True  # "</s>" within a sentence is text
    return tokenizer


def _learn(texts: Sequence[Sequence[str]], size: int) -> "Tokenizer":
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    # Splits words, each with the space before it, and punctuation
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        itertools.chain(*texts),
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


class Tokens:
    """Tokens of N sentences.

    Attributes:
      lengths: number of tokens of each sentence, int64 [N].
    """

    def __init__(self, sentences: Sequence[Sequence[int]]):
        self.lengths = np.fromiter(map(len, sentences), np.int64, len(sentences))
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._flat = np.fromiter(itertools.chain(*sentences), np.int32, int(self.lengths.sum()))

    def padded(self, indices: np.ndarray, width: int) -> np.ndarray:
        """Returns the sentences at `indices` [B], padded by PAD, int32 [B, width]."""
        position = np.arange(width)
        inside = position < self.lengths[indices][:, None]  # [B, width]
        return np.where(inside, self._flat[np.where(inside, self._starts[indices][:, None] + position, 0)], PAD)


class Corpus:
    """A split of a parallel text.

    Attributes:
      texts: (source sentences, target sentences).
      source: tokens of the source sentences, each with EOS at its end.
      target: tokens of the target sentences, each between BOS and EOS.
      lengths: length of the source or of the decoder's input, whichever is longer, int64 [N].
      skipped: number of pairs that were left out because they are too long.
    """

    def __init__(self, texts: Sequence[Sequence[str]], tokenizer: "Tokenizer", longest: int | None = None):
        """Leaves out pairs of which a side has `longest` or more tokens, BOS and EOS not counted."""
        source, target = ([encoding.ids for encoding in tokenizer.encode_batch(list(lines))] for lines in texts)
        fits = [longest is None or max(len(s), len(t)) < longest for s, t in zip(source, target, strict=True)]
        self.skipped = len(fits) - sum(fits)
        self.texts = tuple(list(itertools.compress(lines, fits)) for lines in texts)
        self.source = Tokens([(*ids, EOS) for ids in itertools.compress(source, fits)])
        self.target = Tokens([(BOS, *ids, EOS) for ids in itertools.compress(target, fits)])
        self.lengths = np.maximum(self.source.lengths, self.target.lengths - 1)

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, indices: np.ndarray, width: int) -> dict[str, np.ndarray]:
        """Returns the pairs at `indices` [B]: {"source": int32 [B, width], "target": int32 [B, width + 1]}."""
        return {"source": self.source.padded(indices, width), "target": self.target.padded(indices, width + 1)}


class Batches:
    """A map from t to the pairs of training batch t, all of about one length; a pure function of (seed, t).

    Positions are those of `shuffle.Order`, so that an epoch has each pair once. The pairs of POOL batches, or of an
    epoch if it has fewer, are sorted by length and cut into batches. The order of these batches is random.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int):
        self._lengths, self._batch_size, self._seed = lengths, batch_size, seed
        self._order = shuffle.Order(len(lengths), seed)
        self._batches = min(POOL, max(1, len(lengths) // batch_size))
        self._pool, self._indices = -1, np.zeros((0, batch_size), np.int64)  # the latest pool

    def __getitem__(self, t: int) -> np.ndarray:
        """Returns the indices of the pairs of batch `t`, int64 [batch_size]."""
        pool, number = divmod(t, self._batches)
        if pool != self._pool:
            count = self._batches * self._batch_size
            indices = self._order.indices(pool * count, count)
            indices = indices[np.argsort(self._lengths[indices], kind="stable")].reshape(self._batches, -1)
            self._pool = pool
            self._indices = shuffle.philox(self._seed, pool, stream=2).permutation(indices)
        return self._indices[number]


def width(lengths: np.ndarray, buckets: Sequence[int]) -> int:
    """Returns the first of the ascending `buckets` that is at least as wide as all `lengths`."""
    longest = int(lengths.max())
    return next(bucket for bucket in buckets if bucket >= longest)
