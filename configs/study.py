"""The recipe that the trials of a study share, per scale.

    python -m train --config=configs/study.py:digits,model=plain20,norm=none,init=xavier_normal --workdir=runs/x

digits    scikit-learn's 8x8 images, 1,437 for training and 360 for testing; plain and residual networks of width 8;
          seconds per run on a CPU
cifar     cifar10_jpeg, a lossy set with the images of CIFAR-10, and the recipe "short" of configs/cifar10.py, over
          `epochs`; minutes per run on one core
cifar10   configs/cifar10.py, but shorter, with a cosine schedule over `epochs`; minutes per run on a GPU
imagenet  configs/imagenet.py with the recipe of Goyal 2017; days per run on several GPUs

Expected: each study in experiments/ states it before it runs. Cost: seconds to days per run, as above.
"""

from configs import cifar10, digits, imagenet
from configs.base import arguments

EPOCHS = {"digits": 12, "cifar": 5, "cifar10": 60, "imagenet": 90}


def get_config(text: str = ""):
    """Takes the arguments scale (digits | cifar | cifar10 | imagenet), model, norm, init, lr, epochs, size, seed.

    `lr` 0 and `epochs` 0 keep the recipe's values. `size` is the height and width to which images are resized; 0 keeps
    the recipe's.
    """
    a = arguments(text, scale="digits", model="resnet20", norm="batch", init="msra", lr=0.0, epochs=0, size=0, seed=0)
    if a.scale not in EPOCHS:
        raise ValueError(f"unknown scale '{a.scale}'; allowed: {', '.join(EPOCHS)}")
    module, text = {
        "digits": (digits, ""),
        "cifar": (cifar10, "data=cifar10_jpeg,recipe=short"),
        "cifar10": (cifar10, ""),
        "imagenet": (imagenet, ""),
    }[a.scale]
    c = module.get_config(text)
    epochs = a.epochs or EPOCHS[a.scale]
    c.model.name = a.model
    c.model.norm = a.norm
    c.model.init = a.init
    c.seed = a.seed
    c.hooks = ""
    c.duration = f"{epochs} epochs"
    c.log_every = "5%" if a.scale == "cifar" else "1 epoch"  # its training is short
    c.checkpoint_every = "100%"
    c.keep_checkpoints = 1
    if a.scale == "digits":
        if a.model.startswith(("plain", "resnet", "preresnet")):
            c.model.width = 8
        else:
            del c.model.width  # set by configs/digits.py; other families have widths of their own, or none
        c.evaluate_every = "4 epochs"
    if a.scale == "cifar10":
        c.optimizer.schedule = "cosine"
    if a.lr:
        c.optimizer.learning_rate = a.lr
    if a.size:
        _resize(c, a.size, a.scale)
    return c


def _resize(c, size, scale):
    c.data.image_size = size
    if c.data.crop == "none":
        c.data.crop, c.data.eval_crop = "resize", 1.0
        side, shift = {"digits": (8, 1), "cifar": (32, 2), "cifar10": (32, 4)}[scale]  # of the images, of the recipe
        if c.data.resolutions:
            c.data.resolutions = cifar10.growing(size)
        c.data.augment = c.data.augment.replace(f"crop({shift}", f"crop({shift * size // side}")
