"""experiments/studies/transfer/handcrafted.py: HOG, dense SIFT, bags of words and Fisher vectors."""

import sys

import numpy as np
import pytest

from experiments.studies.transfer import handcrafted
from models.errors import UserError
from tests.tiers import keep_first

RNG = np.random.default_rng(0)


def _noise(*shape):
    return RNG.integers(0, 256, shape).astype(np.uint8)


def _descriptors(*shape):
    """RootSIFT-like: not negative, L2 norm 1."""
    x = RNG.gamma(0.5, size=(*shape, 128))
    return np.sqrt(x / x.sum(-1, keepdims=True)).astype(np.float32)


def _edges(axis, size=32):
    """[1, size, size, 1]: dark, then bright along the axis."""
    image = np.zeros((1, size, size, 1), np.uint8)
    image[(slice(None), slice(None), slice(size // 2, None))[1 - axis :]] = 200
    return image


@pytest.mark.parametrize(("size", "channels", "features"), [(8, 1, 324), (16, 1, 324), (32, 3, 324), (64, 3, 1764)])
def test_hog_chooses_its_cells(size, channels, features):
    pytest.importorskip("skimage")
    features_of_images = handcrafted.hog(_noise(3, size, size, channels))
    assert features_of_images.shape == (3, features) and features_of_images.dtype == np.float32
    blocks = np.linalg.norm(features_of_images.reshape(3, -1, 36), axis=2)
    np.testing.assert_allclose(blocks, 1, atol=1e-3)  # L2-Hys


@pytest.mark.parametrize(("axis", "orientation"), [(1, 0), (0, 4)])  # of the gradient: 0 and 90 degrees, 20 per bin
def test_hog_of_an_edge_has_its_energy_in_one_orientation(axis, orientation):
    pytest.importorskip("skimage")
    energy = (handcrafted.hog(_edges(axis)).reshape(-1, 9) ** 2).sum(0)
    assert energy.sum() > 1 and energy[orientation] == pytest.approx(energy.sum())


def test_hog_of_gray_as_color_is_that_of_gray():
    pytest.importorskip("skimage")
    gray = _noise(2, 16, 24, 1)
    np.testing.assert_array_equal(handcrafted.hog(gray), handcrafted.hog(gray.repeat(3, 3)))


@pytest.mark.parametrize(
    ("shape", "patches"),
    [((8, 8, 1), 2 * 8 * 8), ((32, 32, 3), 2 * 8 * 8), ((32, 48, 3), 2 * 8 * 12), ((64, 64, 3), 3 * 8 * 8)],
)
def test_sift_has_a_root_of_a_distribution_for_every_patch(shape, patches):
    pytest.importorskip("cv2")
    descriptors = handcrafted.dense_sift(_noise(2, *shape))
    assert descriptors.shape == (2, patches, 128) and descriptors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(descriptors, axis=2), 1, atol=1e-5)


def test_sift_moves_with_the_image():
    pytest.importorskip("cv2")
    whole = _noise(1, 80, 88, 1)
    left, right = (
        handcrafted.dense_sift(whole[:, :, begin : begin + 80])[0, :200].reshape(2, 10, 10, 128) for begin in (0, 8)
    )
    left, right = left[:, 3:-3, 4:-2], right[:, 3:-3, 3:-3]  # further in than patch and blur of two scales reach
    np.testing.assert_allclose(left, right, atol=0.01)


def test_sift_of_an_edge_has_one_direction_and_of_a_flat_image_none():
    pytest.importorskip("cv2")
    energy = (handcrafted.dense_sift(_edges(1)) ** 2).reshape(-1, 8).sum(0)  # of 8 directions, 45 degrees apart
    assert energy[0] > 0.95 * energy.sum()  # from dark to bright: to the right
    assert not handcrafted.dense_sift(np.full((1, 32, 32, 3), 77, np.uint8)).any()


def test_fisher_vectors_are_those_of_scikit_image(monkeypatch):
    feature = pytest.importorskip("skimage.feature")
    monkeypatch.setattr(handcrafted, "_CHUNK", 20_000)  # several parts
    encoder = handcrafted.FisherVector(5).fit(_descriptors(600), seed=1)
    images = _descriptors(7, 20)
    vectors = encoder.transform(images)
    assert vectors.shape == (7, 2 * 5 * 64) and vectors.dtype == np.float32
    for descriptors, vector in zip(images, vectors, strict=True):
        theirs = feature.fisher_vector(encoder.pca.transform(descriptors), encoder.mixture)[5:]  # not by the weights
        theirs[5 * 64 :] *= -1  # the paper's sign of the gradients by deviations
        theirs = np.sign(theirs) * np.sqrt(np.abs(theirs))
        np.testing.assert_allclose(vector, theirs / np.linalg.norm(theirs), atol=1e-4)


def test_a_bag_counts_its_words():
    encoder = handcrafted.BagOfWords(6).fit(_descriptors(200), seed=1)
    centers = encoder.clusters.cluster_centers_
    histograms = encoder.transform(centers[[[0, 0, 0, 3], [5, 1, 5, 1]]])
    np.testing.assert_allclose(histograms**2, [[0.75, 0, 0, 0.25, 0, 0], [0, 0.5, 0, 0, 0, 0.5]], atol=1e-6)
    histograms = encoder.transform(_descriptors(9, 30))
    assert histograms.shape == (9, 6) and histograms.dtype == np.float32
    np.testing.assert_allclose((histograms**2).sum(1), 1, atol=1e-5)


@pytest.mark.parametrize(("kind", "features"), [("sift_fv:3", 384), ("sift_bow:7", 7)])
def test_a_vocabulary_is_a_function_of_training_images_and_seed(monkeypatch, kind, features):
    pytest.importorskip("cv2")
    monkeypatch.setattr(handcrafted, "_CHUNK", 100_000)  # several parts
    train, test = _noise(30, 32, 32, 1), _noise(9, 32, 32, 1)
    first, other = (handcrafted.describe([kind], train, test, seed=seed)[kind] for seed in (0, 1))
    again = handcrafted.describe([kind], train, test[:4], seed=0)[kind]
    assert first[0].shape == (30, features) and first[1].shape == (9, features)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_allclose(first[1][:4], again[1], atol=1e-6)
    assert np.abs(first[0] - other[0]).max() > 0.01


def test_every_image_gives_a_vocabulary_the_same_number_of_descriptors(monkeypatch):
    pytest.importorskip("cv2")
    monkeypatch.setattr(handcrafted, "SAMPLE", 50)
    images = _noise(10, 32, 32, 1)
    images[3] = 0  # its descriptors are
    sample = handcrafted._sample(images, seed=0)
    assert sample.shape == (50, 128) and (~sample.any(1)).sum() == 5


@pytest.mark.parametrize(("kind", "least"), keep_first(1, [("hog", 0.93), ("sift_fv:8", 0.95), ("sift_bow:64", 0.9)]))
def test_a_linear_classifier_reads_digits(monkeypatch, kind, least):
    for library in ("skimage", "cv2"):
        pytest.importorskip(library)
    from sklearn.svm import LinearSVC

    from train.data.source import Options
    from train.data.sources import digits

    monkeypatch.setattr(handcrafted, "SAMPLE", 10_000)
    train, test = (digits.source(split, Options("digits")) for split in ("train", "test"))
    features = handcrafted.describe([kind], train.images, test.images)[kind]
    assert LinearSVC(random_state=0).fit(features[0], train.all_labels()).score(features[1], test.all_labels()) > least


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("sift_fw", r"unknown kind of features 'sift_fw'; did you mean 'sift_fv'\? allowed: hog, sift_fv, sift_bow"),
        ("sift_fv:many", "features 'sift_fv:many': words must be a whole number, at least 1, as in 'sift_fv:64'"),
        ("sift_bow:0", "features 'sift_bow:0': words must be a whole number"),
        ("hog:8", "features 'hog:8': hog has no words"),
    ],
)
def test_unknown_kinds(kind, message):
    with pytest.raises(UserError, match=message):
        handcrafted.describe([kind], _noise(1, 8, 8, 1), _noise(1, 8, 8, 1))


