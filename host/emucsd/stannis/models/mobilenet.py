"""MobileNet: Howard et al. 2017 (arXiv 1704.04861); MobileNetV2: Sandler et al. 2018 (arXiv 1801.04381)."""

from __future__ import annotations

import torch
from torch import nn

from emucsd.stannis.models.layers import Classifier, convolution, depthwise_separable, start

# Table 2 of MobileNetV2: expansion, channels, blocks, stride of the first
_STAGES = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
# Table 1 of MobileNet: channels and stride of each separable convolution
_SEPARABLE = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]


def divisible(channels: float, by: int = 8) -> int:
    """The nearest multiple of ``by`` that is not 10 % less."""
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * channels else rounded


class InvertedResidual(nn.Module):  # type: ignore[misc]  # torch's types are not looked at
    """Wider by 1x1, 3x3 in each channel, narrower by 1x1 without activation; a shortcut where shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        self.layers = nn.Sequential(
            *([] if expansion == 1 else [convolution(inputs, inner, 1, activation=nn.ReLU6)]),
            convolution(inner, inner, 3, stride=stride, groups=inner, activation=nn.ReLU6),
            convolution(inner, outputs, 1, activation=None),
        )

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        """f32 [n, inputs, H, W] -> [n, outputs, H / stride, W / stride]."""
        made = self.layers(planes)
        return planes + made if self.shortcut else made


def mobilenet_v2(num_classes: int = 1000, *, width: float = 1.0, small_input: bool = False) -> nn.Module:
    """MobileNetV2: 3,504,872 parameters with 1000 classes. Made for 224x224, works from 32x32 on.

    :param width: multiplier of all channels
    :param small_input: the first two halvings are left out, so that 32x32 ends at 4x4 rather than at one pixel
    """
    channels = divisible(32 * width)
    layers: list[nn.Module] = [convolution(3, channels, 3, stride=1 if small_input else 2, activation=nn.ReLU6)]
    for stage, (expansion, outputs, blocks, stride) in enumerate(_STAGES):
        outputs = divisible(outputs * width)
        for block in range(blocks):
            halves = stride if block == 0 and not (small_input and stage == 1) else 1
            layers.append(InvertedResidual(channels, outputs, halves, expansion))
            channels = outputs
    last = divisible(1280 * max(1.0, width))
    layers.append(convolution(channels, last, 1, activation=nn.ReLU6))
    model = Classifier(nn.Sequential(*layers), last, num_classes, dropout=0.2)
    start(model)
    return model


def mobilenet_v1(num_classes: int = 1000) -> nn.Module:
    """MobileNet: 4,231,976 parameters with 1000 classes. Made for 224x224, works from 32x32 on."""
    channels, layers = 32, [convolution(3, 32, 3, stride=2)]
    for outputs, stride in _SEPARABLE:
        layers.append(depthwise_separable(channels, outputs, stride))
        channels = outputs
    model = Classifier(nn.Sequential(*layers), channels, num_classes)
    start(model)
    return model
