"""Pretrained networks by name, with their preprocessing.

  hf:timm/resnet50.a1_in1k, hf:ORGANIZATION/NAME@REVISION    a repository of the hub, in timm's form or this project's
  torchvision:resnet50/IMAGENET1K_V2                         torchvision's weights
  https://storage.googleapis.com/…/NAME.npz                  BiT's files, and those of JAX's Vision Transformers

A repository's config.json names the network; the arrays of an .npz file tell it. download.py has the caches.
"""

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn

import models
from models import plugins, weights
from models.errors import UserError, choice_error, nearest
from models.weights import architectures, download, inferred, preprocessing, tags
from models.weights.foreign import Damaged, reading

FORMS = "hf:ORGANIZATION/NAME, torchvision:NAME/WEIGHTS, or the URL of an .npz file"
ACCEPT = "ABLATE_ACCEPT_LICENSE"  # environment variable: licenses that the user's purpose allows
_NAMED = re.compile(r"(hf:|torchvision:|https?://)", re.IGNORECASE)
_HUB = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)
_FILES = ("model.safetensors", "pytorch_model.bin")
_SHOWN = 5  # number of mismatched arrays that an error lists
# JAX's codes squeeze images to squares; the table has other values for files that timm knows
_OF_JAX = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "crop": "whole"}


class Source(NamedTuple):
    """Weights that are on this machine, and the network that they fit.

    Attributes:
      where: Their name, with the commit of the hub.
      path: The file.
      layout: Name of the layout of its arrays.
      network: The network's name here.
      fields: Its fields.
      classes: Number of classes; 0 for a network without a head.
      preprocessing: See preprocessing.py.
      labels: Names of the classes.
      license: SPDX identifier, or "" if it is not stated.
    """

    where: str
    path: Path
    layout: str
    network: str
    fields: dict[str, Any]
    classes: int
    preprocessing: dict[str, Any]
    labels: tuple[str, ...]
    license: str


class Loaded(NamedTuple):
    """A pretrained network.

    Attributes:
      model: The flax module.
      variables: Its variables.
      card: "model" and "fields" (arguments of `models.create`), "preprocessing" (see preprocessing.py; None if a file
        does not say), "labels", "license", "source", and "head": "pretrained" or "drawn".
    """

    model: nn.Module
    variables: dict[str, Any]
    card: dict[str, Any]


def is_name(where: object) -> bool:
    """Returns True for a text that names pretrained weights, and is no path."""
    return isinstance(where, str) and bool(_NAMED.match(where))


def load(
    where: str, /, *, new: Collection[str] = (), seed: int = 0, file: str | Path | None = None, **fields: Any
) -> Loaded:
    """Returns a pretrained network by name, or from a file of `python -m models.weights import`.

    Args:
      where: The name, see the module's docstring, or a .safetensors file.
      file: The file of these weights, if it is here already; then `where` must be in the table of tags.
      new: Parts to draw anew, such as "head" for other classes; a network without a head gets one.
      seed: Seed of what is drawn.
      **fields: Values for fields of the network, e.g. num_classes=10.

    Raises:
      UserError: There are no such weights, they cannot be downloaded, their network is not one of ours, or their
        license forbids some use and ABLATE_ACCEPT_LICENSE does not name it.
    """
    try:
        if is_name(where):
            return _by_name(_of_file(where, Path(file)) if file else find(where), new, seed, fields)
        return _from_file(where, new, seed, fields)
    except UserError as error:
        raise UserError(str(error) if where in str(error) else f"{where}: {error}") from None


def _by_name(source: Source, new: Collection[str], seed: int, fields: dict[str, Any]) -> Loaded:
    fields = {**source.fields, **fields}
    with reading(source.where, source.path.suffix):
        model = models.create(source.network, **fields)
    if not source.classes and "head" not in new:
        new = (*new, "head")
    variables = _fitted(model, source.path, source.layout, new, seed)
    card = {
        "model": source.network,
        "fields": fields,
        "preprocessing": _resized(source.preprocessing, model),
        "labels": _labels(model, source.labels),
        "license": source.license,
        "source": source.where,
        "head": "drawn" if "head" in new else "pretrained",
    }
    return Loaded(model, variables, card)


