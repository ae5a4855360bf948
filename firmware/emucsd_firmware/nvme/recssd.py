"""RecSSD's commands, as the queues see them: marked writes and reads (``emucsd_wire.recssd``), where they are enabled.

The write completes when the drive has taken its configuration; a read is parked until its sectors are complete and
keeps nothing of the host's memory meanwhile.
"""

from __future__ import annotations

from emucsd_firmware.memory import gather, scatter
from emucsd_firmware.nvme.commands import Command, command_at, leave, sqe_at
from emucsd_firmware.nvme.prp import map_data
from emucsd_firmware.nvme.queues import PortState, namespace_at
from emucsd_firmware.recssd.requests import abandon, config_of, given, place, pop_held, read, start
from emucsd_firmware.recssd.state import FREE, sls_at, waiter_at
from emucsd_firmware.recssd.waiters import disown_answered, free_waiter, pop_done, pop_early, send_off
from emucsd_firmware.state import DriveState, drive_at, port_of
from emucsd_wire import nvme
from emucsd_wire.nvme import Sqe
from emucsd_wire.recssd import MARK, MAX_REQUESTS, MAX_SECTORS, SECTOR, TABLE_ALIGN
from emucsd_wire.words import jit, jit_inline, jit_unit, signed

_WRITE, _READ = int(nvme.Io.WRITE), int(nvme.Io.READ)
_INVALID_FIELD, _LBA_RANGE = int(nvme.Status.INVALID_FIELD), int(nvme.Status.LBA_OUT_OF_RANGE)
_PARKED = -2  # nvme.lookups.PARKED


@jit_inline
def marked(drive: DriveState, sqe: Sqe) -> bool:
    """Whether this is a command of RecSSD's, on a drive that knows them."""
    if drive.recssd.enabled == 0 or signed(sqe.cdw12) & MARK == 0:
        return False
    return signed(sqe.opcode) == _WRITE or signed(sqe.opcode) == _READ


@jit_inline
def _bytes(sqe: Sqe) -> int:
    return ((signed(sqe.cdw12) & 0xFFFF) + 1) * SECTOR


@jit
def moved_bytes(sqe: Sqe, opcode: int) -> int:
    """Bytes that a marked command brings over the link, for a write."""
    return min(_bytes(sqe), nvme.MAX_TRANSFER) if opcode == _WRITE else 0


@jit_unit
def recssd_command(drive: DriveState, port: PortState, slot: int, command: Command, sqe: Sqe) -> int:
    """A marked command. :returns: its status, or PARKED. dw0 of a refusal is the position of the first bad pair."""
    slba = signed(sqe.cdw10) | (signed(sqe.cdw11) << 32)
    command.lba = slba
    if command.opcode == _WRITE:
        return _take_config(drive, port, command, sqe, slba)
    sectors = _bytes(sqe) // SECTOR
    if sectors > MAX_SECTORS:
        return _INVALID_FIELD
    status = read(drive.recssd, drive.clock.now, port.number, command.nsid, slba, sectors, slot)
    return status if status != 0 else _PARKED


@jit
def _take_config(drive: DriveState, port: PortState, command: Command, sqe: Sqe, slba: int) -> int:
    recssd, space, count = drive.recssd, namespace_at(port.namespaces, command.nsid), _bytes(sqe)
    size = space.blocks << space.lba_shift
    if slba < 0 or slba > size // SECTOR:
        return _LBA_RANGE
    first = (slba - slba % TABLE_ALIGN) * SECTOR
    number = place(recssd, port.number, command.nsid, slba, count)
    if number < 0:
        return -number
    status = map_data(port.memory, drive.transfer, sqe, count, 0)
    if status != 0:
        return status
    gather(drive.transfer, config_of(recssd, number), count)
    command.incoming = count
    sls_at(recssd.requests, number).lba_shift = space.lba_shift
    base = (space.first_lpn << drive.ftl.page_shift) + first
    now = drive.clock.now
    status = start(recssd, now, number, port.number, command.nsid, slba, base, size - first, count)
    if status != 0:
        command.dw0 = recssd.position
    else:
        command.ready = max(command.ready, recssd.processor_free)
        port.counters.lookups += 1
        space.traffic.rows += sls_at(recssd.requests, number).count
    return status


@jit
def _take_sums(drive: DriveState, number: int) -> int:
    """Copy an answered read's sectors to its command and free it. :returns: the status"""
    recssd = drive.recssd
    waiter = waiter_at(recssd.waiters, number)
    command = command_at(drive.commands.slots, waiter.slot)
    port = port_of(drive, command.port)
    status = waiter.status
    command.ready = max(command.ready, send_off(recssd, number))
    if waiter.request >= 0:
        request, count = sls_at(recssd.requests, waiter.request), waiter.sectors * SECTOR
        command.dw0 = request.position
        if status == 0:
            status = map_data(port.memory, drive.transfer, sqe_at(drive.commands.sqes, waiter.slot), count, 1)
        if status == 0:
            scatter(drive.transfer, request.result + waiter.first * SECTOR, count)
            command.outgoing = count
    given(recssd, number, command.ready)
    return status


@jit_unit
def next_sums(drive: DriveState) -> int:
    """The slot of the next parked read that is answered and has its data, or -1."""
    number = pop_done(drive.recssd)
    if number < 0:
        return -1
    slot = waiter_at(drive.recssd.waiters, number).slot
    command_at(drive.commands.slots, slot).status = _take_sums(drive, number)
    return slot


@jit
def reset_recssd(address: int, number: int) -> None:
    """A controller reset: free the slots of a port's parked reads and drop its requests."""
    drive = drive_at(address, 0)
    recssd, port = drive.recssd, port_of(drive, number)
    disown_answered(recssd, number)
    while True:
        held = pop_early(recssd, number)
        if held < 0:
            break
        leave(drive.clock, drive.commands, port, waiter_at(recssd.waiters, held).slot)
        free_waiter(recssd, held)
    for index in range(MAX_REQUESTS):
        request = sls_at(recssd.requests, index)
        if request.phase == FREE or request.port != number or request.abandoned != 0:
            continue
        while True:
            held = pop_held(recssd, index)
            if held < 0:
                break
            leave(drive.clock, drive.commands, port, waiter_at(recssd.waiters, held).slot)
            free_waiter(recssd, held)
        abandon(recssd, index)
