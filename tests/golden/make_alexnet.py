"""Records torchvision's AlexNet, and the original's layers in PyTorch, in alexnet.npz; see parity.py."""

from tests.golden.parity import Case, record

if __name__ == "__main__":
    from collections import OrderedDict

    import torchvision.models as tv
    from torch.nn import (
        AdaptiveAvgPool2d,
        Conv2d,
        Dropout,
        Flatten,
        Linear,
        LocalResponseNorm,
        MaxPool2d,
        ReLU,
        Sequential,
    )

    def original(hidden=4096, num_classes=1000, alpha=1e-4):
        """Returns the network of Krizhevsky 2012, with Caffe's names.

        The adaptive pooling is the identity at the paper's 227 x 227.
        """
        layers = OrderedDict()
        for i, conv in enumerate(
            (
                Conv2d(3, 96, 11, 4),
                Conv2d(96, 256, 5, padding=2, groups=2),
                Conv2d(256, 384, 3, padding=1),
                Conv2d(384, 384, 3, padding=1, groups=2),
                Conv2d(384, 256, 3, padding=1, groups=2),
            ),
            1,
        ):
            layers |= {f"conv{i}": conv, f"relu{i}": ReLU()}
            if i <= 2:  # PyTorch divides alpha by the size
                layers[f"norm{i}"] = LocalResponseNorm(5, alpha=5 * alpha, beta=0.75, k=2.0)
            if i in (1, 2, 5):
                layers[f"pool{i}"] = MaxPool2d(3, 2)
        return Sequential(
            layers
            | OrderedDict(
                resize=AdaptiveAvgPool2d(6),
                flat=Flatten(),
                fc6=Linear(9216, hidden),
                relu6=ReLU(),
                drop6=Dropout(),
                fc7=Linear(hidden, hidden),
                relu7=ReLU(),
                drop7=Dropout(),
                fc8=Linear(hidden, num_classes),
            )
        )

    def torchvision():
        net = tv.alexnet(num_classes=10)
        net.classifier = Sequential(
            Dropout(), Linear(9216, 32), ReLU(), Dropout(), Linear(32, 32), ReLU(), Linear(32, 10)
        )
        return net

    small = {"num_classes": 10, "classifier": (32, 32)}
    strong = 0.3  # the paper's alpha barely affects the logits: squares of drawn activations are about one
    record(
        "alexnet",
        {
            "original": Case("alexnet_original", small, "caffe", lambda: original(32, 10), [(2, 227, 227, 3)]),
            "response": Case(
                "alexnet_original",
                {**small, "local_response": (5, 2.0, strong)},
                "caffe",
                lambda: original(32, 10, strong),
                [(2, 99, 80, 3)],
            ),
            "torchvision": Case("alexnet", small, "torchvision", torchvision),
        },
        {"alexnet_original": ("caffe", original), "alexnet": ("torchvision", tv.alexnet)},
    )
