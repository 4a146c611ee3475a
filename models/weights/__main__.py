"""Command line of models/weights; see --help."""

import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags

import models
from models import command, weights
from models.errors import UserError, choice_error
from models.weights.foreign import reading

USAGE = """Imports weights of other libraries, and exports weights to them.

  python -m models.weights import --from torchvision resnet50.pth --model resnet50 --out resnet50.safetensors
  python -m models.weights import --from timm r.bin --model resnet50 --new head --set num_classes=10 --out r.safetensors
  python -m models.weights export --to torchvision resnet50.safetensors --out resnet50.pth

Files are .safetensors, .npz (BiT's), or PyTorch's, which end in .pth, .pt, .bin, .pth.tar, .ckpt, .th or .model.
Nothing in them is executed, and PyTorch is needed only to write one. Weights in checkpoints are looked for under the
usual keys (state_dict, model, ema and similar; averaged weights are preferred). Prefixes of all names (module.,
_orig_mod., model., net., backbone. and similar) are removed, and counters are ignored. The network takes the number of
channels that the file needs.
import writes a .safetensors file with this project's names and shapes, and the network's name and fields, which export
reads. A file of such names and shapes without the network's name is imported --from safetensors (or ablate, which is
the same). Other layouts depend on the network: torchvision, timm, bit, caffe, akamaster, chenyaofo.
Arrays that are missing (-), unexpected (+) or of another shape (!) are listed, and nothing is written.
Exit code: 0 for success, 2 for a mistake, in one line after that list."""

OWN = "safetensors"  # name of the project's layout on the command line; only such files have it


def _define(options: flags.FlagValues) -> None:
    flags.DEFINE_string("from", None, "import: the layout of the file", flag_values=options)
    flags.DEFINE_string("to", None, "export: the layout of --out", flag_values=options)
    flags.DEFINE_string(
        "model", None, "the network; export reads it from a file that import wrote", flag_values=options
    )
    flags.DEFINE_list("new", [], "import: parts to initialize regardless of the file, e.g. head", flag_values=options)
    flags.DEFINE_integer("seed", 0, "import: seed of the initialization of --new", flag_values=options)
    command.define_path("out", None, "file to write", flag_values=options)
    command.define_set(options)


def _act(options: flags.FlagValues, arguments: list[str]) -> None:
    actions = {"import": (_import, "from", "to"), "export": (_export, "to", "from")}
    if not arguments or arguments[0] not in actions:
        raise choice_error("command", arguments[0] if arguments else "", actions)
    action, needed, forbidden = actions[arguments[0]]
    if len(arguments) != 2:
        raise UserError(f"{arguments[0]} takes one file, not {len(arguments) - 1}")
    for name in (needed, "out"):
        if not options[name].value:
            raise UserError(f"--{name} is missing")
    if Path(options.out).resolve() == Path(arguments[1]).resolve():
        raise UserError(f"--out={options.out} is the file to read: choose another")
    if options[forbidden].present:
        raise UserError(f"{arguments[0]} takes --{needed}, not --{forbidden}")
    try:
        action(options, arguments[1])
    except weights.Mismatch as mismatch:
        print("\n".join(mismatch.lines), file=sys.stderr)
        raise UserError(mismatch.summary.rstrip(":")) from None


def _import(options: flags.FlagValues, file: str) -> None:
    if not options.out.lower().endswith(".safetensors"):
        raise UserError(f"--out={options.out} must end in .safetensors")
    if not options.model:
        raise UserError("--model is missing")
    name, fields, source = options.model, command.fields(options), str(options["from"].value)
    model = models.create(name, **fields)
    arrays = weights.read(file)
    variables = weights.from_arrays(model, arrays, _layout(model, source), new=options.new, seed=options.seed)
    weights.save(options.out, model, variables, {"model": name, "fields": fields})
    suffix = f", {', '.join(options.new)} drawn anew" if options.new else ""
    _report(name, variables, f"from {file} ({source}){suffix}", f"to {options.out}")


def _export(options: flags.FlagValues, file: str) -> None:
    for name in ("new", "seed"):
        if options[name].present:
            raise UserError(f"--{name} is for import")
    stored = weights.description(file)
    name, fields = options.model or stored.get("model"), command.fields(options)
    if not name:
        raise UserError(f"--model is missing, and {file} does not name the network")
    if name == stored.get("model"):
        fields = stored.get("fields", {}) | fields
    with reading(file, ".safetensors"):  # a damaged file may have fields that no network can have
        model = models.create(name, **fields)
        variables = weights.load(file, model)
    layout = _layout(model, options.to)
    is_torch = options.out.lower().endswith(".safetensors") and options.to != OWN
    weights.write(options.out, weights.to_arrays(model, variables, layout), {"format": "pt"} if is_torch else None)
    _report(name, variables, f"from {file}", f"to {options.out} ({options.to})")


def _layout(model: Any, name: str) -> str:
    """Returns the layout for a name on the command line; raises UserError if the model has no such layout."""
    choices = {OWN: "ablate", **{layout: layout for layout in weights.layouts(model)}}
    if name not in choices:
        raise choice_error(f"layout of {type(model).__name__}", name, choices)
    return choices[name]


def _report(name: str, variables: Any, source: str, target: str) -> None:
    leaves, params = (jax.tree.leaves(tree) for tree in (variables, variables["params"]))
    print(f"{name}: {len(leaves)} arrays, {sum(leaf.size for leaf in params):,} parameters, {source}, {target}")


def main(argv: list[str]) -> int:
    """Runs the command line and returns the exit code."""
    return command.run_argv(argv, USAGE, _define, _act)


if __name__ == "__main__":
    command.exit_with(lambda: main(sys.argv))
