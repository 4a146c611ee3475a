"""Augmentation: each pixel operation against torchvision; chains, errors and invariance of the mini-language."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.errors import UserError
from tests.golden import FOLDER
from train.data.augment import mixers, operations, pixels, policies
from train.data.augment.chain import build
from train.data.normalize import normalize

GOLDEN = np.load(FOLDER / "augment.npz")
NAMES = [name for name in GOLDEN.files if not name.startswith(("image/", "evaluation/"))]


def _cases(prefix: str) -> list[tuple[float, int, np.ndarray]]:
    split = [(name.rsplit("/", 2), name) for name in NAMES]
    return [(float(s), int(c), GOLDEN[name]) for (op, s, c), name in split if op == prefix]


def _difference(ours: jax.Array, theirs: np.ndarray) -> np.ndarray:
    assert ours.dtype == np.uint8 and ours.shape == theirs.shape
    return np.abs(np.asarray(ours).astype(int) - theirs.astype(int))


@pytest.mark.parametrize(
    "name",
    ["brightness", "contrast", "saturation", "sharpness", "posterize", "solarize", "grayscale", "autocontrast"]
    + ["equalize", "hue"],
)
def test_pixel_operation_equals_torchvision(name):
    unary, exact = name in ("grayscale", "autocontrast", "equalize"), name in ("posterize", "solarize", "equalize")
    cases = _cases(name)
    assert cases
    for strength, channels, theirs in cases:
        image = jnp.asarray(GOLDEN[f"image/{channels}"])
        if name == "posterize":
            ours = pixels.posterize(image, int(strength))
        else:
            ours = jax.jit(getattr(pixels, name))(image, *([] if unary else [strength]))
        if name == "grayscale":
            ours = jnp.broadcast_to(ours, theirs.shape)
        difference = _difference(ours, theirs)
        # Truncation gives the level below where a product that should be whole differs in its last bit.
        assert difference.max() <= (0 if exact else 1), (name, strength, channels)
        assert np.mean(difference > 0) < 0.15, (name, strength, channels)


TORCHVISION = [
    "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness",
    "Posterize", "Solarize", "AutoContrast", "Equalize",
]  # fmt: skip


@pytest.mark.parametrize("magnitude", [9, 17])
def test_randaugment_operations_equal_torchvision(magnitude):
    names = [operations.NAMES[number] for number in policies.randaugment_space(1, 1).ops]
    assert [name.lower() for name in TORCHVISION] == [name.replace("_", "") for name in names[1:]]
    for channels in (1, 3):
        image = jnp.asarray(GOLDEN[f"image/{channels}"])
        apply = jax.jit(partial(policies.randaugment_space(*image.shape[:2]).apply, image, magnitude=magnitude))
        assert (apply(which=0, sign=1.0) == image).all()
        for number, name in enumerate(TORCHVISION, start=1):
            for sign in (1, -1):
                theirs = GOLDEN[f"randaugment/{name}/{sign * magnitude}/{channels}"]
                difference = _difference(apply(which=number, sign=float(sign)), theirs)
                if 1 <= number <= 5:  # geometry: the same pixel, except where a coordinate is a tie
                    assert np.mean(difference.any(-1)) <= 0.01, (name, sign, channels)
                else:
                    assert difference.max() <= 1, (name, sign, channels)


def _batch(shape=(32, 32, 3), size=16, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (size, *shape), dtype=np.uint8)
    return {"image": jnp.asarray(images), "label": jnp.arange(size) % 10, "mask": jnp.ones(size)}


EVERYTHING = (
    "crop(2)|flip|cutout(4)|randaugment(2,9)|autoaugment(cifar10)|trivialaugment|augmix|randaugment_timm(7)|"
    "jitter(0.4,0.4,0.4,0.1)|grayscale(0.5)|erase(0.5)"
)


def _overlap(spec: str, shape: tuple[int, int, int], size: int, start: int) -> None:
    """Asserts that examples start … size-1 are the same at the end of one batch and at the beginning of another."""
    apply, batch = jax.jit(build(spec, 10, shape)), _batch(shape, size + start)
    one, other = (
        apply(jax.random.key(3), jax.tree.map(lambda x, s=first: x[s : s + size], batch), first) for first in (0, start)
    )
    assert set(one) == {"image", "label", "mask"} | ({"target"} if "mix" in spec else set())
    for name, value in one.items():
        np.testing.assert_array_equal(value[start:], other[name][:-start], err_msg=name)
    fresh = apply(jax.random.key(4), jax.tree.map(lambda x: x[:size], batch), 0)
    assert not (one["image"] == fresh["image"]).all()


def test_an_example_only_depends_on_its_position_in_the_global_batch():
    _overlap(EVERYTHING + "|mixup_cutmix(0.8,1.0)", (10, 10, 3), 12, 4)
    _overlap("crop(1,reflect)|randaugment(1,5)", (8, 8, 1), 6, 3)


def test_halves_of_a_batch_equal_the_whole():
    augment, batch = jax.jit(build("crop(2)|flip|mixup(0.4)", 10, (10, 10, 3))), _batch((10, 10, 3))
    whole = augment(jax.random.key(3), batch, 0)
    halves = [
        augment(jax.random.key(3), jax.tree.map(lambda x, s=start: x[s : s + 8], batch), start) for start in (0, 8)
    ]
    for name, value in whole.items():
        np.testing.assert_array_equal(value, np.concatenate([half[name] for half in halves]))


def test_branching_operations_are_the_same_mapped_and_vmapped():
    # A CPU applies operations to one image after the other, an accelerator to all at once.
    batch = _batch((9, 9, 3), 12)
    keys = jax.random.split(jax.random.key(0), 12)
    for spec in ("randaugment(2,15)", "jitter(0.4,0.4,0.4,0.2)", "trivialaugment", "autoaugment(svhn)"):
        op = build(spec, 10, (9, 9, 3)).ops[0].apply
        mapped = jax.jit(lambda k, x, op=op: jax.lax.map(lambda a: op(*a), (k, x)))(keys, batch["image"])
        assert _difference(jax.jit(jax.vmap(op))(keys, batch["image"]), np.asarray(mapped)).max() <= 1


def test_an_empty_specification_changes_nothing():
    batch = _batch()
    after = build("", 10, (32, 32, 3))(jax.random.key(0), batch)
    assert after.keys() == batch.keys() and all(after[name] is batch[name] for name in ("label", "mask"))
    assert (after["image"] == batch["image"]).all()


def test_crop_moves_by_every_offset_and_pads_with_zeros():
    image = jnp.arange(1, 26, dtype=jnp.uint8).reshape(5, 5, 1)
    for mode, pad_mode in (("zero", "constant"), ("reflect", "reflect")):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), pad_mode)
        windows = {padded[i : i + 5, j : j + 5].tobytes() for i in range(5) for j in range(5)}
        crop = build(f"crop(2,{mode})", 2, (5, 5, 1)).ops[0].apply
        images = jax.vmap(crop, (0, None))(jax.random.split(jax.random.key(0), 300), image)
        seen = {window.tobytes() for window in np.asarray(images)}
        assert seen == windows


def test_flip_mirrors_half_of_the_images():
    batch = _batch(size=400, shape=(4, 4, 1))
    after = np.asarray(build("flip", 2, (4, 4, 1))(jax.random.key(0), batch)["image"])
    flipped = (after == np.asarray(batch["image"])[:, :, ::-1]).all((1, 2, 3))
    same = (after == batch["image"]).all((1, 2, 3))
    assert (flipped | same).all() and 150 < flipped.sum() < 250


def test_alternate_flip_mirrors_the_images_that_the_batch_marks():
    batch = {**_batch((4, 4, 1)), "mirrored": jnp.asarray([True, False] * 2)}
    batch = {name: array[:4] for name, array in batch.items()}
    after = build("alternate_flip", 2, (4, 4, 1))(jax.random.key(0), batch)
    images = np.asarray(batch["image"])
    np.testing.assert_array_equal(after["image"][::2], images[::2, :, ::-1])
    np.testing.assert_array_equal(after["image"][1::2], images[1::2])
    assert "mirrored" not in after


def test_cutout_fills_a_clipped_square_with_the_mean_color():
    images = jnp.full((300, 8, 8, 3), 7, jnp.uint8)
    batch = {"image": images, "label": jnp.zeros(300, jnp.int32)}
    after = np.asarray(build("cutout(4)", 2, (8, 8, 3), mean=(0.5, 0.25, 1.0))(jax.random.key(0), batch)["image"])
    hole = after[..., 0] == 128
    assert (after[hole] == [128, 64, 255]).all() and (after[~hole] == 7).all()
    areas = hole.sum((1, 2))
    assert areas.max() == 16 and areas.min() == 4  # a hole in a corner is a quarter of that
    assert np.all(hole.any(1).sum(1) * hole.any(2).sum(1) == areas)  # rectangles


def test_erase_makes_rectangles_of_the_published_areas():
    images = jnp.zeros((500, 20, 20, 1), jnp.uint8)
    batch = {"image": images, "label": jnp.zeros(500, jnp.int32)}
    after = np.asarray(build("erase(0.25)", 2, (20, 20, 1))(jax.random.key(0), batch)["image"])[..., 0]
    erased = after.any((1, 2))
    assert 90 < erased.sum() < 160
    shares = [x.any(1).sum() * x.any(0).sum() / 400 for x in after[erased]]  # noise is sometimes 0
    assert min(shares) < 0.06 and 0.3 < max(shares) < 0.45
    assert 110 < after[after > 0].mean() < 146


def test_mixup_and_cutmix_mix_labels_as_they_mix_images():
    images = jnp.stack([jnp.zeros((6, 6, 1)), jnp.full((6, 6, 1), 255.0)])
    targets = jnp.eye(2)
    keys = jax.random.split(jax.random.key(0), 64)
    for mixer in (partial(mixers.mixup, alpha=0.5), partial(mixers.cutmix, alpha=1.0)):
        mixed, soft = jax.vmap(lambda k, m=mixer: m(k, images, targets))(keys)  # [64, 2, …]
        np.testing.assert_allclose(mixed.mean((2, 3, 4)) / 255, soft[..., 1], atol=1e-5)
        np.testing.assert_allclose(soft.sum(-1), 1, atol=1e-6)
        np.testing.assert_allclose(soft[:, 0], soft[:, 1, ::-1], atol=1e-6)
        assert np.std(soft[:, 0, 0]) > 0.1
    whole = jnp.isin(mixed, jnp.array([0.0, 255.0])).all()
    assert whole  # cutmix takes each pixel from one image


def test_mixing_requires_an_even_batch():
    with pytest.raises(UserError, match=r"mixup\(0.2\).*must be even, not 3"):
        build("mixup(0.2)", 10, (4, 4, 1))(jax.random.key(0), _batch((4, 4, 1), 3))


@pytest.mark.parametrize(
    "spec, channels, message",
    [
        ("cropp(4)", 3, r"unknown data.augment 'cropp'; did you mean 'crop'\?"),
        ("crop", 3, r"crop: missing a required argument: 'pad'; usage: crop\(pad: int, mode: str = 'zero'\)"),
        ("crop(4,wrap)", 3, "crop: mode 'wrap' is neither"),
        ("crop(2.5)", 3, "crop: pad must be int, not 2.5"),
        ("crop(40,reflect)", 3, "cannot reflect 40 pixels of 32"),
        ("cutout(0)", 3, r"cutout: size=0 is not positive; usage: cutout\(size: int\)"),
        ("randaugment(2)", 3, "randaugment: missing a required argument: 'magnitude'"),
        ("randaugment(2,31)", 3, "magnitude=31 is not in 0..30"),
        ("autoaugment(cifar)", 3, "autoaugment: policy 'cifar' is none of imagenet, cifar10, svhn"),
        ("augmix(0)", 3, "augmix: severity=0 is not in 1..10"),
        ("augmix(3, 3, 0)", 3, "augmix: depth=0 is neither -1 nor positive"),
        ("augmix(alpha=0.0)", 3, "augmix: alpha=0.0 is not positive"),
        ("trivialaugment(9)", 3, "trivialaugment: too many positional arguments; usage: trivialaugment"),
        ("trivialaugment", 2, "trivialaugment: needs images with 1 or 3 channels, not 2"),
        ("randaugment_timm(11)", 3, "randaugment_timm: magnitude=11 is not in 0..10"),
        ("randaugment_timm(7, -1)", 3, "randaugment_timm: std=-1 is negative"),
        ("erase(1.5)", 3, "p=1.5 is not a probability"),
        ("erase(True)", 3, "p must be float, not True"),
        ("flip(p=0.5,q=1)", 3, "unexpected keyword argument 'q'"),
        ("mixup(0)", 3, "a=0 is not positive"),
        ("mixup(0.2)|flip", 3, "flip: it follows mixup or cutmix in .*, which come once, at the end"),
        ("grayscale", 1, "grayscale: needs RGB images"),
        ("jitter(0.4,0.4,0.4)", 1, "saturation and hue need RGB"),
        ("crop(4)+flip", 3, "cannot read data.augment '.*': write name"),
        ("crop(__import__('os'))", 3, "cannot read data.augment '.*': write name"),
        ("crop(4", 3, "cannot read data.augment '.*': write name"),
    ],
)
def test_a_wrong_specification_is_named_in_one_line(spec, channels, message):
    with pytest.raises(UserError, match=message) as error:
        build(spec, 10, (32, 32, channels))
    assert "\n" not in str(error.value)


def test_normalize():
    images = jnp.array([0, 255], jnp.uint8).reshape(1, 2, 1, 1).repeat(3, -1)
    result = normalize(images, (0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result[0, :, 0], [[-1, -1, 0], [1, 3, 0.5]])
    assert normalize(images, (0.5,), (0.5,)).shape == images.shape
    with pytest.raises(UserError, match=r"data.std=.*: must be a tuple of 1 number, or of 1 per channel \(here 1\)"):
        normalize(images[..., :1], (0.5,), (0.5, 0.5, 0.5))
