"""CIFAR-10 as in He 2016, "Deep residual learning", section 4.2 (arXiv 1512.03385).

    python -m train.data.prepare cifar10
    python -m train --config=configs/cifar10.py:resnet20 --workdir=runs/resnet20

64,000 steps with batches of 128; learning rate 0.1, divided by 10 at 32k and 48k steps; padding by 4 pixels, then a
random crop and flip; weight decay 1e-4 on every parameter; shortcut A. We subtract the mean of each channel, the paper
that of each pixel.
Published test error (table 6): ResNet-20 8.75%, -32 7.51%, -44 7.17%, -56 6.97%, -110 6.61% (mean of five), -1202
7.93%.
Cost: 64k steps of ResNet-20 are 1.0e9 images of 41M mult-adds, forward and backward: hours on a CPU, minutes on a GPU.

In the paper, ResNet-110 starts with a learning rate of 0.01: --config.optimizer.warmup="400 steps".

    python -m train --config=configs/cifar10.py:speedrun --workdir=runs/speedrun
    python -m train --config=configs/cifar10.py:speedrun,width=16,batch=128 --config.precision=float32 --workdir=…

    python -m train --config=configs/cifar10.py:resnet20,recipe=brief --workdir=runs/brief

recipe=brief is meant to bring ResNet-20 to 91% within a minute on an accelerator: 30 epochs with batches of 512, in
bfloat16. The learning rate rises and falls once (as in Smith 2018, arXiv 1708.07120), with Nesterov momentum and weight
decay 5e-4 (as in Zagoruyko 2016, arXiv 1605.07146). It has not been measured yet.

    python -m train --config=configs/cifar10.py:resnet8,teacher=runs/resnet20 --workdir=runs/distilled

    TFDS_DATA_DIR=… python -m train --config=configs/cifar10.py:resnet20,data=cifar10_jpeg,recipe=short --workdir=…

recipe=short is for a CPU: 10 epochs with batches of 128, in float32. The learning rate rises and falls once, and images
grow from 16x16 to 32x32, so a run computes as much as 5.5 epochs at full size. On the test images of cifar10_jpeg, a
ResNet-20 is right about 84.5%, and with 5 epochs about 80.7% (one seed each, commit e979b28; the warm-up of the 10
epochs began at a tenth of the learning rate).

With a teacher, a trained network that init_from would take, the network learns from its outputs, too (distill of Hinton
2015; docs/distillation.md).

speedrun is airbench94 (Jordan 2024, arXiv 2404.00498; code KellerJordan/cifar10-airbench, airbench94.py), which takes
seconds on one accelerator. Published: 94.01% on average, in 3.83 s of training on an A100 (3.29 s when compiled by
torch.compile).
Differences: 9.9 epochs are 483 steps, not 476, because the incomplete last batch of an epoch is not dropped. Weights
are reset to their averages every 5 steps, but not once more at the end of each epoch.
"""

from configs.base import CIFAR10, arguments, base


def get_config(text: str = ""):
    """Takes the arguments model (or speedrun), norm, data, recipe (he | brief | short), teacher, batch, width, epochs.

    The last three are of speedrun. With a teacher, a run or weights by name, the network learns by distillation.
    """
    a = arguments(
        text, model="resnet20", norm="batch", data="cifar10", recipe="he", teacher="", batch=1024, width=64, epochs=9.9
    )
    c = base()
    if a.recipe not in RECIPES:
        raise ValueError(f"unknown recipe '{a.recipe}'; allowed: {', '.join(RECIPES)}")
    if a.model == "speedrun":
        if a.recipe != "he":
            raise ValueError(f"recipe={a.recipe} does not apply to speedrun, which has its own recipe")
        return _speedrun(c, a)
    if (a.batch, a.width, a.epochs) != (1024, 64, 9.9):
        raise ValueError(
            "batch, width and epochs are arguments of speedrun only; set --config.batch_size, "
            "--config.model.width, --config.duration instead"
        )
    c.model.name = a.model
    c.model.norm = a.norm
    c.duration = "64000 steps"
    c.batch_size = 128
    c.eval_batch_size = 1000
    c.log_every = "200 steps"
    c.evaluate_every = "5 epochs"
    c.checkpoint_every = "5 epochs"
    c.optimizer.learning_rate = 0.1
    c.optimizer.schedule = "step(0.1, '32000 steps', '48000 steps')"
    c.optimizer.weight_decay = 1e-4
    c.data.augment = "crop(4)|flip"
    RECIPES[a.recipe](c)
    return _cifar(c, a)


