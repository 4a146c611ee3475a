"""docs/errors.md: the text of every error that a user can cause, gathered from the source."""

import ast
from collections.abc import Iterator
from pathlib import Path

from models.analysis.tables import markdown_table

ROOT = Path(__file__).parents[2]
ROOMS = ("models", "train", "configs", "experiments")
NOTICE = "<!-- Written by `make report`; do not edit. -->"
RAISED = ("UserError", "choice_error", "Unreadable", "Changed", "NotPrepared", "Mismatch")
RELEVANT = ("configs",)  # rooms whose ValueErrors refuse arguments of a config
REFUSALS = ("spec", "schedules", "build", "pruning", "weight_sharing", "lookahead", "augment", "select", "hooks")


def texts(path: Path, root: Path = ROOT) -> Iterator[tuple[int, str]]:
    """Yields (line, text) for each error that a file raises for a user's mistake; values stand in braces."""
    names = path.relative_to(root).parts
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
            continue
        kind = node.exc.func
        name = kind.attr if isinstance(kind, ast.Attribute) else getattr(kind, "id", "")
        refuses = name == "ValueError" and (
            names[0] in RELEVANT or any(part.split(".")[0] in REFUSALS for part in names)
        )
        if name in RAISED or refuses:
            yield node.lineno, template(node.exc, name)


def template(call: ast.Call, name: str) -> str:
    """Returns the text of a raised error; a value is its expression in braces."""
    if name == "choice_error":
        what, value = (_text(argument) for argument in call.args[:2])
        return f"unknown {what} '{value}'; did you mean …? allowed: …"
    return " ".join(_text(call.args[0]).split()) if call.args else ""


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return "{" + ast.unparse(node.value) + "}"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return "{" + ast.unparse(node) + "}"


def page(root: Path = ROOT) -> str:
    """Returns docs/errors.md: one table per room, one row per error."""
    lines = [
        NOTICE,
        "",
        "# Errors",
        "",
        "Every mistake of a user ends in one line and exit code 2. Here are the texts by file, with values in braces.",
        "[troubleshooting](troubleshooting.md) has the ten that people meet most.",
    ]
    for room in ROOMS:
        rows = [
            (f"`{path.relative_to(root)}`", f"`` {text} ``")
            for path in sorted((root / room).rglob("*.py"))
            for _, text in texts(path, root)
        ]
        lines += ["", f"## {room}", "", f"{len(rows)} errors.", "", markdown_table(("file", "text"), rows)]
    return "\n".join(lines) + "\n"
