"""Keeps the prose of the project plain: openers of docstrings, words that only this project used, American spelling."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("models", "train", "configs", "experiments", "tests")
OPENERS = ("What", "Of", "Whether", "Those", "That", "How", "Which")
OURS = r"dealt (in|out|to)|nobody asks|nats an? |images an? (step|second)|\bms a (step|batch)"
BRITISH = "|".join(
    (
        r"\b\w*(?:colour|behaviour|favour|honour|neighbour)\w*",
        r"\b(?:normal|initial|optim|general|regular|summar)is(?:e|es|ed|ing|ation)\b",
        r"\b(?:centre|grey|labelled|modelled|analyse[ds]?)\b",
    )
)
# Texts that results or goldens record
RECORDED = ('drawn.images("neighbour"',)


def docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text


def comments(source):
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


@pytest.mark.parametrize("room", ROOMS)
def test_prose_is_plain(room):
    faults = []
    for path in sorted((ROOT / room).rglob("*.py")):
        source = path.read_text()
        tree = ast.parse(source)
        name = path.relative_to(ROOT)
        faults += [
            f"{name}:{line}: {text.splitlines()[0]}" for line, text in docstrings(tree) if text.split()[0] in OPENERS
        ]
        prose = [*docstrings(tree), *comments(source)]
        if path != Path(__file__):
            prose += [
                (node.lineno, node.value)
                for node in ast.walk(tree)
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value
            ]
        for line, text in prose:
            if (word := re.search(f"{OURS}|{BRITISH}", text)) and not any(quoted in text for quoted in RECORDED):
                faults.append(f"{name}:{line}: {word[0]}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_pages_are_plain(page):
    words = [
        f"{page.name}:{number}: {word[0]}"
        for number, line in enumerate(page.read_text().splitlines(), 1)
        if (word := re.search(f"{OURS}|{BRITISH}", line)) and not any(quoted in line for quoted in RECORDED)
    ]
    assert not words, "\n".join(words)


def test_the_check_finds_what_it_is_for():
    for bad in ("cannot be dealt into 8 groups", "the colour of", "we normalise it", "loss (nats a token)", "centre"):
        assert re.search(f"{OURS}|{BRITISH}", bad)
    for good in ("the center", "normalizes", "initialization", "nats per token", "summarizes", "a colorful label"):
        assert not re.search(f"{OURS}|{BRITISH}", good)