def _fitted(model: nn.Module, path: Path, layout: str, new: Collection[str], seed: int) -> dict[str, Any]:
    """Reads variables of the model from a file; errors are one line."""
    arrays = weights.read(path)
    try:
        return weights.from_arrays(model, arrays, layout, new=new, seed=seed)
    except weights.Mismatch as error:
        more = f" and {len(error.lines) - _SHOWN} more" if len(error.lines) > _SHOWN else ""
        summary = error.summary.rstrip(":")
        raise UserError(f"{summary}: {'; '.join(error.lines[:_SHOWN])}{more}") from None


def _from_file(where: str, new: Collection[str], seed: int, fields: dict[str, Any]) -> Loaded:
    stored = weights.description(where)
    if "model" not in stored:
        raise UserError(f"{where} does not name its network: it must be a file of python -m models.weights import")
    fields = {**stored.get("fields", {}), **fields}
    with reading(where, ".safetensors"):  # a damaged file may have fields that no network can have
        model = models.create(stored["model"], **fields)
    variables = _fitted(model, Path(where), "ablate", new, seed)
    facts = stored.get("preprocessing")
    card = {
        "model": stored["model"],
        "fields": fields,
        "preprocessing": None if facts is None else _resized(preprocessing.checked(facts), model),
        "labels": _labels(model, tuple(stored.get("labels", ()))),
        "license": stored.get("license", ""),
        "source": stored.get("source", ""),
        "head": "drawn" if "head" in new else stored.get("head", "pretrained"),
    }
    return Loaded(model, variables, card)


def description(card: dict[str, Any]) -> dict[str, Any]:
    """Returns what a file of the network says about it, for `weights.save`; `load` reads it back."""
    labels = card["labels"]
    texts = {} if labels == tags.labels(len(labels)) else {"labels": labels}
    return {name: value for name, value in {**card, "labels": None, **texts}.items() if value is not None}


