"""A network as one function of images, which other frameworks can run."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

import models
from models.compress import fold
from train.data import augment
from train.export.network import Network

# What can become part of the program: the pixels' normalization, and what batch normalization does to convolutions.
FOLDS = ("normalization", "batch_norm")
ONE_FILE = 1_800_000_000  # bytes of arrays; protocol buffers (ONNX) and flatbuffers (StableHLO) end at 2 GiB


def program(network: Network, preprocessing: Mapping[str, Any], probabilities: str, folds: Collection[str]) -> Callable:
    """The network as a function of images alone, its arrays constants in it.

    Args:
      network: what it computes.
      preprocessing: with "mean" and "std".
      probabilities: "softmax" or "sigmoid".
      folds: with "normalization", it takes pixels, uint8 [N, H, W, C], and gives probabilities and logits; without,
        normalized float32 images, and gives logits. With "batch_norm", see `models.compress.fold`.

    Returns:
      images -> (probabilities, logits), or -> (logits,), float32 [N, num_classes].
    """
    model, variables = network.create(), network.variables
    apply = model.apply
    if "batch_norm" in folds:
        apply, variables, _ = fold.fold(model, variables, *models.abstract(network.inputs))

    def of_normalized(images):
        return (apply(variables, images),)

    def of_pixels(images):
        (logits,) = of_normalized(normalized(images, preprocessing))
        return to_probabilities(logits, probabilities), logits

    return of_pixels if "normalization" in folds else of_normalized


def inputs(card: Mapping[str, Any], batch: Any) -> jax.ShapeDtypeStruct:
    """What the program of a card takes."""
    dtype = jnp.uint8 if "normalization" in card["folded"] else jnp.float32
    return jax.ShapeDtypeStruct((batch, *card["inputs"][1:]), dtype)


def outputs(card: Mapping[str, Any]) -> list[str]:
    """Names of what it gives."""
    return ["probabilities", "logits"] if "normalization" in card["folded"] else ["logits"]


def normalized(images: Any, preprocessing: Mapping[str, Any]) -> jax.Array:
    """Pixels as a network of that card takes them, float32."""
    return augment.normalize(jnp.asarray(images), tuple(preprocessing["mean"]), tuple(preprocessing["std"]))


def to_probabilities(logits: jax.Array, kind: str) -> jax.Array:
    """softmax, or of several classes an image sigmoid."""
    return jax.nn.softmax(logits) if kind == "softmax" else jax.nn.sigmoid(logits)
