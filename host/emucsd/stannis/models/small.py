"""A network for tests, demonstrations and the emulated Cortex-A53."""

from __future__ import annotations

from torch import nn

from emucsd.stannis.models.layers import Classifier, start


def small(num_classes: int = 10, *, channels: int = 16) -> nn.Module:
    """Three 3x3 convolutions: 24 k parameters with 10 classes. Made for 32x32, works from 8x8 on.

    No batch norm and no dropout: n ranks compute what one process does on all their samples, up to the order of FP32
    additions.
    """
    layers: list[nn.Module] = []
    inputs = 3
    for step in range(3):
        outputs = channels << step
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
        layers += [nn.MaxPool2d(2)] if step < 2 else []
        inputs = outputs
    model = Classifier(nn.Sequential(*layers), inputs, num_classes)
    start(model)
    return model
