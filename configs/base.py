"""Every key that a classification run has, with what it means. Other configs start from here and change what they need.

Durations are texts: "64000 steps", "90 epochs", "1.28e6 examples", or of the whole training "50%".
Choices with arguments are texts, too: "sgd(momentum=0.9, nesterov=True)", "crop(4)|flip", "step(0.1, '50%', '75%')".
Wherever one of several names is chosen, FILE.py:NAME takes it from a file of yours (README, "Adding").
"""

from typing import Any

from ml_collections import ConfigDict

# Of the training sets' pixels, by channel, for `data.update`
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CIFAR10 = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}


def base() -> ConfigDict:
    """The defaults, complete."""
    c = ConfigDict()
    c.seed = 0  # of initialization, order, augmentation, dropout
    c.duration = "10 epochs"  # of the whole training
    c.batch_size = 128  # images a step over all devices and processes
    c.eval_batch_size = 500
    c.accumulate = 1  # parts into which a device cuts its share of a batch; gradients are averaged over them
    c.steps_per_call = 1  # optimizer steps a dispatch (a scan); more than 1 only where the data are resident
    c.precision = "float32"  # of the computation: float32 | bfloat16; parameters and statistics stay float32
    c.ema_decay = 0.0  # of the averaged weights that are then evaluated, e.g. 0.9999; 0: off
    # The decay at the end of step t is min(ema_decay, (1 + t) / (10 + t)), so that a short run does not evaluate its
    # initial weights; as TensorFlow's ExponentialMovingAverage with num_updates. False: ema_decay throughout
    c.ema_warmup = True
    c.lookahead = ""  # lookahead(decay, power=0, every=1, start='0 steps'): weights go back to averages of theirs
    c.parallel = "pmap"  # how a step is lifted over the devices: pmap | shard_map | fsdp (state sharded)
    c.devices = 0  # 0: all
    c.log_every = "50 steps"
    c.evaluate_every = "1 epoch"
    c.checkpoint_every = "1 epoch"
    c.keep_checkpoints = 2  # the latest, besides the best
    c.hooks = "figures"  # recalibrate(batches) | figures | average_precision | sparsity | sensitivity | bleu(beam)

    # What is trained, and by which loss (train/tasks).
    c.task = ConfigDict()
    # classify[(views=mirror | mirror_shift)] | multi_label |
    # gated(weight=2.0) | policy(penalty=5.0, curriculum='50%', joint=False) | multi_exit | translate
    c.task.name = "classify"
    c.task.label_smoothing = 0.0

    # `name` of models.names(); every other key is a field of that model: norm, act, init, conv, dense, dtype, …
    c.model = ConfigDict()
    c.model.name = "resnet20"
    c.model.norm = "batch"  # batch[:momentum] | frozen_batch | layer | channel | instance | group[:groups] | none
    c.model.sync_norm = False  # batch norm over all devices instead of one
    c.model.act = "relu"  # relu | gelu | silu | relu6 | identity
    # msra | msra_fan_out | xavier_uniform | xavier_normal | lecun | orthogonal | dirac | normal:STD |
    # truncated_normal:STD
    c.model.init = "msra"
    # The folder of a run (its newest checkpoint) or of an exported network, a .ablate file, or a .safetensors file by
    # `python -m models.weights import`; "": scratch
    c.init_from = ""
    c.init_new = "head"  # with init_from: parts that are drawn anew whatever it has, "head|stage3", "*/gate"; "": none
    # lsuv: kernels orthonormal, then scaled so that each layer's output has variance 1 on a batch
    # whiten: the first convolution gives whitened patches and their negatives, by 5,000 training images
    c.data_init = "none"

    c.optimizer = ConfigDict()
    c.optimizer.name = "sgd(momentum=0.9)"  # sgd | adam | adamw | lars | lamb
    c.optimizer.learning_rate = 0.1
    c.optimizer.schedule = "constant"  # constant | step(factor, at, …) | cosine(final) | linear(final) |
    # triangle(start, peak, final) | inverse_sqrt
    c.optimizer.warmup = "0 steps"  # linear
    c.optimizer.warmup_from = 0.0  # as a fraction of the learning rate
    c.optimizer.weight_decay = 0.0
    c.optimizer.l1 = 0.0  # times the sign of a weight that decays, added to its gradient
    c.optimizer.decay = ".*"  # regular expression: the parameters that decay; '.*/kernel' leaves norms and biases out
    c.optimizer.clip_norm = 0.0  # bound of the global gradient norm; 0: none
    # (regular expression, multiplier of the learning rate[, from when it trains[, until when]]); 0 freezes; first match
    c.optimizer.groups = ((".*", 1.0),)
    c.optimizer.multiplied = "update"  # by that: update (with its decay) | gradient (all decay alike; sgd)
    # Weights that go while training goes on, e.g. "magnitude(0.9, start='20%', end='60%', every='5%')"
    # (train/optim/pruning.py)
    c.optimizer.prune = ""
    # Weights of a layer that share few values, the values trained, e.g. "linear(conv=8, dense=5)"
    # (train/optim/weight_sharing.py)
    c.optimizer.share = ""

    c.data = ConfigDict()
    c.data.source = "digits"  # digits | tfds:NAME | folder:PATH | arrays:FILE.npz | grammar | text:FOLDER
    c.data.dir = ""  # of TFDS sets; "": $TFDS_DATA_DIR, else ~/tensorflow_datasets
    c.data.train_split = "train"
    c.data.test_split = "test"
    # What is taken of a split, "classes('0-4')|per_class(50)", and a cue painted on it (train/data/select.py)
    c.data.select = ""  # of the training split
    c.data.select_test = ""  # of the test split
    c.data.channels = 0  # 3: gray images as RGB, 1: RGB as gray; 0: as they are
    c.data.pipeline = "auto"  # resident (on the device, uint8) | stream | auto
    c.data.workers = 0  # processes that decode for a stream; 0: threads
    c.data.on_error = "fail"  # of images that cannot be decoded: fail | skip
    c.data.image_size = 0  # 0: as they are
    c.data.crop = "none"  # while decoding: none | resize | random_resized (evaluation: center) | whole (BiT)
    c.data.crop_scale = (0.08, 1.0)  # random_resized: share of the area
    c.data.crop_ratio = (3 / 4, 4 / 3)  # random_resized: width / height
    c.data.eval_crop = 0.875  # share of the shorter side
    # apply | ignore: photographs are turned as their EXIF orientation says, as every viewer does it, or taken as stored
    c.data.exif = "apply"
    c.data.augment = ""  # in the compiled step, e.g. "crop(4)|flip|randaugment(2,9)|erase(0.25)|mixup_cutmix(0.8,1.0)"
    c.data.mean = (0.5,)  # by channel, pixels in [0, 1]
    c.data.std = (0.5,)
    return c


def arguments(text: str, **defaults: Any) -> ConfigDict:
    """Reads what follows the colon of --config=file.py:ARGUMENTS, e.g. "resnet20,norm=group".

    A word without "=" is the first of `defaults`. Values take the types of the defaults.

    Raises:
      ValueError: for an unknown argument or a value of another type, in one line.
    """
    found = dict(defaults)
    for position, part in enumerate(filter(None, text.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            name, value = next(iter(defaults)), name
        if name not in defaults or (not equals and position):
            raise ValueError(
                f"unknown config argument '{part}'; allowed: "
                + ", ".join(f"{name}={value}" for name, value in defaults.items())
            )
        kind = type(defaults[name])
        try:
            found[name] = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (KeyError, ValueError):
            raise ValueError(f"config argument {name}={value} must be of type {kind.__name__}") from None
    return ConfigDict(found)
