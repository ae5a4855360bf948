"""What the transport needs of a drive: one port, seen from the bus. ``emucsd_firmware`` provides it.

Nothing behind this border knows a socket, and nothing before it knows NVMe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class DevicePort(Protocol):
    """One PCIe attachment of a drive. Called from the control thread only."""

    trapped: bool
    """Whether doorbells come as messages (then Doorbell Buffer Config is offered), not as stores to the page."""

    @property
    def number(self) -> int:
        """0 faces the host, 1 the drive's own engine."""

    @property
    def doorbell_fd(self) -> int:
        """Shared memory whose last two pages are those at BAR0 + 0x1000: doorbells, which the data plane watches, and
        the registers of inference sessions."""

    @property
    def admin_fd(self) -> int:
        """An eventfd: readable when ``service`` has something to do."""

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        """:raises PortError: an access that no register answers"""

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        """Registers, and doorbells of clients that trap them. :raises PortError: as region_read"""

    def map(self, iova: int, size: int, address: int, writable: bool) -> None:
        """Give the data plane a range of the client's memory. :raises MemoryMapError: it can't be had"""

    def unmap(self, iova: int, size: int) -> object:
        """Take it back: when this returns, nothing touches it any more. :raises MemoryMapError: not mapped so"""

    def set_vector(self, vector: int, eventfd: int | None) -> None:
        """Choose what signals an MSI-X vector: when this returns, the old eventfd is not used any more."""

    def reset(self) -> None:
        """Controller reset: queues are gone, commands in flight are dropped. Mappings and vectors stay."""

    def service(self) -> bool:
        """Run pending admin commands. :returns: whether there were any"""


class Device(Protocol):
    """A whole drive, as its process needs it."""

    @property
    def ports(self) -> Sequence[DevicePort]:
        """The ports, in the order of their numbers."""

    @property
    def failure(self) -> BaseException | None:
        """Why the data plane has died, None while it lives."""

    def start(self) -> None:
        """Run the data plane in a thread of its own."""

    def close(self, *, clean: bool = True) -> None:
        """Stop; with ``clean``, flush and checkpoint first."""

    def status(self) -> dict[str, Any]:
        """What the drive is: plain values."""

    def stats(self) -> dict[str, Any]:
        """What it has done: plain values."""

    def checkpoint(self) -> None:
        """Write the map to the store while the data plane runs on. :raises StoreError: it can't be written"""

    def set_recssd(self, enabled: bool | None, *, clear: bool = False) -> dict[str, Any]:
        """RecSSD's commands on, off or as they are; its statistics so far."""

    def set_tunnel_watch(self, on: bool | None, *, refresh: bool = False, check: bool = False) -> dict[str, Any]:
        """Look in the tunnel for what private namespaces hold, or do not; figures so far. In any thread; takes long."""

    def set_tunnel_faults(self, loss: int, reorder: int, duplicate: int, seed: int) -> None:
        """Lose, reorder and double frames of the tunnel, so many per million. :raises FirmwareError: out of range"""
