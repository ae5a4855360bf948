"""The NVM command set on the data path (NVM Command Set 1.1, section 3): decode, translate, copy, charge time.

Every command runs to its functional end here: data is copied and the map is changed at the moment the command acts.
What it costs in time is queued as NAND operations under the command's job; ``dataplane`` completes it when they end.
"""

from __future__ import annotations

from emucsd_firmware.ftl.mapping import read_page, submit_read
from emucsd_firmware.ftl.write import WHEN_DONE, bad_mask, commit_write, flush, mark_bad, prepare_write
from emucsd_firmware.memory import gather, matches, scatter
from emucsd_firmware.nand.timing import BLOCK
from emucsd_firmware.nvme.commands import Command
from emucsd_firmware.nvme.prp import map_data
from emucsd_firmware.nvme.queues import NAMESPACES, NamespaceState, PortState, namespace_at
from emucsd_firmware.state import DriveState
from emucsd_wire import nvme
from emucsd_wire.nvme import MAX_TRANSFER, Sqe
from emucsd_wire.words import fill, jit, jit_inline, jit_unit, signed

_INVALID_NAMESPACE = int(nvme.Status.INVALID_NAMESPACE)
_INVALID_FIELD = int(nvme.Status.INVALID_FIELD)
_LBA_RANGE = int(nvme.Status.LBA_OUT_OF_RANGE)
_UNRECOVERED = int(nvme.Status.UNRECOVERED_READ)
_COMPARE_FAILURE = int(nvme.Status.COMPARE_FAILURE)
_READ_ONLY = int(nvme.Status.WRITE_TO_READ_ONLY)
_NSID_ALL = nvme.NSID_ALL

_CHECK, _COPY_OUT, _MATCH = 0, 1, 2  # what _pass_pages does with a page
NO_LIMIT = 1 << 62  # commands without a transfer are not bound by MDTS

_FUA = 1 << 30


@jit_inline
def slba(sqe: Sqe) -> int:
    """Starting LBA of CDW10 and CDW11; negative above 2**63, which no range check lets pass."""
    return signed(sqe.cdw10) | (signed(sqe.cdw11) << 32)


@jit_inline
def block_count(sqe: Sqe) -> int:
    """Number of logical blocks of CDW12 (0-based there)."""
    return (signed(sqe.cdw12) & 0xFFFF) + 1


@jit
def check_namespace(port: PortState, nsid: int) -> int:
    """0, or Invalid Namespace where this port has none of that id (a private one does not exist for the other port)."""
    if nsid < 1 or nsid > NAMESPACES:
        return _INVALID_NAMESPACE
    return 0 if namespace_at(port.namespaces, nsid).attached != 0 else _INVALID_NAMESPACE


@jit
def check_range(space: NamespaceState, first: int, count: int) -> int:
    """0, or LBA Out of Range."""
    return _LBA_RANGE if first < 0 or count > space.blocks or first > space.blocks - count else 0


@jit
def check_media(drive: DriveState, space: NamespaceState, lpn: int, start: int, count: int, address: int) -> int:
    """0, or Unrecovered Read where a host marked one of these blocks uncorrectable. Byte range within the page."""
    if drive.ftl.marked_pages == 0 or address == 0:
        return 0
    mask = bad_mask(drive.ftl, lpn)
    if mask == 0:
        return 0
    first = start >> space.lba_shift
    last = (start + count - 1) >> space.lba_shift
    span = last - first + 1
    wanted = -1 if span >= 64 else ((1 << span) - 1) << first
    return _UNRECOVERED if mask & wanted != 0 else 0


@jit
def named_bytes(port: PortState, command: Command, sqe: Sqe, most: int) -> int:
    """Bytes of the blocks that a command names, once checked, or -status. The first one is noted for the error log."""
    space = namespace_at(port.namespaces, command.nsid)
    blocks = block_count(sqe)
    command.lba = slba(sqe)
    status = check_range(space, command.lba, blocks)
    if status != 0:
        return -status
    count = blocks << space.lba_shift
    return count if count <= most else -_INVALID_FIELD


