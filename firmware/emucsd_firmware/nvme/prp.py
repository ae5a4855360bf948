"""Data pointers: PRP entries and lists (Base 4.3.1) and SGLs (Base 4.3.2), walked into a Transfer's segments.

Every length is checked before a byte moves. Neither walk can loop: a PRP list's chained pages must start at offset 0,
so each carries at least 511 entries of a transfer of at most 1 MiB, and SGL descriptors are counted.
"""

from __future__ import annotations

from emucsd_firmware.memory import Memory, Transfer, append, resolve, start
from emucsd_wire import nvme
from emucsd_wire.nvme import PAGE, SGL_DESCRIPTOR, SGL_LAST_SEGMENT, SGL_SEGMENT, SglDescriptor, Sqe
from emucsd_wire.words import get_i64, jit, jit_unit, pointer_to, signed

sgl_at = pointer_to(SglDescriptor, SGL_DESCRIPTOR.dtype)

MAX_SGL_DESCRIPTORS = 1024
_PRP_OFFSET = int(nvme.Status.PRP_OFFSET_INVALID)
_FIELD = int(nvme.Status.INVALID_FIELD)
_TRANSFER = int(nvme.Status.DATA_TRANSFER_ERROR)
_SGL_SEGMENT_STATUS = int(nvme.Status.INVALID_SGL_SEGMENT)
_SGL_COUNT = int(nvme.Status.INVALID_SGL_COUNT)
_SGL_LENGTH = int(nvme.Status.DATA_SGL_LENGTH)
_SGL_TYPE = int(nvme.Status.INVALID_SGL_TYPE)


@jit
def walk_prp(memory: Memory, transfer: Transfer, prp1: int, prp2: int, length: int, writing: int) -> int:
    """Segments of ``length`` bytes at PRP1 and PRP2. :returns: 0 or a status"""
    start(transfer)
    if prp1 < 0 or prp2 < 0:
        return _TRANSFER
    if prp1 & 3 != 0:
        return _PRP_OFFSET
    first = min(length, PAGE - (prp1 & (PAGE - 1)))
    if append(transfer, memory, prp1, first, writing) != 0:
        return _TRANSFER
    left = length - first
    if left == 0:
        return 0
    if prp2 == 0:
        return _FIELD  # a guest has memory at 0: what it forgot to fill in must not go there
    if left <= PAGE:
        if prp2 & (PAGE - 1) != 0:
            return _PRP_OFFSET
        return _TRANSFER if append(transfer, memory, prp2, left, writing) != 0 else 0
    if prp2 & 7 != 0:
        return _PRP_OFFSET
    return _walk_list(memory, transfer, prp2, left, writing)


@jit
def _walk_list(memory: Memory, transfer: Transfer, where: int, left: int, writing: int) -> int:
    """The entries of a PRP list; the last entry of a full list page points to the next page of the list."""
    while left > 0:
        slots = (PAGE - (where & (PAGE - 1))) >> 3
        entries = resolve(memory, where, 8 * slots, 0)
        if entries == 0:
            return _TRANSFER
        needed = (left + PAGE - 1) // PAGE
        chained = needed > slots
        count = slots - 1 if chained else needed
        for index in range(count):
            entry = get_i64(entries, index)
            if entry & (PAGE - 1) != 0:
                return _PRP_OFFSET
            piece = min(left, PAGE)
            if entry < 0 or append(transfer, memory, entry, piece, writing) != 0:
                return _TRANSFER
            left -= piece
        if chained:
            where = get_i64(entries, slots - 1)
            if where & (PAGE - 1) != 0:
                return _PRP_OFFSET
            if where < 0:
                return _TRANSFER
    return 0


@jit
def walk_sgl(memory: Memory, transfer: Transfer, sqe: Sqe, length: int, writing: int) -> int:
    """Segments of ``length`` bytes described by SGL1 and what it points to. :returns: 0 or a status"""
    start(transfer)
    address = signed(sqe.prp1)
    size = signed(sqe.prp2) & 0xFFFFFFFF
    kind = (signed(sqe.prp2) >> 56) & 0xFF
    seen = 0
    if kind == 0:
        status = _data_block(memory, transfer, address, size, length, writing)
        return status if status != 0 else _check_total(transfer, length)
    while kind == SGL_SEGMENT or kind == SGL_LAST_SEGMENT:
        last = kind == SGL_LAST_SEGMENT
        count = size >> 4
        if size == 0 or size & 15 != 0 or address < 0:
            return _SGL_SEGMENT_STATUS
        seen += count
        if seen > MAX_SGL_DESCRIPTORS:
            return _SGL_COUNT
        table = resolve(memory, address, size, 0)
        if table == 0:
            return _TRANSFER
        kind = -1
        for index in range(count):
            entry = sgl_at(table, index)
            this = signed(entry.kind)
            if this == SGL_SEGMENT or this == SGL_LAST_SEGMENT:
                if last or index != count - 1:
                    return _SGL_SEGMENT_STATUS
                address, size, kind = signed(entry.address), signed(entry.length), this
            elif this == 0:
                block, span = signed(entry.address), signed(entry.length)
                status = _data_block(memory, transfer, block, span, length, writing)
                if status != 0:
                    return status
            else:
                return _SGL_TYPE
        if not last and kind < 0:
            return _SGL_SEGMENT_STATUS
    if seen == 0:
        return _SGL_TYPE
    return _check_total(transfer, length)


@jit
def _data_block(memory: Memory, transfer: Transfer, address: int, size: int, length: int, writing: int) -> int:
    if address < 0 or size < 0:
        return _TRANSFER
    if transfer.total + size > length:
        return _SGL_LENGTH  # SGLs longer than the transfer: Identify's SGLS says that we do not take them
    result = append(transfer, memory, address, size, writing)
    if result == 2:
        return _SGL_COUNT
    return _TRANSFER if result != 0 else 0


@jit
def _check_total(transfer: Transfer, length: int) -> int:
    return _SGL_LENGTH if transfer.total != length else 0


@jit_unit
def map_data(memory: Memory, transfer: Transfer, sqe: Sqe, length: int, writing: int) -> int:
    """Segments of a command's data by PRP or SGL as PSDT says. ``writing`` 1: the drive writes to the host."""
    psdt = (signed(sqe.flags) >> 6) & 3
    if psdt == 0:
        return walk_prp(memory, transfer, signed(sqe.prp1), signed(sqe.prp2), length, writing)
    if psdt == 3:
        return _FIELD
    return walk_sgl(memory, transfer, sqe, length, writing)
