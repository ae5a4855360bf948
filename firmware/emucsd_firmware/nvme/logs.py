"""Log pages (Base 5.1.12): errors, health, firmware, changed namespaces, command and feature effects, sanitize."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from emucsd_firmware.nvme.features import KINDS, OVER, UNDER
from emucsd_firmware.nvme.queues import ERROR_RING, QueueSet
from emucsd_firmware.nvme.request import NO_LOCATION, Refused, Request
from emucsd_firmware.subsystem import FIRMWARE
from emucsd_wire import logs as wire
from emucsd_wire.features import Feature
from emucsd_wire.logs import CriticalWarning, Effect, ErrorEntry, LogId
from emucsd_wire.nvme import NSID_ALL, Status
from emucsd_wire.registers import Bits, Word

if TYPE_CHECKING:
    from emucsd_firmware.controller import Controller
    from emucsd_firmware.nvme.hardware import Health

SPARE_THRESHOLD = 10  # percent
MINUTE, HOUR = 60_000_000_000, 3600_000_000_000
_NO_QUEUE = 0xFFFF


class LogDword(Word):
    """CDW10."""

    lid = Bits(7, 0)
    lsp = Bits(14, 8)
    rae = Bits(15)
    numdl = Bits(31, 16)


class LogIndex(Word):
    """CDW14."""

    uuid = Bits(6, 0)
    ot = Bits(23)
    csi = Bits(31, 24)


class ErrorLog:
    """The Error Information log of one controller: the newest entries, and how many there ever were."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._entries: deque[ErrorEntry] = deque(maxlen=ERROR_RING)
        self._seen = 0

    def add(
        self,
        status: int,
        *,
        sqid: int = _NO_QUEUE,
        cid: int = 0xFFFF,
        nsid: int = 0,
        lba: int = 0,
        opcode: int = 0,
        location: int = NO_LOCATION,
    ) -> None:
        """Remember a failure. ``status`` as in a completion without its phase bit."""
        self.count += 1
        entry = ErrorEntry(self.count, sqid, cid, status << 1 & 0xFFFF, location, lba & (1 << 64) - 1, nsid & NSID_ALL)
        self._entries.appendleft(entry._replace(opcode=opcode))

    def collect(self, queues: QueueSet) -> None:
        """Take over what the data plane noted of failed I/O commands; what its ring has lost is only counted."""
        count = int(queues.record["error_count"])
        if count < self._seen:
            self._seen = 0
        self.count += max(count - self._seen - ERROR_RING, 0)
        for number in range(max(self._seen, count - ERROR_RING), count):
            record = queues.errors[number % ERROR_RING]
            self.add(
                int(record["status"]),
                sqid=int(record["sqid"]),
                cid=int(record["cid"]),
                nsid=int(record["nsid"]),
                lba=int(record["lba"]),
            )
        self._seen = count

    def page(self) -> bytes:
        """Newest first; unused entries are zeros."""
        return b"".join(map(wire.ERROR_ENTRY.pack, self._entries)).ljust(ERROR_RING * wire.ERROR_ENTRY.size, b"\0")


def get_log_page(controller: Controller, request: Request) -> None:
    """Get Log Page (02h)."""
    sqe = request.sqe
    dword, index = LogDword(sqe.cdw10), LogIndex(sqe.cdw14)
    page = _PAGES.get(dword.lid)
    if page is None:
        raise Refused(Status.INVALID_LOG_PAGE, "cdw10")
    count = ((sqe.cdw11 & 0xFFFF) << 16 | dword.numdl) * 4 + 4
    offset = sqe.cdw13 << 32 | sqe.cdw12
    if offset % 4:
        raise Refused(Status.INVALID_FIELD, "cdw12")
    if index.ot or index.csi or index.uuid:
        raise Refused(Status.INVALID_FIELD, "cdw14")
    data = page(controller, request)
    if offset >= len(data):
        raise Refused(Status.INVALID_FIELD, "cdw12")
    request.write(data[offset : offset + count])
    if not dword.rae:
        controller.events.clear(LogId(dword.lid))
        if dword.lid == LogId.CHANGED_NAMESPACES:
            controller.changed_namespaces.clear()