@jit_unit
def read(drive: DriveState, port: PortState, slot: int, command: Command, sqe: Sqe) -> int:
    """Read (02h): pages to the host's segments. :returns: 0 or a status"""
    left = named_bytes(port, command, sqe, MAX_TRANSFER)
    if left < 0:
        return -left
    status = map_data(port.memory, drive.transfer, sqe, left, 1)
    if status != 0:
        return status
    command.outgoing = left
    port.counters.reads += 1
    port.counters.blocks_read += left >> 9
    status = _pass_pages(drive, port, slot, command, left, _COPY_OUT)
    traffic = namespace_at(port.namespaces, command.nsid).traffic
    if status != 0:
        traffic.bytes_failed += left
        return status
    traffic.reads += 1
    traffic.bytes_read += left
    return 0


@jit_unit
def compare(drive: DriveState, port: PortState, slot: int, command: Command, sqe: Sqe) -> int:
    """Compare (05h). :returns: 0, Compare Failure, or another status"""
    left = named_bytes(port, command, sqe, MAX_TRANSFER)
    if left < 0:
        return -left
    status = map_data(port.memory, drive.transfer, sqe, left, 0)
    if status != 0:
        return status
    command.incoming = left
    port.counters.reads += 1
    port.counters.blocks_read += left >> 9
    status = _pass_pages(drive, port, slot, command, left, _MATCH)
    traffic = namespace_at(port.namespaces, command.nsid).traffic
    if status != 0:
        traffic.bytes_failed += left
        return status
    traffic.compares += 1
    traffic.bytes_compared += left
    return 0


@jit_unit
def verify(drive: DriveState, port: PortState, slot: int, command: Command, sqe: Sqe) -> int:
    """Verify (0Ch): read and check without a transfer."""
    left = named_bytes(port, command, sqe, NO_LIMIT)
    if left < 0:
        return -left
    port.counters.other += 1
    return _pass_pages(drive, port, slot, command, left, _CHECK)


@jit_unit
def _pass_pages(drive: DriveState, port: PortState, slot: int, command: Command, left: int, use: int) -> int:
    """Charge a command's blocks page by page, and copy them to the host, or compare them, or only check them."""
    space = namespace_at(port.namespaces, command.nsid)
    ftl = drive.ftl
    start = command.lba << space.lba_shift
    lpn = space.first_lpn + (start >> ftl.page_shift)
    offset = start & (ftl.page_bytes - 1)
    result = 0
    while left > 0:
        piece = min(left, ftl.page_bytes - offset)
        status = submit_read(ftl, drive.nand, drive.clock.now, BLOCK, lpn, piece, slot)
        address = read_page(ftl, lpn)
        if status == 0:
            status = check_media(drive, space, lpn, offset, piece, address)
        if status != 0:
            result = status
            address = 0  # never the wrong bytes: a page that fails reads as nothing
        if use == _COPY_OUT:
            scatter(drive.transfer, address + offset if address != 0 else 0, piece)
        elif status == 0 and use == _MATCH:
            if not matches(drive.transfer, address + offset if address != 0 else ftl.zero_page, piece):
                return _COMPARE_FAILURE
        elif status != 0:
            return status
        lpn += 1
        left -= piece
        offset = 0
    return result


