"""Inception v3: Szegedy et al. 2015 (arXiv 1512.00567), without the auxiliary classifier.

Block names are those of the figures: the widths, which the paper leaves out, are those of its authors' release.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from emucsd.stannis.models.layers import Classifier, convolution


def _convolution(inputs: int, outputs: int, kernel: int | tuple[int, int], **words: Any) -> nn.Sequential:
    return convolution(inputs, outputs, kernel, eps=0.001, **words)


class Branches(nn.Module):  # type: ignore[misc]  # torch's types are not looked at
    """Several ways from one input, their outputs side by side."""

    def __init__(self, *ways: nn.Module) -> None:
        super().__init__()
        self.ways = nn.ModuleList(ways)

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        """f32 [n, inputs, H, W] -> [n, sum of the ways' channels, ...]."""
        return torch.cat([way(planes) for way in self.ways], 1)


def _chain(inputs: int, *steps: Any) -> nn.Sequential:
    """Convolutions one after another. :param steps: (outputs, kernel) or (outputs, kernel, words)"""
    layers = []
    for outputs, kernel, *words in steps:
        layers.append(_convolution(inputs, outputs, kernel, **(words[0] if words else {})))
        inputs = outputs
    return nn.Sequential(*layers)


def _pooled(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), _convolution(inputs, outputs, 1))


_HALF = {"stride": 2, "padding": 0}


def _figure5(inputs: int, pooled: int) -> nn.Module:
    """At 35x35: a 5x5 beside two 3x3 in a row."""
    return Branches(
        _chain(inputs, (64, 1)),
        _chain(inputs, (48, 1), (64, 5)),
        _chain(inputs, (64, 1), (96, 3), (96, 3)),
        _pooled(inputs, pooled),
    )


def _to_17(inputs: int) -> nn.Module:
    return Branches(
        _chain(inputs, (384, 3, _HALF)), _chain(inputs, (64, 1), (96, 3), (96, 3, _HALF)), nn.MaxPool2d(3, stride=2)
    )


def _figure6(inputs: int, width: int) -> nn.Module:
    """At 17x17: 7x7 as 1x7 and 7x1."""
    return Branches(
        _chain(inputs, (192, 1)),
        _chain(inputs, (width, 1), (width, (1, 7)), (192, (7, 1))),
        _chain(inputs, (width, 1), (width, (7, 1)), (width, (1, 7)), (width, (7, 1)), (192, (1, 7))),
        _pooled(inputs, 192),
    )


def _to_8(inputs: int) -> nn.Module:
    return Branches(
        _chain(inputs, (192, 1), (320, 3, _HALF)),
        _chain(inputs, (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, _HALF)),
        nn.MaxPool2d(3, stride=2),
    )


def _figure7(inputs: int) -> nn.Module:
    """At 8x8: 1x3 and 3x1 side by side."""

    def fork() -> nn.Module:
        return Branches(_convolution(384, 384, (1, 3)), _convolution(384, 384, (3, 1)))

    return Branches(
        _chain(inputs, (320, 1)),
        nn.Sequential(_chain(inputs, (384, 1)), fork()),
        nn.Sequential(_chain(inputs, (448, 1), (384, 3)), fork()),
        _pooled(inputs, 192),
    )


def inception_v3(num_classes: int = 1000) -> nn.Module:
    """Inception v3: 23,834,568 parameters with 1000 classes. Made for 299x299, works from 75x75 on.

    Without the auxiliary classifier, which has 3.3 M more, helps nothing early in training (section 4) and would make
    the output of training another one than that of evaluation.
    """
    stem = [
        _convolution(3, 32, 3, **_HALF), _convolution(32, 32, 3, padding=0), _convolution(32, 64, 3),
        nn.MaxPool2d(3, stride=2),
        _convolution(64, 80, 1), _convolution(80, 192, 3, padding=0),
        nn.MaxPool2d(3, stride=2),
    ]  # fmt: skip
    blocks = [
        _figure5(192, 32), _figure5(256, 64), _figure5(288, 64), _to_17(288),
        _figure6(768, 128), _figure6(768, 160), _figure6(768, 160), _figure6(768, 192), _to_8(768),
        _figure7(1280), _figure7(2048),
    ]  # fmt: skip
    model = Classifier(nn.Sequential(*stem, *blocks), 2048, num_classes, dropout=0.5)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.1)
    nn.init.zeros_(model.classifier.bias)
    return model
