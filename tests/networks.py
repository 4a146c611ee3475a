"""Tables about the registered networks that tests hold them to; test_models.py reads them."""

# Trained parameters. T: equal to torchvision 0.28's; t: to timm 1.0's resnetv2_*; He: He 2016, table 6, rounds to the
# millions given; Z: Zagoruyko 2016 likewise. The others have no outside reference here: they guard against changes.
PARAMETERS = {
    "plain18": 11_515_688, "plain34": 21_623_848,
    "resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032, "resnet101": 44_549_160,  # T
    "resnet152": 60_192_808, "wide_resnet50_2": 68_883_240, "wide_resnet101_2": 126_886_696,  # T
    "resnext50_32x4d": 25_028_904, "resnext101_32x8d": 88_791_336,  # T
    "preresnet18": 11_687_720, "preresnet34": 21_795_880, "preresnet50": 25_549_352, "preresnet101": 44_541_480,  # t
    "preresnet152": 60_185_128,  # t
    "preresnet200": 64_666_152,
    "plain8": 75_290, "plain14": 172_506, "plain20": 269_722, "plain32": 464_154, "plain44": 658_586,
    "plain56": 853_018, "plain110": 1_727_962,
    "resnet8": 75_290, "resnet14": 172_506, "resnet20": 269_722, "resnet32": 464_154,  # He: the last two 0.27M, 0.46M
    "resnet44": 658_586, "resnet56": 853_018, "resnet110": 1_727_962, "resnet1202": 19_421_274,  # He: .66 .85 1.7 19.4
    "preresnet20": 269_722, "preresnet32": 464_154, "preresnet44": 658_586, "preresnet56": 853_018,
    "preresnet110": 1_727_962, "preresnet164": 1_703_258, "preresnet1001": 10_327_706,
    "wide_resnet16_4": 2_748_890, "wide_resnet16_8": 10_961_370, "wide_resnet28_10": 36_479_194,  # Z: 36.5M (the last)
    "wide_resnet40_2": 2_243_546, "wide_resnet40_4": 8_949_210,
}
# One small network of each kind of block, to run on images of 32 x 32.
SMALL = {
    "basic": ("resnet8", {"stage_sizes": (1, 1), "width": 8}),
    "bottleneck": ("resnext50_32x4d", {"stage_sizes": (1, 1), "width": 8, "groups": 4, "base_width": 16,
                                       "num_classes": 10}),
    "preact": ("wide_resnet16_4", {"stage_sizes": (1, 1), "width": 4, "widen": 2, "shortcut": "A"}),
}
# For each class of networks one other value for each of its fields, and the kind of SMALL to try it on; each must
# change the parameters' shapes, their values or the output in training. "spy" is replaced by the spy for that field.
PERTURBED = {
    "ResNet": {
        "num_classes": ("basic", 7), "norm": ("basic", "group:2"), "act": ("basic", "silu"),
        "init": ("basic", "xavier_normal"), "conv": ("basic", "standardized"), "dense": ("basic", "spy"),
        "dtype": ("basic", "bfloat16"),
        "stage_sizes": ("basic", (1, 2)), "bottleneck": ("basic", True), "stem": ("basic", "imagenet"),
        "width": ("basic", 4), "widen": ("basic", 2), "groups": ("bottleneck", 2), "base_width": ("bottleneck", 32),
        "stride_in": ("bottleneck", "1x1"), "shortcut": ("basic", "B"), "preact": ("basic", True),
        "zero_gamma": ("basic", True), "stochastic_depth": ("basic", 0.5), "dropout": ("basic", 0.5),
    },
}
# Fields that change neither on one device: they act on several devices (test_norm), on memory, or, image_size, only
# where a family's parameters depend on it.
ELSEWHERE = {"sync_norm", "remat", "image_size"}
