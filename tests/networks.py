"""Tables about the registered networks that tests hold them to; tests/models/test_registry.py reads them."""

import re

import pytest

# Trained parameters. T: equal to torchvision 0.28's; t: to timm 1.0's resnetv2_*; He: He 2016, table 6, rounds to the
# millions given; Z: Zagoruyko 2016 likewise; H: Huang 2017, table 2, likewise. The others have no outside reference
# here: they guard against changes.
PARAMETERS = {
    "plain18": 11_515_688,
    "plain34": 21_623_848,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,  # T
    "resnet152": 60_192_808,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,  # T
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,  # T
    "resnext101_32x4d": 44_177_704,  # t (of the same name)
    "resnetv2_50x1_bit": 25_549_352,
    "resnetv2_50x3_bit": 217_319_080,
    "resnetv2_101x1_bit": 44_541_480,  # t
    "resnetv2_101x3_bit": 387_934_888,
    "resnetv2_152x2_bit": 236_335_208,
    "resnetv2_152x4_bit": 936_533_224,  # t
    "preresnet18": 11_687_720,
    "preresnet34": 21_795_880,
    "preresnet50": 25_549_352,
    "preresnet101": 44_541_480,  # t
    "preresnet152": 60_185_128,  # t
    "preresnet200": 64_666_152,
    "plain8": 75_290,
    "plain14": 172_506,
    "plain20": 269_722,
    "plain32": 464_154,
    "plain44": 658_586,
    "plain56": 853_018,
    "plain110": 1_727_962,
    "resnet8": 75_290,
    "resnet14": 172_506,
    "resnet20": 269_722,
    "resnet32": 464_154,  # He: the last two 0.27M, 0.46M
    "resnet38": 561_370,
    "resnet74": 1_144_666,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet1202": 19_421_274,  # He: .66 .85 1.7 19.4
    "preresnet20": 269_722,
    "preresnet32": 464_154,
    "preresnet44": 658_586,
    "preresnet56": 853_018,
    "preresnet110": 1_727_962,
    "preresnet164": 1_703_258,
    "preresnet1001": 10_327_706,
    "wide_resnet16_4": 2_748_890,
    "wide_resnet16_8": 10_961_370,
    "wide_resnet28_10": 36_479_194,  # Z: 36.5M (the last)
    "wide_resnet40_2": 2_243_546,
    "wide_resnet40_4": 8_949_210,
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,  # T
    "densenet264": 33_337_704,
    "densenet40_k12": 1_019_722,
    "densenet100_k12": 6_979_642,
    "densenet100_k24": 27_249_082,  # H
    "densenet_bc100_k12": 769_162,
    "densenet_bc250_k24": 15_324_406,
    "densenet_bc190_k40": 25_624_430,  # H
    # Those of the authors' PyTorch code (golden/msdnet.npz has its arrays).
    "msdnet_cifar_anytime": 2_986_690,
    "msdnet_cifar_budgeted": 2_020_874,
    "msdnet_imagenet_step4": 23_958_440,
    "msdnet_imagenet_step6": 56_529_304,
    "msdnet_imagenet_step7": 62_314_472,
    "lenet_300_100": 266_610,
    "lenet5": 431_080,  # Han 2015, table 1: 267K, 431K
    "alexnet_original": 60_965_224,  # Caffe's bvlc_alexnet has as many
    "alexnet": 61_100_840,  # T
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,  # T
    "vgg11_bn": 132_868_840,
    "vgg13_bn": 133_053_736,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,  # T
    "vgg11_cifar": 9_231_114,
    "vgg13_cifar": 9_416_010,
    "vgg16_cifar": 14_728_266,
    "airbench94": 1_972_792,  # the authors' network (golden/airbench.npz)
    "mobilenet_v1": 4_231_976,  # timm's mobilenetv1_100; Howard 2017, table 6, for 1 to 0.25: 4.2M, 2.6M, 1.3M, 0.5M
    "mobilenet_v1_075": 2_585_560,
    "mobilenet_v1_050": 1_331_592,
    "mobilenet_v1_025": 470_072,
    "mobilenet_v1_conv": 29_294_088,
    "mobilenet_v1_shallow": 2_887_976,  # Howard 2017, tables 4 and 5: 29.3M, 2.9M
    "mobilenet_v2": 3_504_872,  # T; the others equal timm's mobilenetv2_*
    "mobilenet_v2_035": 1_677_128,
    "mobilenet_v2_050": 1_968_680,
    "mobilenet_v2_075": 2_636_424,
    "mobilenet_v2_130": 5_386_792,
    "mobilenet_v2_140": 6_108_776,
    "convnext_tiny": 28_589_128,
    "convnext_small": 50_223_688,
    "convnext_base": 88_591_464,  # T
    "convnext_large": 197_767_336,
    "convnext_xlarge": 350_196_968,  # T, and t (convnext_xlarge)
    "convnext_ladder00_resnet50": 25_557_032,
    "convnext_ladder02_stage_ratio": 28_628_520,  # the first is resnet50
    "convnext_ladder03_patchify_stem": 28_622_184,
    "convnext_ladder04_depthwise": 15_722_664,
    "convnext_ladder05_width96": 33_761_032,
    "convnext_ladder06_inverted_bottleneck": 25_851_496,
    "convnext_ladder07_depthwise_first": 25_625_512,
    "convnext_ladder08_kernel5": 25_720_744,
    "convnext_ladder09_kernel7": 25_863_592,
    "convnext_ladder09b_kernel9": 26_054_056,
    "convnext_ladder09c_kernel11": 26_292_136,
    "convnext_ladder10_gelu": 25_863_592,
    "convnext_ladder11_fewer_activations": 25_863_592,
    "convnext_ladder12_fewer_norms": 25_829_128,
    "convnext_ladder13_layer_norm": 25_835_176,
    "convnext_ladder14_separate_downsampling": 28_582_504,
    "swin_t": 28_288_354,
    "swin_s": 49_606_258,
    "swin_b": 87_768_224,  # T
    "swin_l": 196_532_476,  # t (swin_large_patch4_window7_224)
    "vit_tiny_patch32": 6_131_560,
    "vit_tiny_patch16": 5_717_416,
    "vit_tiny_patch14": 5_694_376,  # t
    "vit_small_patch32": 22_878_952,
    "vit_small_patch16": 22_050_664,
    "vit_small_patch14": 22_004_584,  # t
    "vit_base_patch32": 88_224_232,
    "vit_base_patch16": 86_567_656,
    "vit_base_patch14": 86_475_496,  # T, T, t
    "vit_large_patch32": 306_535_400,
    "vit_large_patch16": 304_326_632,
    "vit_large_patch14": 304_203_752,  # T, T, t
    "vit_huge_patch32": 634_960_360,
    "vit_huge_patch16": 632_199_400,
    "vit_huge_patch14": 632_045_800,  # t, t, T
    # Xiao 2021, table 1: 4.8M, 18.5M, 86.7M (86.6M in table 2), 178.4M; 4.6M, 17.8M, 81.6M, 167.8M.
    "vit_p_1gf": 4_830_376,
    "vit_p_4gf": 18_507_112,
    "vit_p_18gf": 86_567_656,
    "vit_p_36gf": 178_364_392,
    "vit_c_1gf": 4_567_936,
    "vit_c_4gf": 17_754_136,
    "vit_c_18gf": 81_573_160,
    "vit_c_36gf": 167_796_008,
    # The authors' ResNet110_cifar has as many (golden/gated.npz); Veit 2018, table 1: 1.78M.
    "convnet_aig110": 1_766_630,
    "convnet_aig38": 575_582,
    "convnet_aig74": 1_171_106,
    "convnet_aig50": 25_701_212,
    "convnet_aig101": 44_993_578,
    "blockdrop32": 539_769,
    "blockdrop110": 1_806_112,
    "blockdrop101": 49_471_881,
    "early_exit_resnet62": 2_103_830,
    # Vaswani 2017, table 3: 65M, 213M; models/transformer.py says which vocabularies those are of.
    "transformer_base": 63_082_496,
    "transformer_big": 214_245_376,
}
# One small network of each kind of block, to run on images of 32 x 32.
SMALL = {
    "basic": ("resnet8", {"stage_sizes": (1, 1), "width": 8}),
    "bottleneck": (
        "resnext50_32x4d",
        {"stage_sizes": (1, 1), "width": 8, "groups": 4, "base_width": 16, "num_classes": 10},
    ),
    "preact": ("wide_resnet16_4", {"stage_sizes": (1, 1), "width": 4, "widen": 2, "shortcut": "A"}),
    "bit": ("resnetv2_50x1_bit", {"stage_sizes": (1, 1), "width": 8, "norm": "group:4", "num_classes": 10}),
    "gated": (
        "convnet_aig50",
        {"stage_sizes": (1, 1), "width": 8, "stem": "cifar", "rates": (None, 0.5), "gate_width": 6, "num_classes": 10},
    ),
    "blockdrop": (
        "blockdrop101",
        {
            "stage_sizes": (2, 1),
            "width": 8,
            "stem": "cifar",
            "policy_sizes": (1, 1),
            "policy_width": 4,
            "num_classes": 10,
        },
    ),
    "early_exit": (
        "early_exit_resnet62",
        {"stage_sizes": (2, 1), "width": 8, "bottleneck": True, "exits": (1,), "exit_width": 6},
    ),
    "dense": ("densenet_bc100_k12", {"stage_sizes": (2, 1), "growth": 4, "width": 8, "bottleneck": 2}),
    "dense_imagenet": (
        "densenet121",
        {"stage_sizes": (1, 1), "growth": 4, "width": 8, "bottleneck": 0, "compression": 1.0, "num_classes": 10},
    ),
    "multi_scale": (
        "msdnet_cifar_anytime",
        {
            "num_exits": 2,
            "base": 2,
            "step": 1,
            "width": 4,
            "growth": 2,
            "growth_factors": (1, 2),
            "bottleneck_factors": (1, 2),
            "exit_width": 8,
        },
    ),
    "convnext": ("convnext_tiny", {"stage_sizes": (1, 1), "width": 8, "layer_scale": 0.5, "num_classes": 10}),
    "ladder_start": ("convnext_ladder00_resnet50", {"stage_sizes": (1, 1), "width": 8, "num_classes": 10}),
    "ladder_inverted": ("convnext_ladder12_fewer_norms", {"stage_sizes": (1, 1), "width": 8, "num_classes": 10}),
    "ladder_end": ("convnext_ladder14_separate_downsampling", {"stage_sizes": (1, 1), "width": 8, "num_classes": 10}),
    "swin": (
        "swin_t",
        {"stage_sizes": (2, 1), "heads": (2, 2), "width": 8, "window": 4, "init": "msra", "num_classes": 10},
    ),
    "lenet": ("lenet5", {"convs": (4, 6), "hidden": (16,), "image_size": 32, "norm": "layer"}),
    "alexnet": (
        "alexnet_original",
        {"stem": (3, 1, 1), "convs": (8, 8, 8, 8, 8), "classifier": (16,), "norm": "layer", "num_classes": 10},
    ),
    "vgg": ("vgg11", {"stage_sizes": (1, 2), "width": 4, "classifier": (16,), "norm": "layer", "num_classes": 10}),
    "airbench": ("airbench94", {"width": 4}),
    "separable": ("mobilenet_v1", {"stage_sizes": (1, 2), "width_multiplier": 0.25, "num_classes": 10}),
    "inverted": ("mobilenet_v2", {"stage_sizes": (1, 2), "width_multiplier": 0.25, "num_classes": 10}),
    "vit": (
        "vit_tiny_patch16",
        {
            "patch_size": 8,
            "depth": 2,
            "width": 16,
            "heads": 2,
            "mlp_width": 24,
            "init": "msra",
            "image_size": 32,
            "num_classes": 10,
        },
    ),
    "vit_c": (
        "vit_c_1gf",
        {
            "stem_channels": (4, 8, 8),
            "patch_size": 4,
            "stem_norm": None,
            "stem_act": None,
            "depth": 1,
            "width": 16,
            "heads": 2,
            "mlp_width": 24,
            "init": "msra",
            "image_size": 32,
            "num_classes": 10,
        },
    ),
}
# For each class of networks one other value for each of its fields, and the kind of SMALL to try it on; each must
# change the parameters' shapes, their values or the output in training. "spy" is replaced by the spy for that field.
PERTURBED = {
    "ResNet": {
        "num_classes": ("basic", 7),
        "norm": ("basic", "group:2"),
        "act": ("basic", "silu"),
        "widths": ("basic", (("stage1/block0/conv1", 5),)),
        "init": ("basic", "xavier_normal"),
        "conv": ("basic", "standardized"),
        "dense": ("basic", "spy"),
        "dtype": ("basic", "bfloat16"),
        "stage_sizes": ("basic", (1, 2)),
        "bottleneck": ("basic", True),
        "stem": ("basic", "imagenet"),
        "width": ("basic", 4),
        "widen": ("basic", 2),
        "groups": ("bottleneck", 2),
        "base_width": ("bottleneck", 32),
        "stride_in": ("bottleneck", "1x1"),
        "shortcut": ("basic", "B"),
        "preact": ("basic", True),
        "zero_gamma": ("basic", True),
        "stochastic_depth": ("basic", 0.5),
        "dropout": ("basic", 0.5),
    },
    "ConvNeXt": {
        "num_classes": ("convnext", 7),
        "norm": ("convnext", "batch"),
        "act": ("convnext", "relu"),
        "widths": ("convnext", (("stage1/block0/expand", 9),)),
        "init": ("convnext", "msra"),
        "conv": ("convnext", "standardized"),
        "dense": ("convnext", "spy"),
        "dtype": ("convnext", "bfloat16"),
        "stage_sizes": ("convnext", (1, 2)),
        "width": ("convnext", 4),
        "kernel_size": ("convnext", 3),
        "layer_scale": ("convnext", 0.1),
        "stochastic_depth": ("convnext", 0.5),
    },
    "Ladder": {
        "num_classes": ("ladder_start", 7),
        "norm": ("ladder_start", "group:2"),
        "act": ("ladder_start", "silu"),
        "widths": ("ladder_start", (("stage1/block0/conv1", 5),)),
        "init": ("ladder_start", "xavier_normal"),
        "conv": ("ladder_start", "standardized"),
        "dense": ("ladder_start", "spy"),
        "dtype": ("ladder_start", "bfloat16"),
        "stage_sizes": ("ladder_start", (1, 2)),
        "patchify": ("ladder_start", True),
        "depthwise": ("ladder_start", True),
        "width": ("ladder_start", 4),
        "inverted": ("ladder_start", True),
        "moved_up": ("ladder_start", True),
        "kernel_size": ("ladder_start", 5),
        "fewer_acts": ("ladder_start", True),
        "fewer_norms": ("ladder_start", True),
        "separate_downsampling": ("ladder_start", True),
        "stochastic_depth": ("ladder_start", 0.5),
    },
    "Swin": {
        "num_classes": ("swin", 7),
        "norm": ("swin", "batch"),
        "act": ("swin", "relu"),
        "widths": ("swin", (("stage1/block0/expand", 9),)),
        "init": ("swin", "xavier_normal"),
        "conv": ("swin", "standardized"),
        "dense": ("swin", "spy"),
        "dtype": ("swin", "bfloat16"),
        "stage_sizes": ("swin", (1, 2)),
        "heads": ("swin", (1, 2)),
        "width": ("swin", 4),
        "patch_size": ("swin", 2),
        "window": ("swin", 2),
        "stochastic_depth": ("swin", 0.5),
    },
    "LeNet": {
        "num_classes": ("lenet", 7),
        "norm": ("lenet", "batch"),
        "act": ("lenet", "silu"),
        "widths": ("lenet", (("conv1", 3),)),
        "init": ("lenet", "xavier_normal"),
        "conv": ("lenet", "standardized"),
        "dense": ("lenet", "spy"),
        "dtype": ("lenet", "bfloat16"),
        "convs": ("lenet", (4,)),
        "hidden": ("lenet", (16, 8)),
    },
    "AlexNet": {
        "num_classes": ("alexnet", 7),
        "norm": ("alexnet", "batch"),
        "act": ("alexnet", "silu"),
        "widths": ("alexnet", (("conv3", 6),)),
        "init": ("alexnet", "xavier_normal"),
        "conv": ("alexnet", "standardized"),
        "dense": ("alexnet", "spy"),
        "dtype": ("alexnet", "bfloat16"),
        "stem": ("alexnet", (5, 1, 2)),
        "convs": ("alexnet", (8, 8, 8, 8, 4)),
        "groups": ("alexnet", 4),
        "local_response": ("alexnet", None),
        "classifier": ("alexnet", (16, 8)),
        "dropout": ("alexnet", 0.2),
    },
    "VGG": {
        "num_classes": ("vgg", 7),
        "norm": ("vgg", "batch"),
        "act": ("vgg", "silu"),
        "widths": ("vgg", (("stage1/conv1", 3),)),
        "init": ("vgg", "xavier_normal"),
        "conv": ("vgg", "standardized"),
        "dense": ("vgg", "spy"),
        "dtype": ("vgg", "bfloat16"),
        "stage_sizes": ("vgg", (1, 1)),
        "width": ("vgg", 2),
        "classifier": ("vgg", (16, 8)),
        "dropout": ("vgg", 0.2),
    },
    "Airbench": {
        "num_classes": ("airbench", 7),
        "norm": ("airbench", "group:2"),
        "act": ("airbench", "silu"),
        "widths": ("airbench", (("stage1/conv1", 3),)),
        "init": ("airbench", "xavier_normal"),
        "conv": ("airbench", "standardized"),
        "dense": ("airbench", "spy"),
        "dtype": ("airbench", "bfloat16"),
        "patch_size": ("airbench", 3),
        "width": ("airbench", 6),
        "scale": ("airbench", 1.0),
    },
    "MobileNetV1": {
        "num_classes": ("separable", 7),
        "norm": ("separable", "group:2"),
        "act": ("separable", "silu"),
        "widths": ("separable", (("stage1/block0/pointwise", 9),)),
        "init": ("separable", "xavier_normal"),
        "conv": ("separable", "standardized"),
        "dense": ("separable", "spy"),
        "dtype": ("separable", "bfloat16"),
        "stage_sizes": ("separable", (1, 1)),
        "width_multiplier": ("separable", 0.5),
        "dropout": ("separable", 0.5),
        "separable": ("separable", False),
    },
    "MobileNetV2": {
        "num_classes": ("inverted", 7),
        "norm": ("inverted", "group:2"),
        "act": ("inverted", "silu"),
        "widths": ("inverted", (("stage2/block0/expand", 9),)),
        "init": ("inverted", "xavier_normal"),
        "conv": ("inverted", "standardized"),
        "dense": ("inverted", "spy"),
        "dtype": ("inverted", "bfloat16"),
        "stage_sizes": ("inverted", (1, 1)),
        "width_multiplier": ("inverted", 0.5),
        "dropout": ("inverted", 0.5),
        "expansion": ("inverted", 3),
        "linear": ("inverted", False),
        "shortcut": ("inverted", False),
    },
    "ViT": {
        "num_classes": ("vit", 7),
        "norm": ("vit", "batch"),
        "act": ("vit", "relu"),
        "init": ("vit", "xavier_normal"),
        "widths": ("vit", (("block0/expand", 9),)),
        "conv": ("vit", "standardized"),
        "dense": ("vit", "spy"),
        "dtype": ("vit", "bfloat16"),
        "patch_size": ("vit", 16),
        "width": ("vit", 8),
        "depth": ("vit", 1),
        "heads": ("vit", 4),
        "mlp_width": ("vit", 16),
        "pool": ("vit", "mean"),
        "positions": ("vit", "sincos2d"),
        "stem_channels": ("vit_c", (4, 8)),
        "stem_norm": ("vit_c", "batch"),
        "stem_act": ("vit_c", "relu"),
        "dropout": ("vit", 0.5),
        "stochastic_depth": ("vit", 0.5),
    },
    "DenseNet": {
        "num_classes": ("dense", 7),
        "norm": ("dense", "group:2"),
        "act": ("dense", "silu"),
        "widths": ("dense", (("stage1/layer0/conv1", 5),)),
        "init": ("dense", "xavier_normal"),
        "conv": ("dense", "standardized"),
        "dense": ("dense", "spy"),
        "dtype": ("dense", "bfloat16"),
        "stage_sizes": ("dense", (1, 2)),
        "growth": ("dense", 2),
        "stem": ("dense", "imagenet"),
        "width": ("dense", 4),
        "bottleneck": ("dense", 0),
        "compression": ("dense", 0.75),
        "dropout": ("dense", 0.5),
    },
    "MSDNet": {
        "num_classes": ("multi_scale", 7),
        "norm": ("multi_scale", "group:1"),
        "act": ("multi_scale", "silu"),
        "widths": ("multi_scale", (("block1/layer0/same1/conv1", 1),)),
        "init": ("multi_scale", "xavier_normal"),
        "conv": ("multi_scale", "standardized"),
        "dense": ("multi_scale", "spy"),
        "dtype": ("multi_scale", "bfloat16"),
        "stem": ("multi_scale", "imagenet"),
        "num_exits": ("multi_scale", 3),
        "base": ("multi_scale", 1),
        "step": ("multi_scale", 2),
        "step_mode": ("multi_scale", "lin_grow"),
        "width": ("multi_scale", 6),
        "growth": ("multi_scale", 4),
        "growth_factors": ("multi_scale", (1, 1)),
        "bottleneck_factors": ("multi_scale", (1, 1)),
        "reduction": ("multi_scale", 0.0),
        "prune": ("multi_scale", "min"),
        "exit_width": ("multi_scale", 0),
    },
}
for _family, _kind, _fields in (  # residual networks with something more; their kinds are of bottlenecks
    ("GatedResNet", "gated", {"stage_sizes": (2,), "shortcut": "A", "target": 1.0, "rates": (0.5, 1), "gate_width": 4}),
    ("BlockDrop", "blockdrop", {"shortcut": "A", "policy_sizes": (1, 2), "policy_width": 8, "policy_pool": 4}),
    ("EarlyExitResNet", "early_exit", {"exits": (1, 2), "exit_width": 0}),
):
    _shared = {field: value for field, (_, value) in PERTURBED["ResNet"].items()}
    PERTURBED[_family] = {field: (_kind, value) for field, value in {**_shared, "bottleneck": False, **_fields}.items()}
# Kernels that start as their paper has it, whatever `init` is: what a gate's logits start from.
OWN_START = re.compile("gate/dense2/kernel")
# Parameters that learn by a task of their own alone: what decides by a threshold has no gradient (test_adaptive_tasks).
NO_GRADIENT = re.compile("policy/")
# Fields that change neither on one device: they act on several devices (test_norm), on memory, on gradients
# (test_gated), or, image_size, only where a family's parameters depend on it.
ELSEWHERE = {"sync_norm", "remat", "temperature", "image_size"}
# Deeper relatives of others in PARAMETERS, which take their time to trace: for `make test-all`.
DEEP = re.compile(
    "101|152|200|201|264|161|1202|1001|164|_bc(250|190)|large|huge|swin_[bl]|(18|36)gf|ladder(0[5-9]|1[0-2])|"
    "msdnet_imagenet_step[67]"
)


def deep_in_full(names):
    """Parameters of a test: the names, those of deep networks marked."""
    return [pytest.param(name, marks=[pytest.mark.full] * bool(DEEP.search(name))) for name in names]
