"""Handcrafted features, from before networks learned them: HOG, dense SIFT, bags of words and Fisher vectors.

The study compares a pretrained network's features with these. Until 2012, a linear classifier on them was the state of
the art: Sanchez 2011 won the last ImageNet challenge before AlexNet with Fisher vectors of SIFT. Everything here is a
pure function of images and a seed. The classifier is part of the study.

Needs scikit-image and OpenCV: pip install -e '.[classic]'.
"""

import importlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from models.errors import UserError, choice_error

KINDS = {"hog": 0, "sift_fv": 64, "sift_bow": 512}  # kind -> default number of visual words
DIMENSIONS = 64  # dimensions of SIFT after PCA, as in Perronnin 2010
SAMPLE = 100_000  # number of descriptors that a vocabulary is learned from
_SAMPLE_IMAGES = 2000  # maximum number of images that these descriptors come from
_SMALLEST = 32  # pixels: smaller images are enlarged, because SIFT's patches do not fit into them
# Octaves of the scale space; the last one is only used for images of 64 pixels and more. On 1,500 held-out training
# images of CIFAR-10, a linear classifier on Fisher vectors (16 words, 4,000 images) has an accuracy of 56.4% with the
# first two octaves, 51.6% with all three, 54.5% with only the first, 50.2% with only the second, and 56.5% with four
# times as many patches.
_OCTAVES = (-1, 0, 1)
_CHUNK = 2**22  # approximate number of values in memory at once: 16 MiB


