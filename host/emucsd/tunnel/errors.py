"""What goes wrong with a tunnel, beside what goes wrong with a drive."""

from __future__ import annotations

from emucsd.errors import EmucsdError


class TunnelError(EmucsdError):
    """A tunnel end can't be made or kept."""


class TunnelRefused(TunnelError):
    """The drive has no tunnel for this end now: the host has not opened it, or has closed it."""
