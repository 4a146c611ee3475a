"""Tests of the sources text and grammar and of the text feed: reading, vocabulary, batches of one length, coverage."""

import gzip
from collections import Counter

import numpy as np
import pytest

from models.errors import UserError
from tests.sentences import PAIRS, config, write
from train.data.sources import grammar, text
from train.data.text_feed import TextFeed
from train.devices.parallel import Parallel
from train.run import build_run


def feed(batch_size=8, eval_batch_size=8, shard=(0, 1), **changes):
    c = config("grammar", **changes)
    text_feed = TextFeed(
        "grammar",
        c.text,
        Parallel("shard_map", 1),
        batch_size=batch_size,
        eval_batch_size=eval_batch_size,
        steps_per_call=1,
        seed=3,
    )
    text_feed._shard = shard
    return text_feed


@pytest.fixture(scope="module")
def corpus():
    return feed()


def test_plain_and_compressed_files(tmp_path):
    write(tmp_path)
    plain = text.read(f"text:{tmp_path}", ("en", "de"), "train")
    path = tmp_path / "train.de"
    (tmp_path / "train.de.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert text.read(f"text:{tmp_path}", ("en", "de"), "train") == plain
    assert list(zip(*plain, strict=True)) == list(PAIRS)


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda folder: (folder / "train.de").unlink(), "unknown text in .* 'train.de'; did you mean 'train.en'"),
        (
            lambda folder: (folder / "train.de").write_text("eins\nzwei\n"),
            f"train.en has {len(PAIRS)} lines, train.de has 2 lines; each needs one sentence per line",
        ),
        (lambda folder: [path.write_text("") for path in folder.glob("train.*")], "train.en has 0 lines"),
        (lambda folder: (folder / "train.de").write_bytes(b"\xff\n"), "train.de: damaged, or not a UTF-8 file"),
        (
            lambda folder: ((folder / "train.de").unlink(), (folder / "train.de.gz").write_bytes(b"no")),
            "train.de.gz: cannot be read: Not a gzipped file",
        ),
        (lambda folder: folder.rename(folder.with_name("away")), "there is no such folder"),
    ],
)
def test_mistakes_in_a_folder_are_one_line(tmp_path, change, message):
    folder = tmp_path / "corpus"
    folder.mkdir()
    write(folder)
    change(folder)
    with pytest.raises(UserError, match=message) as error:
        build_run(config(f"text:{folder}"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"text__vocab_size": 100}, "text.vocab_size=100 must be at least 259"),
        ({"text__buckets": (32, 16)}, r"text.buckets=\(32, 16\) must be increasing"),
        ({"text__buckets": ()}, r"text.buckets=\(\) must be"),
        ({"text__buckets": (4,)}, "no training sentence is that short"),
        ({"text__test_split": "tset"}, "unknown split of grammar 'tset'; did you mean 'test'"),
        ({"text__source": "fr"}, "its languages are en, de, not fr, de"),
        ({"text__sorce": "en"}, "'text.sorce' is read by nothing; did you mean 'text.source'"),
        ({"data__augment": "flip"}, "'data.augment' is read by nothing"),
        ({"steps_per_call": 2}, "steps_per_call=2: must be 1 for text"),
        ({"data_init": "lsuv"}, "grammar is text, but data_init requires images"),
        ({"model__name": "resnet20"}, "resnet20 does not support sentences .data.source=grammar.: it has no field"),
        ({"model__vocab_size": 7}, "model.vocab_size: the text determines it"),
        ({"model__max_length": 8}, "a sequence of 28 tokens is longer than max_length=8"),
        ({"task__name": "classify"}, "unknown task.name 'classify'; allowed: translate"),
        ({"task__label_smoothing": 1.0}, "task.label_smoothing=1.0 must be in"),
        ({"hooks": "bleu(beam=0)"}, "hooks bleu: beam=0 must be 1 or more"),
        ({"hooks": "recalibrate", "model__norm": "batch"}, "recalibrate is for networks with batch norm .* on images"),
        ({"devices": 4, "batch_size": 30}, "batch_size=30 must be a positive multiple of the number of devices"),
    ],
)
def test_mistakes_in_a_config_are_one_line(changes, message):
    with pytest.raises(UserError, match=message):
        build_run(config("grammar", **changes))


