"""Sanitize (Base 5.1.22, 8.1.24): every namespace's data goes, whatever happens meanwhile; I/O waits outside.

Data is dropped at the start, under the data plane's pause. What remains is the time that real flash would take, and a
record in nvram.json: a drive that loses power in between begins anew.
"""

from __future__ import annotations

import logging
from enum import IntEnum
from typing import TYPE_CHECKING

from emucsd_firmware.errors import FirmwareError
from emucsd_firmware.nvme.request import Refused
from emucsd_wire.logs import SANITIZE_LOG, SSTAT_GLOBAL_DATA_ERASED, Event, SanitizeLog, SanitizeStatus
from emucsd_wire.nvme import Admin, Status
from emucsd_wire.registers import Bits, Word

if TYPE_CHECKING:
    from emucsd_firmware.controller import Controller
    from emucsd_firmware.nvme.request import Request
    from emucsd_firmware.subsystem import Subsystem

log = logging.getLogger(__name__)

SECOND = 1_000_000_000
CRYPTO_NS = 1_000_000  # a new key

# what a host may do while a sanitize operation runs, or has failed (Base figure 675)
ALLOWED = frozenset(
    {
        Admin.DELETE_SQ,
        Admin.CREATE_SQ,
        Admin.GET_LOG_PAGE,
        Admin.DELETE_CQ,
        Admin.CREATE_CQ,
        Admin.IDENTIFY,
        Admin.ABORT,
        Admin.SET_FEATURES,
        Admin.GET_FEATURES,
        Admin.ASYNC_EVENT_REQUEST,
        Admin.KEEP_ALIVE,
        Admin.DOORBELL_BUFFER_CONFIG,
    }
)


class Action(IntEnum):
    """SANACT."""

    EXIT_FAILURE = 1
    BLOCK_ERASE = 2
    OVERWRITE = 3
    CRYPTO_ERASE = 4


class SanitizeDword(Word):
    """CDW10 of Sanitize."""

    sanact = Bits(2, 0)
    ause = Bits(3)
    owpass = Bits(7, 4)  # 0: 16 passes
    oipbp = Bits(8)
    ndas = Bits(9)

    @property
    def passes(self) -> int:
        return self.owpass or 16


