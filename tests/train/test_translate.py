"""Translation by the common loop: loss and metrics, overfitting, hooks, exact resuming, and attention weights."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sacrebleu
from ml_collections import ConfigDict

import models
from models.decoding import beam_search
from models.errors import UserError
from models.layers.attention import attention_weights
from models.layers.endpoint import capture
from tests import tiny
from tests.golden import drawn
from tests.golden.make_transformer import SOURCE, TARGET, TINY
from tests.sentences import PAIRS, config, write
from tests.tiers import keep_first
from tests.train.test_loop import final
from train import loop
from train.run import build_run
from train.storage import workdir as workdir_lib
from train.tasks import translate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    corpus = tmp_path_factory.mktemp("corpus")
    write(corpus)
    return corpus


def overfitting(folder):
    return config(
        f"text:{folder}",
        duration="160 steps",
        hooks="bleu(2)|figures",
        text__vocab_size=400,
        text__buckets=(20,),
        model__dropout=0.0,
        optimizer__learning_rate=1e-2,
        optimizer__warmup="20 steps",
        checkpoint_every="60 steps",
        evaluate_every="80 steps",
        keep_checkpoints=3,
    )


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """Returns a run that memorizes its 12 pairs."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    return workdir, loop.train(overfitting(folder), workdir)


def test_a_tiny_text_is_learned_and_scored(finished):
    workdir, summary = finished
    assert summary["bleu"] > 90 and summary["accuracy"] > 0.95 and summary["exact_match"] > 0.8
    assert summary["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert summary["bleu_signature"].endswith("|beam:2")
    assert summary["test_examples"] == 12 and summary["sentences_per_second"] > 0
    assert summary["skipped_sentences"] == {"train": 0, "test": 0} and summary["mult_adds"] > 0
    assert summary == json.loads((workdir / "summary.json").read_text())


def test_translations_are_written_beside_source_and_reference(finished):
    workdir, summary = finished
    blocks = [block.split("\n") for block in (workdir / "translations.txt").read_text().strip().split("\n\n")]
    assert [tuple(lines[:2]) for lines in blocks] == list(PAIRS)
    ours = [lines[2] for lines in blocks]
    assert sacrebleu.corpus_bleu(ours, [[lines[1] for lines in blocks]]).score == pytest.approx(summary["bleu"])
    for name in ("curves.png", "attention.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG") and (workdir / name).stat().st_size > 10_000
    assert not (workdir / "mistakes.png").exists()


@pytest.mark.full
def test_resuming_is_exact(finished, folder, tmp_path):
    """Resumes from step 120 and from the last checkpoint: the same bits and the same BLEU as without interruption."""
    workdir, summary = finished
    for lost in (("checkpoints/160", "summary.json"), ("summary.json", "translations.txt")):
        broken = tmp_path / lost[0].replace("/", "-")
        shutil.copytree(workdir, broken)
        for name in lost:
            shutil.rmtree(broken / name) if (broken / name).is_dir() else (broken / name).unlink()
        again = loop.train(overfitting(folder), broken)
        assert {name: again[name] for name in ("bleu", "loss", "accuracy")} == {
            name: summary[name] for name in ("bleu", "loss", "accuracy")
        }
        tiny.assert_same(final(workdir)[0], final(broken)[0])
        assert logged_metrics(workdir) == logged_metrics(broken)  # each step once, with every number except the speed
        assert (broken / "translations.txt").read_text() == (workdir / "translations.txt").read_text()


def logged_metrics(workdir):
    """Returns the lines of metrics.jsonl without the speed."""
    lines = workdir_lib.read_metrics(workdir / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name != "sentences_per_second"} for line in lines]


def parameters(**changes):
    """Returns parameters after 3 steps without dropout, by an optimizer that does not magnify rounding errors."""
    run = build_run(
        config(
            "grammar",
            model__dropout=0.0,
            optimizer__name="sgd",
            optimizer__learning_rate=1.0,
            batch_size=16,
            text__buckets=(28,),
            **changes,
        )
    )
    state = run.parallel.place(run.state)
    for _, items in run.feed.calls(0, 3):
        state, metrics = run.train_call(state, run.feed.data, items)
    return run.parallel.fetch(state).params, jax.tree.map(np.asarray, metrics)


@pytest.mark.full
def test_devices_and_parts_weigh_every_token_equally():
    """Checks shares of a batch with different numbers of tokens: the gradient is that of the whole batch."""
    one, expected = parameters()
    other, metrics = parameters(devices=2, parallel="shard_map", accumulate=4)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-6, err_msg=str(path))
    assert metrics["loss"][1] == expected["loss"][1]
    np.testing.assert_allclose(metrics["loss"][0], expected["loss"][0], rtol=1e-5)


def task():
    model = models.create("transformer_base", **{**TINY, "layers": 1, "dropout": 0.0})
    translation = translate.Translate(model, 30, ConfigDict({"label_smoothing": 0.1}))
    return translation, jax.tree.map(jnp.asarray, drawn.variables(model))


def batch(**changes):
    target = np.concatenate([np.full((3, 1), 1), TARGET], 1)
    return {
        "source": SOURCE,
        "target": target,
        "mask": np.ones(3, np.float32),
        "tokens": np.full(3, (TARGET > 0).sum() / 3, np.float32),
        **changes,
    }


