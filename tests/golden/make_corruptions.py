"""Records what Hendrycks' code makes of two pictures, for tests/train/data/test_corrupted.py.

    git clone https://github.com/hendrycks/robustness
    pip install "numpy<2" "scipy<1.14" scikit-image==0.22 opencv-python-headless pillow
    pip download --no-deps imagecorruptions && unzip imagecorruptions*.whl
    PYTHONPATH=. python tests/golden/make_corruptions.py robustness imagecorruptions

writes corruptions.npz beside this file: "small/NAME/SEVERITY" uint8 [32, 32, 3] by make_cifar_c.py, and
"large/NAME/SEVERITY", every 13th pixel of [224, 224, 3] by make_imagenet_c.py. Random numbers are those of
numpy.random.seed(SEED). Both files call ImageMagick for the blur by motion; here, that of the package imagecorruptions,
which was written to equal it, takes its place. With --compare, prints how far imagecorruptions itself is from this
project's corruptions of the large picture.
"""

import importlib.util
import io
import sys
import types
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import skimage
import skimage.filters
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.golden import corruption_draws
from train.data.corruptions import functions as ours
from train.data.corruptions.severities import NAMES, SEVERITIES

SEED = corruption_draws.SEED


def gaussian(image, sigma=1, multichannel=False, **options):
    """Is scikit-image's, with the argument that it has renamed since."""
    return skimage.filters.gaussian(image, sigma, channel_axis=-1 if multichannel else None, **options)


def imagecorruptions(folder: Path) -> types.ModuleType:
    """Imports the package's module, which needs a SciPy and setuptools of its time."""
    resources = types.ModuleType("pkg_resources")
    resources.resource_filename = lambda _, path: str(folder / path)
    sys.modules["pkg_resources"] = resources
    specification = importlib.util.spec_from_file_location("corruptions", folder / "corruptions.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    module.gaussian = gaussian
    return module


class MotionImage:
    """Wand's image with a blur by motion, as far as the two files use it."""

    blur = None  # imagecorruptions' function

    def __init__(self, blob):
        self.pixels = np.asarray(Image.open(io.BytesIO(blob))).astype(np.float64)

    def motion_blur(self, radius, sigma, angle):
        self.pixels = np.rint(MotionImage.blur(self.pixels, radius, sigma, angle)).astype(np.uint8)

    def make_blob(self):
        file = io.BytesIO()
        Image.fromarray(self.pixels).save(file, "PNG")
        return file.getvalue()


def hendrycks(file: Path) -> dict:
    """Runs the definitions of one of the two files, without the parts that read data sets and ImageMagick."""
    text = file.read_text().split("# /////////////// Further Setup")[0].split("\nimport collections")[0]
    text = text[text.index("import skimage") :].replace("scipy.ndimage.interpolation", "scipy.ndimage")
    without = ("from wand", "import wand", "wandlibrary.", "from skimage.filters")
    lines = ["" if line.startswith(without) or "ctypes.c_" in line else line for line in text.split("\n")]
    names = {"np": np, "gaussian": gaussian, "WandImage": object}
    exec(compile("\n".join(lines), str(file), "exec"), names)
    names["MotionImage"] = MotionImage
    return names


def made(functions: dict, name: str, severity: int, picture: np.ndarray) -> np.ndarray:
    """Returns a picture corrupted by one of the functions, from the seed."""
    np.random.seed(SEED)
    noise = skimage.util.random_noise
    with mock.patch.object(skimage.util, "random_noise", lambda *a, **k: noise(*a, rng=SEED, **k)):
        return np.uint8(functions[name](Image.fromarray(picture), severity))


def main() -> None:
    robustness, package = Path(sys.argv[1]), imagecorruptions(Path(sys.argv[2]))
    MotionImage.blur = staticmethod(package._motion_blur)
    cv2.setNumThreads(1)
    out = {}
    for size, file in (("small", "make_cifar_c.py"), ("large", "make_imagenet_c.py")):
        functions = hendrycks(robustness / "ImageNet-C/create_c" / file)
        picture = corruption_draws.picture(size)
        for name in NAMES:
            for severity in SEVERITIES if name != "frost" else ():
                every = corruption_draws.EVERY[size]
                out[f"{size}/{name}/{severity}"] = made(functions, name, severity, picture)[::every, ::every]
    np.savez_compressed(Path(__file__).with_name("corruptions.npz"), **out)
    if "--compare" in sys.argv:
        picture = corruption_draws.picture("large")
        for name in NAMES:
            rows = []
            for severity in SEVERITIES:
                theirs = made(vars(package), name, severity, picture).astype(int)
                rows.append(abs(theirs - ours.apply(picture, name, severity, corruption_draws.Draws())))
            print(f"{name:18} largest {max(row.max() for row in rows):3}  mean {np.mean(rows):.3f}")


if __name__ == "__main__":
    main()
