"""Commands that move or drop blocks inside the drive: Dataset Management, Write Zeroes, Copy (NVM 3.3.2 to 3.3.8)."""

from __future__ import annotations

from emucsd_firmware.ftl.mapping import read_page, submit_read
from emucsd_firmware.ftl.trim import deallocate
from emucsd_firmware.ftl.write import prepare_write
from emucsd_firmware.memory import gather
from emucsd_firmware.nand.timing import BLOCK
from emucsd_firmware.nvme.commands import Command
from emucsd_firmware.nvme.io import NO_LIMIT, check_media, check_range, finish_page, named_bytes, slba, write_pages
from emucsd_firmware.nvme.prp import map_data
from emucsd_firmware.nvme.queues import NamespaceState, PortState, namespace_at
from emucsd_firmware.state import DriveState
from emucsd_wire import nvme
from emucsd_wire.nvme import (
    COPY_MAX_BLOCKS,
    COPY_MAX_RANGE_BLOCKS,
    COPY_MAX_RANGES,
    COPY_RANGE,
    DSM_RANGE,
    CopyRange,
    DsmRange,
    Sqe,
)
from emucsd_wire.words import copy, jit_unit, pointer_to, signed

_INVALID_FIELD = int(nvme.Status.INVALID_FIELD)
_READ_ONLY = int(nvme.Status.WRITE_TO_READ_ONLY)
_SIZE_LIMIT = int(nvme.Status.COMMAND_SIZE_LIMIT)
_DSM_DEALLOCATE = 4
_DSM_BYTES = DSM_RANGE.size
_COPY_BYTES = COPY_RANGE.size
_FUA = 1 << 30

dsm_range_at = pointer_to(DsmRange, DSM_RANGE.dtype)
copy_range_at = pointer_to(CopyRange, COPY_RANGE.dtype)


@jit_unit
def _deallocate_blocks(drive: DriveState, space: NamespaceState, slot: int, command: Command, at: int, n: int) -> int:
    """Blocks [at, at + n) read as zeros from now on: whole pages lose their mapping, edges are written as zeros."""
    ftl = drive.ftl
    start, end = at << space.lba_shift, (at + n) << space.lba_shift
    first_whole = (start + ftl.page_bytes - 1) >> ftl.page_shift
    end_whole = end >> ftl.page_shift
    if first_whole >= end_whole:
        return write_pages(drive, space, slot, command, start, end - start, 0, 0)
    head = (first_whole << ftl.page_shift) - start
    if head > 0:
        status = write_pages(drive, space, slot, command, start, head, 0, 0)
        if status != 0:
            return status
    tail = end - (end_whole << ftl.page_shift)
    if tail > 0:
        status = write_pages(drive, space, slot, command, end_whole << ftl.page_shift, tail, 0, 0)
        if status != 0:
            return status
    return deallocate(ftl, space.first_lpn + first_whole, end_whole - first_whole)


@jit_unit
def dataset_management(drive: DriveState, port: PortState, slot: int, command: Command, sqe: Sqe) -> int:
    """Dataset Management (09h): every range is checked before the first is deallocated; hints are accepted."""
    space = namespace_at(port.namespaces, command.nsid)
    count = (signed(sqe.cdw10) & 0xFF) + 1
    status = map_data(port.memory, drive.transfer, sqe, count * _DSM_BYTES, 0)
    if status != 0:
        return status
    port.counters.other += 1
    ranges = drive.scratch
    gather(drive.transfer, ranges, count * _DSM_BYTES)
    if signed(sqe.cdw11) & _DSM_DEALLOCATE == 0:
        return 0
    if space.write_protected != 0:
        return _READ_ONLY
    for index in range(count):
        entry = dsm_range_at(ranges, index)
        command.lba = signed(entry.slba)
        status = check_range(space, signed(entry.slba), signed(entry.blocks))
        if status != 0:
            return status
    for index in range(count):
        entry = dsm_range_at(ranges, index)
        blocks = signed(entry.blocks)
        if blocks > 0:
            status = _deallocate_blocks(drive, space, slot, command, signed(entry.slba), blocks)
            if status != 0:
                return status
    command.ready = max(command.ready, drive.clock.now + drive.ftl.trim_ns)
    return 0


