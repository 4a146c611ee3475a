"""Records the networks of github.com/kalviny/MSDNet-PyTorch, and its op_counter.py's results, in msdnet.npz.

See parity.py. Needs torch and a checkout of that repository:

  ../venv-torch/bin/python -m tests.golden.make_msdnet --reference=../MSDNet-PyTorch
"""

import argparse
import contextlib
import importlib.util
import io
import pathlib
import types

import models
from tests.golden.parity import Case, record

TINY = {"num_exits": 3, "width": 4, "growth": 2, "num_classes": 10}
CASES = {  # label: name, fields, images; one of their exits ends in 2x2 positions
    "anytime": ("msdnet_cifar_anytime", {}, (2, 32, 32, 3)),
    "budgeted": ("msdnet_cifar_budgeted", {}, (2, 32, 32, 3)),
    "imagenet": ("msdnet_imagenet_step4", {**TINY, "base": 3, "step": 2}, (2, 160, 192, 3)),
    # later scales, transitions at thirds, odd channels
    "min": (
        "msdnet_cifar_anytime",
        {**TINY, "width": 5, "prune": "min", "reduction": 0.7, "step_mode": "lin_grow", "step": 1},
        (2, 32, 32, 3),
    ),
    "kept": ("msdnet_cifar_anytime", {**TINY, "reduction": 0.0}, (2, 32, 32, 3)),
}
COUNTED = {  # label: name, fields
    "anytime": ("msdnet_cifar_anytime", {"num_classes": 100}),
    "anytime_growth16": ("msdnet_cifar_anytime", {"num_classes": 100, "growth": 16}),
    "budgeted": ("msdnet_cifar_budgeted", {"num_classes": 100}),
    "imagenet_step4": ("msdnet_imagenet_step4", {}),
    "imagenet_step7": ("msdnet_imagenet_step7", {}),
}


def load(folder: pathlib.Path, name: str):
    """Returns a module of the reference, beside our own `models`."""
    spec = importlib.util.spec_from_file_location(f"reference_{name}", folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def args(model) -> types.SimpleNamespace:
    """Returns their arguments for our fields."""
    return types.SimpleNamespace(
        data="cifar100" if model.stem == "cifar" else "ImageNet",
        nBlocks=model.num_exits,
        base=model.base,
        step=model.step,
        stepmode=model.step_mode,
        nChannels=model.width,
        growthRate=model.growth,
        grFactor=list(model.growth_factors),
        bnFactor=list(model.bottleneck_factors),
        nScales=len(model.growth_factors),
        prune=model.prune,
        reduction=model.reduction,
        bottleneck=True,
    )


if __name__ == "__main__":
    import torch

    parser = argparse.ArgumentParser()
    parser.add_argument("--reference", type=pathlib.Path, required=True)
    folder = parser.parse_args().reference
    network, op_counter = load(folder / "models", "msdnet"), load(folder, "op_counter")

    class Theirs(network.MSDNet):
        """Their network with any number of classes; the original knows only those of its data sets."""

        def __init__(self, model):
            self.classes = model.num_classes
            with contextlib.redirect_stdout(io.StringIO()):
                super().__init__(args(model))

        def _build_classifier_cifar(self, width, _):
            return super()._build_classifier_cifar(width, self.classes)

        def _build_classifier_imagenet(self, width, _):
            return super()._build_classifier_imagenet(width, self.classes)

    def count(name, fields):
        """Returns operations and parameters of each exit by their counter.

        Products of convolutions and linear layers are also counted on their own.
        """
        model = models.create(name, **fields)
        theirs, products, counts = Theirs(model).eval(), [0], []

        def add(layer, _, output):
            if isinstance(layer, torch.nn.Conv2d):
                products[0] += output.numel() * layer.weight[0].numel()
            if isinstance(layer, torch.nn.Linear):
                products[0] += layer.weight.numel()
                counts.append(products[0])

        for layer in theirs.modules():
            layer.register_forward_hook(add)
        theirs(torch.zeros(1, 3, model.image_size, model.image_size))
        op_counter.cls_ops.clear(), op_counter.cls_params.clear()
        with contextlib.redirect_stdout(io.StringIO()):
            operations, params = op_counter.measure_model(Theirs(model).eval(), model.image_size, model.image_size)
        return {
            "name": name,
            "fields": fields,
            "operations": [int(n) for n in operations],
            "params": list(params),
            "products": counts,
        }

    def case(name, fields, shape):
        model = models.create(name, **fields)
        exits = [f"exit{i + 1}" for i in range(model.num_exits)]
        return Case(name, fields, "msdnet_pytorch", lambda: Theirs(model), [shape], exits)

    record(
        "msdnet",
        {label: case(*entry) for label, entry in CASES.items()},
        {
            name: ("msdnet_pytorch", lambda name=name: Theirs(models.create(name)))
            for name in models.list_models()
            if name.startswith("msdnet")
        },
        counts={label: count(*entry) for label, entry in COUNTED.items()},
    )