@pytest.mark.parametrize(
    ("library", "kind", "name"), [("skimage.feature", "hog", "scikit-image"), ("cv2", "sift_bow", "OpenCV")]
)
def test_says_what_to_install(monkeypatch, library, kind, name):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"needs {name}, .*: pip install -e '\.\[classic\]'") as raised:
        handcrafted.describe([kind], _noise(1, 32, 32, 3), _noise(1, 32, 32, 3))
    assert "\n" not in str(raised.value)


def test_mistakes_are_one_line():
    for library in ("skimage", "cv2"):
        pytest.importorskip(library)
    with pytest.raises(
        UserError, match=r"need uint8 images \[N, height, width, 1 or 3\], not float32 \[2, 32, 32, 3\]"
    ):
        handcrafted.hog(np.zeros((2, 32, 32, 3), np.float32))
    with pytest.raises(UserError, match="HOG with cells of 8 pixels needs images of 16x16, not 12x32"):
        handcrafted.hog(_noise(1, 12, 32, 1), cell=8)
    with pytest.raises(UserError, match="Fisher vector of 100 words needs 100 descriptors, not 80"):
        handcrafted.FisherVector(100).fit(_descriptors(80))
    with pytest.raises(UserError, match="bag of 100 words needs 100 descriptors, not 80"):
        handcrafted.BagOfWords(100).fit(_descriptors(80))


def test_kinds_share_the_descriptors_and_are_those_of_each_alone(monkeypatch):
    pytest.importorskip("cv2")
    train, test, seen, dense_sift = _noise(20, 32, 32, 3), _noise(4, 32, 32, 3), [], handcrafted.dense_sift
    monkeypatch.setattr(handcrafted, "dense_sift", lambda images: (seen.append(len(images)), dense_sift(images))[1])
    kinds = ("sift_fv:2", "sift_bow:8")
    both = handcrafted.describe(kinds, train, test)
    assert sum(seen) == 20 + 20 + 4  # the sample, and each image once
    for kind in kinds:
        alone = handcrafted.describe([kind], train, test)[kind]
        assert all(np.array_equal(*pair) for pair in zip(both[kind], alone, strict=True))
