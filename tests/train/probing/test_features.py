"""Features of a fixed network: the network's own activations, computed once for the same content."""

import time

import numpy as np
import pytest
from PIL import Image

from models.errors import UserError
from models.layers.endpoint import capture
from tests import tiny
from tests.tiers import keep_first
from train.data.select import select
from train.probing import features
from train.run import build_run


@pytest.fixture(scope="module")
def run():
    return build_run(tiny.config(model__norm="group:2"))


def files(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npz")}


@pytest.mark.parametrize(("endpoint", "size"), keep_first(1, [("pre_logits", 16), ("stage2", 8), ("stage1/block0", 4)]))
def test_they_are_the_activations_averaged_over_places(run, tmp_path, endpoint, size):
    extracted = features.extract(run, run.state.variables(), "test", endpoint, tmp_path)
    assert extracted.x.shape == (360, size) and extracted.x.dtype == np.float32
    arrays = run.feed.test.arrays()
    image = run.feed.prepare_evaluation({"image": arrays["image"][:50]})["image"]
    _, expected = capture(run.task.model, run.state.variables(), image, names=[endpoint], train=False)
    expected = np.asarray(expected[endpoint]).reshape(50, -1, size).mean(1)
    np.testing.assert_allclose(extracted.x[:50], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(extracted.labels, arrays["label"])


def test_features_are_computed_once_for_each_content(run, tmp_path):
    first = features.extract(run, run.state.variables(), "test", folder=tmp_path)
    before = files(tmp_path)
    assert len(before) == 1
    time.sleep(0.01)
    again = features.extract(build_run(run.config), run.state.variables(), "test", folder=tmp_path)
    np.testing.assert_array_equal(again.x, first.x)
    assert files(tmp_path) == before
    head, stem = run.state.params["head"], run.state.params["stem_conv"]
    features.extract(
        run,
        run.state.replace(params={**run.state.params, "head": {"bias": head["bias"] + 1}}).variables(),
        "test",
        folder=tmp_path,
    )
    assert files(tmp_path) == before  # no endpoint depends on the head
    moved = {"kernel": np.nextafter(stem["kernel"], 1)}
    other_state = run.state.replace(params={**run.state.params, "stem_conv": moved})
    others = [
        (run, other_state, {}),  # different variables
        (run, run.state, {"endpoint": "stage2"}),
        (build_run(tiny.config(model__norm="group:2", data__mean=(0.4,))), run.state, {}),
        (build_run(tiny.config(model__norm="group:2", data__select_test="paint()")), run.state, {}),
        (build_run(tiny.config(model__norm="group:4")), run.state, {}),
    ]
    for i, (other, state, more) in enumerate(others, 2):
        features.extract(other, state.variables(), "test", folder=tmp_path, **more)
        assert len(files(tmp_path)) == i
    features.extract(run, run.state.variables(), "train", folder=tmp_path)
    assert len(files(tmp_path)) == len(others) + 2


def test_a_part_of_stored_features_is_not_computed_again(run, tmp_path):
    whole = features.extract(run, run.state.variables(), "train", folder=tmp_path)
    part = select(run.feed.train, "classes(3, 1)|per_class(4)")
    extracted = features.of_source(run, run.state.variables(), part, folder=tmp_path)
    assert len(files(tmp_path)) == 1
    np.testing.assert_array_equal(extracted.x, whole.x[part.index])
    np.testing.assert_array_equal(extracted.labels, part.arrays()["label"])
    alone = features.of_source(run, run.state.variables(), part, folder=tmp_path / "other")
    np.testing.assert_allclose(alone.x, extracted.x, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(alone.labels, extracted.labels)


def test_a_set_with_skipped_images_has_no_parts(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(10):
            pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    run = build_run(
        tiny.config(
            data__source=f"folder:{tmp_path / 'images'}",
            data__image_size=16,
            data__crop="resize",
            data__on_error="skip",
            batch_size=4,
            eval_batch_size=4,
            steps_per_call=1,
        )
    )
    broken = run.feed.train.root / run.feed.train.files[0]
    broken.write_bytes(broken.read_bytes()[:50])
    run = build_run(run.config)
    whole = features.extract(run, run.state.variables(), "train", folder=tmp_path / "kept")
    assert len(whole.x) == len(run.feed.train) - 1
    part = features.of_source(
        run, run.state.variables(), select(run.feed.train, "classes(1)"), folder=tmp_path / "kept"
    )
    count = int((run.feed.train.all_labels() == 1).sum())  # the broken image is of class 0
    assert part.labels.tolist() == [0] * count and len(part.x) == count
    np.testing.assert_allclose(part.x, whole.x[whole.labels == 1], rtol=1e-4, atol=1e-5)


def test_a_damaged_file_is_computed_again_and_a_read_only_folder_is_tolerated(run, tmp_path):
    first = features.extract(run, run.state.variables(), "test", folder=tmp_path)
    (path,) = tmp_path.glob("*.npz")
    path.write_bytes(path.read_bytes()[:1000])
    np.testing.assert_array_equal(features.extract(run, run.state.variables(), "test", folder=tmp_path).x, first.x)
    assert len(path.read_bytes()) > 1000
    (tmp_path / "file").write_text("")
    np.testing.assert_array_equal(
        features.extract(run, run.state.variables(), "test", folder=tmp_path / "file").x, first.x
    )


def test_unknown_names_are_one_line_that_lists_the_known_ones(run, tmp_path):
    with pytest.raises(UserError, match="unknown endpoint 'stage9'; did you mean 'stage.'. allowed: stem, stage1"):
        features.extract(run, run.state.variables(), "test", "stage9", tmp_path)
    with pytest.raises(UserError, match="unknown split 'validation'"):
        features.extract(run, run.state.variables(), "validation", folder=tmp_path)


def test_constant_features_do_not_count():
    x = np.array([[1.0, 5.0], [3.0, 5.0]], np.float32)
    scale = features.standardizer(x)
    np.testing.assert_allclose(scale(x), [[-1, 0], [1, 0]])
    np.testing.assert_allclose(scale(np.array([[2.0, 7.0]], np.float32)), [[0, 0]])
