"""Files that are generated from the code: docs/configs.md, docs/models.md and models/networks.csv."""

import ast
import csv
import dataclasses
import inspect
import io
import re
import runpy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import models
from models import weights
from models.analysis.cost import analyze, short
from models.analysis.tables import markdown_table
from models.layers.activation import ACTIVATIONS
from models.layers.ingredients import CONVS, DENSES
from models.layers.init import INITS
from models.layers.norm import NORMS
from train.data.decode import INTERPOLATIONS
from train.data.load import KINDS, TEXT_KINDS
from train.data.select import OPERATIONS
from train.hooks import HOOKS
from train.optim.catalogue import BUILDERS
from train.optim.schedules import SCHEDULES
from train.tasks import BY_UNIT

ROOT = Path(__file__).parents[2]
NOTICE = "<!-- Written by `make report`; do not edit. -->"
DURATIONS = ("duration", "log_every", "evaluate_every", "checkpoint_every", "optimizer.warmup")


def _with_arguments(table: Mapping[str, Callable[..., Any]], leading: int) -> list[str]:
    """Returns the calls of a table's functions without their first parameters, e.g. "cosine(final: float = 0.0)"."""
    calls = []
    for name, function in table.items():
        parameters = list(inspect.signature(function).parameters.values())[leading:]
        signature = ", ".join(str(parameter) for parameter in parameters)
        calls.append(f"{name}({signature})" if signature else name)
    return calls


# Names that a key can take, besides FILE.py:NAME. The augmentations are in the meaning of their key.
CHOICES: Mapping[str, Iterable[str]] = {
    "precision": ("float32", "bfloat16"),
    "parallel": ("pmap", "shard_map", "fsdp"),
    "hooks": HOOKS,
    "task.name": [name for table in BY_UNIT.values() for name in table],
    "model.norm": NORMS,
    "model.act": ACTIVATIONS,
    "model.init": (*INITS, "normal:STD", "truncated_normal:STD"),
    "data_init": ("none", "lsuv", "whiten"),
    "optimizer.name": _with_arguments(BUILDERS, 3),
    "optimizer.schedule": _with_arguments(SCHEDULES, 3),
    "optimizer.multiplied": ("update", "gradient"),
    "data.source": (*KINDS, *TEXT_KINDS),
    "data.select": OPERATIONS,
    "data.select_test": OPERATIONS,
    "data.channels": ("0", "1", "3"),
    "data.pipeline": ("auto", "resident", "stream"),
    "data.on_error": ("fail", "skip"),
    "data.crop": ("none", "resize", "random_resized", "whole"),
    "data.exif": ("apply", "ignore"),
    "data.interpolation": INTERPOLATIONS,
}

# Papers by the prefix of the network's name; the first match counts.
PAPERS = {
    "airbench": "Jordan 2024, arXiv 2404.00498",
    "alexnet_original": "Krizhevsky 2012, NIPS",
    "alexnet": "Krizhevsky 2014, arXiv 1404.5997",
    "blockdrop": "Wu 2018, arXiv 1711.08393",
    "convnet_aig": "Veit & Belongie 2018, arXiv 1711.11503",
    "convnext": "Liu 2022, arXiv 2201.03545",
    "densenet": "Huang 2017, arXiv 1608.06993",
    "early_exit": "Huang 2018, arXiv 1703.09844, section 5",
    "efficientnet_lite": "Liu 2020, TensorFlow's blog, on Tan & Le 2019, arXiv 1905.11946",
    "lenet": "LeCun 1998, as in Han 2015, arXiv 1506.02626",
    "mobilenet_v1": "Howard 2017, arXiv 1704.04861",
    "mobilenet_v2": "Sandler 2018, arXiv 1801.04381",
    "msdnet": "Huang 2018, arXiv 1703.09844",
    "plain": "He 2016, arXiv 1512.03385",
    "preresnet": "He 2016b, arXiv 1603.05027",
    "resnetv2": "Kolesnikov 2020, arXiv 1912.11370",
    "resnet": "He 2016, arXiv 1512.03385",
    "resnext": "Xie 2017, arXiv 1611.05431",
    "swin": "Liu 2021, arXiv 2103.14030",
    "transformer": "Vaswani 2017, arXiv 1706.03762",
    "vgg": "Simonyan & Zisserman 2015, arXiv 1409.1556",
    "vit_c": "Xiao 2021, arXiv 2106.14881",
    "vit_p": "Xiao 2021, arXiv 2106.14881",
    "vit": "Dosovitskiy 2021, arXiv 2010.11929",
    "wide_resnet": "Zagoruyko 2016, arXiv 1605.07146",
}


