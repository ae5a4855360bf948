"""NASNet-A (4 @ 1056), "mobile": Zoph et al. 2017 (arXiv 1707.07012), cells as in figure 4 and appendix A."""

from __future__ import annotations

import torch
from torch import nn

from emucsd.stannis.models.layers import start

_EPS = 0.001


class Separable(nn.Sequential):  # type: ignore[misc]  # torch's types are not looked at
    """ReLU, depthwise and 1x1 convolution, batch norm; twice, as everywhere in NASNet (appendix A.4)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        layers: list[nn.Module] = []
        for channels, step in ((inputs, stride), (outputs, 1)):
            layers += [
                nn.ReLU(),
                nn.Conv2d(channels, channels, kernel, stride=step, padding=kernel // 2, groups=channels, bias=False),
                nn.Conv2d(channels, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs, eps=_EPS),
            ]
        super().__init__(*layers)


def _squeeze(inputs: int, outputs: int) -> nn.Sequential:
    """ReLU, 1x1 convolution, batch norm."""
    return nn.Sequential(nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs, eps=_EPS))


class Halved(nn.Module):  # type: ignore[misc]  # torch's types are not looked at
    """Half the size: every second pixel, and every second one between those, each to half of the channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(inputs, outputs // 2, 1, bias=False)
        self.odd = nn.Conv2d(inputs, outputs - outputs // 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=_EPS)

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        """f32 [n, inputs, H, W] -> [n, outputs, H / 2, W / 2], halves rounded up."""
        planes = torch.relu(planes)
        shifted = nn.functional.pad(planes, (0, 1, 0, 1))[:, :, 1:, 1:]
        return self.norm(torch.cat([self.even(planes[:, :, ::2, ::2]), self.odd(shifted[:, :, ::2, ::2])], 1))


class Cell(nn.Module):  # type: ignore[misc]  # torch's types are not looked at
    """A cell takes the outputs of the two cells before it, both brought to ``width`` channels first.

    :param inputs: channels of the output of the cell before
    :param before: channels of the output of the one before that
    :param halve: that one has twice the size
    :param adjust: False in the first cell, which takes the stem's convolution for both and leaves the second as it is
    """

    def __init__(self, inputs: int, before: int, width: int, *, halve: bool = False, adjust: bool = True) -> None:
        super().__init__()
        self.squeeze = _squeeze(inputs, width)
        self.adjust: nn.Module = nn.Identity()
        if halve:
            self.adjust = Halved(before, width)
        elif adjust and before != width:
            self.adjust = _squeeze(before, width)
        self.outputs = width


class Normal(Cell):
    """Keeps the size; 6 x width channels."""

    def __init__(self, inputs: int, before: int, width: int, *, halve: bool = False) -> None:
        super().__init__(inputs, before, width, halve=halve)
        self.outputs = 6 * width
        self.here5, self.here3 = Separable(width, width, 5), Separable(width, width, 3)
        self.before5, self.before3 = Separable(width, width, 5), Separable(width, width, 3)
        self.before3_again = Separable(width, width, 3)
        self.average = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)

    def forward(self, planes: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """f32 [n, inputs, H, W], [n, before, ...] -> [n, 6 x width, H, W]."""
        here, before = self.squeeze(planes), self.adjust(before)
        parts = [
            before,
            self.here5(here) + self.before3(before),
            self.before5(before) + self.before3_again(before),
            self.average(here) + before,
            self.average(before) * 2,
            self.here3(here) + here,
        ]
        return torch.cat(parts, 1)


class Reduction(Cell):
    """Halves the size; 4 x width channels."""

    def __init__(self, inputs: int, before: int, width: int, *, halve: bool = False, adjust: bool = True) -> None:
        super().__init__(inputs, before, width, halve=halve, adjust=adjust)
        self.outputs = 4 * width
        adjusted = width if adjust else before
        self.here5 = Separable(width, width, 5, stride=2)
        self.before7, self.before7_again = (Separable(adjusted, width, 7, stride=2) for _ in range(2))
        self.before5 = Separable(adjusted, width, 5, stride=2)
        self.made3 = Separable(width, width, 3)
        self.largest = nn.MaxPool2d(3, stride=2, padding=1)
        self.average = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
        self.average_made = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)

    def forward(self, planes: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """f32 [n, inputs, H, W], [n, before, ...] -> [n, 4 x width, H / 2, W / 2]."""
        here, before = self.squeeze(planes), self.adjust(before)
        first = self.here5(here) + self.before7(before)
        largest = self.largest(here)
        second = largest + self.before7_again(before)
        third = self.average(here) + self.before5(before)
        return torch.cat([second, third, self.average_made(first) + second, self.made3(first) + largest], 1)


class NASNet(nn.Module):  # type: ignore[misc]  # torch's types are not looked at
    """A convolution and two reduction cells; then three times N normal cells, a reduction cell between."""

    def __init__(self, num_classes: int, cells: int, width: int, stem: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 3, stride=2, bias=False), nn.BatchNorm2d(stem, eps=_EPS))
        first = Reduction(stem, stem, width // 4, adjust=False)
        made: list[Cell] = [first, Reduction(first.outputs, stem, width // 2, halve=True)]
        for part in range(3):
            if part:
                made.append(Reduction(made[-1].outputs, made[-2].outputs, width << part))
            for cell in range(cells):  # the first one's second input is from before the reduction
                made.append(Normal(made[-1].outputs, made[-2].outputs, width << part, halve=cell == 0))
        self.cells = nn.ModuleList(made)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(made[-1].outputs, num_classes)
        start(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """f32 [n, 3, H, W] -> scores f32 [n, num_classes]."""
        before = planes = self.stem(images)
        for cell in self.cells:
            planes, before = cell(planes, before), planes
        return self.classifier(self.dropout(torch.relu(planes).mean((2, 3))))


def nasnet_a_mobile(num_classes: int = 1000) -> nn.Module:
    """NASNet-A mobile: 5,289,978 parameters with 1000 classes. Made for 224x224, works from 32x32 on (one pixel).

    Without the auxiliary classifier and without drop path, which the paper's ImageNet training has.
    """
    return NASNet(num_classes, cells=4, width=44, stem=32)
