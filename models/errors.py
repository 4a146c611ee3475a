"""A user's mistake: one line that names the thing and what is allowed."""

import difflib
from collections.abc import Iterable

MANY = 30  # choices that are too many for one line


class UserError(ValueError):
    """A mistake that the user can mend. Entry points print it as one line, without a traceback, and exit with 2."""


def nearest(value: str, allowed: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the closest of `allowed`, or "" where none is close."""
    close = difflib.get_close_matches(value, list(allowed), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def choice_error(kind: str, value: object, allowed: Iterable[str]) -> UserError:
    """An error for a `value` that is none of `allowed`: "unknown norm 'grop'; did you mean 'group'? …".

    It lists them, or of more than MANY the few that are nearest.
    """
    allowed = list(allowed)
    hint = nearest(str(value), allowed) or ";"
    if len(allowed) > MANY:
        close = difflib.get_close_matches(str(value), allowed, n=5, cutoff=0.0)
        return UserError(f"unknown {kind} '{value}'{hint} the nearest of {len(allowed)}: {', '.join(close)}")
    return UserError(f"unknown {kind} '{value}'{hint} allowed: {', '.join(allowed)}")


def has_type(value: object, wanted: type) -> bool:
    """Whether a value from a config is of the type; a whole number is a float as well, a bool is no number."""
    if isinstance(value, bool) or wanted is bool:
        return isinstance(value, bool) and wanted is bool
    return isinstance(value, (int, float) if wanted is float else wanted)
