"""Exported networks as repositories of the Hugging Face hub: config.json, a card in Markdown, and the upload.

config.json has timm's keys, so that other tools find classes and preprocessing, and "ablate", by which `models.load`
and config.init_from find the network. Names and shapes of the arrays are this project's, or timm's with --format=torch.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.errors import UserError
from models.weights import download, preprocessing
from models.weights.foreign import one_line
from train.storage.files import write_atomically, write_json

CONFIG, README = "config.json", "README.md"
_NAME = re.compile(r"hf:([\w.-]+/[\w.-]+)", re.ASCII)
FORMATS = ("safetensors", "torch")  # whose file is called model.safetensors, as the hub's users expect


def repository(to: str, format: str, exits: float = 0.0) -> str:
    """Returns "user/name" of --to=hf:user/name.

    Raises:
      UserError: The text has another form, the format is not one of FORMATS, or images are to leave at exits.
    """
    match = _NAME.fullmatch(to)
    if not match:
        raise UserError(f"--to={to}: must be hf:USER/NAME")
    if format not in FORMATS:
        raise UserError(f"--to={to} needs --format={' or '.join(FORMATS)}, not {format}")
    if exits:
        raise UserError(f"--to={to}: config.json has no thresholds; leave out --to or --exits={exits:g}")
    return match[1]


def write(folder: Path, card: Mapping[str, Any], name: str) -> None:
    """Writes config.json and README.md into the folder of an export, for the repository `name`."""
    write_json(folder / CONFIG, config(card))
    write_atomically(folder / README, readme(card, name))


def config(card: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of config.json for the card of an export."""
    facts, peer = preprocessing.of_card(card["preprocessing"]), card.get("torch")
    if facts is None:
        raise UserError(f"--to needs a network of square images with 1 or 3 channels, not {card['inputs'][1:]}")
    is_timm = peer is not None and peer["library"] == "timm"
    timm = {
        "input_size": [facts["channels"], facts["size"], facts["size"]],
        "interpolation": facts["interpolation"],
        "crop_pct": facts["eval_crop"] if facts["crop"] == "resize" else 1.0,
        "crop_mode": "center" if facts["crop"] == "resize" else "squash",
        "mean": facts["mean"],
        "std": facts["std"],
        "num_classes": len(card["labels"]),
        **({"license": card["license"]} if card["license"] else {}),
    }
    own = {"model": card["architecture"], "fields": card["fields"], "preprocessing": facts}
    return {
        "architecture": peer["name"] if is_timm and peer else card["architecture"],
        "num_classes": len(card["labels"]),
        "label_names": list(card["labels"]),
        "pretrained_cfg": timm,
        **({"model_args": peer["arguments"]} if is_timm and peer else {}),
        **({} if is_timm else {"ablate": {**own, "layout": peer["library"] if peer else "ablate"}}),
    }


def readme(card: Mapping[str, Any], name: str) -> str:
    """Returns the card of the repository in Markdown, with the hub's metadata in front."""
    facts, metrics = card["preprocessing"], card["metrics"]
    front = {"library_name": "timm" if (card.get("torch") or {}).get("library") == "timm" else "ablate"}
    front |= {"pipeline_tag": "image-classification"}
    front |= {"license": card["license"]} if card["license"] else {}
    labels = ", ".join(card["labels"][:20]) + (", …" if len(card["labels"]) > 20 else "")
    normalized = "; ".join(f"{key} {' '.join(f'{x:g}' for x in facts[key])}" for key in ("mean", "std"))
    crop = f"central crop {facts['eval_crop']:g}" if facts["crop"] not in ("whole", "none") else "the whole picture"
    lines = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in front.items()),
        "---",
        f"# {name}",
        "",
        f"A {card['architecture']} with {card['parameters']:,} parameters, trained on `{card['data']}` by ablate.",
        "",
        "| | |",
        "| --- | --- |",
        f"| classes | {len(card['labels'])}: {labels} |",
        f"| images | {' x '.join(map(str, facts['shape']))}; {crop}, {facts['interpolation']}; {normalized} |",
        f"| multiply-adds | {card['mult_adds']:,} |",
        *(f"| test {key} | {value:.4g} |" for key, value in metrics.items() if isinstance(value, (int, float))),
        f"| license | {card['license'] or 'not stated'} |",
        "",
        "```python",
        "import models",
        "",
        f'model, variables, card = models.load("hf:{name}")',
        "```",
        "",
        "`card.json` has the config of the run, its environment and the checksums of the files.",
    ]
    return "\n".join(lines) + "\n"


def push(folder: Path, name: str) -> str:
    """Uploads the files of an export to the repository `name`, which is created if needed; returns its commit.

    Raises:
      UserError: The hub cannot be reached, or refuses; tokens come from huggingface_hub's own configuration.
    """
    import huggingface_hub

    with download.hub_errors(f"hf:{name}", "the network"):
        api = huggingface_hub.HfApi()
        if not huggingface_hub.get_token():
            raise UserError(f"--to=hf:{name} needs a token of the hub with the right to write: hf auth login")
        api.create_repo(name, exist_ok=True)
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        done = api.create_commit(
            name,
            [huggingface_hub.CommitOperationAdd(path.name, path) for path in files],
            commit_message="Network by ablate",
        )
    return one_line(done.oid)
