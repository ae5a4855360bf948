"""What the control plane needs from the drive around it: the one border that tests put something small behind.

``emucsd_firmware.drive.Drive`` is the real one. Queues and guest memory are no part of this border: tests use the real
``QueueSet`` and ``AddressTable``.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from emucsd_firmware.profile import Profile


class Health(NamedTuple):
    """What SMART tells of the flash."""

    available_spare: int  # percent of the spare blocks that are left
    percentage_used: int  # of the rated erases; may pass 100
    temperature: int  # kelvin


class PlaneBorder(Protocol):
    """The data plane's thread."""

    def paused(self) -> AbstractContextManager[None]:
        """Hold the data plane out of compiled code; only then may queues, namespaces and memory change."""
        ...

    def kick(self) -> None:
        """Wake the data plane if it sleeps."""
        ...


class DriveBorder(Protocol):
    """The drive below its controllers. Only ``health`` may be called with the data plane running."""

    @property
    def profile(self) -> Profile: ...

    @property
    def plane(self) -> PlaneBorder: ...

    clock: str
    """``real`` or ``virtual``; with the latter nothing that the control plane does takes time."""

    def clock_now(self) -> int:
        """The drive's time in ns."""
        ...

    def health(self) -> Health:
        """Wear and temperature."""
        ...

    def flush(self) -> None:
        """Bring everything that was written to flash. :raises StoreError: it can't be"""
        ...

    def format(self, first_lpn: int, count: int) -> None:
        """Forget these logical pages, marks of uncorrectable blocks with them; durable on return.

        :raises StoreError: it can't be made durable
        """
        ...

    def refuse_io(self, status: int) -> None:
        """Answer every I/O command of both ports with this status from now on; 0: run them again."""
        ...

    def set_write_cache(self, enabled: bool) -> None:
        """Volatile write cache on or off; what it holds is flushed first."""
        ...

    def set_delays(self, enabled: bool) -> None:
        """Whether flash, link and front end take time (FEMU's EFh, 3 and 4)."""
        ...

    def set_gc_delay(self, enabled: bool) -> None:
        """Whether garbage collection takes time (FEMU's EFh, 1 and 2)."""
        ...

    def set_log(self, enabled: bool) -> None:
        """Whether the drive logs its commands (FEMU's EFh, 6 and 7)."""
        ...

    def reset_statistics(self) -> None:
        """Start lateness and internal counters from zero; SMART's stay (FEMU's EFh, 5)."""
        ...
