"""Records LeNets, written as in Caffe's prototxts, in lenet.npz; see parity.py."""

from tests.golden.parity import Case, record

if __name__ == "__main__":
    from collections import OrderedDict

    from torch.nn import Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential

    def lenet_300_100():
        return Sequential(
            OrderedDict(
                flat=Flatten(),
                ip1=Linear(784, 300),
                relu1=ReLU(),
                ip2=Linear(300, 100),
                relu2=ReLU(),
                ip3=Linear(100, 10),
            )
        )

    def lenet5():
        return Sequential(
            OrderedDict(
                conv1=Conv2d(1, 20, 5),
                pool1=MaxPool2d(2),
                conv2=Conv2d(20, 50, 5),
                pool2=MaxPool2d(2),
                flat=Flatten(),
                ip1=Linear(800, 500),
                relu1=ReLU(),
                ip2=Linear(500, 10),
            )
        )

    makers = {"lenet_300_100": lenet_300_100, "lenet5": lenet5}
    record(
        "lenet",
        {name: Case(name, {}, "caffe", maker, [(2, 28, 28, 1)]) for name, maker in makers.items()},
        {name: ("caffe", maker) for name, maker in makers.items()},
    )
