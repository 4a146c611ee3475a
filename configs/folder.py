"""A folder of your own images, with one subfolder per class; with another data.source, tars, shards or a table.

    python -m train --config=configs/folder.py:images=/data/flowers --workdir=runs/flowers

If the folder holds train/ and val/ (or test/), these are the splits. Otherwise a fixed fifth of the images of each
class is held out for testing. Images of any size are cropped at random to `size` while they are decoded. The default, a
ResNet-18 trained from scratch for 30 epochs, is a starting point. Change it on the command line, for example by
`--config.model.name=resnet50 --config.data.on_error=skip`.
Cost: at size 224, 1.8e9 mult-adds per image for a forward pass, and three times as many for a training step.
"""

from configs.base import IMAGENET, arguments, base


def get_config(text: str = ""):
    """Takes the arguments images (the folder), model, size, epochs, batch."""
    a = arguments(text, images="images", model="resnet18", size=224, epochs=30, batch=64)
    c = base()
    c.model.name = a.model
    c.model.zero_gamma = True
    c.duration = f"{a.epochs} epochs"
    c.batch_size = a.batch
    c.eval_batch_size = a.batch
    c.log_every = "20 steps"
    c.optimizer.name = "sgd(momentum=0.9, nesterov=True)"
    c.optimizer.learning_rate = 0.1 * a.batch / 256
    c.optimizer.schedule = "cosine"
    c.optimizer.warmup = "5%"
    c.optimizer.weight_decay = 1e-4
    c.task.label_smoothing = 0.1
    c.data.source = f"folder:{a.images}"
    c.data.image_size = a.size
    c.data.crop = "random_resized"
    c.data.crop_scale = (0.25, 1.0)  # small sets need less than ImageNet's 0.08
    c.data.augment = "flip"
    c.data.update(IMAGENET)
    return c
