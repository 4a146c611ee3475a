"""Translations of the test split, and where the decoder looks while it writes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from models.layers.attention import attention_weights
from models.transformer import BOS, PAD
from train.data.text_feed import as_text
from train.files import write_atomically
from train.run import Hook, Network, Run
from train.state import TrainState
from train.tasks.translate import Translate


class Bleu(Hook):
    """Translation of the test split by beam search (beam 1: greedily), scored by BLEU.

    sacreBLEU computes the score of the whole split (Post 2018, arXiv 1804.08771), with its signature. "exact_match" is
    the share of sentences that equal their reference. Writes translations.txt (source, reference and ours, one per
    line, an empty line between sentences) and tokenizer.json, the vocabulary as the library `tokenizers` reads it.
    """

    def __init__(self, beam: int = 4):
        if beam < 1:
            raise ValueError(f"beam={beam} must be 1 or more")
        self._beam = beam
        self._translations: list[str] = []

    def check(self, run: Run) -> None:
        as_text(run.feed, "hooks: bleu is for translation (data.source=text:FOLDER)")

    def measure(self, run: Run, state: TrainState) -> dict[str, Any]:
        import sacrebleu  # needed at the end alone

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


def _translate(network: Network) -> Translate:
    assert isinstance(network.task, Translate), "a text feed has no other task"
    return network.task


def translations(network: Network, state: TrainState, beams: int) -> list[str]:
    """Translates the test split, in order, on one device whatever the run's.

    Args:
      network: an encoder-decoder and its text.
      state: on the host.
      beams: see `train.tasks.translate.Translate.translate`.
    """
    feed, task, variables = as_text(network.feed), _translate(network), jax.device_put(state.evaluation_variables())
    by_index: dict[int, list[int]] = {}
    for batch in feed.test_batches():
        tokens = np.asarray(task.translate(variables, batch["source"], beams))
        by_index |= dict(zip(batch["index"].tolist(), tokens.tolist(), strict=True))
    return feed.decode([by_index[i] for i in range(len(feed.test))])


def attention(network: Network, state: TrainState, indices: Sequence[int], beams: int = 4) -> list[dict[str, Any]]:
    """Returns where the decoder's last block looks while it writes its translations of test sentences.

    Args:
      network, state, beams: as for `translations`.
      indices: of pairs of the test split.

    Returns:
      For each pair {"source": its S tokens as texts, "ours": the T tokens that are written, "weights": [heads, T, S]}.
      weights[h, t] is what head h sees while token t is chosen.
    """
    feed, task = as_text(network.feed), _translate(network)
    model, variables = task.model, jax.device_put(state.evaluation_variables())
    chosen = np.asarray(indices)
    source = feed.test.source.padded(chosen, feed.test.source.lengths[chosen].max())  # [N, S]
    ours = np.asarray(task.translate(variables, source, beams))  # [N, T]
    read = np.pad(ours, ((0, 0), (1, 0)), constant_values=BOS)[:, :-1]
    _, weights = jax.jit(lambda variables, *inputs: attention_weights(model, variables, *inputs))(
        variables, source, read
    )
    maps = []
    last = weights[f"decoder/block{model.layers - 1}/cross"]
    for row, written, heads in zip(source, ours, last, strict=True):
        written, row = written[written != PAD], row[row != PAD]
        maps.append(
            {
                "source": feed.pieces(row),
                "ours": feed.pieces(written),
                "weights": np.asarray(heads[:, : len(written), : len(row)]),
            }
        )
    return maps
