"""Names of parameters, which regular expressions in configs match, and trees with some leaves replaced."""

import re
from collections.abc import Mapping
from typing import Any

import jax

from models.errors import UserError

KERNELS = ".*/kernel"
HEADS = "(.*/)?head/.*"  # classifiers, e.g. "head/kernel" and "exit1/head/bias"


def parameter_name(path: tuple[Any, ...]) -> str:
    """Returns the name of a leaf, e.g. "stage1/block0/conv1/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def parameter_names(params: Any) -> list[str]:
    """Returns the names of all leaves, in the order of `jax.tree.leaves`."""
    return [parameter_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def named(tree: Any, what: re.Pattern | None = None) -> dict[str, Any]:
    """Returns leaves by name, in the order of the tree; with `what`, only those whose full name it matches."""
    leaves = {parameter_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return leaves if what is None else {name: leaf for name, leaf in leaves.items() if what.fullmatch(name)}


def put(tree: Any, values: Mapping[str, Any]) -> Any:
    """Returns a copy of the tree in which the leaves with these names have new values."""
    return jax.tree.unflatten(jax.tree.structure(tree), [*(named(tree) | dict(values)).values()])


def pattern(expression: str, key: str = "what") -> re.Pattern:
    """Compiles the regular expression at a config's `key`; raises UserError if it is invalid."""
    try:
        return re.compile(expression)
    except re.error as error:
        raise UserError(f"{key}='{expression}' is not a regular expression: {error}") from None
