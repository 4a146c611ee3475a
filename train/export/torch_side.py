"""Computes logits of a torchvision or timm network with the weights of a file, in a Python that has PyTorch.

    python torch_side.py '{"library": "timm", "name": …, "arguments": {…}}' model.safetensors images.npz logits.npz

It is run by its path and imports nothing of this project. The exit code is 2, with one line, if the library is missing,
and 3 if the library's network of that name differs: other widths, channels or normalization.
"""

import contextlib
import importlib
import json
import sys

BATCH = 64


def main(peer: dict, weights: str, inputs: str, outputs: str) -> None:
    """Reads normalized images [N, H, W, C] from the file `inputs`, and writes logits [N, classes] to `outputs`."""
    with contextlib.suppress(ImportError):
        import torchvision_cpu  # noqa: F401  # pyright: ignore[reportMissingImports]  an optional library
    import numpy as np
    import torch  # pyright: ignore[reportMissingImports]  it need not be in the Python of this project
    from safetensors.torch import load_file

    library = importlib.import_module(peer["library"])
    create = library.models.get_model if peer["library"] == "torchvision" else library.create_model
    net = create(peer["name"], **peer["arguments"])
    try:
        net.load_state_dict(load_file(weights), strict=True)
    except RuntimeError as error:
        _, first, *others = str(error).splitlines()
        print(
            f"{peer['library']}'s {peer['name']} does not take these weights: {first.strip()} ({len(others)} more "
            "lines); the library has no network with these fields",
            file=sys.stderr,
        )
        sys.exit(3)
    net.eval()
    with np.load(inputs) as arrays:
        images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = [net(images[start : start + BATCH]).numpy() for start in range(0, len(images), BATCH)]
    np.savez(outputs, logits=np.concatenate(logits))
    print(f"torch {torch.__version__}, {peer['library']} {library.__version__}")


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]), *sys.argv[2:])
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        print(" ".join(f"{type(error).__name__}: {error}".split())[:500], file=sys.stderr)
        sys.exit(2)