class Sanitizer:
    """The subsystem's sanitize state machine: idle, in progress, failed."""

    def __init__(self, subsystem: Subsystem) -> None:
        self._subsystem = subsystem
        self._record = subsystem.nvram.sanitize
        self._began = 0
        self._ends: int | None = None
        self._failed = False

    @property
    def in_progress(self) -> bool:
        return self._record.status == SanitizeStatus.IN_PROGRESS

    @property
    def refusal(self) -> Status:
        """What I/O commands, and admin commands that are not allowed now, are answered; SUCCESS: nothing is refused."""
        if self.in_progress:
            return Status.SANITIZE_IN_PROGRESS
        failed = self._record.status == SanitizeStatus.FAILED
        return Status.SANITIZE_FAILED if failed else Status.SUCCESS

    @property
    def deadline(self) -> int | None:
        """When ``advance`` has something to do, on the subsystem's clock."""
        return self._ends

    def apply(self) -> None:
        """Put a new drive's data plane in the state that was left; what was in progress begins anew."""
        with self._subsystem.drive.plane.paused():
            self._subsystem.drive.refuse_io(self.refusal)
        if self.in_progress and self._ends is None:
            self._erase()

    def start(self, dword: SanitizeDword, pattern: int) -> None:
        """Begin; I/O is refused from here on.

        :raises Refused: one is in progress, or has failed and this one is not unrestricted enough to follow it
        """
        if self.in_progress:
            raise Refused(Status.SANITIZE_IN_PROGRESS)
        restricted = self._record.status == SanitizeStatus.FAILED and not SanitizeDword(self._record.cdw10).ause
        if restricted and dword.ause:
            raise Refused(Status.SANITIZE_FAILED, "cdw10")
        self._record.status = SanitizeStatus.IN_PROGRESS
        self._record.cdw10, self._record.pattern, self._record.passes = int(dword), pattern, 0
        self._subsystem.save()
        with self._subsystem.drive.plane.paused():
            self._subsystem.drive.refuse_io(self.refusal)
        self._erase()

    def exit_failure(self) -> None:
        """Leave the failed state. :raises Refused: in progress, or it failed in restricted mode"""
        if self.in_progress:
            raise Refused(Status.SANITIZE_IN_PROGRESS)
        if self._record.status != SanitizeStatus.FAILED:
            return
        if not SanitizeDword(self._record.cdw10).ause:
            raise Refused(Status.SANITIZE_FAILED, "cdw10")
        self._finish(SanitizeStatus.NEVER)

    def advance(self) -> None:
        """Complete what is due."""
        if self._ends is None or self._subsystem.now() < self._ends:
            return
        if self._failed:
            self._finish(SanitizeStatus.FAILED)
        else:
            self._succeed()
        self._subsystem.report(Event.SANITIZE_COMPLETED)

    def _succeed(self) -> None:
        dword = SanitizeDword(self._record.cdw10)
        if dword.sanact == Action.OVERWRITE:
            self._record.passes = dword.passes
        self._record.erased = True
        self._record.written = self._subsystem.totals().blocks_written
        # data was deallocated whether the host wanted that or not: SANICAP says NDI, and the feature chose a warning
        self._finish(SanitizeStatus.COMPLETED_NO_DEALLOCATE if dword.ndas else SanitizeStatus.COMPLETED)

    def note_writes(self) -> None:
        """Hosts may have written: then not all data of the subsystem is erased data any more."""
        if self._record.erased and self._subsystem.totals().blocks_written != self._record.written:
            self._record.erased = False

    def page(self) -> bytes:
        """Log page 81h."""
        self.note_writes()
        progress = 0xFFFF
        if self._ends is not None:
            elapsed = self._subsystem.now() - self._began
            progress = min(elapsed * 0x10000 // max(self._ends - self._began, 1), 0xFFFE)
        sstat = self._record.status | self._record.passes << 3
        return SANITIZE_LOG.pack(
            SanitizeLog(
                sprog=progress,
                sstat=sstat | (SSTAT_GLOBAL_DATA_ERASED if self._record.erased else 0),
                scdw10=self._record.cdw10,
                eto=self._seconds(SanitizeDword.of(sanact=Action.OVERWRITE)),
                etbe=self._seconds(SanitizeDword.of(sanact=Action.BLOCK_ERASE)),
                etce=self._seconds(SanitizeDword.of(sanact=Action.CRYPTO_ERASE)),
                etond=0,
                etbend=0,
                etcend=0,
            )
        )

    def duration_ns(self, dword: SanitizeDword) -> int:
        """How long flash of this profile is busy: dies work side by side, blocks of a die one after the other."""
        profile = self._subsystem.drive.profile
        if self._subsystem.drive.clock == "virtual":
            return 0
        if dword.sanact == Action.CRYPTO_ERASE:
            return CRYPTO_NS
        blocks = profile.geometry.blocks if profile.nand.multi_plane else profile.geometry.blocks_per_die
        block = profile.nand.erase_ns
        if dword.sanact == Action.OVERWRITE:
            block = dword.passes * (block + profile.geometry.pages * profile.nand.program_ns)
        return blocks * block

    def _seconds(self, dword: SanitizeDword) -> int:
        return min(-(-self.duration_ns(dword) // SECOND), 0xFFFF_FFFE)

    def _erase(self) -> None:
        """Drop the data of every namespace; the operation then lasts as long as flash would be busy."""
        subsystem = self._subsystem
        namespaces = subsystem.namespaces
        try:
            with subsystem.drive.plane.paused():
                for namespace in namespaces.all():
                    subsystem.drive.format(namespaces.first_lpn(namespace), namespaces.pages(namespace))
        except (FirmwareError, OSError):
            log.exception("a sanitize operation has failed: I/O is refused until another one succeeds")
            self._failed = True
        self._began = self._ends = subsystem.now()
        if not self._failed:
            self._ends += self.duration_ns(SanitizeDword(self._record.cdw10))

    def _finish(self, status: SanitizeStatus) -> None:
        self._record.status = status
        self._ends, self._failed = None, False
        with self._subsystem.drive.plane.paused():
            self._subsystem.drive.refuse_io(self.refusal)
        self._subsystem.save()


def sanitize(controller: Controller, request: Request) -> None:
    """Sanitize (84h). Completes when the operation has begun; its end is an event and log page 81h."""
    dword = SanitizeDword(request.sqe.cdw10)
    sanitizer = controller.subsystem.sanitizer
    if dword.sanact == Action.EXIT_FAILURE:
        sanitizer.exit_failure()
        return
    if dword.sanact not in set(Action):
        raise Refused(Status.INVALID_FIELD, "cdw10")
    if dword.ndas and not controller.features.no_deallocate_warns:
        raise Refused(Status.INVALID_FIELD, "cdw10")
    sanitizer.start(dword, request.sqe.cdw11)