def test_the_loss_is_smoothed_cross_entropy_of_the_tokens():
    translation, variables = task()
    inputs = batch()
    key = jax.random.key(0)
    loss, (metrics, _, _) = jax.jit(translation.loss)(variables["params"], {}, {}, inputs, key, 0)
    logits = jax.jit(translation.model.apply)(variables, SOURCE, inputs["target"][:, :-1])
    label = inputs["target"][:, 1:]
    expected = optax.softmax_cross_entropy(logits, optax.smooth_labels(jax.nn.one_hot(label, 30), 0.1))
    real = label > 0
    assert float(loss) == pytest.approx(float(expected[real].mean()), rel=1e-5)
    assert [float(metrics[name][1]) for name in ("loss", "accuracy")] == [real.sum()] * 2
    assert float(metrics["accuracy"][0]) == np.sum((logits.argmax(-1) == label)[real])
    tested = jax.jit(translation.evaluate)(variables, {}, inputs)["loss"][0]
    plain = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    assert float(tested) == pytest.approx(float(plain[real].sum()), rel=1e-5)


def test_padding_and_masked_rows_have_no_effect():
    translation, variables = task()
    wider = {name: np.pad(batch()[name], ((0, 0), (0, 3))) for name in ("source", "target")}
    loss = jax.jit(lambda inputs: translation.loss(variables["params"], {}, {}, inputs, jax.random.key(0), 0)[:2])
    evaluate = jax.jit(lambda inputs: translation.evaluate(variables, {}, inputs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), loss(batch()), loss(batch(**wider)))
    masked = batch(mask=np.float32([1, 0, 1]))
    other = {name: np.where(np.arange(3)[:, None] == 1, x % 7 + 1, x) for name, x in masked.items() if x.ndim == 2}
    metrics = evaluate(masked)
    jax.tree.map(np.testing.assert_array_equal, metrics, evaluate({**masked, **other}))
    assert float(metrics["loss"][1]) == (TARGET[[0, 2]] > 0).sum()


def test_equal_logits_do_not_count_as_correct():
    translation, variables = task()
    variables["params"]["embedding"] = jnp.zeros_like(variables["params"]["embedding"])
    assert float(jax.jit(translation.evaluate)(variables, {}, batch())["accuracy"][0]) == 0


def test_translations_are_found_by_beam_search():
    translation, variables = task()
    greedy = jax.eval_shape(translation.predict, variables, batch())
    assert (greedy.shape, greedy.dtype) == ((3, 12), jnp.int32)
    translations = translation.translate(variables, SOURCE, beams=3)
    assert translations.shape == (3, 12)  # 50 more than the length of the source, but at most the model's maximum
    np.testing.assert_array_equal(
        translations, beam_search(translation.model, variables, SOURCE, length=12, beams=3)[0][:, 0]
    )


def test_tasks_and_hooks_require_their_kind_of_data():
    with pytest.raises(UserError, match="task translate is for encoder-decoders .*, not ResNet"):
        translate.Translate(models.create("resnet8"), 10, None)
    with pytest.raises(UserError, match="unknown task.name 'translate'; allowed: classify"):
        build_run(tiny.config(task__name="translate"))
    with pytest.raises(UserError, match="hooks: bleu is for translation"):
        build_run(tiny.config(hooks="bleu"))
    with pytest.raises(UserError, match="model.name=transformer_base does not support images .* no field"):
        build_run(tiny.config(model__name="transformer_base"))


@pytest.mark.parametrize(
    "name,fields,inputs",
    keep_first(
        1,
        [
            ("transformer_base", {**TINY, "prenorm": True}, (SOURCE, TARGET)),
            (
                "vit_tiny_patch16",
                {"num_classes": 3, "image_size": 32, "depth": 2},
                (np.ones((2, 32, 32, 3), np.float32),),
            ),
        ],
    ),
)
def test_attention_weights_are_those_that_the_model_uses(name, fields, inputs):
    """Checks that, applied to the values, the weights reproduce each attention's output.

    Reading them does not change the model's own output.
    """
    model = models.create(name, **fields)
    variables = drawn.variables(model)
    read = jax.jit(lambda variables, *inputs: attention_weights(model, variables, *inputs))
    output, weights = read(variables, *inputs)
    plain, layers = jax.jit(lambda variables, *inputs: capture(model, variables, *inputs, layers=True))(
        variables, *inputs
    )
    np.testing.assert_allclose(output, plain, rtol=1e-5, atol=1e-5)
    assert len(weights) == sum(path.endswith(("/qkv", "/kv")) for path in layers) > 1
    for path, array in weights.items():
        packed = layers[f"{path}/kv" if f"{path}/kv" in layers else f"{path}/qkv"]
        value = packed[..., -(packed.shape[-1] // (2 if f"{path}/kv" in layers else 3)) :]
        heads = array.shape[1]
        value = value.reshape(*value.shape[:2], heads, -1)
        y = jnp.einsum("nhts,nshd->nthd", array, value)
        leaves = variables["params"]
        for key in path.split("/"):
            leaves = leaves[key]
        y = y.reshape(*y.shape[:2], -1) @ leaves["out"]["kernel"] + leaves["out"]["bias"]
        np.testing.assert_allclose(y, layers[f"{path}/out"], rtol=1e-4, atol=1e-4)
    if name == "transformer_base":
        cross, own = weights["decoder/block1/cross"], weights["decoder/block0/attention"]
        assert (cross[1, :, :, 5:] == 0).all() and (np.triu(own[0, 0], 1) == 0).all()
