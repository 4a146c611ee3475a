"""Records torchvision's AutoAugment, TrivialAugmentWide and AugMix, and timm's RandAugment, for test_policies.py.

    PYTHONPATH=../shared/tools ../venv-torch/bin/python tests/golden/make_policies.py

writes policies.npz beside this file. All draws are given to the transforms, so that ours can be given the same:
"image" uint8 [H, W, 3]; "table/POLICY/HxW/OPERATION" strengths by magnitude; "autoaugment/POLICY" the image after both
operations of each pair; "trivialaugment/OPERATION/MAGNITUDE/SIGN"; "augmix/CASE" with its draws "augmix/CASE/NAME";
"timm/OPERATION/SIGN" at level 7, and "timm_levels/OPERATION" the arguments at LEVELS.
"""

import random
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torchvision_cpu  # noqa: F401  declares what torchvision's import needs
from make_augment import picture
from PIL import Image
from timm.data import auto_augment as timm
from torchvision.transforms import autoaugment as tv
from torchvision.transforms.functional import InterpolationMode

SIZES = ((14, 18), (224, 224))
LEVELS = (0.0, 2.5, 3.3, 7.0, 10.0)
MEAN = (124, 116, 104)


def tables() -> dict[str, np.ndarray]:
    """Returns the strengths of each policy, by magnitude."""
    out = {}
    for height, width in SIZES:
        for name, space in (
            ("randaugment", tv.RandAugment()._augmentation_space(31, (height, width))),
            ("autoaugment", tv.AutoAugment()._augmentation_space(10, (height, width))),
            ("trivialaugment", tv.TrivialAugmentWide()._augmentation_space(31)),
            ("augmix", tv.AugMix()._augmentation_space(10, (height, width))),
        ):
            for operation, (strengths, _) in space.items():
                out[f"table/{name}/{height}x{width}/{operation}"] = np.atleast_1d(strengths.numpy())
    return out


def autoaugment(tensor: torch.Tensor) -> dict[str, np.ndarray]:
    """Returns the image after both operations of each pair, the first in its negative direction."""
    out = {}
    for policy in tv.AutoAugmentPolicy:
        transform = tv.AutoAugment(policy)
        names = sorted({name for pair in transform.policies for name, _, _ in pair})
        out[f"pairs/{policy.value}/names"] = np.array(names)
        out[f"pairs/{policy.value}/steps"] = np.array(
            [[(names.index(name), p, m or 0) for name, p, m in pair] for pair in transform.policies]
        )
        results = []
        for number in range(len(transform.policies)):
            draws = number, torch.zeros(2), torch.tensor([0, 1])
            with mock.patch.object(transform, "get_params", lambda count, draws=draws: draws):
                results.append(transform(tensor).permute(1, 2, 0).numpy())
        out[f"autoaugment/{policy.value}"] = np.stack(results)
    return out


def drawing(numbers: list[int]):
    """Returns a context in which torch.randint gives these numbers, one after the other."""
    left = iter(numbers)
    return mock.patch.object(torch, "randint", lambda *args, **options: torch.tensor([next(left)]))


def trivialaugment(tensor: torch.Tensor) -> dict[str, np.ndarray]:
    """Returns the image after each operation at two magnitudes, in both directions where there are two."""
    out, transform = {}, tv.TrivialAugmentWide()
    for number, (operation, (strengths, signed)) in enumerate(transform._augmentation_space(31).items()):
        for magnitude in (8, 23):
            for sign in (1, -1) if signed else (1,):
                draws = [number] + [magnitude] * (strengths.ndim > 0) + [int(sign < 0)] * signed
                with drawing(draws):
                    result = transform(tensor).permute(1, 2, 0).numpy()
                out[f"trivialaugment/{operation}/{magnitude}/{sign}"] = result
    return out


def augmix(tensor: torch.Tensor) -> dict[str, np.ndarray]:
    """Returns the image after AugMix for random draws, and the draws."""
    out, rng = {}, np.random.default_rng(3)
    for case in range(6):
        transform = tv.AugMix(severity=5)
        space = list(transform._augmentation_space(10, tensor.shape[1:]).values())
        which, magnitudes = rng.integers(0, 13, (3, 3)), rng.integers(0, 5, (3, 3))
        signs, depths = rng.choice((1, -1), (3, 3)), rng.integers(1, 4, 3)
        weights = np.floor(rng.dirichlet(np.ones(4))[:3] * 4096) / 4096  # of the chains; exact in float32
        total = weights.sum()
        draws = []
        for chain in range(3):
            draws.append(depths[chain])
            for step in range(depths[chain]):
                strengths, signed = space[which[chain, step]]
                draws += [which[chain, step]] + [magnitudes[chain, step]] * (strengths.ndim > 0)
                draws += [int(signs[chain, step] < 0)] * signed
        shares = iter((torch.tensor([[1 - total, total]]), torch.tensor(weights / total)[None]))
        with drawing(draws), mock.patch.object(transform, "_sample_dirichlet", lambda _, s=shares: next(s).float()):
            out[f"augmix/{case}"] = transform(tensor).permute(1, 2, 0).numpy()
        for name, value in (
            ("weights", weights), ("which", which), ("magnitudes", magnitudes), ("signs", signs), ("depths", depths),
        ):  # fmt: skip
            out[f"augmix/{case}/{name}"] = value
    return out


def timm_operations(image: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the image after each increasing operation at level 7, and the arguments at all levels."""
    out = {}
    for operation in timm.rand_augment_choices("", increasing=True):
        for sign, draw in ((1, 0.0), (-1, 1.0)):
            with mock.patch.object(random, "random", lambda draw=draw: draw):
                op = timm.AugmentOp(operation, 1.0, 7, {"interpolation": Image.Resampling.BILINEAR, "img_mean": MEAN})
                # img_mean also decides the fill; the size of the image turns relative into absolute translations
                out[f"timm/{operation}/{sign}"] = np.asarray(op(Image.fromarray(image)))
        function = timm.LEVEL_TO_ARG[operation]
        if function is not None:
            with mock.patch.object(random, "random", lambda: 0.0):
                out[f"timm_levels/{operation}"] = np.array([function(level, {})[0] for level in LEVELS], np.float64)
    return out


def main() -> None:
    image = picture(3)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    assert tv.AugMix().interpolation == InterpolationMode.BILINEAR
    out = {"image": image, **tables(), **autoaugment(tensor), **trivialaugment(tensor), **augmix(tensor)}
    np.savez_compressed(Path(__file__).with_name("policies.npz"), **out, **timm_operations(image))


if __name__ == "__main__":
    main()
