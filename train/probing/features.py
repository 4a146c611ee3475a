"""Features of a fixed network, computed once per data set and cached on disk for all classifiers.

A cache file is named by a digest of the network, the endpoint, the data and the preprocessing. The digest covers the
network's code, fields and variables. The head's variables are left out, except for exits, whose logits may use them. Of
the data, it covers the bits of the images or, for files, their names, sizes and modification times. So features of
another checkpoint, endpoint or data set are never taken for these, and two runs with the same network compute them
once.
"""

import contextlib
import functools
import os
import sys
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import models.kernels
import models.layers
from models import plugins
from models.errors import UserError, choice_error
from models.kernels import runtime
from models.layers.endpoint import capture
from models.weights import npz
from train.data import composite, decode, normalize, select
from train.data.identity import Digest
from train.data.image_feed import as_images
from train.data.select import Selected
from train.data.source import Source
from train.run import Network
from train.storage.checkpoint import flatten

ENDPOINT = "pre_logits"
VERSION = 3  # of the cache files
_CONTENTS = weakref.WeakKeyDictionary()  # digests of sources, so that each is read only once


class Features(NamedTuple):
    """Features x, float32 [N, D], with labels, int32 [N] or, for several classes per image, [N, classes]."""

    x: np.ndarray
    labels: np.ndarray


def cache_folder() -> Path:
    """Returns $XDG_CACHE_HOME/ablate/features, or ~/.cache/ablate/features."""
    return runtime.cache_folder() / "features"


def extract(
    network: Network, variables: Any, split: str, endpoint: str = ENDPOINT, folder: Path | None = None
) -> Features:
    """Returns the features of the images of a split, in order, with the evaluation crop.

    Maps [N, H, W, C] and tokens [N, T, C] are averaged over positions.

    Args:
      network: the network and its data.
      variables: of the network, NumPy arrays.
      split: "train" or "test".
      endpoint: endpoint of the network.
      folder: folder of the cache; None means `cache_folder()`.

    Raises:
      UserError: the network has no such endpoint; the error lists its endpoints.
    """
    if split not in ("train", "test"):
        raise choice_error("split", split, ("train", "test"))
    check(network, endpoint)
    return of_source(network, variables, getattr(network.feed, split), endpoint, folder)


def of_source(
    network: Network, variables: Any, source: Source, endpoint: str = ENDPOINT, folder: Path | None = None
) -> Features:
    """Returns the features of any source of images for the network; see `extract`."""
    folder = folder or cache_folder()
    if isinstance(source, Selected) and not source.painted.any():  # the features of the whole set may be cached
        whole = _read(folder / _name(network, variables, endpoint, source.source))
        if whole and len(whole.x) == len(source.source):  # no image was skipped
            labels = np.array([source.label_of[int(label)] for label in whole.labels[source.index]], np.int32)
            return Features(whole.x[source.index], labels)
    path = folder / _name(network, variables, endpoint, source)
    features = _read(path)
    if features is None:
        features = _compute(network, variables, endpoint, source)
        _write(path, features)
    return features


def check(network: Network, endpoint: str) -> None:
    """Raises UserError if the network is not for images, or has no such endpoint; the error lists its endpoints."""
    feed = as_images(network.feed, f"features are of images, not {network.feed.unit}")
    shapes = jax.eval_shape(
        lambda variables, image: capture(network.model, variables, image, names=[endpoint], train=False)[1],
        network.shapes[0],
        jax.ShapeDtypeStruct((1, *feed.image_shape), np.float32),
    )
    if shapes[endpoint].ndim < 2:
        raise UserError(f"endpoint {endpoint} is one number per image, not a feature vector")


def _compute(network: Network, variables: Any, endpoint: str, source: Source) -> Features:
    @jax.jit
    def pooled(variables, batch):
        images = network.feed.prepare_evaluation(batch)["image"]
        _, endpoints = capture(network.model, variables, images, names=[endpoint], train=False)
        x = endpoints[endpoint]
        return x.reshape(x.shape[0], -1, x.shape[-1]).mean(1).astype(np.float32)  # [N, …, C] -> [N, C]

    variables, parts = jax.device_put(variables), []
    for batch in as_images(network.feed).batches(source):
        unmasked = batch["mask"] > 0
        parts.append((np.asarray(pooled(variables, batch))[unmasked], batch["label"][unmasked]))
    return Features(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _name(network: Network, variables: Any, endpoint: str, source: Source) -> str:
    """Returns the name of the cache file of these features."""
    data, model = network.config["data"], network.model
    digest = Digest()
    families = tuple(kind.__module__ for kind in type(model).__mro__ if kind.__module__.startswith("models."))
    families += tuple(module.__name__ for module in plugins.modules())  # one of them may be its norm
    digest.add(VERSION, _code(families), model.clone(num_classes=1), endpoint, data["mean"], data["std"])
    for path, leaf in sorted(flatten(variables).items()):
        if not path.startswith("params/head/") or endpoint.startswith("exit"):  # the last exit's logits are the head's
            digest.add(path, leaf.dtype, leaf.shape, np.ascontiguousarray(leaf).tobytes())
    if source not in _CONTENTS:
        _CONTENTS[source] = content(source)
    digest.add(_CONTENTS[source])
    return (
        f"{plugins.short(network.config['model']['name'])}-{endpoint.replace('/', '.')}-{digest.hexdigest()[:24]}.npz"
    )


@functools.cache
def _code(families: tuple[str, ...]) -> bytes:
    """Returns the source code that decides the features of a network whose classes are in these modules."""
    layers = (path for room in (models.layers, models.kernels) for path in Path(str(room.__file__)).parent.glob("*.py"))
    modules = (decode, select, composite, normalize, *(sys.modules[family] for family in families))
    files = {*layers, *(Path(str(module.__file__)) for module in modules)}
    return b"".join(file.read_bytes() for file in sorted(files))


def content(source: Source) -> str:
    """Reads a whole source and returns a digest of its content."""
    digest = Digest()
    digest.add(source.image_shape, source.decoder, source.on_error, source.classes, len(source), source.how)
    for start in range(0, len(source), 1024):
        for stored, label in source.fetch(range(start, min(start + 1024, len(source)))):
            if isinstance(stored, Path):
                status = stored.stat()
                digest.add((str(stored), status.st_size, status.st_mtime_ns))
            else:
                digest.add(stored.tobytes() if isinstance(stored, np.ndarray) else stored)
            digest.add(np.asarray(label).tolist())
    return digest.hexdigest()


def _read(path: Path) -> Features | None:
    """Returns the features in a cache file, or None if it is missing or damaged."""
    try:
        with npz.opened(path) as arrays:
            return Features(arrays["x"], arrays["labels"])
    except UserError:
        return None


def _write(path: Path, features: Features) -> None:
    """Writes a cache file atomically, or not at all if the disk is full or the folder cannot be written."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(temporary, x=features.x, labels=features.labels)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()


def standardizer(train: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function that brings features to mean 0 and deviation 1 over `train`, and constant ones to 0."""
    mean, std = train.mean(0), train.std(0)
    scale = np.where(std > 1e-6 * (1 + np.abs(mean)), 1 / np.maximum(std, 1e-12), 0).astype(np.float32)
    return lambda x: (x - mean) * scale


def summary(features: Mapping[str, Features]) -> str:
    """Writes the sizes of features by split, as in "train 1,437 x 128, test 360 x 128"."""
    return ", ".join(f"{split} {len(part.x):,} x {part.x.shape[1]}" for split, part in features.items())
