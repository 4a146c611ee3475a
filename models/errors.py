"""Errors for mistakes of users, which name the bad value and the allowed ones in one line."""

import difflib
from collections.abc import Iterable

MANY = 30  # maximum number of choices to list in one line
OWN = "FILE.py:NAME"  # in lists of choices: a name in a file of the user, see models/plugins.py


class UserError(ValueError):
    """A mistake that the user can correct; commands print it as one line, without a traceback.

    Attributes:
      exit_code: Exit code of the command.
    """

    exit_code = 2


def nearest(value: str, allowed: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the closest of `allowed`, or "" if none is close."""
    close = difflib.get_close_matches(value, list(allowed), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def choice_error(kind: str, value: object, allowed: Iterable[str], own: bool = False) -> UserError:
    """Returns an error for a `value` that is not one of `allowed`: "unknown norm 'grop'; did you mean 'group'? ...".

    It lists the allowed values, or the nearest few if there are more than MANY.

    Args:
      kind: names the choice, e.g. "norm".
      value: the unknown value.
      allowed: the allowed values.
      own: whether FILE.py:NAME is allowed, too.
    """
    allowed, also = list(allowed), f", {OWN}" * own
    hint = nearest(str(value), allowed) or ";"
    if len(allowed) > MANY:
        close = difflib.get_close_matches(str(value), allowed, n=5, cutoff=0.0)
        return UserError(f"unknown {kind} '{value}'{hint} the nearest of {len(allowed)}: {', '.join(close)}{also}")
    return UserError(f"unknown {kind} '{value}'{hint} allowed: {', '.join(allowed)}{also}")


def has_type(value: object, expected: type) -> bool:
    """Returns whether a value from a config has a type; whole numbers count as float, but bool is not a number."""
    if isinstance(value, bool) or expected is bool:
        return isinstance(value, bool) and expected is bool
    return isinstance(value, (int, float) if expected is float else expected)
