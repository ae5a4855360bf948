"""Admin commands: from an opcode to its handler, and what each does to the drive (the effects log's view)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from emucsd_firmware.nvme.admin_queues import create_cq, create_sq, delete_cq, delete_sq, doorbell_buffer_config
from emucsd_firmware.nvme.features import get_features, set_features
from emucsd_firmware.nvme.format import format_nvm
from emucsd_firmware.nvme.identify import identify
from emucsd_firmware.nvme.logs import get_log_page
from emucsd_firmware.nvme.management import namespace_attachment, namespace_management
from emucsd_firmware.nvme.request import Refused, Request
from emucsd_firmware.nvme.sanitize import ALLOWED, sanitize
from emucsd_wire.logs import Effect
from emucsd_wire.nvme import Admin, Io, Status
from emucsd_wire.registers import Bits, Word

if TYPE_CHECKING:
    from emucsd_firmware.controller import Controller

    Handler = Callable[[Controller, Request], int | None]

VENDOR_OPCODES = range(0xC0, 0x100)
NOT_ABORTED = 1  # bit 0 of Abort's DW0
PENDING = -1  # what a handler returns whose command completes later
_FUSE, _PSDT = 0x03, 0xC0


class AbortDword(Word):
    """CDW10 of Abort."""

    sqid = Bits(15, 0)
    cid = Bits(31, 16)


class Command(NamedTuple):
    """An admin command that this controller has."""

    handler: Handler
    effects: Effect = Effect.SUPPORTED


def execute(controller: Controller, request: Request) -> int:
    """Run one admin command. :returns: DW0, or PENDING. :raises Refused: its status is another than success"""
    sqe = request.sqe
    command = controller.admin_commands.get(sqe.opcode)
    if command is None:
        raise Refused(Status.INVALID_OPCODE, "opcode")
    if controller.events.waits(sqe.cid):
        raise Refused(Status.CID_CONFLICT, "cid")
    if sqe.flags & (_FUSE | _PSDT):  # no fused commands, and PRPs alone, on the admin queue
        raise Refused(Status.INVALID_FIELD, "flags")
    refusal = controller.subsystem.sanitizer.refusal
    if refusal and sqe.opcode not in ALLOWED and (sqe.opcode != Admin.SANITIZE or refusal != Status.SANITIZE_FAILED):
        raise Refused(refusal)
    return command.handler(controller, request) or 0


def abort(controller: Controller, request: Request) -> int:
    """Abort (08h): of this drive's commands only Asynchronous Event Requests wait long enough to be aborted."""
    dword = AbortDword(request.sqe.cdw10)
    if dword.sqid != 0 and dword.sqid not in controller.io_queues.sqs:
        raise Refused(Status.INVALID_FIELD, "cdw10")
    if dword.sqid == 0 and controller.events.abort(dword.cid):
        controller.post(dword.cid, Status.ABORT_REQUESTED)
        return 0
    return NOT_ABORTED


def async_event_request(controller: Controller, request: Request) -> int:
    """Asynchronous Event Request (0Ch): completes when something happens."""
    controller.events.request(request.sqe.cid)
    return PENDING


def keep_alive(controller: Controller, request: Request) -> None:
    """Keep Alive (18h): the timer starts again."""
    controller.keep_alive.feed()


def femu_flip(controller: Controller, request: Request) -> None:
    """FEMU's switch (EFh): CDW10 1/2 GC delay on/off, 3/4 all delays on/off, 5 reset counters, 6/7 log on/off."""
    drive = controller.drive
    with drive.plane.paused():
        match request.sqe.cdw10:
            case 1 | 2 as wanted:
                drive.set_gc_delay(wanted == 1)
            case 3 | 4 as wanted:
                drive.set_delays(wanted == 3)
            case 5:
                drive.reset_statistics()
            case 6 | 7 as wanted:
                drive.set_log(wanted == 6)
            case _:
                raise Refused(Status.INVALID_FIELD, "cdw10")


_DATA = Effect.SUPPORTED | Effect.CHANGES_DATA
_INVENTORY = Effect.SUPPORTED | Effect.CHANGES_INVENTORY

COMMANDS: dict[int, Command] = {
    Admin.DELETE_SQ: Command(delete_sq),
    Admin.CREATE_SQ: Command(create_sq),
    Admin.GET_LOG_PAGE: Command(get_log_page),
    Admin.DELETE_CQ: Command(delete_cq),
    Admin.CREATE_CQ: Command(create_cq),
    Admin.IDENTIFY: Command(identify),
    Admin.ABORT: Command(abort),
    Admin.SET_FEATURES: Command(set_features),
    Admin.GET_FEATURES: Command(get_features),
    Admin.ASYNC_EVENT_REQUEST: Command(async_event_request),
    Admin.NAMESPACE_MANAGEMENT: Command(namespace_management, _INVENTORY),
    Admin.NAMESPACE_ATTACHMENT: Command(namespace_attachment, _INVENTORY),
    Admin.KEEP_ALIVE: Command(keep_alive),
    Admin.DOORBELL_BUFFER_CONFIG: Command(doorbell_buffer_config),
    Admin.FORMAT_NVM: Command(format_nvm, _DATA | Effect.CHANGES_NAMESPACE | Effect.ALONE_IN_NAMESPACE),
    Admin.SANITIZE: Command(sanitize, _DATA | Effect.ALONE),
    Admin.FEMU_FLIP: Command(femu_flip),
}

IO_EFFECTS: dict[int, Effect] = {
    Io.FLUSH: Effect.SUPPORTED,
    Io.WRITE: _DATA,
    Io.READ: Effect.SUPPORTED,
    Io.WRITE_UNCORRECTABLE: _DATA,
    Io.COMPARE: Effect.SUPPORTED,
    Io.WRITE_ZEROES: _DATA,
    Io.DATASET_MANAGEMENT: _DATA,
    Io.VERIFY: Effect.SUPPORTED,
    Io.COPY: _DATA,
    Io.LOOKUP_SEND: Effect.SUPPORTED,
    Io.LOOKUP_READ: Effect.SUPPORTED,
    Io.TUNNEL_SEND: Effect.SUPPORTED,
    Io.TUNNEL_RECEIVE: Effect.SUPPORTED,
    Io.TABLE_UPDATE: _DATA,
    Io.RM_SEND: Effect.SUPPORTED,
    Io.RM_READ: Effect.SUPPORTED,
    Io.RM_WEIGHTS: Effect.SUPPORTED,
}
