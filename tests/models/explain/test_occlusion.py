"""Tests of models/explain/occlusion.py, against a loop over positions and captum (golden/make_occlusion.py)."""

import json

import jax
import numpy as np
import pytest

import models
from models.errors import UserError
from models.explain.occlusion import occlusion, positions
from models.layers.endpoint import capture
from tests.golden import FOLDER, drawn
from tests.networks import SMALL
from tests.tiers import keep_first

MODEL = models.create(SMALL["basic"][0], **SMALL["basic"][1])
VARIABLES = drawn.variables(MODEL)
IMAGES = drawn.images("occlusion", (2, 16, 12, 3))


def test_positions_cover_every_pixel():
    assert list(positions(16, 5, 5)) == [0, 5, 10, 11] and list(positions(16, 4, 4)) == [0, 4, 8, 12]
    assert list(positions(7, 7, 3)) == [0] and list(positions(9, 2, 5)) == [0, 5, 7]
    for length, size, stride in ((16, 5, 5), (17, 3, 2), (10, 9, 9), (12, 1, 1)):
        seen = {pixel for at in positions(length, size, stride) for pixel in range(at, at + size)}
        assert seen == set(range(length))


@pytest.mark.parametrize(
    "kind,batch,target,endpoint,color",
    keep_first(
        2,
        [
            ("basic", 7, 4, "stage1", (0.5, -1.0, 2.0)),  # 30 windows: batches of 6
            ("basic", 4, [9, -1], "stem", 0.3),  # batches of 4, the last one of 2
            ("basic", 64, None, None, 0.0),
            ("vit", 64, [0, 1], "block0", 0.3),  # tokens
        ],
    ),
)
def test_is_a_loop_over_the_positions(kind, batch, target, endpoint, color):
    model, variables, images, size, stride = MODEL, VARIABLES, IMAGES, (5, 6), (4, 3)
    if kind == "vit":
        model = models.create(SMALL["vit"][0], **SMALL["vit"][1])
        variables, images, size, stride = drawn.variables(model), drawn.images("vit", (2, 32, 32, 3)), (16, 20), (9, 12)
    result = occlusion(
        model, variables, images, target, size=size, stride=stride, color=color, endpoint=endpoint, batch=batch
    )
    forward = jax.jit(lambda images: capture(model, variables, images, names=[endpoint or "stage2"]))

    def numbers(image):
        logits, maps = forward(image[None])
        x = np.asarray(next(iter(maps.values())), np.float64)[0]
        return np.asarray(logits, np.float64)[0], (x[1:] if x.ndim == 2 else x).reshape(-1, x.shape[-1]).sum(0)

    down, across = ([0, 4, 8, 11], [0, 3, 6]) if kind == "basic" else ([0, 9, 16], [0, 12])
    assert result.rows.tolist() == down and result.columns.tolist() == across
    for n, image in enumerate(images):
        logits, totals = numbers(image)
        explicit = -1 if target is None else np.broadcast_to(target, 2)[n]
        label, channel = int(logits.argmax()) if explicit == -1 else explicit, int(totals.argmax())
        assert (result.target[n], result.channel[n]) == (label, channel)
        np.testing.assert_allclose(result.logits[n], logits, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(result.whole[n], totals[channel], rtol=1e-4, atol=1e-3)
        for r, row in enumerate(down):
            for c, column in enumerate(across):
                covered = image.copy()
                covered[row : row + size[0], column : column + size[1]] = color
                logits, totals = numbers(covered)
                np.testing.assert_allclose(result.score[n, r, c], logits[label], rtol=1e-4, atol=1e-4)
                np.testing.assert_allclose(result.strongest[n, r, c], totals[channel], rtol=1e-4, atol=1e-3)
                probability = np.exp(logits[label] - np.logaddexp.reduce(logits))
                np.testing.assert_allclose(result.probability[n, r, c], probability, rtol=1e-3, atol=1e-6)
                assert result.top[n, r, c] == logits.argmax()


def test_captum():
    """Compares with captum, which gives each pixel the mean drop of the squares that cover it."""
    golden = np.load(FOLDER / "occlusion.npz")
    settings = json.loads(str(golden["occluded"]))
    model = models.create("vgg11", **settings["fields"])
    images, size = drawn.images("occlusion", settings["shape"]), settings["size"]
    for stride in settings["strides"]:
        result = occlusion(
            model, drawn.variables(model), images, settings["target"], size=size, stride=stride, color=settings["color"]
        )
        lost, times = np.zeros((2, 2, 32, 32))
        scores = result.logits[np.arange(2), result.target][:, None, None] - result.score
        for r, row in enumerate(result.rows):
            for c, column in enumerate(result.columns):
                square = np.s_[:, row : row + size, column : column + size]
                lost[square] += np.asarray(scores)[:, r, c, None, None]
                times[square] += 1
        expected = golden[f"stride{stride}"]
        np.testing.assert_allclose(lost / times, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    "options,message",
    [
        ({"size": 13}, "size=13 x 13 is larger than the images of 16 x 12 pixels"),
        ({"size": 0}, "size=0 must be one or two numbers of pixels, at least 1"),
        ({"size": 2.5}, r"size=2.5 must be one or two numbers of pixels"),
        ({"stride": (1, 0)}, r"stride=\(1, 0\) must be one or two numbers of pixels, at least 1"),
        ({"stride": [1, 2, 3]}, r"stride=\[1, 2, 3\] must be one or two numbers of pixels"),
        ({"color": (0.5, 0.5)}, r"color=\[0.5, 0.5\] must be a number, or one for each of 3 channels"),
        ({"batch": 0}, "batch=0 must be at least 1"),
        ({"target": 10}, "target=10 is out of range: this network has classes 0 to 9"),
        ({"endpoint": "stage7"}, "unknown endpoint 'stage7'"),
    ],
)
def test_errors(options, message):
    with pytest.raises(UserError, match=message) as caught:
        occlusion(MODEL, VARIABLES, IMAGES, **{"size": 4, "stride": 4, **options})
    assert "\n" not in str(caught.value)