def test_vocabulary_is_determined_by_the_text_and_kept(tmp_path, monkeypatch):
    texts = grammar.sentences(("en", "de"), "train")
    assert text._learn(texts, 400).to_str() == text._learn(texts, 400).to_str()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    vocabulary = text.vocabulary(texts, 400)
    assert vocabulary.get_vocab_size() == 400
    (path,) = (tmp_path / "ablate").iterdir()
    monkeypatch.setattr(text, "_learn", lambda *arguments: pytest.fail("learned again"))
    assert text.vocabulary(texts, 400).to_str() == vocabulary.to_str()
    with pytest.raises(pytest.fail.Exception, match="learned again"):
        text.vocabulary([texts[0][1:], texts[1]], 400)
    assert path.name.startswith("bpe-")


def test_any_text_comes_back(corpus):
    """Tests unseen words, letters and scripts, text that looks like a special token, and inner spaces."""
    for line in ("Ein großer  Hund.", "the dog's “</s>” <pad>", "日本 🐕", ""):
        ids = corpus.tokenizer.encode(line).ids
        assert not {0, 1, 2} & set(ids) and corpus.decode([[1, *ids, 2, 0, 0]]) == [line]
    ids = corpus.tokenizer.encode("das Kindlein.").ids
    pieces = corpus.pieces([*ids, 2])
    assert pieces[:2] == ["das", "Kind"] and pieces[-2:] == [".", "</s>"] and len(pieces) > 4
    assert all(piece[0] == "·" for piece in pieces[2:-2])


def test_rows_are_padded():
    tokens = text.Tokens([[5, 2], [3, 4, 6, 2], [2]])
    assert tokens.lengths.tolist() == [2, 4, 1]
    assert tokens.padded(np.array([1, 2, 0]), 5).tolist() == [[3, 4, 6, 2, 0], [2, 0, 0, 0, 0], [5, 2, 0, 0, 0]]


def test_longer_training_pairs_are_left_out_and_counted():
    short, whole = feed(text__buckets=(8, 12)), feed()
    assert short.skipped["train"] == np.sum(whole.train.lengths > 12) > 0 == whole.skipped["train"]
    assert len(short.train) + short.skipped["train"] == len(whole.train) and short.train.lengths.max() == 12
    assert len(short.test) == 200 and short.buckets == (8, 12, 24)  # test pairs are never left out
    assert short.fields == {"vocab_size": 512, "max_length": 24}


