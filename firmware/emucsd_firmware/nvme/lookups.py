"""The lookup engine's I/O commands, as the queues see them: data in, data out; the engine itself knows no NVMe.

LOOKUP_SEND completes when the drive has taken the request; LOOKUP_READ is parked until the request's sums are ready,
TABLE_UPDATE until its rows are stored.
A parked command keeps nothing of the host's memory: its data pointer is walked when the sums go out.
"""

from __future__ import annotations

from emucsd_firmware.lookup.requests import drop, payload, pop_done, release, send, update, update_payload
from emucsd_firmware.lookup.requests import read as read_request
from emucsd_firmware.lookup.requests import reset_port as reset_requests
from emucsd_firmware.lookup.state import FREE, READY, REQUESTS, UPDATE, request_at, table_at
from emucsd_firmware.memory import gather, scatter
from emucsd_firmware.nvme.commands import Command, command_at, leave, sqe_at
from emucsd_firmware.nvme.prp import map_data
from emucsd_firmware.nvme.queues import PortState, namespace_at
from emucsd_firmware.nvme.recssd import next_sums
from emucsd_firmware.state import DriveState, drive_at, port_of
from emucsd_wire.nvme import Sqe, Status
from emucsd_wire.vendor import MAX_TABLES
from emucsd_wire.words import jit, jit_unit, signed

_READ_ONLY = int(Status.WRITE_TO_READ_ONLY)

PARKED = -2  # as a status: somebody else completes this command later


@jit_unit
def lookup_send(drive: DriveState, port: PortState, command: Command, sqe: Sqe) -> int:
    """LOOKUP_SEND (81h). dw0 of a refusal is the position of the first bad id or offset."""
    tag, count = signed(sqe.cdw10), signed(sqe.cdw12)
    target = payload(drive.lookup, port.number, tag, count)
    if target < 0:
        return -target
    status = map_data(port.memory, drive.transfer, sqe, count, 0)
    if status != 0:
        return status
    gather(drive.transfer, target, count)
    command.incoming = count
    status = send(drive.lookup, drive.clock.now, port.number, tag, count)
    if status != 0:
        command.dw0 = drive.lookup.position
    else:
        port.counters.lookups += 1
    return status


@jit_unit
def lookup_read(drive: DriveState, port: PortState, slot: int, command: Command, sqe: Sqe) -> int:
    """LOOKUP_READ (82h). dw0 is the table's version, or of Unrecovered Read the position of the id of the lost row."""
    tag, count = signed(sqe.cdw10), signed(sqe.cdw12)
    if count == 0:
        return drop(drive.lookup, port.number, tag)
    number = read_request(drive.lookup, port.number, tag, count, slot)
    if number < 0:
        return -number
    if request_at(drive.lookup.requests, number).state != READY:
        return PARKED
    return take_sums(drive, number)


@jit_unit
def table_update(drive: DriveState, port: PortState, slot: int, command: Command, sqe: Sqe) -> int:
    """TABLE_UPDATE (91h). dw0 of a refusal is the position of the first bad id, or of the row that can't be stored."""
    rows, handle, count = signed(sqe.cdw10), signed(sqe.cdw11), signed(sqe.cdw12)
    target = update_payload(drive.lookup, port.number, handle, rows, count)
    if target < 0:
        return -target
    if namespace_at(port.namespaces, table_at(drive.lookup.tables, handle % MAX_TABLES).nsid).write_protected != 0:
        return _READ_ONLY
    status = map_data(port.memory, drive.transfer, sqe, count, 0)
    if status != 0:
        return status
    gather(drive.transfer, target, count)
    command.incoming = count
    status = update(drive.lookup, drive.clock.now, port.number, handle, rows, slot)
    if status != 0:
        command.dw0 = drive.lookup.position
        return status
    port.counters.lookups += 1
    return PARKED


@jit
def take_sums(drive: DriveState, number: int) -> int:
    """Copy the sums of a READY request, if it has any, to the command that waits, and free it. :returns: the status"""
    request = request_at(drive.lookup.requests, number)
    slot = request.waiter
    command = command_at(drive.commands.slots, slot)
    port = port_of(drive, command.port)
    status = request.status
    command.dw0 = request.position if status != 0 else request.version & 0xFFFF_FFFF
    command.ready = max(command.ready, request.ready)
    count = request.result_bytes
    if status == 0 and request.kind != UPDATE:
        status = map_data(port.memory, drive.transfer, sqe_at(drive.commands.sqes, slot), count, 1)
    if status == 0 and request.kind != UPDATE:
        scatter(drive.transfer, request.result, count)
        command.outgoing = count
    release(drive.lookup, number)
    return status


@jit_unit
def next_answered(drive: DriveState) -> int:
    """The slot of the next parked command, of these or of RecSSD's, whose sums are ready and now copied, or -1."""
    number = pop_done(drive.lookup)
    if number < 0:
        return next_sums(drive)
    slot = request_at(drive.lookup.requests, number).waiter
    command = command_at(drive.commands.slots, slot)
    port = port_of(drive, command.port)
    if port.enabled == 0:
        release(drive.lookup, number)
        command.status = 0
    else:
        command.status = take_sums(drive, number)
    return slot


@jit
def reset_lookups(address: int, number: int) -> None:
    """A controller reset: free the slots of a port's parked commands and drop its requests."""
    drive = drive_at(address, 0)
    for index in range(REQUESTS):
        request = request_at(drive.lookup.requests, index)
        if request.state != FREE and request.port == number and request.abandoned == 0 and request.waiter >= 0:
            leave(drive.clock, drive.commands, port_of(drive, number), request.waiter)
    reset_requests(drive.lookup, number)
