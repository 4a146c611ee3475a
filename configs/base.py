"""Every key of a classification run, with its default and its meaning. Other configs start here and change a few keys.

Durations are strings: "64000 steps", "90 epochs", "1.28e6 examples", or "50%" of the whole training.
Choices with arguments are strings, too: "sgd(momentum=0.9, nesterov=True)", "crop(4)|flip", "step(0.1, '50%', '75%')".
Wherever a key takes one of several names, FILE.py:NAME takes it from a file of yours (docs/extend.md). The comment
above a key becomes its meaning in docs/configs.md.
"""

from typing import Any

from ml_collections import ConfigDict

# Mean and standard deviation of the pixels of each training set, per channel; keys of the section data
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CIFAR10 = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}


def base() -> ConfigDict:
    """Returns the complete default config."""
    c = ConfigDict()
    # Seed of initialization, data order, augmentation and dropout.
    c.seed = 0
    # Length of the whole training.
    c.duration = "10 epochs"
    # Images per step, over all devices and processes.
    c.batch_size = 128
    # Images per evaluation step; the last batch is padded, and each image counts once.
    c.eval_batch_size = 500
    # Number of parts into which each device splits its share of a batch; gradients are averaged over the parts.
    c.accumulate = 1
    # Optimizer steps per dispatch (a scan); more than 1 only if the data are resident.
    c.steps_per_call = 1
    # Type in which layers compute; parameters and statistics stay float32.
    c.precision = "float32"
    # Decay of the moving average of the weights, e.g. 0.9999; 0 turns it off. If it is on, evaluation uses the average.
    c.ema_decay = 0.0
    # Whether the decay at the end of step t is min(ema_decay, (1 + t) / (10 + t)) instead of ema_decay, so that a short
    # run does not evaluate its initial weights (as TensorFlow's ExponentialMovingAverage with num_updates).
    c.ema_warmup = True
    # lookahead(decay, power=0, every=1, start='0 steps') resets the weights to their averages; "" turns it off.
    c.lookahead = ""
    # Method that distributes a step over the devices; fsdp also shards the state.
    c.parallel = "pmap"
    # Number of devices to use; 0 uses all.
    c.devices = 0
    # Interval between logged training metrics.
    c.log_every = "50 steps"
    # Interval between evaluations.
    c.evaluate_every = "1 epoch"
    # Interval between checkpoints.
    c.checkpoint_every = "1 epoch"
    # Number of latest checkpoints to keep, besides the best one.
    c.keep_checkpoints = 2
    # Hooks, which do work besides training, separated by "|"; recalibrate(batches), bleu(beam), wandb(project) and
    # mlflow(experiment, uri) take arguments.
    c.hooks = "figures"

    # The task decides what is trained and with which loss (train/tasks).
    c.task = ConfigDict()
    # Task, with its arguments: classify(views=ten_crops) or another of train/tasks/views.py, classify(loss=bce,
    # threshold=0.0), gated(weight=2.0), policy(penalty=5.0, curriculum='50%', joint=False),
    # distill(teacher='runs/large', temperature=4.0, weight=0.9).
    c.task.name = "classify"
    # Share of the target that is spread over all classes.
    c.task.label_smoothing = 0.0

    # A network by name; every other key is one of its fields: norm, act, init, conv, dense, dtype, …
    c.model = ConfigDict()
    # One of models.list_models().
    c.model.name = "resnet20"
    # Normalization; batch:MOMENTUM sets the momentum, group:GROUPS the number of groups.
    c.model.norm = "batch"
    # Whether batch norm averages over all devices instead of one.
    c.model.sync_norm = False
    # Activation.
    c.model.act = "relu"
    # Initialization of kernels.
    c.model.init = "msra"
    # Source of the initial weights: the folder of a run (its newest checkpoint) or of an exported network, a .ablate
    # file, a .safetensors file by `python -m models.weights import`, or weights by name, hf:timm/resnet50.a1_in1k
    # (docs/weights.md); "" starts from scratch.
    c.init_from = ""
    # With init_from: parts that are initialized randomly even if stored, e.g. "head|stage3" or "*/gate"; "" for none.
    c.init_new = "head"
    # Initialization from data. lsuv: kernels are orthonormal, then scaled so that each layer's output has variance 1 on
    # a batch. whiten: the first convolution returns whitened patches and their negatives, by statistics of 5,000
    # training images.
    c.data_init = "none"

    # Optimizer, learning rate, regularization, pruning (train/optim).
    c.optimizer = ConfigDict()
    # Optimizer, with its arguments: any of optax and optax.contrib (docs/optimizers.md).
    c.optimizer.name = "sgd(momentum=0.9)"
    # Peak of the learning rate; 0 stands for the usual one of the optimizer.
    c.optimizer.learning_rate = 0.1
    # Schedule, with its arguments: a factor on the learning rate at each step.
    c.optimizer.schedule = "constant"
    # Length of a linear warm-up.
    c.optimizer.warmup = "0 steps"
    # Start of the warm-up, as a fraction of the learning rate.
    c.optimizer.warmup_from = 0.0
    # Weight decay of the parameters that match `decay`.
    c.optimizer.weight_decay = 0.0
    # Factor of an L1 penalty on the parameters that match `decay`: factor x sign(weight) is added to the gradient.
    c.optimizer.l1 = 0.0
    # Regular expression of the parameters that decay; '.*/kernel' leaves out norms and biases.
    c.optimizer.decay = ".*"
    # Upper bound on the global gradient norm; 0 turns clipping off.
    c.optimizer.clip_norm = 0.0
    # Upper bound on the gradient of each output of a kernel, as a fraction of the norm of its weights (Brock 2021,
    # adaptive gradient clipping); classifier heads are not clipped; 0 turns it off.
    c.optimizer.adaptive_clip = 0.0
    # Sharpness-aware minimization, two gradients per step: sam(rho=0.05) or asam(rho=0.5) (train/optim/sam.py); "" for
    # none.
    c.optimizer.sam = ""
    # Groups of parameters, each (regular expression, multiplier of the learning rate[, start[, end of its training]]).
    # The first match counts, and a multiplier of 0 freezes.
    c.optimizer.groups = ((".*", 1.0),)
    # Whether the multipliers of groups apply to the update, with its weight decay, or to the gradient, so that all
    # groups decay in the same way (sgd only).
    c.optimizer.multiplied = "update"
    # Pruning during training, e.g. "magnitude(0.9, start='20%', end='60%', every='5%')"
    # (train/optim/pruning.py); "" for none.
    c.optimizer.prune = ""
    # Weight sharing: the weights of each layer take a few values, which are trained, e.g. "linear(conv=8, dense=5)"
    # (train/optim/weight_sharing.py); "" for none.
    c.optimizer.share = ""

    # Data set, decoding, augmentation (train/data).
    c.data = ConfigDict()
    # Data set.
    c.data.source = "digits"
    # Folder of TFDS sets; "" stands for $TFDS_DATA_DIR or, if that is not set, ~/tensorflow_datasets.
    c.data.dir = ""
    # Training split, in the notation of TFDS.
    c.data.train_split = "train"
    # Split for evaluation.
    c.data.test_split = "test"
    # Part of the training split, e.g. "classes('0-4')|per_class(50)", and cues painted on it (train/data/select.py).
    c.data.select = ""
    # Part of the test split, in the same form.
    c.data.select_test = ""
    # 3 repeats gray images as RGB, 1 converts RGB to gray, 0 keeps the channels.
    c.data.channels = 0
    # Place of the images: on the device as uint8 (resident), or on disk, decoded during training (stream).
    c.data.pipeline = "auto"
    # Number of processes that decode streamed images; 0 uses threads.
    c.data.workers = 0
    # Treatment of images that cannot be decoded.
    c.data.on_error = "fail"
    # Height and width of the images; 0 keeps them.
    c.data.image_size = 0
    # Sizes of training images over time, e.g. "128@0%|160@40%|224@70%", or "160" for all of it; evaluation is at
    # image_size. "" trains at image_size, too.
    c.data.resolutions = ""
    # Rows of a batch that show the same image, each augmented on its own (repeated augmentation).
    c.data.repeats = 1
    # Crop while decoding. random_resized evaluates the center; whole squeezes the image to a square, as BiT does.
    c.data.crop = "none"
    # random_resized: range of the crop's area, as a fraction of the image's.
    c.data.crop_scale = (0.08, 1.0)
    # random_resized: range of the crop's width divided by its height.
    c.data.crop_ratio = (3 / 4, 4 / 3)
    # Evaluation: side of the central crop, as a fraction of the shorter side.
    c.data.eval_crop = 0.875
    # apply rotates photographs by their EXIF orientation, as every viewer does; ignore takes them as stored.
    c.data.exif = "apply"
    # Filter of resizing, antialiased: bilinear, or bicubic, whose evaluation crop is that of torchvision and timm.
    c.data.interpolation = "bilinear"
    # Augmentations in the compiled step, separated by "|": crop(pad), flip(p=0.5), alternate_flip,
    # cutout(size), erase(p=0.5), randaugment(ops, magnitude), randaugment_timm(magnitude, std=0.5, ops=2, p=0.5),
    # autoaugment(policy), trivialaugment, augmix(severity=3, width=3, depth=-1, alpha=1.0), jitter(b, c=0, s=0, h=0),
    # grayscale(p=0.1); once, at the end, mixup(a), cutmix(a) or mixup_cutmix(a, b).
    c.data.augment = ""
    # Mean per channel that is subtracted from pixels in [0, 1].
    c.data.mean = (0.5,)
    # Standard deviation per channel by which the pixels are then divided.
    c.data.std = (0.5,)
    return c


def arguments(text: str, **defaults: Any) -> ConfigDict:
    """Parses the text after the colon of --config=file.py:ARGUMENTS, e.g. "resnet20,norm=group".

    A first word without "=" is the value of the first argument. Each value is converted to the type of its default.

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