# -- docs/configs.md ---------------------------------------------------------------------------------------------------


class Key(NamedTuple):
    """A key of configs/base.py: its path, default and meaning."""

    path: str
    default: Any
    meaning: str


class Section(NamedTuple):
    """A section of configs/base.py: its path ("" for the top), its meaning and its keys."""

    path: str
    meaning: str
    keys: list[Key]


class Config(NamedTuple):
    """A file of configs/: its first sentence, its arguments with their defaults, and its commands."""

    file: str
    title: str
    arguments: Mapping[str, Any]
    commands: Sequence[str]


def sections(root: Path = ROOT) -> list[Section]:
    """Returns the sections of configs/base.py with their keys; meanings are the comments of that file."""
    path = root / "configs" / "base.py"
    defaults = key_defaults(root)
    by_path, above = {"": Section("", "", [])}, []
    for line in path.read_text().partition("    c = ConfigDict()\n")[2].splitlines():
        comment = re.fullmatch(r" *# (.*)", line)
        statement = re.fullmatch(r" *c\.([\w.]+) = (.*)", line)
        if comment:
            above.append(comment[1])
        elif statement and statement[2] == "ConfigDict()":
            by_path[statement[1]] = Section(statement[1], " ".join(above), [])
        elif statement:
            name = statement[1]
            by_path[name.rpartition(".")[0]].keys.append(Key(name, defaults[name], " ".join(above)))
        if not comment:
            above = []
    return list(by_path.values())


def key_defaults(root: Path = ROOT) -> dict[str, Any]:
    """Returns the default of every key of configs/base.py by its path."""
    return _flat(runpy.run_path(str(root / "configs" / "base.py"))["base"]().to_dict())


