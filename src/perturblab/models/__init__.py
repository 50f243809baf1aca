"""The networks, by name. Adding one is a file, a line here and a test."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from perturblab.models.resnet import RESNET18, ResNet, cifar_stages
from perturblab.models.small import CNN2, SmallNet
from perturblab.models.vgg import LAYOUTS, VGG
from perturblab.sites import SteppedModel

MODELS: dict[str, Callable[..., SteppedModel]] = {
    **{arch: partial(VGG, arch) for arch in LAYOUTS},
    "resnet20": partial(ResNet, cifar_stages(20)),
    "resnet32": partial(ResNet, cifar_stages(32)),
    "resnet44": partial(ResNet, cifar_stages(44)),
    "resnet56": partial(ResNet, cifar_stages(56)),
    "resnet18": partial(ResNet, RESNET18, projection=True, pooled=True),
    "baby_cnn": partial(SmallNet, (8,), ()),
    "tiny_cnn": partial(SmallNet, (32, 64), (128,)),
    "simple_cnn": partial(SmallNet, (256, 512, 512), (2048, 1024, 512)),
    "cnn2": CNN2,
    "mlp": partial(SmallNet, (), (512, 512)),
}
"""name -> builder(classes=, channels=, width=, size=); those of VGG also take head=, dropout=, batchnorm="""

__all__ = ["MODELS", "VGG"]
