"""What is for `make test` and what for `make test-all` alone (the marker `full`)."""

from collections.abc import Iterable
from typing import Any

import pytest


def keep_first(count: int, values: Iterable[Any]) -> list[Any]:
    """Parameters of a test: the first `count` of the values; the others, their relatives, are for `make test-all`."""
    return [value if i < count else pytest.param(*(value if isinstance(value, tuple) else (value,)),
                                                 marks=pytest.mark.full) for i, value in enumerate(values)]