def _flat(section: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Returns {path: value}; a section's own keys come before the sections within it."""
    own = {f"{path}{key}": value for key, value in section.items() if not isinstance(value, Mapping)}
    for key, value in section.items():
        if isinstance(value, Mapping):
            own |= _flat(value, f"{path}{key}.")
    return own


def files(root: Path = ROOT) -> list[Config]:
    """Returns the files of configs/ that define get_config."""
    configs = []
    for path in sorted((root / "configs").glob("*.py")):
        tree = ast.parse(path.read_text())
        if not any(isinstance(node, ast.FunctionDef) and node.name == "get_config" for node in tree.body):
            continue
        constants = {
            node.targets[0].id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        arguments = {
            keyword.arg: ast.literal_eval(constants.get(ast.unparse(keyword.value), keyword.value))
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "arguments"
            for keyword in _keywords(node)
            if keyword.arg
        }
        doc = ast.get_docstring(tree) or ""
        commands = re.findall(r"^ +(python -m .*?)(?: {3,}.*)?$", doc, re.MULTILINE)
        configs.append(Config(path.name, doc.partition("\n\n")[0].replace("\n", " "), arguments, commands))
    return configs


def _keywords(call: ast.Call) -> Iterator[ast.keyword]:
    """Yields the keywords of a call, also those of a literal dictionary after `**`."""
    for keyword in call.keywords:
        if keyword.arg:
            yield keyword
        elif isinstance(keyword.value, ast.Dict):
            for key, value in zip(keyword.value.keys, keyword.value.values, strict=True):
                if key is not None:
                    yield ast.keyword(arg=ast.literal_eval(key), value=value)


def _kind(key: Key) -> str:
    if key.path in DURATIONS:
        return "duration"
    return {bool: "bool", int: "int", float: "float", str: "text", tuple: "tuple"}[type(key.default)]


def _allowed(key: Key) -> str:
    if key.path in CHOICES:
        return ", ".join(f"`{name}`" for name in CHOICES[key.path])
    return "`True`, `False`" if isinstance(key.default, bool) else ""


def configs_page(root: Path = ROOT) -> str:
    """Returns docs/configs.md: every key of configs/base.py, and every file of configs/."""
    parts = [
        "# Configs",
        NOTICE,
        "A config is a Python file that defines `get_config(arguments)`. `--config=FILE.py:ARGUMENTS` chooses it, "
        "`--config.KEY=VALUE` changes one key of it, and `--dry_run` prints the result. A key that is misspelled, or "
        "that nothing reads, is refused with the nearest valid one.",
        "Durations are texts: `64000 steps`, `90 epochs`, `1.28e6 examples`, or `50%` of the whole training. Choices "
        "take arguments: `sgd(momentum=0.9)`, `crop(4)|flip`, `step(0.1, '50%', '75%')`. Wherever a choice is a name, "
        "`FILE.py:NAME` takes it from [a file of yours](extend.md).",
        "## Files",
    ]
    for config in files(root):
        arguments = ", ".join(f"`{name}={value}`" for name, value in config.arguments.items())
        parts.append(f"### configs/{config.file}")
        parts.append(config.title)
        parts.append(f"Arguments, with their defaults: {arguments}. A first word without `=` is the first of them.")
        commands = "\n".join(config.commands)
        parts.append(f"<!-- not run: tests/configs reads every config -->\n```sh\n{commands}\n```")
    for section in sections(root):
        parts.append(f"## Section `{section.path}`" if section.path else "## Keys at the top")
        parts.append(section.meaning)
        rows = [[f"`{key.path}`", _kind(key), f"`{key.default!r}`", key.meaning, _allowed(key)] for key in section.keys]
        parts.append(markdown_table(("key", "type", "default", "meaning", "allowed"), rows))
    return "\n\n".join(filter(None, parts)) + "\n"


# -- docs/models.md ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Row:
    """A network in docs/models.md; `cells` is its row."""

    name: str
    parameters: int
    mult_adds: int
    input: str
    field: str
    layouts: str

    @property
    def cells(self) -> list[str]:
        return [
            f"`{self.name}`",
            paper(self.name),
            self.input,
            f"{self.parameters:,}",
            short(self.mult_adds),
            self.field,
            self.layouts,
        ]


def paper(name: str) -> str:
    """Returns the source of a network."""
    return next(source for start, source in PAPERS.items() if name.startswith(start))


def network(name: str) -> Row:
    """Returns the costs of a network, traced for one example of the size that it is designed for."""
    model = models.create(name)
    cost = analyze(model, model.example())
    field = cost.receptive_field
    return Row(
        name,
        cost.params,
        cost.mult_adds,
        " x ".join(map(str, cost.input_shape[1:])),
        " x ".join(map(str, field)) if field else "",
        ", ".join(layout for layout in weights.layouts(model) if layout != "ablate"),
    )


COLUMNS = ("name", "source", "input", "parameters", "mult-adds", "receptive field", "weights of")


def networks() -> list[Row]:
    """Returns the row of every network; takes minutes."""
    return [network(name) for name in models.list_models()]


def networks_csv(rows: Iterable[Row]) -> str:
    """Returns models/networks.csv, which `python -m models` prints."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([row.name, *row.cells[1:]] for row in rows)
    return text.getvalue()


def families() -> dict[str, list[str]]:
    """Returns {module of a family: its networks}."""
    networks: dict[str, list[str]] = {}
    for name in models.list_models():
        start = max((start for start in models.FAMILIES if name.startswith(start)), key=len)
        networks.setdefault(models.FAMILIES[start], []).append(name)
    return dict(sorted(networks.items()))


def models_page(rows: Iterable[Row]) -> str:
    """Returns docs/models.md: every network with its source, its cost and the libraries whose weights it takes."""
    cells = {row.name: row.cells for row in rows}
    parts = [
        "# Models",
        NOTICE,
        "`models.create(NAME)` makes each of these networks, and `--config.model.name=NAME` trains it. `python -m "
        'models "*resnet*"` lists those that match a pattern, as `models.list_models` does. Costs are read from the '
        "traced program for one example of the given input. The receptive field, in pixels, is that of the last layer "
        "before attention or pooling over the whole image. The last column names the libraries whose weights `python "
        "-m models.weights import` reads; every network also has a layout of our own (`ablate`).",
        "Ingredients that networks share: "
        + "; ".join(
            f"`{field}`: {', '.join(f'`{name}`' for name in table)}"
            for field, table in (
                ("norm", NORMS),
                ("act", ACTIVATIONS),
                ("init", (*INITS, "normal:STD", "truncated_normal:STD")),
                ("conv", CONVS),
                ("dense", DENSES),
            )
        )
        + ".",
        "[troubleshooting.md](troubleshooting.md#what-does-not-go-together) lists what does not go together.",
    ]
    for module, names in families().items():
        fields = ", ".join(f"`{field}`" for field in models.fields(names[0]))
        parts.append(f"## {module.replace('.', '/')}.py")
        parts.append(f"Fields: {fields}.")
        parts.append(markdown_table(COLUMNS, [cells[name] for name in names]))
    return "\n\n".join(parts) + "\n"
