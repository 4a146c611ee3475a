"""CIFAR-10 as in He 2016, "Deep residual learning", section 4.2 (arXiv 1512.03385).

    python -m train.data.prepare cifar10
    python -m train --config=configs/cifar10.py:resnet20 --workdir=runs/resnet20

64,000 steps of 128, learning rate 0.1 divided by 10 at 32k and 48k, 4-pixel padding with a random crop, flip, decay
1e-4 on every parameter, shortcut A. The mean of each channel is subtracted (the paper: of each pixel).
Published test error (table 6): ResNet-20 8.75%, -32 7.51%, -44 7.17%, -56 6.97%, -110 6.61% (mean of five), -1202
7.93%.
Cost: 64k steps of ResNet-20 are 1.0e9 images' forward and backward of 41M mult-adds: hours on a CPU, minutes on a GPU.

ResNet-110 starts with a learning rate of 0.01 in the paper: --config.optimizer.warmup="400 steps".
"""

from configs.base import arguments, base


def get_config(text: str = ""):
    """Arguments: model, norm, data (a TFDS name)."""
    a = arguments(text, model="resnet20", norm="batch", data="cifar10")
    c = base()
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
    c.data.source = f"tfds:{a.data}"
    c.data.augment = "crop(4)|flip"
    c.data.mean = (0.4914, 0.4822, 0.4465)  # of the training set
    c.data.std = (0.2470, 0.2435, 0.2616)
    return c
