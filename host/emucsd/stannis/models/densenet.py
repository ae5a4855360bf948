"""DenseNet: Huang et al. 2016 (arXiv 1608.06993), DenseNet-BC with growth 32."""

from __future__ import annotations

import torch
from torch import nn

from emucsd.stannis.models.layers import Classifier, convolution, start

GROWTH = 32


def _before(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Batch norm and ReLU before the convolution (section 3: "pre-activation")."""
    return nn.Sequential(
        nn.BatchNorm2d(inputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
    )


class Dense(nn.Module):  # type: ignore[misc]  # torch's types are not looked at
    """What came in, and GROWTH channels more that were made of all of it."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(_before(inputs, 4 * GROWTH, 1), _before(4 * GROWTH, GROWTH, 3))

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        """f32 [n, inputs, H, W] -> [n, inputs + GROWTH, H, W]."""
        return torch.cat([planes, self.layers(planes)], 1)


def densenet121(num_classes: int = 1000) -> nn.Module:
    """DenseNet-121: 7,978,856 parameters with 1000 classes. Made for 224x224, works from 32x32 on (one pixel).

    Few parameters, many kept activations: each layer's input is a tensor of its own.
    """
    layers: list[nn.Module] = [convolution(3, 64, 7, stride=2), nn.MaxPool2d(3, stride=2, padding=1)]
    channels = 64
    for count in (6, 12, 24, 16):
        if channels > 64:
            layers += [_before(channels, channels // 2, 1), nn.AvgPool2d(2)]
            channels //= 2
        for _ in range(count):
            layers.append(Dense(channels))
            channels += GROWTH
    layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    model = Classifier(nn.Sequential(*layers), channels, num_classes)
    start(model, mode="fan_in")
    return model
