"""Deallocation: unmapping pages, made durable by a journal of ranges before it takes effect.

A record stays in the journal's ring until a checkpoint has brought the map that far to its file.
"""

from __future__ import annotations

from emucsd_firmware.ftl.buffer import discard
from emucsd_firmware.ftl.checks import digest
from emucsd_firmware.ftl.mapping import count_mapped, entry_of, publish
from emucsd_firmware.ftl.program import invalidate
from emucsd_firmware.ftl.state import (
    BUFFERED_BIT,
    CHUNK,
    CHUNK_BITS,
    SLOT_MASK,
    TRIMS_FOLDED,
    TRIMS_WRITTEN,
    WANTED,
    Ftl,
    TrimRecord,
    trim_record_at,
)
from emucsd_wire.nvme import Status
from emucsd_wire.words import get_u16, jit, jit_inline, jit_unit, load_i64, put_u32, store_i64, store_u8

JOURNAL_FULL = (
    0x021  # Command Interrupted: retry once a checkpoint has emptied the journal (the control thread is told)
)
_LBA_RANGE = int(Status.LBA_OUT_OF_RANGE)


@jit_inline
def trim_check(record: TrimRecord, index: int) -> int:
    """Word that makes a record of the journal whole."""
    return digest(record.lpn, record.count, record.seq, index, 0)


@jit_unit
def deallocate(ftl: Ftl, lpn: int, count: int) -> int:
    """Unmap ``count`` pages: they read as zeros. Takes some ns a mapped page: slice what may be huge.

    :returns: 0; LBA Out of Range; or JOURNAL_FULL: nothing was done, call ``Store.checkpoint`` and repeat
    """
    if lpn < 0 or count < 0 or lpn > ftl.lpn_end - count:
        return _LBA_RANGE
    if _any_mapped(ftl, lpn, count) == 0:
        return 0
    written = load_i64(ftl.words, TRIMS_WRITTEN)
    pending = written - load_i64(ftl.words, TRIMS_FOLDED)
    if pending >= ftl.trim_slots >> 2:
        store_i64(ftl.words, WANTED, 1)
        if pending >= ftl.trim_slots:
            return JOURNAL_FULL
    ftl.seq += 1
    index = written & (ftl.trim_slots - 1)
    record = trim_record_at(ftl.journal, index)
    record.lpn = lpn
    record.count = count
    record.seq = ftl.seq
    store_i64(ftl.journal, 4 * index + 3, trim_check(record, index))
    ftl.trims += 1
    unmap(ftl, lpn, count)
    publish(ftl)
    store_i64(ftl.words, TRIMS_WRITTEN, written + 1)
    return 0


@jit
def _any_mapped(ftl: Ftl, lpn: int, count: int) -> int:
    """1: some page of the range is mapped. Whole chunks without any are skipped."""
    end = lpn + count
    while lpn < end:
        if get_u16(ftl.chunk_pages, lpn >> CHUNK_BITS) == 0:
            lpn = ((lpn >> CHUNK_BITS) + 1) << CHUNK_BITS
        elif entry_of(ftl, lpn) != 0:
            return 1
        else:
            lpn += 1
    return 0


@jit
def unmap(ftl: Ftl, lpn: int, count: int) -> None:
    """Take the range out of the map, chunk by chunk."""
    end = lpn + count
    while lpn < end:
        chunk = lpn >> CHUNK_BITS
        stop = min(end, (chunk + 1) * CHUNK)
        if get_u16(ftl.chunk_pages, chunk) != 0:
            for page in range(lpn, stop):
                _unmap_page(ftl, page)
            store_u8(ftl.dirty, chunk, 1)
        lpn = stop


@jit_inline
def _unmap_page(ftl: Ftl, lpn: int) -> None:
    entry = entry_of(ftl, lpn)
    if entry == 0:
        return
    if entry & BUFFERED_BIT != 0:
        entry = discard(ftl, entry & SLOT_MASK)
    put_u32(ftl.map, lpn, 0)
    count_mapped(ftl, lpn, -1)
    ftl.trimmed_pages += 1
    if entry != 0:
        invalidate(ftl, entry - 1)
