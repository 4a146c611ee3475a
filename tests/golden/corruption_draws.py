"""The pictures that corruptions.npz is made of, and a generator that draws what Hendrycks' code draws."""

import numpy as np

SEED, EVERY = 3, {"small": 1, "large": 13}  # steps between the pixels that are recorded


def picture(size: str) -> np.ndarray:
    """Returns smooth color, a dark disk, a bright box and texture: uint8 [32, 32, 3] or [224, 224, 3]."""
    side = {"small": 32, "large": 224}[size]
    y, x = np.mgrid[:side, :side] / side
    image = np.stack([0.5 + 0.4 * np.sin(5 * x + 3 * y + turn) for turn in (0, 1.5, 3)], -1)
    image[(x - 0.4) ** 2 + (y - 0.55) ** 2 < 0.06] *= (0.5, 0.2, 0.1)
    image[(abs(x - 0.72) < 0.12) & (abs(y - 0.3) < 0.2)] = (0.95, 0.9, 0.2)
    image += 0.06 * np.sin(40 * x * y)[..., None]
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


class Draws:
    """A generator that gives the numbers of numpy.random.seed(SEED), and of scikit-image's random_noise."""

    def __init__(self):
        legacy = np.random.RandomState(SEED)
        self.normal, self.uniform, self.poisson, self.integers = (
            legacy.normal, legacy.uniform, legacy.poisson, legacy.randint,
        )  # fmt: skip
        self.random = np.random.default_rng(SEED).random
