"""Translations of the test split, their BLEU score, and the decoder's attention."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from models.layers.attention import attention_weights
from models.transformer import BOS, PAD
from train.data.text_feed import as_text
from train.run import Hook, Network, Run
from train.state import TrainState
from train.storage.files import write_atomically
from train.tasks.translate import Translate


class Bleu(Hook):
    """BLEU score of translations of the test split by beam search; beam 1 decodes greedily.

    sacreBLEU computes the score of the whole split and its signature (Post 2018, arXiv 1804.08771). "exact_match" is
    the share of sentences that equal their reference. Writes translations.txt: source, reference and translation on one
    line each, with an empty line between sentences. Also writes tokenizer.json for the library `tokenizers`.
    """

    def __init__(self, beam: int = 4):
        if beam < 1:
            raise ValueError(f"beam={beam} must be 1 or more")
        self._beam = beam
        self._translations: list[str] = []

    def check(self, run: Run) -> None:
        as_text(run.feed, "hooks: bleu is for translation (data.source=text:FOLDER)")

    def measure(self, run: Run, state: TrainState) -> dict[str, Any]:
        import sacrebleu  # slow to import, and needed only at the end

        feed = as_text(run.feed)
        self._translations = translations(run, state, self._beam)
        metric, references = sacrebleu.BLEU(), feed.test.texts[1]
        return {
            "bleu": metric.corpus_score(self._translations, [references]).score,
            "bleu_signature": f"{metric.get_signature()}|beam:{self._beam}",
            "exact_match": sum(map(str.__eq__, self._translations, references)) / len(references),
        }

    def finished(self, run: Run, state: TrainState, folder: Path) -> None:
        feed = as_text(run.feed)
        sentences = ("\n".join(three) + "\n" for three in zip(*feed.test.texts, self._translations, strict=True))
        write_atomically(folder / "translations.txt", "\n".join(sentences))
        feed.tokenizer.save(str(folder / "tokenizer.json"))


def _task(network: Network) -> Translate:
    assert isinstance(network.task, Translate), "text has no other task"
    return network.task


def translations(network: Network, state: TrainState, beams: int) -> list[str]:
    """Translates the test split in order, on a single device.

    Args:
      network: an encoder-decoder and its text.
      state: the state, as numpy arrays.
      beams: see `train.tasks.translate.Translate.translate`.
    """
    feed, task, variables = as_text(network.feed), _task(network), jax.device_put(state.evaluation_variables())
    by_index: dict[int, list[int]] = {}
    for batch in feed.test_batches():
        tokens = np.asarray(task.translate(variables, batch["source"], beams))
        by_index |= dict(zip(batch["index"].tolist(), tokens.tolist(), strict=True))
    return feed.decode([by_index[i] for i in range(len(feed.test))])


def attention(network: Network, state: TrainState, indices: Sequence[int], beams: int = 4) -> list[dict[str, Any]]:
    """Returns the cross-attention of the decoder's last block while it translates test sentences.

    Args:
      network: as for `translations`.
      state: as for `translations`.
      indices: indices of pairs in the test split.
      beams: as for `translations`.

    Returns:
      {"source": S source tokens as strings, "ours": T translated tokens, "weights": [heads, T, S]} for each pair, where
      weights[h, t] is the attention of head h over the source when token t is chosen.
    """
    feed, task = as_text(network.feed), _task(network)
    model, variables = task.model, jax.device_put(state.evaluation_variables())
    rows = np.asarray(indices)
    source = feed.test.source.padded(rows, feed.test.source.lengths[rows].max())  # [N, S]
    translated = np.asarray(task.translate(variables, source, beams))  # [N, T]
    shifted = np.pad(translated, ((0, 0), (1, 0)), constant_values=BOS)[:, :-1]
    _, weights = jax.jit(lambda variables, *inputs: attention_weights(model, variables, *inputs))(
        variables, source, shifted
    )
    maps = []
    last = weights[f"decoder/block{model.layers - 1}/cross"]
    for tokens, translation, heads in zip(source, translated, last, strict=True):
        tokens, translation = tokens[tokens != PAD], translation[translation != PAD]
        maps.append(
            {
                "source": feed.pieces(tokens),
                "ours": feed.pieces(translation),
                "weights": np.asarray(heads[:, : len(translation), : len(tokens)]),
            }
        )
    return maps
