"""Errors of training on one rank, beside those that all of Stannis shares (``emucsd.stannis.errors``).

StannisError
├── FactoryFailed
│   └── ModelFailed         the model's author's: forward, backward, loss or optimizer raised while training
├── ParameterRefused        the model's: a parameter's gradient can't travel with the others
├── BatchNormRefused        the model's: a batch norm that can't be synchronised, or a batch too small for one
└── LayoutDiffers           the factory's: ranks have different models
"""

from __future__ import annotations

from emucsd.stannis.errors import FactoryFailed, StannisError


class ModelFailed(FactoryFailed):
    """The user's code raised while it trained; ``where`` is their ``file:line``.

    Where the rank has private samples, the text of the exception is kept back: it may quote one.
    """


class ParameterRefused(StannisError):
    """A trainable parameter is complex, FP64 or on a device, there is none, or its gradient came after it was sent."""


class BatchNormRefused(StannisError):
    """A batch norm of a class of its own can't be synchronised; one value a channel has no variance."""


class LayoutDiffers(StannisError):
    """Parameters of the same run have other names, shapes or types on another rank."""
