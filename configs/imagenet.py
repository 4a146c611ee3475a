"""ImageNet (ILSVRC 2012) by the recipes of Goyal 2017, DeiT, ConvNeXt and "ResNet strikes back".

    python -m train.data.prepare imagenet2012         (TFDS says where to put the archives, which need a login)
    python -m train --config=configs/imagenet.py:resnet50 --workdir=runs/resnet50
    python -m train --config=configs/imagenet.py:resnet50,recipe=modern --workdir=runs/resnet50-modern
    python -m train --config=configs/imagenet.py:resnet50,recipe=a3 --workdir=runs/resnet50-a3
    python -m train --config=configs/imagenet.py:resnet50,data=tar:/data/imagenet --workdir=runs/resnet50

The last one reads the archives as they are downloaded, without TFDS; docs/data.md has the other forms. docs/recipes.md
says which recipe suits what.

goyal (arXiv 1706.02677): learning rate 0.1 x batch / 256 with 5 epochs of warm-up, divided by 10 at epochs 30, 60 and
80; weight decay 1e-4; the last batch-norm scale of each residual block starts at zero (section 5.1). Published:
ResNet-50 76.4% top-1 (23.6% error, table 1, batch 256; 23.74% at 8192), one center crop at 224.
modern: the ingredients of ConvNeXt's recipe of 300 epochs (Liu 2022, appendix A.1, arXiv 2201.03545): AdamW, a cosine
schedule, label smoothing, RandAugment, mixup and cutmix, random erasing, stochastic depth, averaged weights.
Published for ResNet-50 with that recipe: 78.8 +- 0.07% (table 10).
deit: 300 epochs of AdamW with repeated augmentation, for Vision Transformers (Touvron 2021, table 9, arXiv 2012.12877).
Published: DeiT-Ti 72.2%, DeiT-S 79.8%, DeiT-B 81.8% (table 5), without distillation.
a1, a2, a3: Wightman 2021, table 2 (arXiv 2110.00476): LAMB, a cosine schedule, binary cross-entropy with mixup and
cutmix, RandAugment as timm has it; 600, 300 and 100 epochs. a3 trains at 160 and tests at 224. Published for ResNet-50:
80.4, 79.8 and 78.1%. The last batch-norm scale of each block starts at zero, timm's default. timm's LAMB also clips the
norm of gradients at 1, which the table does not have.

Cost: 90 epochs of ResNet-50 are 1.15e8 images of 4.1e9 mult-adds, forward and backward, for 8 accelerators.
"""

import re

from configs.base import IMAGENET, arguments, base

# Names of the networks that have the field zero_gamma, and stochastic_depth
ZERO_GAMMA = r"(pre|wide_)?resne.*|convnet_aig.*|blockdrop.*|early_exit.*"
STOCHASTIC_DEPTH = rf"{ZERO_GAMMA}|convnext.*|swin.*|vit.*"
BATCH = {"goyal": 256, "modern": 4096, "deit": 1024, "a1": 2048, "a2": 2048, "a3": 2048}
# Wightman 2021, table 2: epochs, learning rate, weight decay, smoothing, stochastic depth, repeats of an image,
# magnitude of RandAugment, alpha of mixup
PROCEDURES = {
    "a1": (600, 5e-3, 0.01, 0.1, 0.05, 3, 7, 0.2),
    "a2": (300, 5e-3, 0.02, 0.0, 0.05, 3, 7, 0.1),
    "a3": (100, 8e-3, 0.02, 0.0, 0.0, 1, 6, 0.1),
}


def get_config(text: str = ""):
    """Takes the arguments model, norm, recipe, data (a TFDS name, or any source), batch, size.

    The recipes are goyal, modern, deit, a1, a2 and a3.
    """
    a = arguments(text, model="resnet50", norm="batch", recipe="goyal", data="imagenet2012", batch=0, size=224)
    if a.recipe not in BATCH:
        raise ValueError(f"unknown recipe '{a.recipe}'; allowed: {', '.join(BATCH)}")
    c = base()
    c.model.name = a.model
    c.model.norm = a.norm
    if a.model.startswith(("mobilenet", "efficientnet")):
        c.model.act = "relu6"
    c.batch_size = a.batch or BATCH[a.recipe]
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
    {"goyal": _goyal, "modern": _modern, "deit": _deit}.get(a.recipe, _procedure)(c, a)
    return c


def _goyal(c, a):
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


def _modern(c, a):
    _adamw(c, a, rate=4e-3 * c.batch_size / 4096, warmup="20 epochs")
    c.ema_decay = 0.9999
    c.data.augment = "flip|randaugment(2, 9)|erase(0.25)|mixup_cutmix(0.8, 1.0)"


def _deit(c, a):
    _adamw(c, a, rate=5e-4 * c.batch_size / 512, warmup="5 epochs")
    c.data.repeats = 3
    c.data.augment = "flip|randaugment_timm(9, 0.5)|erase(0.25)|mixup_cutmix(0.8, 1.0)"
    c.data.interpolation = "bicubic"


def _adamw(c, a, rate, warmup):
    """Sets what the recipes of 300 epochs with AdamW share."""
    if re.fullmatch(STOCHASTIC_DEPTH, a.model):
        c.model.stochastic_depth = 0.1
    c.duration = "300 epochs"
    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = rate
    c.optimizer.schedule = "cosine"
    c.optimizer.warmup = warmup
    c.optimizer.weight_decay = 0.05
    c.optimizer.decay = ".*/kernel"
    c.task.label_smoothing = 0.1


def _procedure(c, a):
    epochs, rate, decay, smoothing, depth, repeats, magnitude, alpha = PROCEDURES[a.recipe]
    if re.fullmatch(ZERO_GAMMA, a.model):
        c.model.zero_gamma = True
    if depth and re.fullmatch(STOCHASTIC_DEPTH, a.model):
        c.model.stochastic_depth = depth
    c.duration = f"{epochs} epochs"
    c.optimizer.name = "lamb"
    # For batches other than the table's, the square root of the ratio is LAMB's rule (You 2020, arXiv 1904.00962)
    c.optimizer.learning_rate = rate * (c.batch_size / 2048) ** 0.5
    c.optimizer.schedule = "cosine"
    c.optimizer.warmup = "5 epochs"
    c.optimizer.weight_decay = decay
    c.optimizer.decay = ".*/kernel"
    c.task.name = "classify(loss=bce)"
    c.task.label_smoothing = smoothing
    c.data.repeats = repeats
    c.data.augment = f"flip|randaugment_timm({magnitude}, 0.5)|mixup_cutmix({alpha}, 1.0)"
    c.data.eval_crop, c.data.interpolation = 0.95, "bicubic"
    if a.recipe == "a3":
        c.data.resolutions = f"{a.size * 160 // 224}@0%"
