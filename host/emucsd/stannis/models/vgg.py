"""VGG: Simonyan and Zisserman 2014 (arXiv 1409.1556), configurations A, B and D; batch norm as in torchvision."""

from __future__ import annotations

import torch
from torch import nn

from emucsd.stannis.models.layers import start

# Convolutions in each of the five stages (table 1); their channels
_CONVOLUTIONS = {"A": (1, 1, 2, 2, 2), "B": (2, 2, 2, 2, 2), "D": (2, 2, 3, 3, 3)}
_CHANNELS = (64, 128, 256, 512, 512)


class VGG(nn.Module):  # type: ignore[misc]  # torch's types are not looked at
    """3x3 convolutions and max pooling, then three linear layers over 7x7 averages."""

    def __init__(self, configuration: str, num_classes: int, batch_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for count, channels in zip(_CONVOLUTIONS[configuration], _CHANNELS, strict=True):
            for _ in range(count):
                layers.append(nn.Conv2d(inputs, channels, 3, padding=1))
                layers += [nn.BatchNorm2d(channels)] if batch_norm else []
                layers.append(nn.ReLU(inplace=True))
                inputs = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096), nn.ReLU(inplace=True), nn.Dropout(),
            nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(),
            nn.Linear(4096, num_classes),
        )  # fmt: skip
        start(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """f32 [n, 3, H, W] -> scores f32 [n, num_classes]."""
        return self.classifier(self.pool(self.features(images)).flatten(1))


def vgg11(num_classes: int = 1000) -> nn.Module:
    """VGG A: 132,863,336 parameters with 1000 classes. Made for 224x224, works from 32x32 on.

    124 M of them are the linear layers', whatever the image's size; no batch norm.
    """
    return VGG("A", num_classes, batch_norm=False)


def vgg11_bn(num_classes: int = 1000) -> nn.Module:
    """VGG A with batch norm: 132,868,840 parameters; the rest as ``vgg11``."""
    return VGG("A", num_classes, batch_norm=True)


def vgg13(num_classes: int = 1000) -> nn.Module:
    """VGG B: 133,047,848 parameters; the rest as ``vgg11``."""
    return VGG("B", num_classes, batch_norm=False)


def vgg13_bn(num_classes: int = 1000) -> nn.Module:
    """VGG B with batch norm: 133,053,736 parameters; the rest as ``vgg11``."""
    return VGG("B", num_classes, batch_norm=True)


def vgg16(num_classes: int = 1000) -> nn.Module:
    """VGG D: 138,357,544 parameters; the rest as ``vgg11``."""
    return VGG("D", num_classes, batch_norm=False)


def vgg16_bn(num_classes: int = 1000) -> nn.Module:
    """VGG D with batch norm: 138,365,992 parameters; the rest as ``vgg11``."""
    return VGG("D", num_classes, batch_norm=True)
