"""What several networks are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def convolution(
    inputs: int,
    outputs: int,
    kernel: int | tuple[int, int],
    *,
    stride: int = 1,
    padding: int | tuple[int, int] | None = None,
    groups: int = 1,
    eps: float = 1e-5,
    activation: Callable[..., Any] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution without bias, batch norm, activation.

    :param padding: default: what keeps the size at stride 1
    :param activation: makes the last layer; None: none
    """
    if padding is None:
        padding = (kernel // 2) if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=eps),
    ]
    return nn.Sequential(*layers, *([] if activation is None else [activation(inplace=True)]))


def depthwise_separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """MobileNet's block: 3x3 in each channel, then 1x1 over all of them (Howard et al. 2017, section 3.1)."""
    return nn.Sequential(convolution(inputs, inputs, 3, stride=stride, groups=inputs), convolution(inputs, outputs, 1))


def start(model: nn.Module, mode: str = "fan_out") -> None:
    """First values: He et al. 2015 for convolutions, N(0, 0.01) for linear layers, 1 and 0 for batch norm.

    :param mode: over which fan a convolution's variance is taken, ``fan_in`` or ``fan_out``
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d) and module.bias is not None:
            nn.init.zeros_(module.bias)


class Classifier(nn.Module):  # type: ignore[misc]  # torch's types are not looked at
    """Features, the mean over each channel's plane, dropout, one linear layer.

    Takes f32 [n, 3, H, W], gives f32 [n, num_classes].
    """

    def __init__(self, features: nn.Module, channels: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.features = features
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores of each class, before softmax."""
        return self.classifier(self.dropout(self.features(images).mean((2, 3))))
