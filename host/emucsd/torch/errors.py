"""What can go wrong with a PyTorch module on a drive. Loads without PyTorch."""

from __future__ import annotations

from emucsd.errors import EmucsdError, InvalidArgument


class NoGradient(EmucsdError, RuntimeError):
    """A gradient was asked for: the drive computes forward only."""


class NotOffloadable(InvalidArgument):
    """A module of another build than the drive can compute; the text names the part."""
