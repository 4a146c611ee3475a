"""The corruptions of CIFAR-10-C and ImageNet-C, made on the fly."""
