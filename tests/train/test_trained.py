"""`train.load`: a run or an export as an object with predictions, features and gradients."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import train
from experiments.explain import subjects
from models.errors import UserError
from models.layers.endpoint import capture
from tests import tiny
from train import loop, predict, restore
from train.data import background
from train.export import loaded, network, write


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    loop.train(tiny.config(), folder / "run")
    run, state = restore.load_network(folder / "run")
    for kind in ("safetensors", "stablehlo"):
        write.export(run, network.network(run, state), kind, folder / kind, {}, images=8)
    return folder, run, state


@pytest.fixture(scope="module")
def images(folders):
    return next(folders[1].feed.test_batches())["image"][:6]


def test_a_run_predicts_what_its_network_computes(folders, images):
    folder, run, state = folders
    trained, variables = train.load(folder / "run"), state.evaluation_variables()
    inputs = run.feed.prepare_evaluation({"image": jnp.asarray(images)})["image"]
    logits = run.model.apply(variables, inputs, train=False)
    np.testing.assert_allclose(trained.preprocess(images), inputs, rtol=1e-6)
    np.testing.assert_allclose(trained.logits(images), logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(trained.predict(images), jax.nn.softmax(logits), rtol=1e-4, atol=1e-5)
    _, stage = capture(run.model, variables, inputs, names=["stage1"], train=False)
    np.testing.assert_allclose(trained.features(images, "stage1"), stage["stage1"], rtol=1e-4, atol=1e-5)
    assert trained.classes == run.feed.classes and repr(trained) == "Trained(resnet8, 10 classes, images 8x8x1)"
    jax.tree.map(np.testing.assert_array_equal, trained.variables, variables)


def test_the_gradient_is_that_of_the_class(folders, images):
    trained = train.load(folders[0] / "run")
    top = trained.logits(images).argmax(-1)
    by_top, by_index = trained.gradient(images), trained.gradient(images, top)
    np.testing.assert_allclose(by_top, by_index, rtol=1e-5)
    np.testing.assert_allclose(trained.gradient(images, "3"), trained.gradient(images, 3), rtol=1e-5)
    # Compares with a finite difference along the gradient
    inputs, step = trained.preprocess(images), 1e-3

    def score(x):
        return np.asarray(trained.model.apply(trained.variables, x, train=False))[:, 3]

    gradient = trained.gradient(images, 3)
    slope = (score(inputs + step * gradient) - score(inputs - step * gradient)) / (2 * step)
    np.testing.assert_allclose(slope, (gradient**2).sum((1, 2, 3)), rtol=0.05, atol=1e-4)


@pytest.mark.parametrize("kind", ["safetensors", "stablehlo"])
def test_an_export_gives_the_same(folders, images, kind):
    trained = train.load(folders[0] / kind)
    np.testing.assert_allclose(
        trained.predict(images), train.load(folders[0] / "run").predict(images), rtol=1e-4, atol=1e-5
    )
    if kind == "stablehlo":
        with pytest.raises(UserError, match="program"):
            trained.features(images)
    else:
        assert trained.features(images).shape == (6, 16)


def test_files_and_pixels_of_any_size_are_cropped_as_in_evaluation(folders, images, tmp_path):
    trained = train.load(folders[0] / "run")
    large = np.repeat(np.repeat(images[0], 5, 0), 5, 1)  # [40, 40, 1]
    Image.fromarray(large[..., 0]).save(tmp_path / "one.png")
    by_file = trained.predict(tmp_path / "one.png")
    for images_or_paths in (large, large[..., 0][None, ..., None], [str(tmp_path / "one.png")], [large]):
        np.testing.assert_array_equal(trained.predict(images_or_paths), by_file)
    np.testing.assert_allclose(by_file[0], trained.predict(images[:1])[0], atol=0.2)


def test_files_on_the_wrong_background_are_inverted(folders, images, tmp_path):
    for name, pixels in (("dark.png", images[0]), ("light.png", 255 - images[0])):
        Image.fromarray(pixels[..., 0]).save(tmp_path / name)
    for kind in ("run", "safetensors"):
        trained = train.load(folders[0] / kind)
        expected = trained.predict(tmp_path / "dark.png")
        with pytest.warns(UserWarning, match="light.png is inverted: the training images have a dark background"):
            np.testing.assert_array_equal(trained.predict(tmp_path / "light.png"), expected)
        assert not np.array_equal(trained.predict(255 - images[:1]), expected)  # pixels are taken as they are
    dark, light = predict.predict(
        loaded.load(folders[0] / "run"), [str(tmp_path / "dark.png"), str(tmp_path / "light.png")], 2
    )
    assert (dark["inverted"], light["inverted"]) == (False, True)
    for first, second in zip(dark["classes"], light["classes"], strict=True):  # rows of a batch may differ by rounding
        assert first == (second[0], pytest.approx(second[1], rel=1e-6))
    (seen,) = subjects.from_files(folders[1], [str(tmp_path / "light.png")])
    np.testing.assert_array_equal(seen.pixels, images[0])
    assert seen.name == "light.png (inverted)"


def test_a_run_that_recorded_no_background_goes_on(tmp_path, monkeypatch):
    config = tiny.config(duration="2 steps")
    with monkeypatch.context() as earlier:
        earlier.setattr(background, "of_training", lambda source: "")
        summary = loop.train(config, tmp_path / "run")
    assert "background" not in (tmp_path / "run" / "data.json").read_text()
    assert loop.train(config, tmp_path / "run")["loss"] == summary["loss"]  # finished, and nothing has changed
    assert train.load(tmp_path / "run").card["preprocessing"]["background"] == ""


def test_a_run_has_its_data_and_can_be_exported(folders, tmp_path):
    folder, run, _ = folders
    trained = train.load(folder / "run")
    images, labels = trained.data("test")
    assert images.shape == (360, 8, 8, 1) and images.dtype == np.uint8 and labels.shape == (360,)
    np.testing.assert_array_equal(images[5], run.feed.test.example(5)["image"])
    card = trained.export(tmp_path / "out", "compressed", images=8)
    assert card["metrics"]["accuracy"] == pytest.approx((trained.predict(images).argmax(-1) == labels).mean())
    exported = train.load(tmp_path / "out")
    np.testing.assert_allclose(exported.predict(images[:2]), trained.predict(images[:2]), rtol=1e-5)
    with pytest.raises(UserError, match="an exported network has no split 'test': open the run that was exported"):
        exported.data()
    with pytest.raises(UserError, match="no config.json"):
        exported.export(tmp_path / "again")


def test_mistakes_are_one_line(folders, images, tmp_path):
    trained = train.load(folders[0] / "run")
    for act, message in (
        (lambda: train.load(tmp_path / "none"), "there is no such folder"),
        (lambda: trained.predict(images.astype(np.float32)), r"an image is float32 \[8, 8, 1\]; allowed: uint8"),
        (lambda: trained.predict(tmp_path / "none.png"), "there is no such file"),
        (lambda: trained.features(images, "stage9"), "unknown endpoint 'stage9'.*stage1"),
        (lambda: trained.gradient(images, "cat"), "unknown class 'cat'; allowed: 0, 1, 2"),
    ):
        with pytest.raises(UserError, match=message) as error:
            act()
        assert "\n" not in str(error.value)


def test_the_filter_of_a_run_is_in_its_record_and_its_card(tmp_path):
    """Opened again, the run resizes a file as it evaluates: to the bit as PIL's bicubic filter does."""
    options = {"data__crop": "resize", "data__image_size": 8, "data__eval_crop": 1.0, "data__channels": 1}
    run = tiny.trained(tmp_path / "run", duration="2 steps", data__interpolation="bicubic", **options)
    assert json.loads((run / "data.json").read_text())["decoder"]["interpolation"] == "bicubic"
    photograph = np.random.default_rng(0).integers(0, 256, (40, 30), np.uint8)
    Image.fromarray(photograph).save(tmp_path / "a.png")
    network = loaded.load(run)
    assert network.card["preprocessing"]["interpolation"] == "bicubic"
    expected = Image.fromarray(photograph).resize((8, 10), Image.Resampling.BICUBIC).crop((0, 1, 8, 9))
    np.testing.assert_array_equal(network.pixels(tmp_path / "a.png")[..., 0], np.asarray(expected))
