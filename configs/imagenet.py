"""ImageNet (ILSVRC 2012): the 90-epoch recipe of Goyal 2017 (arXiv 1706.02677), and a modern one.

    python -m train.data.prepare imagenet2012         (TFDS says where to put the archives, which need a login)
    python -m train --config=configs/imagenet.py:resnet50 --workdir=runs/resnet50
    python -m train --config=configs/imagenet.py:resnet50,recipe=modern --workdir=runs/resnet50-modern
    python -m train --config=configs/imagenet.py:resnet50,data=tar:/data/imagenet --workdir=runs/resnet50

The last one reads the archives as they are downloaded, without TFDS; docs/data.md has the other forms.

goyal: learning rate 0.1 x batch / 256 with 5 epochs of warm-up, divided by 10 at epochs 30, 60 and 80; weight decay
1e-4; the last batch-norm scale of each residual block starts at zero (section 5.1). Published: ResNet-50 76.4% top-1
(23.6% error, table 1, batch 256; 23.74% at 8192), one center crop at 224.
modern: the ingredients of ConvNeXt's recipe of 300 epochs (Liu 2022, appendix A.1, arXiv 2201.03545): AdamW, a cosine
schedule, label smoothing, RandAugment, mixup and cutmix, random erasing, stochastic depth, averaged weights.
Published for ResNet-50 with that recipe: 78.8 +- 0.07% (table 10).

Cost: 90 epochs of ResNet-50 are 1.15e8 images of 4.1e9 mult-adds, forward and backward, for 8 accelerators.
"""

import re

from configs.base import IMAGENET, arguments, base

# Names of the networks that have the field zero_gamma, and stochastic_depth
ZERO_GAMMA = r"(pre|wide_)?resne.*|convnet_aig.*|blockdrop.*|early_exit.*"
STOCHASTIC_DEPTH = rf"{ZERO_GAMMA}|convnext.*|swin.*|vit.*"


def get_config(text: str = ""):
    """Takes the arguments model, norm, recipe (goyal | modern), data (a TFDS name, or any source), batch, size."""
    a = arguments(text, model="resnet50", norm="batch", recipe="goyal", data="imagenet2012", batch=0, size=224)
    if a.recipe not in ("goyal", "modern"):
        raise ValueError(f"unknown recipe '{a.recipe}'; allowed: goyal, modern")
    c = base()
    c.model.name = a.model
    c.model.norm = a.norm
    if a.model.startswith(("mobilenet", "efficientnet")):
        c.model.act = "relu6"
    c.batch_size = a.batch or (256 if a.recipe == "goyal" else 4096)
    c.eval_batch_size = 512
    c.precision = "bfloat16"
    c.log_every = "100 steps"
    c.data.source = a.data if ":" in a.data else f"tfds:{a.data}"
    c.data.test_split = "validation" if c.data.source.startswith("tfds:") else "test"
    c.data.pipeline = "stream"
    c.data.workers = 8
    c.data.image_size = a.size
    c.data.crop = "random_resized"
    c.data.exif = "ignore"  # as in the pipelines of the published accuracies, torchvision's and TensorFlow's
    c.data.update(IMAGENET)
    if a.recipe == "goyal":
        if re.fullmatch(ZERO_GAMMA, a.model):
            c.model.zero_gamma = True
        c.duration = "90 epochs"
        c.optimizer.learning_rate = 0.1 * c.batch_size / 256
        c.optimizer.schedule = "step(0.1, '30 epochs', '60 epochs', '80 epochs')"
        c.optimizer.warmup = "5 epochs"
        c.optimizer.warmup_from = min(1.0, 0.1 / c.optimizer.learning_rate)
        c.optimizer.name = "sgd(momentum=0.9, nesterov=True)"
        c.optimizer.weight_decay = 1e-4
        c.optimizer.decay = ".*/kernel"  # none on the scale and bias of batch norm (section 5.1)
        c.data.augment = "flip"
    else:
        if re.fullmatch(STOCHASTIC_DEPTH, a.model):
            c.model.stochastic_depth = 0.1
        c.duration = "300 epochs"
        c.ema_decay = 0.9999
        c.optimizer.name = "adamw"
        c.optimizer.learning_rate = 4e-3 * c.batch_size / 4096
        c.optimizer.schedule = "cosine"
        c.optimizer.warmup = "20 epochs"
        c.optimizer.weight_decay = 0.05
        c.optimizer.decay = ".*/kernel"
        c.task.label_smoothing = 0.1
        c.data.augment = "flip|randaugment(2, 9)|erase(0.25)|mixup_cutmix(0.8, 1.0)"
    return c
