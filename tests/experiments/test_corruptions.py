"""Tests of python -m experiments.corruptions: errors are those of corrupted images, means are those of the paper."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from experiments.corruptions import __main__ as command
from experiments.corruptions import measure, output
from models.errors import UserError
from tests import tiny
from train import restore
from train.data.corrupted import numbers_of
from train.data.corruptions.severities import COMMON, NAMES
from train.data.select import select


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.corruptions", *arguments],
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.trained(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="module")
def done(folder):
    """The results of the command for two corruptions at two severities."""
    done = run(f"--workdir={folder}", "--corruptions=contrast,gaussian_blur", "--severities=1,5", "--select=share(0.3)")
    assert done.returncode == 0, done.stderr
    return folder / "corruptions", done.stdout


def test_errors_equal_those_of_the_corrupted_images(folder, done):
    result = json.loads((done[0] / "corruptions.json").read_text())
    network, state = restore.load_network(folder)

    def error(text):
        logits, labels, _ = network.predictions(
            state.evaluation_variables(), network.images.batches(select(network.images.test, text))
        )
        return 100 * (logits.argmax(1) != labels).mean()

    assert result["images"] == round(0.3 * len(network.images.test))
    np.testing.assert_allclose(result["clean_error"], error("share(0.3)"), atol=1e-4)
    for name, values in result["errors"].items():
        expected = [error(f"share(0.3)|corrupt({name}, {severity})") for severity in (1, 5)]
        np.testing.assert_allclose(values, expected, atol=1e-4)
    assert result["errors"].keys() == {"contrast", "gaussian_blur"} and result["severities"] == [1, 5]


def test_files_and_the_terminal_show_the_same_errors(done):
    folder, shown = done
    result = json.loads((folder / "corruptions.json").read_text())
    first, clean, *rows = csv.reader((folder / "corruptions.csv").read_text().splitlines())
    assert first == ["corruption", "severity", "error_percent", "images"] and clean[:2] == ["", "0"]
    assert [row[:2] for row in rows] == [[name, s] for name in ("contrast", "gaussian_blur") for s in ("1", "5")]
    assert float(rows[1][2]) == pytest.approx(result["errors"]["contrast"][1], abs=1e-4)
    page = (folder / "corruptions.md").read_text()
    for text in (page, shown):
        assert f"{result['errors']['contrast'][1]:.2f}%" in text and f"{result['clean_error']:.2f}%" in text
        assert "over 1 of the 15 common corruptions" in text and "not in the means: gaussian blur" in text
    assert result["mean_corruption_error"] == pytest.approx(np.mean(result["errors"]["contrast"]))
    with Image.open(folder / "corruptions.png") as picture:
        assert np.ptp(np.asarray(picture.convert("L"))) > 100


@pytest.mark.full
def test_a_network_is_its_own_baseline(folder, done):
    again = run(
        f"--workdir={folder}", "--corruptions=contrast", "--severities=1,5", "--select=share(0.3)",
        f"--baseline={folder}", f"--out={folder}/again",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    result = json.loads((folder / "again" / "corruptions.json").read_text())
    assert result["mCE"] == pytest.approx(100)
    other = run(f"--workdir={folder}", "--corruptions=contrast", "--severities=1,5", f"--baseline={folder}")
    assert other.returncode == 2 and "was measured on other test images" in other.stderr


def test_means_are_those_of_the_paper():
    result = {"clean_error": 10.0, "errors": {"fog": [20, 40], "snow": [30, 50], "saturate": [90, 90]}}
    assert measure.summary(result, None) == {"mean_corruption_error": 35}
    baseline = measure.Baseline("x", {"fog": 60, "snow": 50}, 20)
    # CE: 30 / 60 and 40 / 50; relative: (30 - 10) / (60 - 20) and (40 - 10) / (50 - 20)
    assert measure.summary(result, baseline) == pytest.approx(
        {"mean_corruption_error": 35, "mCE": 65, "relative_mCE": 75}
    )
    assert "relative_mCE" not in measure.summary(result, baseline._replace(clean=None))
    assert "relative_mCE" not in measure.summary(result, baseline._replace(clean=55))
    assert measure.summary({**result, "errors": {"saturate": [90, 90]}}, baseline) == {}


def test_alexnet_is_a_baseline_for_imagenet_alone():
    facts = {"classes": 1000, "identity": {}}
    baseline = measure.read_baseline("alexnet", COMMON, (1, 2, 3, 4, 5), facts)
    assert baseline.errors["brightness"] == min(baseline.errors.values()) and baseline.clean is None
    assert baseline.errors["impulse_noise"] == max(baseline.errors.values()) and len(baseline.errors) == 15
    for severities, classes in (((1, 2, 3, 4, 5), 10), ((1, 2), 1000)):
        with pytest.raises(UserError, match="on the 1000 classes of ImageNet at severities 1 to 5"):
            measure.read_baseline("alexnet", COMMON, severities, {**facts, "classes": classes})


def test_names_and_severities():
    assert command.chosen_names(["common"], 3) == list(COMMON)
    assert command.chosen_names(["fog", "fog", "snow"], 3) == ["fog", "snow"]
    assert command.chosen_names(["all"], 3) == list(NAMES)
    assert set(NAMES) - set(command.chosen_names(["all"], 1)) == {"saturate"}
    assert command.chosen_severities(["5", "1-2"]) == [1, 2, 5]
    for texts in (["0"], ["6"], ["1-9"], ["1-5000000000"], ["x"], ["-2"], [""], []):
        with pytest.raises(UserError, match="must be numbers from 1 to 5"):
            command.chosen_severities(texts)


def test_chosen_classes_keep_the_numbers_of_the_network(folder):
    network, _ = restore.load_network(folder)
    whole, chosen = network.images.test, command.chosen_images(network, "classes('5-9')|share(0.5)")
    numbers = numbers_of(chosen)
    assert set(chosen.all_labels()) == set(range(5, 10))
    np.testing.assert_array_equal(chosen.all_labels(), whole.all_labels()[numbers])
    np.testing.assert_array_equal(chosen.arrays()["image"], whole.arrays()["image"][numbers])
    assert command.chosen_images(network, "") is whole
    with pytest.raises(UserError, match=r"--select=place\(32\): its images are 32x32x1, and the network takes 8x8x1"):
        command.chosen_images(network, "place(32)")


def test_a_baseline_without_errors_is_refused_before_anything_is_measured(tmp_path):
    content = {"identity": {}, "classes": 10, "severities": [1], "clean_error": 0.0, "errors": {"fog": [0.0]}}
    (tmp_path / "corruptions.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="makes no error under fog: no ratio to it exists"):
        measure.read_baseline(str(tmp_path), ["fog"], [1], {"classes": 10, "identity": {}})


def test_examples_of_large_images_are_shrunk():
    assert output.small(np.zeros((224, 224, 3), np.uint8)).shape == (75, 75, 3)
    assert output.small(np.zeros((8, 8, 1), np.uint8)).shape == (8, 8, 3)


def test_a_mistake_is_one_line(tmp_path):
    done = run(f"--workdir={tmp_path}", "--corruptions=fogg")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "unknown corruption 'fogg'; did you mean 'fog'?" in done.stderr
    with pytest.raises(UserError, match="--corruptions is empty"):
        command.chosen_names([], 3)


@pytest.mark.full
def test_runs_that_cannot_be_corrupted_are_one_line(folder, tmp_path):
    gray = run(f"--workdir={folder}", "--corruptions=saturate")
    assert gray.returncode == 2 and "saturate changes colors, but the images are gray" in gray.stderr
    missing = run(f"--workdir={folder}", f"--baseline={tmp_path}")
    assert missing.returncode == 2 and f"--baseline={tmp_path} has no corruptions.json" in missing.stderr
    for done in (gray, missing):
        assert done.stderr.count("\n") == 1
