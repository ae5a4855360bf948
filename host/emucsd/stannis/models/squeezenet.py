"""SqueezeNet: Iandola et al. 2016 (arXiv 1602.07360), version 1.0."""

from __future__ import annotations

import torch
from torch import nn

# Table 1: 1x1 filters that squeeze, 1x1 and 3x3 filters that expand (each); None: max pooling
_MODULES = [(16, 64), (16, 64), (32, 128), None, (32, 128), (48, 192), (48, 192), (64, 256), None, (64, 256)]


class Fire(nn.Module):  # type: ignore[misc]  # torch's types are not looked at
    """1x1 to few channels, then 1x1 and 3x3 side by side to many (section 3.2)."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(nn.Conv2d(inputs, squeezed, 1), nn.ReLU(inplace=True))
        self.expand1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        """f32 [n, inputs, H, W] -> [n, 2 x expanded, H, W]."""
        planes = self.squeeze(planes)
        return torch.relu_(torch.cat([self.expand1(planes), self.expand3(planes)], 1))


class SqueezeNet(nn.Module):  # type: ignore[misc]  # torch's types are not looked at
    """Its classes are the channels of the last convolution, each averaged over its plane."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 96, 7, stride=2), nn.ReLU(inplace=True), _pool()]
        channels = 96
        for sizes in _MODULES:
            if sizes is None:
                layers.append(_pool())
                continue
            layers.append(Fire(channels, *sizes))
            channels = 2 * sizes[1]
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.classifier.weight, 0.0, 0.01)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """f32 [n, 3, H, W] -> scores f32 [n, num_classes]."""
        return torch.relu(self.classifier(self.dropout(self.features(images)))).mean((2, 3))


def _pool() -> nn.Module:
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)


def squeezenet1_0(num_classes: int = 1000) -> nn.Module:
    """SqueezeNet 1.0: 1,248,424 parameters with 1000 classes. Made for 224x224, works from 32x32 on (one pixel).

    No batch norm. As in the paper a ReLU follows the last convolution: with a learning rate that is too high, all
    scores can stay at zero.
    """
    return SqueezeNet(num_classes)