def _labels(model: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    return tags.labels(model.num_classes, names if len(names) == model.num_classes else ())


def _resized(facts: dict[str, Any], model: Any) -> dict[str, Any]:
    """Returns the preprocessing for the size of images that the model takes."""
    size = model.image_size
    return {**facts, "size": size, "shape": [size, size, facts["channels"]]}


def find(where: str) -> Source:
    """Finds weights by name, and downloads what is not in the caches; see `load` for the errors."""
    kind = where.partition(":")[0].lower()
    return {"hf": _find_hub, "torchvision": _find_torchvision}.get(kind, _find_url)(where)


def _check_license(where: str, license: str) -> None:
    accepted = os.environ.get(ACCEPT, "").replace(" ", "").split(",")
    if license and license not in tags.OPEN and license not in accepted:
        raise UserError(
            f"{where} has the license {license}, which forbids some uses, often commercial ones; if it allows yours, "
            f"set {ACCEPT}={license}"
        )


def _fields(network: str, fields: dict[str, Any], classes: int, size: int) -> dict[str, Any]:
    """Returns the fields of a network, without those that are its defaults anyway."""
    default: Any = models.create(network)
    sizes = {"num_classes": classes or default.num_classes, "image_size": size}
    return {**fields, **{name: value for name, value in sizes.items() if getattr(default, name) != value}}


def _find_hub(where: str) -> Source:
    match = _HUB.fullmatch(where)
    if not match:
        raise UserError(f"{where}: must be hf:ORGANIZATION/NAME or hf:ORGANIZATION/NAME@REVISION{_hint(where)}")
    name, revision = match[1], match[2]
    try:
        path = download.from_hub(name, revision, "config.json")
    except download.NotThere as error:
        raise UserError(f"{error}{_hint(where)}") from None
    commit = download.commit(path)
    with reading(f"{where}: config.json", ".json"):
        config = preprocessing.Config(path)
        layout, network, fields = _network(where, config)
    license = config.license or (tags.table()[f"hf:{name}"].license if f"hf:{name}" in tags.table() else "")
    _check_license(where, license)
    file = _weights_file(name, commit or revision)
    return Source(
        f"hf:{name}@{commit}" if commit else where,
        file,
        layout,
        network,
        fields,
        config.classes,
        config.preprocessing,
        tags.labels(config.classes, config.labels),
        license,
    )


def _network(where: str, config: preprocessing.Config) -> tuple[str, str, dict[str, Any]]:
    """Returns the layout, the name and the fields of a repository's network."""
    if own := config.own:
        name, fields, layout = own.get("model"), own.get("fields"), own.get("layout", "ablate")
        if not isinstance(name, str) or not isinstance(fields, dict) or not isinstance(layout, str):
            raise Damaged("its entry 'ablate' names no network")
        if any(plugins.split(text) for text in (name, *fields.values())):
            raise UserError(f"{where}: this network needs a file of its owner's code, FILE.py:NAME, which is not run")
        return layout, name, fields
    try:
        network, fields = architectures.find(config.architecture)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    model: Any = models.create(network, **fields)
    pool = "token" if getattr(model, "pool", "mean") == "token" else "avg"
    if config.pool not in ("", pool):
        raise UserError(f"{where}: global_pool={config.pool} of this network is not one of ours; allowed: {pool}")
    return "timm", network, _fields(network, fields, config.classes, config.preprocessing["size"])


def _weights_file(name: str, revision: str | None) -> Path:
    for file in _FILES:
        try:
            return download.from_hub(name, revision, file)
        except download.NotThere:
            continue
    raise UserError(f"hf:{name} has no weights: there is neither {' nor '.join(_FILES)} in it")


def _hint(where: str) -> str:
    return nearest(where.partition("@")[0], tags.table())


def _find_torchvision(where: str) -> Source:
    tag = _tag(where, "torchvision:")
    digest = re.search(r"-([0-9a-f]{8,})\.", tag.file)
    return _source(tag, download.from_url(tag.file, digest[1] if digest else ""), "torchvision")


def _of_file(where: str, path: Path) -> Source:
    """Returns the source of a tag whose file is here already."""
    tag = _tag(where)
    if where.startswith("http"):
        return _source(tag, path, inferred.infer(weights.read(path))[2])
    return _source(tag, path, "timm" if where.startswith("hf:") else "torchvision")


def _tag(where: str, prefix: str = "") -> tags.Tag:
    """Returns a tag of the table whose license allows its use."""
    known = {name: tag for name, tag in tags.table().items() if name.startswith(prefix)}
    if where not in known:
        raise choice_error("weights", where, known)
    _check_license(where, known[where].license)
    return known[where]


def _source(tag: tags.Tag, path: Path, layout: str) -> Source:
    fields = _fields(tag.network, tag.fields, tag.classes, tag.preprocessing["size"])
    labels = tags.labels(tag.classes)
    return Source(tag.name, path, layout, tag.network, fields, tag.classes, tag.preprocessing, labels, tag.license)


def _find_url(where: str) -> Source:
    if not re.fullmatch(r"https?://[^/?#]+/[^?#]*\.npz", where):
        raise UserError(f"{where}: a URL must be of an .npz file, without a query; otherwise name {FORMS}")
    tag = tags.table().get(where)
    _check_license(where, tag.license if tag else "")
    path = download.from_url(where)
    with reading(where, ".npz"):
        network, fields, layout, classes = inferred.infer(weights.read(path))
        model: Any = models.create(network, **fields)
    facts = tag.preprocessing if tag else preprocessing.create(model.image_size, **_OF_JAX)
    fields = _fields(network, fields, classes, tag.preprocessing["size"] if tag else model.image_size)
    return Source(
        where, path, layout, network, fields, classes, facts, tags.labels(classes), tag.license if tag else ""
    )
