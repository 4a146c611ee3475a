"""experiments/samples: the pictures are what the script draws, and a trained network reads the digits."""

import re

import numpy as np
import pytest
from PIL import Image

import train
from experiments.samples.__main__ import draw_all
from tests import tiny
from tests.tiny import ROOT
from train.setup import config

FOLDER = ROOT / "experiments" / "samples"


def test_the_committed_pictures_are_drawn_by_the_script():
    pictures = draw_all()
    assert sorted(path.name for path in FOLDER.glob("*.png")) == sorted(pictures)
    for name, picture in pictures.items():
        with Image.open(FOLDER / name) as committed:
            assert committed.mode == picture.mode and (FOLDER / name).stat().st_size < 30_000
            # Versions of Pillow may smooth edges differently
            assert np.abs(np.asarray(committed, int) - np.asarray(picture, int)).max() <= 8, name


@pytest.mark.full
@pytest.mark.parametrize("seed", [0, 1])
def test_a_network_of_digits_reads_the_drawn_ones(seed, tmp_path):
    train.train(tiny.change(config.load("configs/digits.py"), seed=seed, hooks=""), tmp_path / "run")
    trained = train.load(tmp_path / "run")
    for path in sorted(FOLDER.glob("*[0-9].png")):
        if path.name.startswith("paper"):
            with pytest.warns(
                UserWarning, match=f"{path.name} is inverted: the training images have a dark background"
            ):
                probabilities = trained.predict(path)[0]
        else:
            probabilities = trained.predict(path)[0]
        assert trained.classes[probabilities.argmax()] == re.search(r"\d", path.name)[0], path.name
        assert probabilities.max() > 0.8, path.name