def _brief(c):
    c.duration = "30 epochs"
    c.batch_size = 512
    c.steps_per_call = 10  # 2930 steps in all
    c.log_every, c.evaluate_every, c.checkpoint_every = "10%", "100%", "100%"
    c.hooks = ""
    c.precision = "bfloat16"
    c.optimizer.name = "sgd(momentum=0.9, nesterov=True)"
    c.optimizer.learning_rate = 0.4
    c.optimizer.schedule = "triangle(0.1, '20%', 0.0)"
    c.optimizer.weight_decay = 5e-4


def _short(c):
    c.duration = "10 epochs"
    c.log_every, c.evaluate_every, c.checkpoint_every = "5%", "100%", "100%"
    c.hooks = ""
    c.task.label_smoothing = 0.1
    c.optimizer.name = "sgd(momentum=0.9, nesterov=True)"
    c.optimizer.learning_rate = 0.2
    c.optimizer.schedule, c.optimizer.warmup = "linear", "20%"
    c.optimizer.weight_decay = 5e-4
    c.data.augment = "crop(2, reflect)|alternate_flip"
    c.data.resolutions = growing(32)


def growing(size):
    """Returns data.resolutions that begin at half of the size, for 55% of the mult-adds of the full size."""
    return f"{size // 2}@0%|{3 * size // 4}@40%|{size}@75%"


RECIPES = {"he": lambda c: None, "brief": _brief, "short": _short}


def _cifar(c, a):
    if a.teacher:
        views = ", views=mirror_shift" * (a.model == "speedrun")
        c.task.name = f"distill(teacher='{a.teacher}'{views})"
    c.data.source = f"tfds:{a.data}"
    c.data.update(CIFAR10)
    return c


def _speedrun(c, a):
    momentum, decay = 0.85, 0.0153
    start = "30.3%"  # 3 of 9.9 epochs: lookahead begins, and the stem's bias stops training
    rate = 11.5  # for gradients that are summed over 1,024 examples and, by momentum, over steps
    c.model.name, c.model.width = "airbench94", a.width
    c.model.norm = "batch:0.6" if a.norm == "batch" else a.norm
    c.model.act, c.model.init, c.data_init = "gelu", "dirac", "whiten"
    c.precision = "bfloat16"
    c.duration = f"{a.epochs} epochs"
    c.batch_size, c.eval_batch_size = a.batch, 2000
    c.steps_per_call = 23  # 483 steps in all
    c.log_every = c.evaluate_every = c.checkpoint_every = "100%"
    c.hooks = ""
    c.task.name = "classify(views=mirror_shift)"
    c.task.label_smoothing = 0.2
    c.optimizer.name = f"sgd(momentum={momentum}, nesterov=True)"
    c.optimizer.learning_rate = rate * a.batch / 1024 / (1 + 1 / (1 - momentum))
    c.optimizer.schedule = "triangle(0.2, '23%', 0.07)"
    c.optimizer.weight_decay = decay / rate
    c.optimizer.groups = (
        ("stem_conv/kernel", 0.0),
        ("stem_conv/bias", 1.0, "0 steps", start),
        (".*/norm./bias", 64.0),
        (".*/norm./scale", 0.0),
        (".*", 1.0),
    )
    c.optimizer.multiplied = "gradient"
    c.lookahead = f"lookahead(0.95, power=3.0, every=5, start='{start}')"
    c.data.augment = "alternate_flip|crop(2, reflect)"
    return _cifar(c, a)
