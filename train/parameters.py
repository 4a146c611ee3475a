"""Parameters by name: what regular expressions in configs see, and how some leaves of a tree are changed."""

import re
from collections.abc import Mapping
from typing import Any

import jax

from models.errors import UserError

KERNELS = ".*/kernel"


def parameter_name(path: tuple[Any, ...]) -> str:
    """The name that regular expressions see, e.g. "stage1/block0/conv1/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def parameter_names(params: Any) -> list[str]:
    """Names of all leaves, in the order of `jax.tree.leaves`."""
    return [parameter_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def named(tree: Any, what: re.Pattern | None = None) -> dict[str, Any]:
    """The leaves by name, in their order; those alone whose whole name `what` matches."""
    found = {parameter_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return found if what is None else {name: leaf for name, leaf in found.items() if what.fullmatch(name)}


def put(tree: Any, values: Mapping[str, Any]) -> Any:
    """The tree with other values for the leaves of these names."""
    return jax.tree.unflatten(jax.tree.structure(tree), [*(named(tree) | dict(values)).values()])


def pattern(expression: str, key: str = "what") -> re.Pattern:
    """The regular expression that a config has at `key`; UserError where it is none."""
    try:
        return re.compile(expression)
    except re.error as error:
        raise UserError(f"{key}='{expression}' is no regular expression: {error}") from None
