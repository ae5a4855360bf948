"""One port of a drive as a tunnel end needs it: buffers, sends, receives, setup and status.

Two ways lead there: ``direct`` (this library's own driver, over vfio-user) and ``linux`` (io_uring passthrough).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from emucsd.errors import NvmeError
from emucsd.tunnel.errors import TunnelRefused
from emucsd_wire.nvme import Status
from emucsd_wire.tunnel import MAX_BATCH, TUNNEL_VERSION, TunnelSetup, TunnelStatus

SENDS = 4  # commands that may be out each way
RECEIVES = 4
BUFFERS = SENDS + RECEIVES
BUFFER_BYTES = MAX_BATCH
SEND_MS = 1_000  # how long a send waits for room before its frames are dropped
CLOSED = TunnelSetup(TUNNEL_VERSION, 0, 0, 0, 0, 0, bytes(47))
RECEIVE_MS = 10_000  # how often a receive comes back with nothing when there is nothing


class Done(NamedTuple):
    """A command that has ended.

    :ivar buffer: the index of its buffer
    :ivar status: SCT << 8 | SC, 0 for success; negative: -errno of Linux
    :ivar dw0: of the completion; ``dw1`` the next
    """

    buffer: int
    status: int
    dw0: int
    dw1: int


class TunnelPort(Protocol):
    """A port that is attached. Every call may raise an EmucsdError or OSError when the drive is gone."""

    @property
    def name(self) -> str:
        """Which drive and port, for messages."""

    @property
    def number(self) -> int:
        """0: the host's, which sets up; 1: the ISP engine's."""

    @property
    def buffers(self) -> Sequence[memoryview]:
        """BUFFERS of BUFFER_BYTES each, one command a buffer."""

    def filenos(self) -> list[int]:
        """Descriptors that become readable when ``completions`` has something, or the drive is gone."""

    def send(self, buffer: int, count: int) -> None:
        """Enter a TUNNEL_SEND of a buffer's first ``count`` bytes; ``flush`` makes it known."""

    def receive(self, buffer: int) -> None:
        """Enter a TUNNEL_RECEIVE into a buffer; ``flush`` makes it known."""

    def flush(self) -> None:
        """Tell the drive of all that was entered."""

    def completions(self) -> list[Done]:
        """What has ended since the last call."""

    def set_up(self, setup: TunnelSetup) -> None:
        """TUNNEL_SETUP."""

    def status(self, *, join: bool = False) -> TunnelStatus:
        """TUNNEL_STATUS; ``join`` ends what a predecessor left waiting."""

    def close(self) -> None:
        """Leave. Harmless when repeated."""


def check(status: int, name: str, dw0: int = 0) -> None:
    """:raises TunnelRefused: the tunnel is closed :raises NvmeError: anything else but success"""
    code = status & 0x7FF
    if code == Status.TUNNEL_CLOSED:
        raise TunnelRefused(f"{name}: the host has not opened this drive's tunnel; start its tunnel end first")
    if code:
        raise NvmeError(name, code, dw0)
