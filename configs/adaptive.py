"""Adaptive inference: networks that decide per image what to compute.

    python -m train --config=configs/adaptive.py:aig,scale=cifar10 --workdir=runs/aig
    python -m train --config=configs/adaptive.py:blockdrop,scale=cifar10,from=runs/resnet110 --workdir=runs/policy
    python -m train --config=configs/adaptive.py:blockdrop_joint,scale=cifar10,from=runs/policy --workdir=runs/blockdrop
    python -m train --config=configs/adaptive.py:msdnet,scale=cifar100 --workdir=runs/msdnet
    python -m train --config=configs/adaptive.py:early_exit,scale=cifar10 --workdir=runs/early_exit
    python -m train.adaptive --workdir=runs/msdnet --budget=25e6

aig               Veit & Belongie 2018, section 4 and the authors' code: 350 epochs on CIFAR and 100 on ImageNet, with
                  batches of 256. --config.model.target=0.5 sets another target rate, and --config.model.rates the rates
                  of single blocks
blockdrop         Wu et al. 2018, section 4.1 and the authors' code: trains only the policy, for a network that is
                  already trained (a run or a .safetensors file). The curriculum begins with the last block and covers
                  all blocks after 54 epochs (33 on ImageNet). Our policy starts from scratch; the authors' policy for
                  ImageNet starts from a ResNet-18
blockdrop_joint   then trains the policy and the network together; a higher penalty keeps more blocks and accuracy
msdnet            Huang et al. 2018, section 5 and its PyTorch code: 300 epochs with batches of 64 on CIFAR, 90 with
                  batches of 256 on ImageNet. 5,000 or 50,000 images are held out to fit the thresholds of the budgets
early_exit        the baseline of that paper: a residual network with exits, trained in the same way

scale=digits, scikit-learn's 8x8 images, is for first experiments: narrow networks that train in minutes on a CPU. To
train a network there for blockdrop: --config=configs/study.py:digits,model=resnet20
--config.model.stage_sizes="(2,2,2)".
Published: AIG-110 has an error of 5.76% with 82% of its blocks, ResNet-110 of 6.61% (Veit 2018, table 1). A ResNet-110
has an accuracy of 93.2% on CIFAR-10; BlockDrop has 93.6% with 16.9 of its 54 blocks. On ImageNet, BlockDrop has 76.4%
with 24.8 of 33 blocks (Wu 2018, table 1, and the authors' page).
Cost: 350 epochs of AIG-110 are 1.75e7 images of 253M mult-adds each, forward and backward: hours on a GPU. The budgeted
MSDNet on CIFAR needs 1.35e7 images of 58M. The 5,000 epochs of a policy need 2.5e8 images, with two forward passes.
"""

from configs.base import CIFAR10, IMAGENET, arguments, base

METHODS = ("aig", "blockdrop", "blockdrop_joint", "msdnet", "early_exit")
SCALES = ("digits", "cifar10", "cifar100", "imagenet")
NETWORKS = {
    "aig": ("convnet_aig110", "convnet_aig50"),
    "msdnet": ("msdnet_cifar_budgeted", "msdnet_imagenet_step4"),
    "early_exit": ("early_exit_resnet62", None),
    **dict.fromkeys(METHODS[1:3], ("blockdrop110", "blockdrop101")),
}
# Fields and epochs at scale digits, by method
SMALL = {
    "aig": ({"width": 8, "stage_sizes": (2, 2, 2)}, 30),
    "blockdrop": ({"width": 8, "stage_sizes": (2, 2, 2), "policy_width": 4}, 30),
    "blockdrop_joint": ({"width": 8, "stage_sizes": (2, 2, 2), "policy_width": 4}, 30),
    "msdnet": ({"num_exits": 3, "width": 8, "exit_width": 32}, 30),
    "early_exit": ({"width": 8, "stage_sizes": (2, 2, 2), "exits": (2, 4), "exit_width": 32}, 30),
}


