"""Command line of models/weights; see --help."""

import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags

import models
from models import command, weights
from models.errors import UserError, choice_error
from models.weights import hub, tags
from models.weights.foreign import reading

USAGE = """Imports weights of other libraries, and exports weights to them.

  python -m models.weights list resnet50
  python -m models.weights import hf:timm/resnet50.a1_in1k --out resnet50.safetensors
  python -m models.weights import torchvision:swin_t/IMAGENET1K_V1 --out swin_t.safetensors
  python -m models.weights import --as hf:timm/resnet50.a1_in1k model.safetensors --out resnet50.safetensors
  python -m models.weights import --from torchvision resnet50.pth --model resnet50 --out resnet50.safetensors
  python -m models.weights import --from timm r.bin --model resnet50 --new head --set num_classes=10 --out r.safetensors
  python -m models.weights export --to torchvision resnet50.safetensors --out resnet50.pth

list prints the pretrained weights of networks that are ours: those whose name or network contains a text, or matches a
pattern such as "*vit*384*". import takes each of them by name (hf:ORGANIZATION/NAME@REVISION for a certain state), and
other repositories of the hub in timm's form. They tell the network, and how its images are prepared; the written file
has both. With --as, a file that you have downloaded is taken for the weights of that name, and nothing is downloaded.
Downloads are cached; huggingface_hub's own configuration holds (HF_HOME, HF_HUB_OFFLINE, HF_TOKEN, ...).

Files are .safetensors, .npz (BiT's), or PyTorch's, which end in .pth, .pt, .bin, .pth.tar, .ckpt, .th or .model.
Nothing in them is executed, and PyTorch is needed only to write one. Weights in checkpoints are looked for under the
usual keys (state_dict, model, ema and similar; averaged weights are preferred). Prefixes of all names (module.,
_orig_mod., model., net., backbone. and similar) are removed, and counters are ignored. The network takes the number of
channels that the file needs.
import writes a .safetensors file with this project's names and shapes, and the network's name and fields, which export
reads. A file of such names and shapes without the network's name is imported --from safetensors (or ablate, which is
the same). Other layouts depend on the network: torchvision, timm, bit, caffe, jax (Vision Transformers'), akamaster,
chenyaofo. Arrays that are missing (-), unexpected (+) or of another shape (!) are listed, and nothing is written.
Exit code: 0 for success, 2 for a mistake, in one line after that list."""

OWN = "safetensors"  # name of the project's layout on the command line; only such files have it


def _define(options: flags.FlagValues) -> None:
    flags.DEFINE_string("as", None, "import: the name of the weights in the file, from list", flag_values=options)
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
    actions = {"import": (_import, "from", "to"), "export": (_export, "to", "from"), "list": (_list, "", "")}
    if not arguments or arguments[0] not in actions:
        raise choice_error("command", arguments[0] if arguments else "", actions)
    name, files = arguments[0], arguments[1:]
    if name == "list":
        _list(files)
        return
    if len(files) != 1:
        raise UserError(f"{name} takes one file, not {len(files)}")
    if name == "import" and hub.is_name(files[0]):
        if options["as"].present:
            raise UserError(f"--as is for files, and {files[0]} is a name itself")
        _import_by_name(options, files[0])
        return
    if name == "import" and options["as"].present:
        _import_by_name(options, str(options["as"].value), files[0])
        return
    action, needed, forbidden = actions[name]
    for flag in (needed, "out"):
        if not options[flag].value:
            raise UserError(f"--{flag} is missing")
    if Path(options.out).resolve() == Path(files[0]).resolve():
        raise UserError(f"--out={options.out} is the file to read: choose another")
    if options[forbidden].present:
        raise UserError(f"{name} takes --{needed}, not --{forbidden}")
    try:
        action(options, files[0])
    except weights.Mismatch as mismatch:
        print("\n".join(mismatch.lines), file=sys.stderr)
        raise UserError(mismatch.summary.rstrip(":")) from None


def _list(patterns: list[str]) -> None:
    if len(patterns) > 1:
        raise UserError(f"list takes one pattern, not {len(patterns)}; put it in quotes")
    pattern = patterns[0] if patterns else "*"
    found = tags.matching(pattern)
    if not found:
        raise choice_error("weights", pattern, tags.table())
    rows = [(tag.name, tag.network, tag.license or "license not stated", _accuracy(tag)) for tag in found]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    widths[0] = min(widths[0], 60)
    for row in rows:  # plain lines, which other programs can read; URLs are longer than their column
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, (*widths, 0), strict=True)).rstrip())


def _accuracy(tag: tags.Tag) -> str:
    return f"top-1 {float(tag.top1):.2f}% ({tag.by})" if tag.top1 else ""


def _check_out(path: str | None) -> None:
    if not path:
        raise UserError("--out is missing")
    if not path.lower().endswith(".safetensors"):
        raise UserError(f"--out={path} must end in .safetensors")


def _import_by_name(options: flags.FlagValues, name: str, file: str | None = None) -> None:
    for flag in ("from", "to", "model"):
        if options[flag].present:
            raise UserError(f"--{flag} is for files: {name} tells the network and the layout")
    _check_out(options.out)
    if not hub.is_name(name):
        raise choice_error("weights", name, tags.table())
    if file and Path(options.out).resolve() == Path(file).resolve():
        raise UserError(f"--out={options.out} is the file to read: choose another")
    fields = command.fields(options)
    model, variables, card = hub.load(name, new=options.new, seed=options.seed, file=file, **fields)
    weights.save(options.out, model, variables, hub.description(card))
    new = ", head drawn anew" if card["head"] == "drawn" else ""
    _report(card["model"], variables, f"from {file or card['source']}{new}", f"to {options.out}")
    print(f"license: {card['license'] or 'not stated'}; images: {_images(card['preprocessing'])}")


def _images(facts: dict[str, Any]) -> str:
    """Describes a preprocessing in one line."""
    crop = "whole" if facts["crop"] == "whole" else f"central {facts['eval_crop']:.3g}"
    numbers = "; ".join(f"{name} {' '.join(f'{x:.3g}' for x in facts[name])}" for name in ("mean", "std"))
    return f"{crop}, {facts['interpolation']}, {facts['size']} x {facts['size']}; {numbers}"


def _import(options: flags.FlagValues, file: str) -> None:
    _check_out(options.out)
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
