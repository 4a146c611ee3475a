"""Records torchvision's functional transforms for test_augment.py and test_sources.py.

    PYTHONPATH=../shared/tools ../venv-torch/bin/python tests/golden/make_augment.py

writes augment.npz beside this file: arrays "OPERATION/STRENGTH/CHANNELS" uint8 [H, W, C], the results for "image/C".
"""

import math
from pathlib import Path

import numpy as np
import torch
import torchvision_cpu  # noqa: F401  declares what torchvision's import needs
from PIL import Image
from torchvision.transforms import CenterCrop, Resize
from torchvision.transforms import functional as F
from torchvision.transforms.autoaugment import _apply_op
from torchvision.transforms.functional import InterpolationMode

NEAREST = InterpolationMode.NEAREST


def picture(channels: int) -> np.ndarray:
    """Returns smooth shapes, noise, a flat area and both extremes on a non-square grid: uint8 [14, 18, C]."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:14, :18]
    waves = [120 + 90 * np.sin(x / (3 + c) + y / (5 - c)) + rng.normal(0, 12, x.shape) for c in range(channels)]
    image = np.stack(waves, -1)
    image[2:7, 3:9] = 60
    image[9:12, 12:16] = [255, 0, 128][:channels]
    return np.clip(image, 30, 220 if channels == 1 else 255).astype(np.uint8)


def main() -> None:
    out = {}
    for channels in (3, 1):
        image = picture(channels)
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        height, width, _ = image.shape
        out[f"image/{channels}"] = image

        def record(name: str, strength: float, result: torch.Tensor, channels: int = channels) -> None:
            out[f"{name}/{strength}/{channels}"] = result.permute(1, 2, 0).numpy().astype(np.uint8)

        for factor in (0.0, 0.37, 0.73, 1.0, 1.45, 1.9):
            record("brightness", factor, F.adjust_brightness(tensor, factor))
            record("contrast", factor, F.adjust_contrast(tensor, factor))
            record("saturation", factor, F.adjust_saturation(tensor, factor))
            record("sharpness", factor, F.adjust_sharpness(tensor, factor))
        for bits in (1, 4, 6, 8):
            record("posterize", bits, F.posterize(tensor, bits))
        for threshold in (0.0, 110.5, 128.0, 255.0):
            record("solarize", threshold, F.solarize(tensor, threshold))
        record("autocontrast", 0, F.autocontrast(tensor))
        record("equalize", 0, F.equalize(tensor))
        if channels == 3:
            record("grayscale", 0, F.rgb_to_grayscale(tensor))
            for shift in (-0.5, -0.21, 0.0, 0.1, 0.4):
                record("hue", shift, F.adjust_hue(tensor, shift))
        # The operations of RandAugment at magnitudes 9 and 17 of 30, in both directions.
        for magnitude in (9, 17):
            for sign in (1, -1):
                share = magnitude / 30
                for name, strength in (
                    ("ShearX", 0.3 * share),
                    ("ShearY", 0.3 * share),
                    ("TranslateX", 150 / 331 * width * share),
                    ("TranslateY", 150 / 331 * height * share),
                    ("Rotate", 30 * share),
                    ("Brightness", 0.9 * share),
                    ("Color", 0.9 * share),
                    ("Contrast", 0.9 * share),
                    ("Sharpness", 0.9 * share),
                    ("Posterize", 8 - round(magnitude / 7.5)),
                    ("Solarize", 255 * (1 - share)),
                    ("AutoContrast", 0.0),
                    ("Equalize", 0.0),
                ):
                    signed = name not in ("Posterize", "Solarize", "AutoContrast", "Equalize")
                    value = strength * sign if signed else strength
                    record(f"randaugment/{name}", magnitude * sign, _apply_op(tensor, name, value, NEAREST, None))
    # The evaluation crop, in both orientations.
    for crop, size in ((0.875, 9), (0.8, 7), (1.0, 12)):
        for turned in (False, True):
            image = picture(3).transpose(1, 0, 2) if turned else picture(3)
            resized = Resize(math.floor(size / crop))(Image.fromarray(image))
            out[f"evaluation/{crop},{size}/{int(turned)}"] = np.asarray(CenterCrop(size)(resized))
    np.savez_compressed(Path(__file__).with_name("augment.npz"), **out)


if __name__ == "__main__":
    main()
