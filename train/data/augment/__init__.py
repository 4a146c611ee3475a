"""Augmentation, inside the compiled step, from one line of a config: "crop(4)|flip|cutout(8)".

Operations are joined by "|" and applied from left to right. Each has its own random key for each example, derived from
the example's position in the global batch, so that results do not depend on how a batch is split over devices.

    crop(pad, mode="zero")       pads, then crops at random to the old size (He 2016, section 4.2); or mode="reflect"
    flip(p=0.5)                  mirrors left to right
    alternate_flip               mirrors each example in every second epoch, where "mirrored" of the batch is True
    cutout(size)                 a square of the mean color around a uniform pixel, cut at the border (DeVries 2017)
    erase(p=0.5)                 a random rectangle of noise (Zhong 2020, "random erasing"; area 2-40%, aspect 0.3-3.3)
    randaugment(ops, magnitude)  Cubuk 2020; operations and magnitudes 0..30 as in torchvision
    randaugment_timm(magnitude, std=0.5, ops=2, p=0.5)    timm's RandAugment rand-mM-mstdS-inc1, magnitudes 0..10
    autoaugment(policy)          Cubuk 2019; the policies imagenet, cifar10 and svhn, as in torchvision
    trivialaugment               Müller 2021; one operation of random magnitude, as torchvision's TrivialAugmentWide
    augmix(severity=3, width=3, depth=-1, alpha=1.0)    Hendrycks 2020, as in torchvision; without its consistency loss
    jitter(b, c=0, s=0, h=0)     brightness, contrast, saturation, hue, in random order, as torchvision's ColorJitter
    grayscale(p=0.1)             three channels of luma
    mixup(a), cutmix(a), mixup_cutmix(a, b)    once, at the end (mixers.py); "image" becomes float, "target" is added
"""
