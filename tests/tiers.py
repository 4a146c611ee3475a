"""What is for `make test` and what for `make test-all` alone (the marker `full`)."""

from collections.abc import Container, Iterable
from typing import Any

import pytest


def keep_first(count: int, values: Iterable[Any]) -> list[Any]:
    """Parameters of a test: the first `count` of the values; the others, their relatives, are for `make test-all`."""
    values = list(values)
    return keep(values[:count], values)


def keep(these: Container[Any], values: Iterable[Any]) -> list[Any]:
    """Parameters of a test: `these` of the values; the others, their relatives, are for `make test-all`."""
    return [
        value
        if value in these
        else pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.full)
        for value in values
    ]
