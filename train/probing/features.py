"""A network as a fixed extractor of features: computed once a set, kept on disk by content, used by every classifier.

What is kept is named by a digest of the network (its code, its fields and the bits of its variables, but for the head,
which no endpoint sees), the endpoint, the data (bits of the files, or names, sizes and times of a folder's) and the
preprocessing. So another checkpoint, endpoint or data set is never mistaken for this one, and the same one is not
computed twice, by whatever run it is asked for.
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
from train.checkpoint import flatten
from train.data import augment, composite, decode, select
from train.data.identity import Digest
from train.data.image_feed import as_images
from train.data.select import Selected
from train.data.source import Source
from train.run import Network

ENDPOINT = "pre_logits"
VERSION = 3  # of what is kept
_CONTENTS = weakref.WeakKeyDictionary()  # digests of sources: each is read once, whatever is extracted from it


class Features(NamedTuple):
    """x float32 [N, D]; labels int32 [N], or [N, classes] where there are many an image."""

    x: np.ndarray
    labels: np.ndarray


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/ablate/features, ~/.cache/ablate/features."""
    return runtime.cache_folder() / "features"


def extract(
    network: Network, variables: Any, split: str, endpoint: str = ENDPOINT, folder: Path | None = None
) -> Features:
    """Features of the images of a split, in order, with the evaluation crop; of maps [N, H, W, C] and of tokens
    [N, T, C] the mean over places.

    Args:
      network: the network and its data.
      variables: of the network, as numpy.
      split: "train" or "test".
      endpoint: of the network.
      folder: where features are kept; None for `cache_folder()`.

    Raises:
      UserError: the network has no such endpoint; those that it has are listed.
    """
    if split not in ("train", "test"):
        raise choice_error("split", split, ("train", "test"))
    check(network, endpoint)
    return of_source(network, variables, getattr(network.feed, split), endpoint, folder)


def of_source(
    network: Network, variables: Any, source: Source, endpoint: str = ENDPOINT, folder: Path | None = None
) -> Features:
    """As `extract`, of any source that the run's images could come from."""
    folder = folder or cache_folder()
    if isinstance(source, Selected) and not source.painted.any():  # of a set that is there whole, a part is there
        whole = _read(folder / _name(network, variables, endpoint, source.source))
        if whole and len(whole.x) == len(source.source):  # none of its images was skipped
            labels = np.array([source.label_of[int(label)] for label in whole.labels[source.index]], np.int32)
            return Features(whole.x[source.index], labels)
    path = folder / _name(network, variables, endpoint, source)
    found = _read(path)
    if found is None:
        found = _compute(network, variables, endpoint, source)
        _write(path, found)
    return found


def check(network: Network, endpoint: str) -> None:
    """Raises UserError where the network has no such endpoint, with those that it has, or is not for images."""
    as_images(network.feed, f"features are of images, not {network.feed.unit}")
    found = jax.eval_shape(
        lambda variables, image: capture(network.model, variables, image, names=[endpoint], train=False)[1],
        network.shapes[0],
        jax.ShapeDtypeStruct((1, *network.feed.image_shape), np.float32),
    )
    if found[endpoint].ndim < 2:
        raise UserError(f"endpoint {endpoint} is one number an image, which is no feature vector")


def _compute(network: Network, variables: Any, endpoint: str, source: Source) -> Features:
    @jax.jit
    def pooled(variables, batch):
        image = network.feed.prepare_evaluation(batch)["image"]
        _, found = capture(network.model, variables, image, names=[endpoint], train=False)
        x = found[endpoint]
        return x.reshape(x.shape[0], -1, x.shape[-1]).mean(1).astype(np.float32)  # [N, …, C] -> [N, C]

    variables, parts = jax.device_put(variables), []
    for batch in network.feed.batches(source):
        real = batch["mask"] > 0
        parts.append((np.asarray(pooled(variables, batch))[real], batch["label"][real]))
    return Features(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _name(network: Network, variables: Any, endpoint: str, source: Source) -> str:
    """The file of these features."""
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
    """The sources that decide what a network whose classes are in these modules gives for an image."""
    layers = (path for room in (models.layers, models.kernels) for path in Path(room.__file__).parent.glob("*.py"))
    modules = (decode, select, composite, augment, *(sys.modules[family] for family in families))
    files = {*layers, *(Path(module.__file__) for module in modules)}
    return b"".join(file.read_bytes() for file in sorted(files))


def content(source: Source) -> str:
    """A digest of what the source holds: it reads all of it."""
    digest = Digest()
    digest.add(source.image_shape, source.decoder, source.on_error, source.classes, len(source), source.how)
    for start in range(0, len(source), 1024):
        for stored, label in source.fetch(range(start, min(start + 1024, len(source)))):
            if isinstance(stored, Path):
                about = stored.stat()
                stored = (str(stored), about.st_size, about.st_mtime_ns)
            digest.add(stored.tobytes() if isinstance(stored, np.ndarray) else stored, np.asarray(label).tolist())
    return digest.hexdigest()


def _read(path: Path) -> Features | None:
    """Returns what is kept there, or None where nothing is, or where it is damaged."""
    try:
        with npz.opened(path) as arrays:
            return Features(arrays["x"], arrays["labels"])
    except UserError:
        return None


def _write(path: Path, found: Features) -> None:
    """Atomically; a disk without space or a folder that cannot be written costs the file alone."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(temporary, x=found.x, labels=found.labels)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()


def standardizer(train: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Each feature minus its mean over `train`, divided by its standard deviation there; constant ones become 0."""
    mean, std = train.mean(0), train.std(0)
    scale = np.where(std > 1e-6 * (1 + np.abs(mean)), 1 / np.maximum(std, 1e-12), 0).astype(np.float32)
    return lambda x: (x - mean) * scale


def summary(found: Mapping[str, Features]) -> str:
    """ "train 1,437 x 128, test 360 x 128"."""
    return ", ".join(f"{split} {len(part.x):,} x {part.x.shape[1]}" for split, part in found.items())
