"""The small language in which configs name things with arguments: "sgd(momentum=0.9)", "crop(4)|flip|cutout(8)".

One string is easy to override on the command line, replaces a choice together with its arguments, and has no key
that a different choice would leave unread. Parsed with `ast`; only literals are allowed as arguments. A name may be one
of a user's file, "my_loss.py:Focal(gamma=2.0)", see models/plugins.py.
"""

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from models import plugins
from models.errors import UserError, choice_error, has_type

_PARTS = re.compile(r"""(?:'[^']*'|"[^"]*"|[^|])+""")  # between bars that are in no quotes


LONGEST_SHOWN = 200  # characters of a text in an error


class Call(NamedTuple):
    """One parsed call: `name(*args, **kwargs)`; the name may be FILE.py:NAME."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}


def parse(kind: str, text: str) -> tuple[Call, ...]:
    """Parses "a(1)|b|c(x='2|3')" to calls; `kind` says in errors what the text is, e.g. "data.augment".

    Raises:
      UserError: where the text is not of that form, or an argument is no literal.
    """
    return tuple(_parse_one(kind, part.strip()) for part in _PARTS.findall(text) if part.strip())


def _parse_one(kind: str, text: str) -> Call:
    def value(node: ast.expr) -> Any:
        return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)  # a bare word is a text

    file, call = plugins.split(text) or ("", text)
    start = f"{file}:" if file else ""
    try:
        node = ast.parse(call, mode="eval").body
        if isinstance(node, ast.Name):
            return Call(start + node.id)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and all(k.arg for k in node.keywords):
            kwargs = {k.arg: value(k.value) for k in node.keywords}
            return Call(start + node.func.id, tuple(value(argument) for argument in node.args), kwargs)
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # the last two: nested too deeply
        pass
    shown = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]} …"
    raise UserError(f"cannot read {kind} '{shown}': write name, or name(value, key=value), with '|' between several")


def resolve(kind: str, call: Call, table: Mapping[str, Callable | str], *leading: Any) -> Any:
    """Calls `table[call.name](*leading, *call.args, **call.kwargs)`, or what FILE.py:NAME stands for, arguments checked
    against its annotations. The table has functions, or texts "module:NAME" of what is imported then.

    Raises:
      UserError: for a name that the table lacks (with the nearest), arguments that do not fit the signature, and what
        the function refuses by a ValueError.
    """
    function = plugins.load(call.name) if plugins.split(call.name) else plugins.imported(table.get(call.name))
    if function is None:
        raise choice_error(kind, call.name, table)
    signature = inspect.signature(function)
    parameters = signature.parameters
    try:
        bound = signature.bind(*leading, *call.args, **call.kwargs)
        for name, given in list(bound.arguments.items())[len(leading) :]:
            wanted = parameters[name].annotation
            several = parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
            for value in given if several else (given,):
                if wanted in (int, float, str, bool) and not has_type(value, wanted):
                    raise TypeError(f"{name} must be {wanted.__name__}, not {value!r}")
        return function(*bound.args, **bound.kwargs)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        form = ", ".join(str(parameter) for parameter in list(parameters.values())[len(leading) :])
        raise UserError(f"{kind} {call.name}: {error}; want {call.name}({form})") from error


def resolve_one(kind: str, text: str, table: Mapping[str, Callable], *leading: Any) -> Any:
    """Parses a text that holds exactly one call, and calls it."""
    found = parse(kind, text)
    if len(found) != 1:
        raise UserError(f"{kind} '{text}' must name exactly one of: {', '.join(table)}")
    return resolve(kind, found[0], table, *leading)