def get_config(text: str = ""):
    """Takes the arguments method, scale (digits | cifar10 | cifar100 | imagenet), model, from, data, epochs.

    The defaults of `model` and `epochs` stand for the paper's values. `data` is a TFDS name; "" is the data set of the
    scale. `from` is the folder of a run, for blockdrop and blockdrop_joint.
    """
    a = arguments(text, method="aig", scale="digits", model="", **{"from": ""}, data="", epochs=0)
    for name, value, allowed in (("method", a.method, METHODS), ("scale", a.scale, SCALES)):
        if value not in allowed:
            raise ValueError(f"unknown {name} '{value}'; allowed: {', '.join(allowed)}")
    is_blockdrop = a.method.startswith("blockdrop")
    if is_blockdrop and not a["from"]:
        raise ValueError(
            "blockdrop starts from a trained residual network and blockdrop_joint from a run of blockdrop; set from=RUN"
        )
    if a["from"] and not is_blockdrop:
        raise ValueError(f"from={a['from']} is for blockdrop and blockdrop_joint")
    if a.data and a.scale == "digits":
        raise ValueError(f"data={a.data} does not apply to scale=digits, which uses scikit-learn's images")
    if a.scale == "imagenet" and a.method == "early_exit" and not a.model:
        raise ValueError("early_exit has no default network for ImageNet; set model=NAME")
    c = base()
    c.model.name = a.model or NETWORKS[a.method][a.scale == "imagenet"]
    _data(c, a)
    {"aig": _aig, "blockdrop": _blockdrop, "blockdrop_joint": _blockdrop_joint, "msdnet": _exits, "early_exit": _exits}[
        a.method
    ](c, a.scale, a.epochs)
    if is_blockdrop:
        c.init_from, c.init_new = a["from"], "policy" if a.method == "blockdrop" else ""
    if a.scale == "digits":
        fields, epochs = SMALL[a.method]
        for field, value in fields.items() if not a.model else ():
            c.model[field] = value
        c.duration, c.evaluate_every, c.checkpoint_every = f"{epochs} epochs", "5 epochs", "5 epochs"
        c.batch_size = 64
    if a.epochs:
        c.duration = f"{a.epochs} epochs"
    return c


def _data(c, a):
    is_imagenet = a.scale == "imagenet"
    c.data.source = (
        "digits" if a.scale == "digits" else f"tfds:{a.data or ('imagenet2012' if is_imagenet else a.scale)}"
    )
    c.data.augment = {"digits": "crop(1)", "imagenet": "flip"}.get(a.scale, "crop(4)|flip")
    if a.scale == "digits":
        c.eval_batch_size = 360
    elif is_imagenet:
        c.data.image_size, c.data.crop = 224, "random_resized"
        c.data.update(IMAGENET)
        c.data.test_split, c.data.pipeline, c.data.workers = "validation", "stream", 8
    else:
        c.eval_batch_size = 1000
        c.data.update(CIFAR10)
    train_split = {"digits": "train_fit", "imagenet": "train[:1231167]"}.get(a.scale, "train[:45000]")
    if a.data:  # its number of images is unknown
        train_split = "train[:90%]"
    if a.method in ("msdnet", "early_exit"):
        c.data.train_split = train_split


def _aig(c, scale, epochs):
    c.optimizer.learning_rate, c.batch_size = 0.1, 256
    if scale == "imagenet":
        c.task.name, c.duration, c.optimizer.weight_decay = "gated(weight=1.0)", "100 epochs", 1e-4
        c.optimizer.schedule = "step(0.1, '30 epochs', '60 epochs', '90 epochs')"
    else:
        c.task.name, c.duration, c.optimizer.weight_decay = "gated(weight=2.0)", "350 epochs", 5e-4
        c.optimizer.schedule = "step(0.1, '43%', '71%')"  # 150 and 250 of 350 epochs


def _blockdrop(c, scale, epochs):
    c.optimizer.name, c.optimizer.learning_rate, c.batch_size = "adam", 1e-3, 2048
    c.optimizer.groups = (("policy/.*", 1.0), (".*", 0.0))  # the network is frozen
    blocks = 33 if scale == "imagenet" else 54  # the curriculum takes one epoch per block
    curriculum = "50%" if scale == "digits" or 0 < epochs < blocks else f"{blocks} epochs"
    c.task.name = f"policy(penalty=1.0, curriculum='{curriculum}')"
    c.duration = "45 epochs" if scale == "imagenet" else "5000 epochs"


def _blockdrop_joint(c, scale, epochs):
    c.optimizer.name, c.optimizer.learning_rate, c.batch_size = "adam", 1e-4, 320 if scale == "imagenet" else 256
    c.task.name = f"policy(penalty={5.0 if scale == 'imagenet' else 10.0}, entropy=0.0, joint=True)"
    c.duration = "10 epochs" if scale == "imagenet" else "1600 epochs"


def _exits(c, scale, epochs):
    c.task.name = "multi_exit"
    c.optimizer.name, c.optimizer.learning_rate = "sgd(momentum=0.9, nesterov=True)", 0.1
    c.optimizer.weight_decay, c.model.init = 1e-4, "msra_fan_out"
    if scale == "imagenet":
        c.duration, c.batch_size, c.optimizer.schedule = "90 epochs", 256, "step(0.1, '30 epochs', '60 epochs')"
    else:
        c.duration, c.batch_size, c.optimizer.schedule = "300 epochs", 64, "step(0.1, '50%', '75%')"