def describe(
    kinds: Sequence[str], train: np.ndarray, test: np.ndarray, seed: int = 0
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns features of training and test images by kind; vocabularies are fitted on the training images alone.

    All kinds with SIFT share the descriptors, which take most of the time.

    Args:
      kinds: "hog", "sift_fv" (Fisher vectors) or "sift_bow" (bag of words); "sift_fv:32" has 32 words.
      train: uint8 [N, height, width, 1 or 3], all images of one size.
      test: Like train, with the same shape of images.
      seed: Seed of the vocabulary.

    Returns:
      For each kind, float32 [N, features] of the training images and of the test images. For 32x32 pixels: 324 (hog),
      2 * 64 * words (sift_fv), words (sift_bow).

    Raises:
      UserError: The kind is unknown, the images have another shape or type, there are too few of them for so many
        words, or a library is missing.
    """
    parsed = {kind: _parse(kind) for kind in kinds}
    features = {kind: (hog(train), hog(test)) for kind, (name, _) in parsed.items() if name == "hog"}
    encoders = {
        kind: (FisherVector if name == "sift_fv" else BagOfWords)(words)
        for kind, (name, words) in parsed.items()
        if name != "hog"
    }
    if encoders:
        sample = _sample(train, seed)
        fitted = [encoder.fit(sample, seed) for encoder in encoders.values()]
        encoded = zip(*(_encode(fitted, images) for images in (train, test)), strict=True)
        features |= dict(zip(encoders, encoded, strict=True))
    return features


def hog(images: np.ndarray, cell: int = 0) -> np.ndarray:
    """Returns histograms of oriented gradients (Dalal and Triggs 2005).

    There are 9 unsigned orientations. Blocks have 2x2 cells, overlap by one cell, and are normalized by L2-Hys. In
    color images, the strongest gradient of a pixel's channels counts.

    Args:
      images: uint8 [N, height, width, 1 or 3].
      cell: Side of a cell in pixels. 0 means 8 if the shorter side of the image has at least 32 pixels, 4 if it has at
        least 16, and otherwise 2.

    Returns:
      float32 [N, blocks down * blocks across * 2 * 2 * 9], in that order: 324 for 32x32, but 26,244 for 224x224.
    """
    feature = _library("skimage.feature", "HOG needs scikit-image")
    _check(images)
    height, width = images.shape[1:3]
    side = min(height, width)
    cell = cell or (8 if side >= 32 else 4 if side >= 16 else 2)
    if side < 2 * cell:
        raise UserError(f"HOG with cells of {cell} pixels needs images of {2 * cell}x{2 * cell}, not {height}x{width}")
    options = {"orientations": 9, "pixels_per_cell": (cell, cell), "cells_per_block": (2, 2), "block_norm": "L2-Hys"}
    if images.shape[3] == 1:
        images = images[..., 0]
    else:
        options["channel_axis"] = -1
    features = np.empty((len(images), (height // cell - 1) * (width // cell - 1) * 36), np.float32)
    for row, image in zip(features, images, strict=True):
        row[:] = feature.hog(image, **options)
    return features


def dense_sift(images: np.ndarray) -> np.ndarray:
    """Returns SIFT descriptors (Lowe 2004) of upright patches on a grid, as RootSIFT (Arandjelovic and Zisserman 2012).

    RootSIFT takes the square roots of a descriptor that sums to 1, so that the Euclidean distance becomes the Hellinger
    distance. The scales are those of SIFT's octaves, so blur and patch grow together: patches of 9.6 and 19.2 pixels
    with bins of 2.4 and 4.8, one every 4 pixels. If the shorter side has at least 64 pixels, there are also patches of
    38.4, one every 8. Images are converted to gray, and those below 32 pixels are enlarged to 32 first. The result
    takes N * P * 512 bytes, so `describe` calls this function with a few images at a time.

    Args:
      images: uint8 [N, height, width, 1 or 3].

    Returns:
      float32 [N, P, 128] with P = scales * rows * columns, in that order. The L2 norm is 1, or 0 if a patch has only
      one color.
    """
    cv2 = _library("cv2", "SIFT needs OpenCV")
    _check(images)
    size = _sift_size(images)
    keypoints = [
        cv2.KeyPoint(float(x), float(y), 2 * 1.6 * 2.0**octave, 0.0, 0.0, octave & 255) for octave, y, x in _grid(size)
    ]
    expected = cv2.KeyPoint.convert(keypoints)
    # Otherwise the enlarged image of octave -1 is shifted by a quarter of a pixel.
    sift = cv2.SIFT_create(enable_precise_upscale=True)
    descriptors = np.empty((len(images), len(keypoints), 128), np.float32)
    for i, image in enumerate(images):
        gray = image[..., 0] if image.shape[2] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        if gray.shape != size:
            gray = cv2.resize(gray, size[::-1], interpolation=cv2.INTER_CUBIC)
        kept, descriptors[i] = sift.compute(np.ascontiguousarray(gray), keypoints)
        assert np.array_equal(cv2.KeyPoint.convert(kept), expected), "OpenCV dropped or moved keypoints"
    descriptors /= np.maximum(descriptors.sum(2, keepdims=True), 1e-9)
    return np.sqrt(descriptors, out=descriptors)


class FisherVector:
    """A Fisher vector: the gradient by which descriptors would change a Gaussian mixture (Perronnin et al. 2010).

    The vector has the gradients with respect to the mixture's means and standard deviations, each in units of its own
    spread. It gets signed square roots, and then L2 norm 1. It agrees with skimage.feature.fisher_vector, except that
    it handles many images at once (three times as fast), leaves out the gradients with respect to the weights, and has
    the paper's sign for the gradients with respect to the deviations.
    """

    def __init__(self, words: int = KINDS["sift_fv"]):
        self.words = words
        self.features = 2 * words * DIMENSIONS

    def fit(self, descriptors: np.ndarray, seed: int = 0) -> "FisherVector":
        """Learns PCA to 64 dimensions and the mixture (`self.pca`, `self.mixture`) from a sample [M, 128]."""
        from sklearn.decomposition import PCA
        from sklearn.mixture import GaussianMixture

        needed = max(self.words, DIMENSIONS)
        if len(descriptors) < needed:
            raise UserError(f"a Fisher vector of {self.words} words needs {needed} descriptors, not {len(descriptors)}")
        with _reproducible():
            self.pca = PCA(DIMENSIONS, svd_solver="full" if len(descriptors) < 1000 else "covariance_eigh")
            reduced = self.pca.fit_transform(descriptors.astype(np.float64))
            # As in VLFeat, no variance is below 1e-4 of the largest. Otherwise the word of plain patches, which are all
            # alike, would outweigh all others.
            self.mixture = GaussianMixture(
                self.words,
                covariance_type="diag",
                reg_covar=1e-4 * reduced.var(0).max(),
                max_iter=50,
                tol=1e-3,
                random_state=seed,
            )
            _quietly(self.mixture.fit, reduced)
        return self

    def transform(self, descriptors: np.ndarray) -> np.ndarray:
        """Returns float32 [N, 2 * words * 64] of descriptors [N, P, 128], with L2 norm 1.

        The gradients by the means [words, 64] come first, then those by the deviations.
        """
        mixture: Any = self.mixture  # fitted, like the PCA
        pca: Any = self.pca
        weights, means, variances = mixture.weights_, mixture.means_, mixture.covariances_
        # The log of weight * density, without the terms that all words share, is linear in x and in its square
        constant = np.log(weights) - 0.5 * (np.log(variances) + means**2 / variances).sum(1)
        linear, square = (means / variances).T, (-0.5 / variances).T
        project, shift = pca.components_.T, -pca.mean_ @ pca.components_.T
        constant, linear, square, project, shift, mu, sigma, root = (
            x.astype(np.float32)
            for x in (constant, linear, square, project, shift, means, np.sqrt(variances), np.sqrt(weights)[:, None])
        )
        count, points, _ = descriptors.shape
        vectors = np.empty((count, 2, self.words, DIMENSIONS), np.float32)
        step = max(1, _CHUNK // (points * (self.words + 2 * DIMENSIONS)))
        for begin in range(0, count, step):
            x = descriptors[begin : begin + step] @ project + shift  # [n, P, 64]
            x2 = x * x
            share = x @ linear + x2 @ square + constant  # [n, P, words]
            share -= share.max(2, keepdims=True)
            np.exp(np.maximum(share, -60, out=share), out=share)  # denormal numbers are slow
            share /= share.sum(2, keepdims=True)
            share = share.swapaxes(1, 2) / points
            total, first, second = share.sum(2, keepdims=True), share @ x, share @ x2
            vectors[begin : begin + step, 0] = (first - total * mu) / (sigma * root)
            deviation = second - 2 * first * mu + total * (mu**2 - sigma**2)
            vectors[begin : begin + step, 1] = deviation / (np.sqrt(2) * sigma**2 * root)
        vectors = vectors.reshape(count, -1)
        vectors = np.sign(vectors) * np.sqrt(np.abs(vectors))
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


class BagOfWords:
    """A bag of words: how often each word, which is a cluster of descriptors, occurs in an image (Csurka 2004)."""

    def __init__(self, words: int = KINDS["sift_bow"]):
        self.words = self.features = words

    def fit(self, descriptors: np.ndarray, seed: int = 0) -> "BagOfWords":
        """Learns the words (`self.clusters`) from a sample [M, 128]."""
        from sklearn.cluster import MiniBatchKMeans

        if len(descriptors) < self.words:
            raise UserError(f"a bag of {self.words} words needs {self.words} descriptors, not {len(descriptors)}")
        with _reproducible():
            self.clusters = MiniBatchKMeans(
                self.words,
                batch_size=4096,
                n_init=3,  # pyright: ignore[reportArgumentType]  (the inferred type is that of the default, a text)
                random_state=seed,
            )
            _quietly(self.clusters.fit, np.asarray(descriptors, np.float32))
        return self

    def transform(self, descriptors: np.ndarray) -> np.ndarray:
        """Returns float32 [N, words] of descriptors [N, P, 128]: square roots of word frequencies, of L2 norm 1."""
        count, points, size = descriptors.shape
        words = np.asarray(self.clusters.predict(np.asarray(descriptors, np.float32).reshape(-1, size)))
        words = words.reshape(count, points)
        histogram = np.bincount((words + self.words * np.arange(count)[:, None]).ravel(), minlength=count * self.words)
        return np.sqrt(histogram.reshape(count, self.words) / points).astype(np.float32)


def _parse(kind: str) -> tuple[str, int]:
    """Parses "sift_fv:32" to ("sift_fv", 32)."""
    name, colon, words = kind.partition(":")
    if name not in KINDS:
        raise choice_error("kind of features", name, KINDS)
    if not colon:
        return name, KINDS[name]
    if name == "hog":
        raise UserError(f"features '{kind}': hog has no words")
    if not words.isdecimal() or int(words) < 1:
        raise UserError(f"features '{kind}': words must be a whole number, at least 1, as in '{name}:{KINDS[name]}'")
    return name, int(words)


def _check(images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise UserError(
            f"handcrafted features need uint8 images [N, height, width, 1 or 3], not {images.dtype} "
            f"{list(images.shape)}"
        )


def _library(name: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{what}, which is not installed ({error}): pip install -e '.[classic]'") from error


def _sift_size(images: np.ndarray) -> tuple[int, int]:
    """Returns the height and width at which descriptors are computed: the shorter side has at least 32 pixels."""
    height, width = images.shape[1:3]
    factor = max(1.0, _SMALLEST / min(height, width))
    return round(height * factor), round(width * factor)


def _grid(size: tuple[int, int]) -> Iterator[tuple[int, int, int]]:
    """Returns (octave, y, x) of every patch: a grid of as many centers as fit, centered in the image."""
    large = min(size) >= 64
    stride = 8 if large else 4
    ys, xs = ([i * stride + (side - 1) % stride // 2 for i in range(side // stride)] for side in size)
    return itertools.product(_OCTAVES if large else _OCTAVES[:2], ys, xs)


def _sample(images: np.ndarray, seed: int) -> np.ndarray:
    """Returns at most SAMPLE descriptors [M, 128] of random images, with the same number from each image."""
    rng = np.random.default_rng(seed)
    chosen = images[np.sort(rng.permutation(len(images))[:_SAMPLE_IMAGES])]
    each = -(-SAMPLE // len(chosen))
    parts = []
    for descriptors in _sift_parts(chosen):
        order = rng.permuted(np.tile(np.arange(descriptors.shape[1]), (len(descriptors), 1)), axis=1)[:, :each]
        parts.append(np.take_along_axis(descriptors, order[..., None], axis=1).reshape(-1, 128))
    return np.concatenate(parts)[:SAMPLE]


def _sift_parts(images: np.ndarray) -> Iterator[np.ndarray]:
    """Yields `dense_sift` of a few images at a time, because that of a whole training set takes many gigabytes."""
    _check(images)
    size = _sift_size(images)
    step = max(1, _CHUNK // (128 * sum(1 for _ in _grid(size))))
    for begin in range(0, len(images), step):
        yield dense_sift(images[begin : begin + step])


def _encode(encoders: Sequence[FisherVector | BagOfWords], images: np.ndarray) -> list[np.ndarray]:
    """Returns the features of all images by each encoder, from one pass over the descriptors."""
    features = [np.empty((len(images), encoder.features), np.float32) for encoder in encoders]
    begin = 0
    for descriptors in _sift_parts(images):
        for encoder, encoded in zip(encoders, features, strict=True):
            encoded[begin : begin + len(descriptors)] = encoder.transform(descriptors)
        begin += len(descriptors)
    return features


def _reproducible() -> Any:
    """Returns a context with one thread: several add in varying order, so that k-means would differ between runs."""
    from threadpoolctl import threadpool_limits  # a dependency of scikit-learn

    return threadpool_limits(1)


def _quietly(fit: Any, *arguments: Any) -> None:
    """Fits without warnings about convergence, which a vocabulary does not need."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fit(*arguments)