def test_batches_are_a_function_of_seed_and_step():
    lengths = np.random.default_rng(0).integers(3, 30, 1000)
    batches, again = text.Batches(lengths, 16, 5), text.Batches(lengths, 16, 5)
    for t in (200, 3, 77, 3, 61):  # in any order, from any step
        np.testing.assert_array_equal(batches[t], again[t])
    assert not np.array_equal(batches[3], text.Batches(lengths, 16, 6)[3])
    pools = -(-1000 // 16) // 2  # 62 batches each: 31 pools of 992 are a little less than 31 epochs
    seen = Counter(np.concatenate([batches[t] for t in range(62 * pools)]).tolist())
    assert set(seen.values()) <= {pools - 1, pools} and len(seen) == 1000
    order = [int(lengths[batches[t]].max()) for t in range(62)]
    assert order != sorted(order)  # short and long ones are mixed
    spread = np.mean([np.ptp(lengths[batches[t]]) for t in range(62)])
    assert spread < 2 < np.mean([np.ptp(np.random.default_rng(t).choice(lengths, 16)) for t in range(62)])


def test_a_batch_is_padded_to_its_bucket(corpus):
    widths = set()
    for t, (count, items) in enumerate(corpus.calls(0, 30)):
        source, target = np.asarray(items["source"])[0], np.asarray(items["target"])[0]
        assert count == 1 and target.shape == (8, source.shape[1] + 1)
        longest = max((source > 0).sum(1).max(), (target > 0).sum(1).max() - 1)
        assert longest <= source.shape[1] and (source.shape[1] == 12) == (longest <= 12)
        assert (target[:, 0] == 1).all() and ((source == 2).sum(1) == 1).all() and ((target == 2).sum(1) == 1).all()
        assert np.asarray(items["tokens"])[0] == pytest.approx((target[:, 1:] > 0).sum() / 8)
        widths.add(source.shape[1])
        if t == 7:
            later = next(corpus.calls(7, 8))[1]
            np.testing.assert_array_equal(later["source"], items["source"])  # where a run resumes
    assert widths == {12, 28}


def test_processes_share_a_batch_and_the_test_split(corpus):
    halves = [feed(shard=(process, 2)) for process in (0, 1)]
    whole, *parts = (next(each.calls(5, 6))[1] for each in (corpus, *halves))
    for name in whole:
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts], 1), whole[name])
    for items, *parts in zip(*(each.evaluation_calls() for each in (corpus, *halves)), strict=True):
        np.testing.assert_array_equal(np.concatenate([part["target"] for part in parts], 1), items["target"])


@pytest.mark.parametrize("size", [8, 64])  # 200 pairs: 8 fits, 64 does not
def test_evaluation_has_every_pair_once(size):
    text_feed = feed(eval_batch_size=size)
    batches = list(text_feed.test_batches())
    real = np.concatenate([batch["mask"] for batch in batches]) > 0
    index = np.concatenate([batch["index"] for batch in batches])
    assert sorted(index[real].tolist()) == list(range(200)) and (index[~real] == -1).all()
    assert {len(batch["mask"]) for batch in batches} == {size}
    sources = [line for batch in batches for line in text_feed.decode(batch["source"][batch["mask"] > 0].tolist())]
    assert sources == [text_feed.test.texts[0][i] for i in index[real]]
    tokens = sum((batch["target"][batch["mask"] > 0, 1:] > 0).sum() for batch in batches)
    assert tokens == text_feed.test_weight() and text_feed.test_count() == 200


def test_test_pairs_of_the_grammar_only_differ_in_order():
    """Checks that test sentences come in pairs of the same tokens: a model without order fails on one of each pair."""
    english, german = grammar.sentences(("en", "de"), "test")
    for i in range(0, 200, 2):
        one, other = (sorted(line.strip(".").replace(",", "").split()) for line in english[i : i + 2])
        assert one == other and english[i] != english[i + 1] and german[i] != german[i + 1]
    train = grammar.sentences(("en", "de"), "train")
    assert len(train[0]) == 4000 and not set(train[0]) & set(english) and len(set(english)) == 200
    assert grammar.sentences(("de", "en"), "test") == [german, english]


def test_the_german_of_the_grammar_is_german():
    phrase = grammar.Phrase
    man, cat = phrase("the", "old", "man"), phrase("a", "white", "cat")
    clause = grammar.Clause(man, "can", "see", cat, "now")
    child = grammar.Clause(phrase("a", "young", "child"), "", "carry", man)
    one = grammar.Sentence(clause, child)
    assert one.english() == "the old man can see a white cat now, because a young child carries the old man."
    assert one.german() == (
        "jetzt kann der alte Mann eine weiße Katze sehen, weil ein junges Kind den alten Mann trägt."
    )
    assert one.swapped().main.german() == "jetzt kann eine weiße Katze den alten Mann sehen"
    assert grammar.Clause(phrase("a", "old", "pig"), "", "find", phrase("a", "", "fox")).english() == (
        "an old pig finds a fox"
    )
