"""The small language in which configs name things with arguments: "sgd(momentum=0.9)", "crop(4)|flip|cutout(8)".

One string is easy to override on the command line, replaces a choice together with its arguments, and has no key
that a different choice would leave unread. Parsed with `ast`; only literals are allowed as arguments.
"""

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from models.errors import UserError, choice_error


class Call(NamedTuple):
    """One parsed call: `name(*args, **kwargs)`."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}


def parse(kind: str, text: str) -> tuple[Call, ...]:
    """Parses "a(1)|b|c(x=2)" to calls; `kind` says in errors what the text is, e.g. "augment".

    Raises:
      UserError: where the text is not of that form, or an argument is no literal.
    """
    return tuple(_parse_one(kind, part.strip()) for part in text.split("|") if part.strip())


def _parse_one(kind: str, text: str) -> Call:
    try:
        node = ast.parse(text, mode="eval").body
        if isinstance(node, ast.Name):
            return Call(node.id)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and all(k.arg for k in node.keywords):
            kwargs = {k.arg: ast.literal_eval(k.value) for k in node.keywords}
            return Call(node.func.id, tuple(ast.literal_eval(arg) for arg in node.args), kwargs)
    except (SyntaxError, ValueError):
        pass
    raise UserError(f"cannot read {kind} '{text}': write name, or name(value, key=value), with '|' between several")


def resolve(kind: str, call: Call, table: Mapping[str, Callable], *leading: Any) -> Any:
    """Calls `table[call.name](*leading, *call.args, **call.kwargs)`.

    Raises:
      UserError: for a name that the table lacks (with the nearest), or arguments that do not fit its signature.
    """
    if call.name not in table:
        raise choice_error(kind, call.name, table)
    function = table[call.name]
    signature = inspect.signature(function)
    try:
        signature.bind(*leading, *call.args, **call.kwargs)
    except TypeError as error:
        own = list(signature.parameters.values())[len(leading):]
        takes = str(signature.replace(parameters=own, return_annotation=inspect.Signature.empty))
        raise UserError(f"{kind} '{call.name}' takes {takes}: {error}") from None
    return function(*leading, *call.args, **call.kwargs)


def resolve_one(kind: str, text: str, table: Mapping[str, Callable], *leading: Any) -> Any:
    """Parses a text that holds exactly one call, and calls it."""
    found = parse(kind, text)
    if len(found) != 1:
        raise UserError(f"{kind} '{text}' must name exactly one of: {', '.join(table)}")
    return resolve(kind, found[0], table, *leading)
