"""Logits of a network of torchvision or timm with the weights of a file; run by path, in a Python that has PyTorch.

    python torch_side.py '{"library": "timm", "name": …, "arguments": {…}}' model.safetensors given.npz found.npz

Imports nothing of this project. Exit code 2, and one line, where the library is missing, 3 where it has another network
of that name: other widths, channels, normalization.
"""

import contextlib
import importlib
import json
import sys

BATCH = 64


def main(made: dict, weights: str, given: str, found: str) -> None:
    """Reads normalized images [N, H, W, C] from `given`, writes logits [N, classes] to `found`."""
    with contextlib.suppress(ImportError):
        import torchvision_cpu  # noqa: F401
    import numpy as np
    import torch
    from safetensors.torch import load_file

    library = importlib.import_module(made["library"])
    of_torchvision = made["library"] == "torchvision"
    net = (library.models.get_model if of_torchvision else library.create_model)(made["name"], **made["arguments"])
    try:
        net.load_state_dict(load_file(weights), strict=True)
    except RuntimeError as error:
        _, first, *others = str(error).splitlines()
        print(
            f"{made['library']}'s {made['name']} does not take these weights: {first.strip()} ({len(others)} more "
            "lines); a network of other fields than its own is none of that library's",
            file=sys.stderr,
        )
        sys.exit(3)
    net.eval()
    with np.load(given) as arrays:
        images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = [net(images[start : start + BATCH]).numpy() for start in range(0, len(images), BATCH)]
    np.savez(found, logits=np.concatenate(logits))
    print(f"torch {torch.__version__}, {made['library']} {library.__version__}")


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]), *sys.argv[2:])
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        print(" ".join(f"{type(error).__name__}: {error}".split())[:500], file=sys.stderr)
        sys.exit(2)
