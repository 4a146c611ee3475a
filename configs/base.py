"""Every key of a classification run, with its default and its meaning. Other configs start here and change a few keys.

Durations are strings: "64000 steps", "90 epochs", "1.28e6 examples", or "50%" of the whole training.
Choices with arguments are strings too: "sgd(momentum=0.9, nesterov=True)", "crop(4)|flip", "step(0.1, '50%', '75%')".
Where a key takes one of several names, FILE.py:NAME takes it from a file of yours (README, "Adding").
"""

from typing import Any

from ml_collections import ConfigDict

# Mean and standard deviation per channel of the pixels of each training set, for `data.update`
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CIFAR10 = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}


def base() -> ConfigDict:
    """Returns the complete default config."""
    c = ConfigDict()
    c.seed = 0  # seed of the initialization, the order of examples, augmentation and dropout
    c.duration = "10 epochs"  # length of the whole training
    c.batch_size = 128  # images per step, over all devices and processes
    c.eval_batch_size = 500  # images per batch of the evaluation
    c.accumulate = 1  # parts into which each device splits its share of a batch; their gradients are averaged
    c.steps_per_call = 1  # optimizer steps per dispatch (a scan); more than 1 needs data resident on the device
    c.precision = "float32"  # type of the computation: float32 | bfloat16; parameters and statistics stay float32
    c.ema_decay = 0.0  # decay of the averaged weights that evaluation then uses, e.g. 0.9999; 0: no averaging
    # Caps the decay at the end of step t at (1 + t) / (10 + t), so that a short run does not evaluate its initial
    # weights; TensorFlow's ExponentialMovingAverage with num_updates does the same. False: always ema_decay
    c.ema_warmup = True
    c.lookahead = ""  # lookahead(decay, power=0, every=1, start='0 steps'): weights are reset to their own averages
    c.parallel = "pmap"  # how a step is distributed over the devices: pmap | shard_map | fsdp (sharded state)
    c.devices = 0  # number of devices to use; 0: all
    c.log_every = "50 steps"
    c.evaluate_every = "1 epoch"
    c.checkpoint_every = "1 epoch"
    c.keep_checkpoints = 2  # number of latest checkpoints to keep, in addition to the best
    c.hooks = "figures"  # recalibrate(batches) | figures | average_precision | sparsity | sensitivity | bleu(beam)

    # The task decides what is trained and with which loss (train/tasks).
    c.task = ConfigDict()
    # classify[(views=mirror | mirror_shift)] | multi_label |
    # gated(weight=2.0) | policy(penalty=5.0, curriculum='50%', joint=False) | multi_exit | translate
    c.task.name = "classify"
    c.task.label_smoothing = 0.0  # share of each target that is spread evenly over all classes

    # `name` is one of models.names(); every other key is a field of the model: norm, act, init, conv, dense, dtype, …
    c.model = ConfigDict()
    c.model.name = "resnet20"
    c.model.norm = "batch"  # batch[:momentum] | frozen_batch | layer | channel | instance | group[:groups] | none
    c.model.sync_norm = False  # True: batch statistics over all devices instead of per device
    c.model.act = "relu"  # relu | gelu | silu | relu6 | identity
    # msra | msra_fan_out | xavier_uniform | xavier_normal | lecun | orthogonal | dirac | normal:STD |
    # truncated_normal:STD
    c.model.init = "msra"
    # Initial weights: the folder of a run (its newest checkpoint) or of an exported network, a .ablate file, or a
    # .safetensors file from `python -m models.weights import`; "": train from scratch
    c.init_from = ""
    # With init_from: parts that are initialized randomly even if the file has them, "head|stage3", "*/gate"; "": none
    c.init_new = "head"
    # none | lsuv: orthonormal kernels, then scaled so that each layer's output has variance 1 on one batch |
    # whiten: the first convolution outputs whitened patches and their negatives, estimated from 5,000 training images
    c.data_init = "none"

    c.optimizer = ConfigDict()
    c.optimizer.name = "sgd(momentum=0.9)"  # sgd | adam | adamw | lars | lamb
    c.optimizer.learning_rate = 0.1
    c.optimizer.schedule = "constant"  # constant | step(factor, at, …) | cosine(final) | linear(final) |
    # triangle(start, peak, final) | inverse_sqrt
    c.optimizer.warmup = "0 steps"  # length of the linear warm-up
    c.optimizer.warmup_from = 0.0  # start of the warm-up, as a fraction of the learning rate
    c.optimizer.weight_decay = 0.0
    c.optimizer.l1 = 0.0  # coefficient of sign(weight), added to the gradient of each weight that decays
    c.optimizer.decay = ".*"  # regular expression of the parameters that decay; '.*/kernel' skips norms and biases
    c.optimizer.clip_norm = 0.0  # upper bound of the global gradient norm; 0: no clipping
    # Rows of (regular expression, multiplier of the learning rate[, start of its training[, end]]); the first match
    # counts; a multiplier of 0 freezes
    c.optimizer.groups = ((".*", 1.0),)
    # What the multipliers scale: update (its decay included) | gradient (all parameters decay alike; needs sgd)
    c.optimizer.multiplied = "update"
    # Pruning during training, e.g. "magnitude(0.9, start='20%', end='60%', every='5%')" (train/optim/pruning.py)
    c.optimizer.prune = ""
    # Weight sharing: the weights of a layer share a few trained values, e.g. "linear(conv=8, dense=5)"
    # (train/optim/weight_sharing.py)
    c.optimizer.share = ""

    c.data = ConfigDict()
    c.data.source = "digits"  # digits | tfds:NAME | folder:PATH | arrays:FILE.npz | grammar | text:FOLDER
    c.data.dir = ""  # folder of TFDS data sets; "": $TFDS_DATA_DIR, or ~/tensorflow_datasets
    c.data.train_split = "train"
    c.data.test_split = "test"
    # Selection of examples of a split, "classes('0-4')|per_class(50)", or a cue painted on them (train/data/select.py)
    c.data.select = ""  # for the training split
    c.data.select_test = ""  # for the test split
    c.data.channels = 0  # 3: convert gray images to RGB, 1: convert RGB to gray, 0: leave them unchanged
    c.data.pipeline = "auto"  # resident (uint8 on the device) | stream | auto
    c.data.workers = 0  # number of processes that decode for a stream; 0: threads
    c.data.on_error = "fail"  # treatment of images that cannot be decoded: fail | skip
    c.data.image_size = 0  # height and width in pixels; 0: the size of the source
    c.data.crop = "none"  # crop while decoding: none | resize | random_resized (evaluation: center) | whole (BiT)
    c.data.crop_scale = (0.08, 1.0)  # random_resized: range of the share of the area
    c.data.crop_ratio = (3 / 4, 4 / 3)  # random_resized: range of width / height
    c.data.eval_crop = 0.875  # evaluation's center crop, as a share of the shorter side
    # apply | ignore: rotate photographs as their EXIF orientation says, as image viewers do, or use them as stored
    c.data.exif = "apply"
    # Augmentation in the compiled step, e.g. "crop(4)|flip|randaugment(2,9)|erase(0.25)|mixup_cutmix(0.8,1.0)"
    c.data.augment = ""
    c.data.mean = (0.5,)  # mean per channel, of pixels in [0, 1]
    c.data.std = (0.5,)  # standard deviation per channel
    return c


def arguments(text: str, **defaults: Any) -> ConfigDict:
    """Parses the text after the colon of --config=file.py:ARGUMENTS, e.g. "resnet20,norm=group".

    A word without "=" is the value of the first default. Each value is converted to the type of its default.

    Raises:
      ValueError: An argument is unknown, or its value does not have the type of the default.
    """
    values = dict(defaults)
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
            values[name] = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (KeyError, ValueError):
            raise ValueError(f"config argument {name}={value} must be of type {kind.__name__}") from None
    return ConfigDict(values)