@jit_unit
def write(drive: DriveState, port: PortState, slot: int, command: Command, sqe: Sqe) -> int:
    """Write (01h): the host's segments to new flash pages or the DRAM buffer. :returns: 0 or a status"""
    space = namespace_at(port.namespaces, command.nsid)
    left = named_bytes(port, command, sqe, MAX_TRANSFER)
    if left < 0:
        return -left
    if space.write_protected != 0:
        return _READ_ONLY
    status = map_data(port.memory, drive.transfer, sqe, left, 0)
    if status != 0:
        return status
    command.incoming = left
    port.counters.writes += 1
    port.counters.blocks_written += left >> 9
    fua = 1 if signed(sqe.cdw12) & _FUA != 0 else 0
    command.durable = fua & drive.ftl.machine_durable
    status = write_pages(drive, space, slot, command, command.lba << space.lba_shift, left, fua, 1)
    if status != 0:
        space.traffic.bytes_failed += left
        return status
    space.traffic.writes += 1
    space.traffic.bytes_written += left
    return 0


@jit_unit
def write_pages(
    drive: DriveState, space: NamespaceState, slot: int, command: Command, start: int, left: int, fua: int, host: int
) -> int:
    """Write a byte range of a namespace from the host's segments (``host`` 1) or as zeros, page by page."""
    ftl = drive.ftl
    page_bytes = ftl.page_bytes
    lpn = space.first_lpn + (start >> ftl.page_shift)
    offset = start & (page_bytes - 1)
    while left > 0:
        piece = min(left, page_bytes - offset)
        whole = 1 if piece == page_bytes else 0
        image = prepare_write(ftl, drive.nand, drive.clock.now, slot, lpn, whole)
        if image < 0:
            return -image
        if host != 0:
            gather(drive.transfer, image + offset, piece)
        else:
            fill(image + offset, 0, piece)
        status = finish_page(drive, space, slot, command, lpn, offset, piece, fua)
        if status != 0:
            return status
        lpn += 1
        left -= piece
        offset = 0
    return 0


@jit_unit
def finish_page(
    drive: DriveState, space: NamespaceState, slot: int, command: Command, lpn: int, offset: int, piece: int, fua: int
) -> int:
    """Publish a prepared page; blocks of it that were marked uncorrectable and are written now are good again."""
    ftl = drive.ftl
    if ftl.image_bad != 0:
        mark_bad(ftl, lpn, offset >> space.lba_shift, piece >> space.lba_shift, 0)
    early = commit_write(ftl, drive.nand, drive.clock.now, slot, lpn, fua)
    if early < WHEN_DONE:
        return -early
    command.ready = max(command.ready, early)
    return 0


@jit_unit
def flush_namespace(drive: DriveState, port: PortState, slot: int, command: Command) -> int:
    """Flush (00h), for one namespace or all (the write buffer is one): completes when everything is on flash."""
    if command.nsid != _NSID_ALL:
        status = check_namespace(port, command.nsid)
        if status != 0:
            return status
    command.durable = drive.ftl.machine_durable
    port.counters.other += 1
    return flush(drive.ftl, drive.nand, drive.clock.now, slot)


@jit_unit
def write_uncorrectable(drive: DriveState, port: PortState, slot: int, command: Command, sqe: Sqe) -> int:
    """Write Uncorrectable (04h): these blocks fail to read until they are written again."""
    space = namespace_at(port.namespaces, command.nsid)
    named = named_bytes(port, command, sqe, NO_LIMIT)
    if named < 0:
        return -named
    if space.write_protected != 0:
        return _READ_ONLY
    first, blocks = command.lba, named >> space.lba_shift
    ftl = drive.ftl
    per_page = ftl.page_bytes >> space.lba_shift
    port.counters.other += 1
    while blocks > 0:
        lpn = space.first_lpn + (first << space.lba_shift >> ftl.page_shift)
        inside = first & (per_page - 1)
        piece = min(blocks, per_page - inside)
        image = prepare_write(ftl, drive.nand, drive.clock.now, slot, lpn, 0)
        if image < 0:
            return -image
        mark_bad(ftl, lpn, inside, piece, 1)
        early = commit_write(ftl, drive.nand, drive.clock.now, slot, lpn, 0)
        if early < WHEN_DONE:
            return -early
        command.ready = max(command.ready, early)
        first += piece
        blocks -= piece
    return 0