@jit_unit
def write_zeroes(drive: DriveState, port: PortState, slot: int, command: Command, sqe: Sqe) -> int:
    """Write Zeroes (08h): done by deallocation, since deallocated blocks read as zeros here (DLFEAT 001b)."""
    space = namespace_at(port.namespaces, command.nsid)
    named = named_bytes(port, command, sqe, NO_LIMIT)
    if named < 0:
        return -named
    if space.write_protected != 0:
        return _READ_ONLY
    port.counters.other += 1
    fua = signed(sqe.cdw12) & _FUA
    command.durable = drive.ftl.machine_durable if fua != 0 else 0
    command.ready = max(command.ready, drive.clock.now + drive.ftl.trim_ns)
    return _deallocate_blocks(drive, space, slot, command, command.lba, named >> space.lba_shift)


@jit_unit
def copy_blocks(drive: DriveState, port: PortState, slot: int, command: Command, sqe: Sqe) -> int:
    """Copy (19h), source descriptor format 0: ranges of this namespace, in order, to one destination."""
    space = namespace_at(port.namespaces, command.nsid)
    target = slba(sqe)
    count = (signed(sqe.cdw12) & 0xFF) + 1
    command.lba = target
    if (signed(sqe.cdw12) >> 8) & 0xF != 0:
        return _INVALID_FIELD
    if count > COPY_MAX_RANGES:
        return _SIZE_LIMIT
    status = map_data(port.memory, drive.transfer, sqe, count * _COPY_BYTES, 0)
    if status != 0:
        return status
    ranges = drive.scratch + drive.ftl.page_bytes  # the first page of scratch carries the data
    gather(drive.transfer, ranges, count * _COPY_BYTES)
    total = 0
    for index in range(count):
        entry = copy_range_at(ranges, index)
        blocks = signed(entry.blocks) + 1
        if blocks > COPY_MAX_RANGE_BLOCKS:
            return _SIZE_LIMIT
        status = check_range(space, signed(entry.slba), blocks)
        if status != 0:
            return status
        total += blocks
    if total > COPY_MAX_BLOCKS:
        return _SIZE_LIMIT
    status = check_range(space, target, total)
    if status != 0:
        return status
    if space.write_protected != 0:
        return _READ_ONLY
    port.counters.other += 1
    for index in range(count):
        entry = copy_range_at(ranges, index)
        blocks = signed(entry.blocks) + 1
        status = _copy_range(drive, space, slot, command, signed(entry.slba), target, blocks)
        if status != 0:
            return status
        target += blocks
    return 0


@jit_unit
def _copy_range(
    drive: DriveState, space: NamespaceState, slot: int, command: Command, source: int, target: int, blocks: int
) -> int:
    """Copy blocks through one page of scratch: preparing the target may collect garbage and move the source."""
    ftl = drive.ftl
    mask = ftl.page_bytes - 1
    now = drive.clock.now
    left = blocks << space.lba_shift
    source <<= space.lba_shift
    target <<= space.lba_shift
    while left > 0:
        piece = min(left, ftl.page_bytes - (source & mask), ftl.page_bytes - (target & mask))
        lpn = space.first_lpn + (source >> ftl.page_shift)
        status = submit_read(ftl, drive.nand, now, BLOCK, lpn, piece, slot)
        address = read_page(ftl, lpn)
        if status == 0:
            status = check_media(drive, space, lpn, source & mask, piece, address)
        if status != 0:
            return status
        copy(drive.scratch, (address if address != 0 else ftl.zero_page) + (source & mask), piece)
        lpn = space.first_lpn + (target >> ftl.page_shift)
        image = prepare_write(ftl, drive.nand, now, slot, lpn, 1 if piece == ftl.page_bytes else 0)
        if image < 0:
            return -image
        copy(image + (target & mask), drive.scratch, piece)
        status = finish_page(drive, space, slot, command, lpn, target & mask, piece, 0)
        if status != 0:
            return status
        source += piece
        target += piece
        left -= piece
    return 0
