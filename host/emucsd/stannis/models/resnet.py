"""ResNet: He et al. 2015 (arXiv 1512.03385), with the bottleneck's stride in its 3x3 as torchvision has it ("v1.5")."""

from __future__ import annotations

import torch
from torch import nn

from emucsd.stannis.models.layers import Classifier, convolution, start


class Residual(nn.Module):  # type: ignore[misc]  # torch's types are not looked at
    """relu(layers(x) + shortcut(x)); the shortcut is a 1x1 convolution where shapes differ (option B)."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = width * 4 if bottleneck else width
        if bottleneck:
            layers = [convolution(inputs, width, 1), convolution(width, width, 3, stride=stride),
                      convolution(width, outputs, 1, activation=None)]  # fmt: skip
        else:
            layers = [convolution(inputs, width, 3, stride=stride), convolution(width, outputs, 3, activation=None)]
        self.layers = nn.Sequential(*layers)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else convolution(inputs, outputs, 1, stride=stride, activation=None)

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        """f32 [n, inputs, H, W] -> [n, outputs, H / stride, W / stride]."""
        return torch.relu_(self.layers(planes) + self.shortcut(planes))


def _resnet(blocks: tuple[int, ...], bottleneck: bool, num_classes: int, small_input: bool, zero: bool) -> nn.Module:
    layers: list[nn.Module] = [convolution(3, 64, 3) if small_input else convolution(3, 64, 7, stride=2)]
    if not small_input:
        layers.append(nn.MaxPool2d(3, stride=2, padding=1))
    channels = 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        for block in range(count):
            layers.append(Residual(channels, width, 2 if stage and not block else 1, bottleneck))
            channels = width * 4 if bottleneck else width
    model = Classifier(nn.Sequential(*layers), channels, num_classes)
    start(model)
    for module in model.modules() if zero else ():
        if isinstance(module, Residual):
            nn.init.zeros_(module.layers[-1][1].weight)
    return model


def resnet18(num_classes: int = 1000, *, small_input: bool = False, zero_init_residual: bool = False) -> nn.Module:
    """ResNet-18: 11,689,512 parameters with 1000 classes. Made for 224x224, works from 32x32 on.

    :param small_input: a 3x3 convolution without halving first, and no pooling, as for CIFAR (section 4.2)
    :param zero_init_residual: each block starts as its shortcut: Goyal et al. 2017, section 5.1, for large batches
    """
    return _resnet((2, 2, 2, 2), False, num_classes, small_input, zero_init_residual)


def resnet34(num_classes: int = 1000, *, small_input: bool = False, zero_init_residual: bool = False) -> nn.Module:
    """ResNet-34: 21,797,672 parameters with 1000 classes; the rest as ``resnet18``."""
    return _resnet((3, 4, 6, 3), False, num_classes, small_input, zero_init_residual)


def resnet50(num_classes: int = 1000, *, small_input: bool = False, zero_init_residual: bool = False) -> nn.Module:
    """ResNet-50: 25,557,032 parameters with 1000 classes; the rest as ``resnet18``."""
    return _resnet((3, 4, 6, 3), True, num_classes, small_input, zero_init_residual)
