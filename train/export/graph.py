"""A network as one function of images, for other frameworks to run."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp

import models
from models.compress import fold
from train.data.normalize import normalize
from train.export.network import PortableNetwork

# Operations that can become part of the program: normalization of the pixels, and batch normalization
FOLDS = ("normalization", "batch_norm")
ONE_FILE = 1_800_000_000  # bytes of arrays; protocol buffers (ONNX) and flatbuffers (StableHLO) are limited to 2 GiB


def program(
    network: PortableNetwork, preprocessing: Mapping[str, Any], probabilities: str, folds: Collection[str]
) -> Callable:
    """Returns the network as a function of images, with its arrays as constants.

    Args:
      network: the network.
      preprocessing: has "mean" and "std".
      probabilities: "softmax" or "sigmoid".
      folds: "normalization" makes it take pixels, uint8 [N, H, W, C], and return probabilities and logits; without, it
        takes normalized float32 images and returns logits. For "batch_norm", see `models.compress.fold`.

    Returns:
      images -> (probabilities, logits) or images -> (logits,), float32 [N, num_classes].
    """
    model, variables = network.create(), network.variables
    apply = model.apply
    if "batch_norm" in folds:
        folded = fold.fold(model, variables, *models.abstract(network.inputs))
        apply, variables = folded.apply(model), folded.variables

    def of_normalized(images: jax.Array) -> tuple[jax.Array]:
        return (cast("jax.Array", apply(variables, images)),)

    def of_pixels(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        (logits,) = of_normalized(normalized(images, preprocessing))
        return to_probabilities(logits, probabilities), logits

    return of_pixels if "normalization" in folds else of_normalized


def inputs(card: Mapping[str, Any], batch: Any) -> jax.ShapeDtypeStruct:
    """Returns shape and type of the images that the program of a card takes."""
    dtype = jnp.uint8 if "normalization" in card["folded"] else jnp.float32
    return jax.ShapeDtypeStruct((batch, *card["inputs"][1:]), dtype)


def outputs(card: Mapping[str, Any]) -> list[str]:
    """Returns the names of the outputs of a card's program."""
    return ["probabilities", "logits"] if "normalization" in card["folded"] else ["logits"]


def normalized(images: Any, preprocessing: Mapping[str, Any]) -> jax.Array:
    """Normalizes pixels, as the network of a card takes them, to float32."""
    return normalize(jnp.asarray(images), tuple(preprocessing["mean"]), tuple(preprocessing["std"]))


def to_probabilities(logits: jax.Array, kind: str) -> jax.Array:
    """Returns the softmax of logits or, for several classes per image, their sigmoid."""
    return jax.nn.softmax(logits) if kind == "softmax" else jax.nn.sigmoid(logits)
