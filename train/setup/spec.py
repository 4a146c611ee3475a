"""The mini-language in which configs name components and their arguments.

Examples are "sgd(momentum=0.9)" and "crop(4)|flip|cutout(8)". A single string is easy to override on the command line.
An override replaces a component together with its arguments, so that no arguments of the previous component remain.
Text is parsed with `ast`; arguments must be literals. A name may come from a user's file, as in
"my_loss.py:Focal(gamma=2.0)"; see models/plugins.py.
"""

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from models import plugins
from models.errors import UserError, choice_error, has_type

_PARTS = re.compile(r"""(?:'[^']*'|"[^"]*"|[^|])+""")  # parts between bars that are not quoted
LONGEST_SHOWN = 200  # characters of a text in an error


class Call(NamedTuple):
    """A parsed call `name(*args, **kwargs)`; the name may be FILE.py:NAME."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}


def parse(kind: str, text: str) -> tuple[Call, ...]:
    """Parses a text such as "a(1)|b|c(x='2|3')" into calls.

    Args:
      kind: names the text in errors, e.g. "data.augment".
      text: the text.

    Raises:
      UserError: the text does not have this form, or an argument is not a literal.
    """
    return tuple(_parse_one(kind, part.strip()) for part in _PARTS.findall(text) if part.strip())


def _parse_one(kind: str, text: str) -> Call:
    def value(node: ast.expr) -> Any:
        return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)  # a bare word is a string

    file, call = plugins.split(text) or ("", text)
    start = f"{file}:" if file else ""
    try:
        node = ast.parse(call, mode="eval").body
        if isinstance(node, ast.Name):
            return Call(start + node.id)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and all(k.arg for k in node.keywords):
            kwargs = {k.arg: value(k.value) for k in node.keywords if k.arg}
            return Call(start + node.func.id, tuple(value(argument) for argument in node.args), kwargs)
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # the last two: nested too deeply
        pass
    shown = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]} …"
    raise UserError(f"cannot read {kind} '{shown}': write name, or name(value, key=value), with '|' between several")


def resolve(kind: str, call: Call, table: Mapping[str, Callable | str], *leading: Any) -> Any:
    """Calls what a parsed call names: `table[call.name](*leading, *call.args, **call.kwargs)`.

    A name FILE.py:NAME stands for a function of a user's file instead. Arguments are checked against annotations.

    Args:
      kind: names the text in errors, e.g. "data.augment".
      call: the parsed call.
      table: functions by name, or strings "module:NAME" that are imported when they are used.
      *leading: arguments before those of the call.

    Raises:
      UserError: the name is not in the table (the message suggests a similar one), the arguments do not fit the
        signature, or the function raises ValueError.
    """
    function = plugins.load(call.name) if plugins.split(call.name) else plugins.imported(table.get(call.name))
    if function is None:
        raise choice_error(kind, call.name, table, own=True)
    signature = inspect.signature(function)
    parameters = signature.parameters
    try:
        bound = signature.bind(*leading, *call.args, **call.kwargs)
        for name, argument in list(bound.arguments.items())[len(leading) :]:
            annotation = parameters[name].annotation
            is_variadic = parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
            for value in argument if is_variadic else (argument,):
                if annotation in (int, float, str, bool) and not has_type(value, annotation):
                    raise TypeError(f"{name} must be {annotation.__name__}, not {value!r}")
        return function(*bound.args, **bound.kwargs)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        form = ", ".join(str(parameter) for parameter in list(parameters.values())[len(leading) :])
        raise UserError(f"{kind} {call.name}: {error}; usage: {call.name}({form})") from error


def resolve_one(kind: str, text: str, table: Mapping[str, Callable], *leading: Any) -> Any:
    """Parses a text that holds exactly one call, and resolves it."""
    calls = parse(kind, text)
    if len(calls) != 1:
        raise UserError(f"{kind} '{text}' must name exactly one of: {', '.join(table)}")
    return resolve(kind, calls[0], table, *leading)
