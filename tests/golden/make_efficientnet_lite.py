"""Records timm's EfficientNet-Lite, and its MobileNets with TensorFlow's padding, in efficientnet_lite.npz.

See parity.py. It also records the parameters and mult-adds of timm's networks, as [image size, parameters, mult-adds].
"""

import functools

from tests.golden.parity import Case, record

WIDTHS = {"num_classes": 10, "width_multiplier": 0.25}
ODD = ((2, 64, 64, 3), (2, 75, 50, 3))  # sizes with equal and unequal padding, and odd ones


def costs(constructor, size):
    """Returns the parameters of a network and its mult-adds of convolutions and dense layers."""
    import torch

    network, counts = constructor().eval(), []

    def count(layer, inputs, output):
        each = output[0].numel() if isinstance(layer, torch.nn.Linear) else output.shape[2] * output.shape[3]
        counts.append(layer.weight.numel() * each // (output.shape[1] if isinstance(layer, torch.nn.Linear) else 1))

    for layer in network.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            layer.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, 3, size, size))
    return [size, sum(parameter.numel() for parameter in network.parameters()), sum(counts)]


if __name__ == "__main__":
    import timm
    from timm.models import efficientnet

    def lite(width, **kwargs):
        options = {"bn_eps": 1e-3, "pad_type": "same", "num_classes": 10, **kwargs}
        return efficientnet._gen_efficientnet_lite("tf_efficientnet_lite0", width, depth_multiplier=0.5, **options)

    # depth_multiplier halves all stages but the first and the last, rounded up
    shallow = {**WIDTHS, "stage_sizes": (1, 1, 1, 2, 2, 2, 1), "dropout": 0.0}
    tf = {"padding": "tf", "norm_epsilon": 1e-3}
    networks = {
        f"efficientnet_lite{i}": functools.partial(timm.create_model, f"tf_efficientnet_lite{i}") for i in range(5)
    }
    sizes = {"efficientnet_lite3": (280, 300), "efficientnet_lite4": (300, 380)}
    record(
        "efficientnet_lite",
        {
            "lite": Case("efficientnet_lite0", shallow, "timm", lambda: lite(0.25), ODD),
            "symmetric": Case(
                "efficientnet_lite0",
                {**shallow, "padding": "symmetric", "norm_epsilon": None},
                "timm",
                lambda: lite(0.25, bn_eps=None, pad_type=""),
                ODD[1:],
            ),
            "v1_tf": Case(
                "mobilenet_v1_025",
                {"num_classes": 10, **tf},
                "timm",
                lambda: efficientnet._gen_mobilenet_v1(
                    "mobilenetv1_100", 0.25, num_classes=10, pad_type="same", bn_eps=1e-3
                ),
                ODD,
            ),
            "v2_tf": Case(
                "mobilenet_v2_050",
                {"num_classes": 10, "stage_sizes": (1,) * 7, "dropout": 0.0, **tf},
                "timm",
                lambda: efficientnet._gen_mobilenet_v2(
                    "mobilenetv2_100", 0.5, num_classes=10, depth_multiplier=0.1, pad_type="same", bn_eps=1e-3
                ),
                ODD,
            ),
        },
        {name: ("timm", constructor) for name, constructor in networks.items()},
        costs={
            name: [costs(networks[name], size) for size in sizes.get(name, ({0: 224, 1: 240, 2: 260}.get(i, 0),))]
            for i, name in enumerate(networks)
        },
    )
