"""Records the residual networks for CIFAR of akamaster and chenyaofo in cifar_resnet.npz; see parity.py.

Their code is not part of this project. The arguments are the files resnet.py and
pytorch_cifar_models/resnet.py of checkouts of github.com/akamaster/pytorch_resnet_cifar10 (recorded with d5489e8) and
github.com/chenyaofo/pytorch-cifar-models (with 786c162):

  … -m tests.golden.make_cifar_resnet pytorch_resnet_cifar10/resnet.py …/pytorch_cifar_models/resnet.py
"""

import importlib.util
import sys

from tests.golden.parity import Case, record

SHAPES = ((2, 32, 32, 3),)


def module(name, path):
    """Returns a file of Python code as a module."""
    spec = importlib.util.spec_from_file_location(name, path)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


if __name__ == "__main__":
    akamaster, chenyaofo = module("akamaster", sys.argv[1]), module("chenyaofo", sys.argv[2])
    record(
        "cifar_resnet",
        {
            "akamaster": Case(
                "resnet20",
                {"shortcut": "A_both", "stage_sizes": (1, 2, 1)},
                "akamaster",
                lambda: akamaster.ResNet(akamaster.BasicBlock, [1, 2, 1]),
                SHAPES,
            ),
            "chenyaofo": Case(
                "resnet20",
                {"shortcut": "B", "stage_sizes": (1, 2, 1), "num_classes": 7},
                "chenyaofo",
                lambda: chenyaofo.CifarResNet(chenyaofo.BasicBlock, [1, 2, 1], num_classes=7),
                SHAPES,
            ),
        },
        {},
    )
