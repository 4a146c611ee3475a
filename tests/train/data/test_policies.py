"""AutoAugment, TrivialAugment, AugMix and timm's RandAugment against torchvision and timm, with the same draws."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden import FOLDER
from train.data.augment import operations, policies
from train.data.augment.autoaugment import POLICIES
from train.data.augment.chain import build
from train.data.augment.operations import NAMES

GOLDEN = np.load(FOLDER / "policies.npz")
IMAGE = jnp.asarray(GOLDEN["image"])
HEIGHT, WIDTH = IMAGE.shape[:2]
LEVELS, MEAN = (0.0, 2.5, 3.3, 7.0, 10.0), (124, 116, 104)  # those of make_policies.py


def _ours(operation: str) -> str:
    """Returns our name of an operation of torchvision or timm."""
    name = operation.removesuffix("Increasing").removesuffix("Rel")
    return "autocontrast" if name == "AutoContrast" else re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()


def _assert_close(ours: jax.Array, theirs: np.ndarray, what: object, pixels: float = 0.02, levels: int = 1) -> None:
    """Asserts equality to within some levels, but for a share of the pixels (coordinates that are ties)."""
    assert ours.dtype == np.uint8 and ours.shape == theirs.shape
    difference = np.abs(np.asarray(ours).astype(int) - theirs.astype(int)).max(-1)
    assert np.mean(difference > levels) <= pixels, (what, np.mean(difference > levels), difference.max())


@pytest.mark.parametrize("name", ["randaugment", "autoaugment", "trivialaugment", "augmix"])
def test_strengths_equal_torchvisions(name):
    for height, width in ((14, 18), (224, 224)):
        sides = () if name == "trivialaugment" else (height, width)
        space = getattr(policies, f"{name}_space")(*sides)
        prefix = f"table/{name}/{height}x{width}/"
        theirs = {_ours(key.removeprefix(prefix)): GOLDEN[key] for key in GOLDEN.files if key.startswith(prefix)}
        ours = dict(zip([NAMES[number] for number in space.ops], space.strengths, strict=True))
        if name == "autoaugment":
            ours.pop("identity")  # stands for an operation that is not taken
        assert sorted(ours) == sorted(theirs)
        for operation, strengths in theirs.items():
            if operation.startswith("translate"):
                strengths = strengths.astype(int)  # as torchvision's _apply_op does
            np.testing.assert_allclose(ours[operation], np.broadcast_to(strengths, ours[operation].shape), rtol=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
def test_autoaugment_has_torchvisions_pairs_and_pictures(policy):
    names = [_ours(name) for name in GOLDEN[f"pairs/{policy}/names"]]
    theirs = [[(names[int(n)], p, int(m)) for n, p, m in pair] for pair in GOLDEN[f"pairs/{policy}/steps"]]
    assert [list(pair) for pair in POLICIES[policy]] == theirs
    space = policies.autoaugment_space(HEIGHT, WIDTH)
    apply = jax.jit(space.apply)
    for pair, result in zip(POLICIES[policy], GOLDEN[f"autoaugment/{policy}"], strict=True):
        image = IMAGE
        for (name, _, magnitude), sign in zip(pair, (-1.0, 1.0), strict=True):
            image = apply(image, NAMES.index(name), magnitude, sign)
        _assert_close(image, result, pair, pixels=0.05, levels=2)  # two operations, with the roundings of both


def test_trivialaugment_equals_torchvision():
    space = policies.trivialaugment_space()
    apply, names = jax.jit(partial(space.apply, IMAGE)), [NAMES[number] for number in space.ops]
    cases = [key for key in GOLDEN.files if key.startswith("trivialaugment/")]
    assert len(cases) == 2 * (9 * 2 + 5)
    for key in cases:
        _, operation, magnitude, sign = key.split("/")
        ours = apply(names.index(_ours(operation)), int(magnitude), float(sign))
        _assert_close(ours, GOLDEN[key], key)


def test_augmix_equals_torchvision():
    space = policies.augmix_space(HEIGHT, WIDTH)
    mix = jax.jit(partial(policies.chains, space, IMAGE))
    # torchvision keeps identity out, and its operations come in another order than ours
    order = [_ours(key.rsplit("/", 1)[1]) for key in GOLDEN.files if key.startswith("table/augmix/14x18/")]
    ours = np.array([[NAMES[number] for number in space.ops].index(name) for name in order])
    for case in range(6):
        weights, which, magnitudes, signs, depths = (
            GOLDEN[f"augmix/{case}/{name}"] for name in ("weights", "which", "magnitudes", "signs", "depths")
        )
        mixed = mix(weights.astype(np.float32), ours[which], magnitudes, signs.astype(np.float32), depths)
        _assert_close(mixed, GOLDEN[f"augmix/{case}"], case, levels=2)


def test_timm_strengths_equal_timms():
    for number, level in enumerate(LEVELS):
        ours = dict(zip(policies.TIMM, policies.timm_strengths(level, 1.0, 1, 1), strict=True))
        for key in GOLDEN.files:
            if key.startswith("timm_levels/"):
                name, theirs = _ours(key.split("/")[1]), GOLDEN[key][number]
                shift = 1 if name in ("color", "contrast", "brightness", "sharpness") else 0
                # timm negates where the draw is above a half; factors are measured from 1
                assert abs(float(ours[name])) == pytest.approx(abs(theirs - shift), abs=1e-5), (key, level)


def test_timm_operations_equal_timms():
    """Checks every pixel, except at the border of what was moved: ours blends with the fill, PIL does not."""
    apply = jax.jit(partial(operations.apply, IMAGE, fill=np.array(MEAN, np.uint8), smooth=True))
    for sign in (1, -1):
        strengths = policies.timm_strengths(7.0, sign, HEIGHT, WIDTH)
        for name, strength in zip(policies.TIMM, strengths, strict=True):
            (key,) = [
                key
                for key in GOLDEN.files
                if re.fullmatch(rf"timm/\w+/{sign}", key) and _ours(key.split("/")[1]) == name
            ]
            ours = apply(NAMES.index(name), strength if not name.startswith("translate") else -strength)
            _assert_close(ours, GOLDEN[key], key, levels=2, pixels=0.12 * (name in operations.GEOMETRIC))


def _drawn(text: str, count: int = 150) -> list[bytes]:
    op = build(text, 2, IMAGE.shape, mean=[value / 255 for value in MEAN]).ops[0].apply
    images = jax.jit(lambda keys: jax.lax.map(lambda key: op(key, IMAGE), keys))(
        jax.random.split(jax.random.key(0), count)
    )
    return [image.tobytes() for image in np.asarray(images)]


def test_timm_draws_each_operation_in_both_directions():
    apply = jax.jit(lambda op, strength: operations.apply(IMAGE, op, strength, np.array(MEAN, np.uint8), smooth=True))
    expected = {
        sign: [
            apply(NAMES.index(name), strength).tobytes()
            for name, strength in zip(policies.TIMM, policies.timm_strengths(7.0, sign, HEIGHT, WIDTH), strict=True)
        ]
        for sign in (1.0, -1.0)
    }
    drawn = _drawn("randaugment_timm(7, 0.0, 1, 1.0)")
    for sign in (1.0, -1.0):
        assert sum(image in drawn for image in expected[sign]) >= 13  # of 15, each with about five draws
    # Last bits depend on what the compiler fuses
    assert np.mean([image in expected[1.0] + expected[-1.0] for image in drawn]) > 0.9
    same = np.mean([image == np.asarray(IMAGE).tobytes() for image in _drawn("randaugment_timm(7, 0.5, 2, 0.5)")])
    assert 0.1 < same < 0.45  # a quarter, by p
    assert len(set(_drawn("randaugment_timm(7, 2.0, 1, 1.0)"))) > len(set(drawn))


def test_autoaugment_takes_operations_with_their_probabilities():
    space = policies.autoaugment_space(HEIGHT, WIDTH)
    apply = jax.jit(space.apply)
    results = set()
    for pair in POLICIES["svhn"]:
        firsts = [IMAGE] + [apply(IMAGE, NAMES.index(pair[0][0]), pair[0][2], sign) for sign in (1.0, -1.0)]
        for first in firsts:
            results |= {first.tobytes()}
            results |= {apply(first, NAMES.index(pair[1][0]), pair[1][2], sign).tobytes() for sign in (1.0, -1.0)}
    drawn = _drawn("autoaugment(svhn)")
    assert np.mean([image in results for image in drawn]) > 0.95
    nothing = np.mean([(1 - first[1]) * (1 - second[1]) for first, second in POLICIES["svhn"]])
    assert np.mean([image == np.asarray(IMAGE).tobytes() for image in drawn]) == pytest.approx(nothing, abs=0.07)


def _change(images: list[bytes]) -> float:
    """Returns the mean absolute difference from the image."""
    return float(np.mean([np.abs(np.frombuffer(x, np.uint8).astype(int) - np.asarray(IMAGE).ravel()) for x in images]))


def test_trivialaugment_and_augmix_draw_much():
    assert len(set(_drawn("trivialaugment"))) > 75
    mixed, stronger = _drawn("augmix"), _drawn("augmix(10)")
    assert len(set(mixed)) > 140 and 0 < _change(mixed) < _change(stronger)
