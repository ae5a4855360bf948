"""Small networks, losses and optimizers that a user might bring, for tests of training."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def plain(classes: int = 4) -> nn.Module:
    """Convolutions without batch norm."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(54, 16),
        nn.Tanh(),
        nn.Linear(16, classes),
    )


def normed(classes: int = 4) -> nn.Module:
    """Batch norm over images and over features; one layer without momentum, one without weights."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, bias=False),
        nn.BatchNorm2d(6, momentum=None, affine=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 8),
        nn.BatchNorm1d(8),
        nn.Linear(8, classes),
    )


class Branches(nn.Module):  # type: ignore[misc]  # torch's types are not looked at
    """One layer that is never used, and one that only some images reach."""

    def __init__(self, classes: int = 4, limit: float = 0.0) -> None:
        super().__init__()
        self.never = nn.Linear(3, 5)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, classes))
        self.seldom = nn.Linear(3, classes)
        self.limit = limit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        bright = x.mean((1, 2, 3)) > self.limit
        if bright.any():
            y = y + torch.where(bright[:, None], self.seldom(x.mean((2, 3))), 0.0)
        return y


def branches(classes: int = 4, limit: float = 0.25) -> nn.Module:
    """Unused parameters."""
    return Branches(classes, limit)


def dropped(classes: int = 4) -> nn.Module:
    """Dropout."""
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 24), nn.ReLU(), nn.Dropout(0.5), nn.Linear(24, classes))


class Broken(nn.Module):  # type: ignore[misc]
    """Raises in forward, with a number from its input in the text."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError(f"the first pixel is {float(x.flatten()[0])}")  # BROKEN


def broken() -> nn.Module:
    """A model that fails once it is used."""
    return Broken()


def raising() -> nn.Module:
    """A factory that fails."""
    raise KeyError("width")  # RAISING


def nothing() -> str:
    """A factory that makes no module."""
    return "model"


def squared(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A loss of one's own: mean squared distance to one-hot labels."""
    target = nn.functional.one_hot(labels, outputs.shape[1]).float()
    return ((outputs - target) ** 2).sum(1).mean()


def two_speeds(parameters: list[Any], lr: float) -> torch.optim.Optimizer:
    """An optimizer of one's own, whose first parameter learns at a tenth."""
    return torch.optim.SGD([{"params": parameters[:1], "lr": lr / 10}, {"params": parameters[1:]}], lr=lr, momentum=0.5)
