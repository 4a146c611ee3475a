"""A small ResNet on the 1,797 handwritten digits (8x8, Alpaydin & Kaynak 1998) that come with scikit-learn.

    python -m train --config=configs/digits.py --workdir=runs/digits

Nothing is downloaded. A fixed stratified split has 1,437 training and 360 test images. Expected accuracy: see
docs/results.md.
"""

from configs.base import arguments, base


def get_config(text: str = ""):
    """Takes the arguments model, norm, epochs."""
    a = arguments(text, model="resnet8", norm="batch", epochs=30)
    c = base()
    c.model.name = a.model
    c.model.norm = a.norm
    c.model.width = 32
    c.duration = f"{a.epochs} epochs"
    c.batch_size = 64
    c.eval_batch_size = 360
    c.evaluate_every = "5 epochs"
    c.checkpoint_every = "5 epochs"
    c.optimizer.learning_rate = 0.1
    c.optimizer.schedule = "cosine"
    c.optimizer.warmup = "5%"
    c.optimizer.name = "sgd(momentum=0.9, nesterov=True)"
    c.optimizer.weight_decay = 5e-4
    c.optimizer.decay = ".*/kernel"
    c.data.augment = "crop(1)"
    return c
