"""The Markdown pages for users, taken apart: fenced blocks, links, anchors, commands."""

import ast
import functools
import re
import shlex
from typing import NamedTuple

import models
from experiments.bench import commands
from experiments.report import reference, site
from tests.tiny import ROOT

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"(?:<!-- (not run|fails)(?:: (.*?))? -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OTHER_PROGRAMS = {".", "cd", "git", "srun", "gcloud", "pip", "curl"}
OTHER_MODULES = {
    "pytest",
    "pip",
    "build",
    "venv",
    "tests.fuzz",
    "tests.mutation",
    "tests.programs",
    "tests.harassment",
    "tests.golden.make_resnet",
}


class Block(NamedTuple):
    """A fenced block: the line that it begins on, its language, its text, and the mark above it."""

    line: int
    language: str
    text: str
    mark: str

    @property
    def lines(self):
        """Returns the block's commands, with continued lines joined."""
        return [line for line in self.text.replace("\\\n", " ").splitlines() if line.strip()]


def label(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page):
    text = page.read_text()
    return [
        Block(text.count("\n", 0, fence.start()) + 1, fence[3], fence[4], fence[1] or "")
        for fence in FENCE.finditer(text)
    ]


def prose(page):
    """The text without fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def links(page):
    """Returns the targets of links and pictures, except web addresses."""
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(page)))
    return [target for target in targets if not target.startswith(("http://", "https://", "mailto:"))]


def anchors(page):
    """Returns the anchors that GitHub and similar sites give to headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return set(map(site.anchor, headings))


def shell_commands(page):
    """Returns (line, words) of each command in a fenced block, and of each in the text that begins with python -m."""
    for block in blocks(page):
        if block.language == "sh" and block.mark != "fails":
            for line in block.lines:
                yield from ((block.line, words) for words in _split(line))
    for line in re.findall(r"`(python -m [^`\n]+)`", prose(page)):
        yield from ((0, words) for words in _split(line.replace("…", "")))


def _split(line):
    words = shlex.split(line, comments=True)
    while "&&" in words:
        place = words.index("&&")
        yield words[:place]
        words = words[place + 1 :]
    if words:
        yield words


@functools.cache
def flags(module):
    """Returns the flags that a command defines, or None if the module is not a command."""
    if module not in commands.names():
        return None
    path = ROOT / module.replace(".", "/")
    path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    source = path.read_text()
    if "launch.define_flags()" in source:
        source += (ROOT / "experiments" / "study" / "launch.py").read_text()
    names = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).rpartition(".")[2]
        if re.match(r"define|DEFINE", name):
            names.add(node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else name[7:])
    return names | {"help"}


@functools.cache
def config_arguments():
    return {f"configs/{config.file}": set(config.arguments) for config in reference.files()}


@functools.cache
def config_keys():
    keys = {key.path for section in reference.sections() for key in section.keys}
    return keys | {f"model.{field}" for name in models.list_models() for field in models.fields(name)}


def fault(words):
    """Returns the fault of a command, "" for none."""
    for word in words:  # a command within a command
        if "python -m " in word:
            return next(filter(None, map(fault, _split(word.partition("=")[2] or word))), "")
    if "-m" in words and words[words.index("-m") - 1].endswith("python"):
        place = words.index("-m")
        return _fault_of_module(words[place + 1], words[place + 2 :])
    if words[0] == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        return "".join(f"no target {target}" for target in words[1:] if "=" not in target and target not in targets)
    if words[0] == "pip" or words[0].endswith("/pip"):
        extras = re.search(r"\.\[(\w+)\]", " ".join(words))
        setup = (ROOT / "setup.cfg").read_text()
        return f"no extra {extras[1]}" if extras and not re.search(rf"^{extras[1]} ?=", setup, re.MULTILINE) else ""
    return "" if words[0] in OTHER_PROGRAMS else f"unknown program {words[0]}"


def _fault_of_module(module, arguments):
    if module in OTHER_MODULES:
        return ""
    names = flags(module)
    if names is None:
        return f"{module} is no command"
    for argument in arguments:
        flag, _, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--"):
            continue
        if flag.startswith("config.") and "config" in names:
            if flag.removeprefix("config.") not in config_keys():
                return f"no config key {flag}"
        elif flag not in names and flag.removeprefix("no") not in names:
            return f"{module} has no flag --{flag}"
        elif flag == "config" and (problem := _fault_of_config(value)):
            return problem
    return ""


def _fault_of_config(text):
    path, _, arguments = text.partition(":")
    if path not in config_arguments():
        return f"no config {path}"
    names = [part.partition("=")[0] for part in arguments.split(",") if "=" in part]
    unknown = [name for name in names if name not in config_arguments()[path]]
    return f"{path} has no arguments {unknown}" if unknown else ""