def critical_warning(controller: Controller, health: Health) -> CriticalWarning:
    """What is wrong with the drive by its host's thresholds."""
    found = CriticalWarning(0)
    if health.available_spare < SPARE_THRESHOLD:
        found |= CriticalWarning.SPARE
    over = controller.features.value(Feature.TEMPERATURE_THRESHOLD, OVER)
    under = controller.features.value(Feature.TEMPERATURE_THRESHOLD, UNDER)
    if health.temperature >= over or health.temperature <= under:
        found |= CriticalWarning.TEMPERATURE
    return found


def _errors(controller: Controller, request: Request) -> bytes:
    controller.collect_errors()
    return controller.errors.page()


def _smart(controller: Controller, request: Request) -> bytes:
    """Log page 02h, of the whole subsystem: there is none per namespace."""
    if request.nsid not in (0, NSID_ALL):
        raise Refused(Status.INVALID_FIELD, "nsid")
    controller.collect_errors()
    health = controller.subsystem.drive.health()
    totals = controller.subsystem.totals()
    return wire.SMART_LOG.pack(
        wire.SmartLog(
            critical_warning=critical_warning(controller, health),
            temperature=health.temperature.to_bytes(2, "little"),
            available_spare=min(max(health.available_spare, 0), 100),
            spare_threshold=SPARE_THRESHOLD,
            percentage_used=min(health.percentage_used, 255),
            data_units_read=-(-totals.blocks_read // 1000),
            data_units_written=-(-totals.blocks_written // 1000),
            host_reads=totals.reads,
            host_writes=totals.writes,
            busy_minutes=totals.busy_ns // MINUTE,
            power_cycles=totals.power_cycles,
            power_on_hours=totals.powered_ns // HOUR,
            unsafe_shutdowns=totals.unsafe_shutdowns,
            media_errors=totals.media_errors,
            error_entries=controller.errors.count,
            sensors=health.temperature.to_bytes(2, "little"),
        )
    )


def _firmware_slot(controller: Controller, request: Request) -> bytes:
    return wire.FIRMWARE_SLOT.pack(wire.FirmwareSlot(afi=1, frs1=FIRMWARE.encode().ljust(8)))


def _changed_namespaces(controller: Controller, request: Request) -> bytes:
    ids = sorted(controller.changed_namespaces)
    return struct.pack(f"<{len(ids)}I", *ids).ljust(4 * wire.CHANGED_NAMESPACES, b"\0")


def _effects(controller: Controller, request: Request) -> bytes:
    admin, io = controller.admin_effects(), controller.io_effects()
    words = [table.get(opcode, 0) for table in (admin, io) for opcode in range(256)]
    return struct.pack("<512I", *words).ljust(wire.EFFECTS_BYTES, b"\0")


def _features(controller: Controller, request: Request) -> bytes:
    words = [KINDS[fid].scope | Effect.SUPPORTED if controller.features.supports(fid) else 0 for fid in range(256)]
    return struct.pack("<256I", *words)


def _mi_commands(controller: Controller, request: Request) -> bytes:
    """Log page 13h: there is no management interface."""
    return bytes(wire.MI_COMMANDS_BYTES)


def _supported(controller: Controller, request: Request) -> bytes:
    return struct.pack("<256I", *(int(lid in _PAGES) for lid in range(256)))


def _sanitize(controller: Controller, request: Request) -> bytes:
    return controller.subsystem.sanitizer.page()


_PAGES: dict[int, Callable[[Controller, Request], bytes]] = {
    LogId.SUPPORTED_PAGES: _supported,
    LogId.ERROR: _errors,
    LogId.SMART: _smart,
    LogId.FIRMWARE_SLOT: _firmware_slot,
    LogId.CHANGED_NAMESPACES: _changed_namespaces,
    LogId.EFFECTS: _effects,
    LogId.FEATURES: _features,
    LogId.MI_COMMANDS: _mi_commands,
    LogId.SANITIZE: _sanitize,
}
