"""The map: from logical pages to flash pages or buffered ones, and what hangs on an entry (chunk counts, dirty flags).

Order matters to the checkpoint, which reads the map from another thread: an entry is stored before its chunk's dirty
flag, and ``publish`` comes after both.
"""

from __future__ import annotations

from emucsd_firmware.ftl.ecc import read_flash
from emucsd_firmware.ftl.state import (
    BUFFERED,
    BUFFERED_BIT,
    CHUNK_BITS,
    PUBLISHED,
    SLOT_MASK,
    UNMAPPED,
    Ftl,
    oob_at,
    slot_at,
)
from emucsd_firmware.nand.state import Nand
from emucsd_wire.nvme import Status
from emucsd_wire.words import get_u16, get_u32, jit, jit_inline, prefetch, put_u16, put_u32, store_i64, store_u8

__all__ = ["BUFFERED", "UNMAPPED", "bad_mask", "location", "prefetch_page", "read_page", "submit_read"]

_UNRECOVERED = int(Status.UNRECOVERED_READ)


@jit_inline
def entry_of(ftl: Ftl, lpn: int) -> int:
    """The map's raw entry."""
    return get_u32(ftl.map, lpn)


@jit_inline
def prefetch_page(ftl: Ftl, lpn: int) -> None:
    """Ask for the map entry's cache line, some hundred ns before ``location`` or ``read_page`` needs it."""
    prefetch(ftl.map + 4 * lpn)


@jit_inline
def location(ftl: Ftl, lpn: int) -> int:
    """The page's ppn, or UNMAPPED, or BUFFERED."""
    entry = get_u32(ftl.map, lpn)
    if entry & BUFFERED_BIT != 0:
        return BUFFERED
    return entry - 1


@jit_inline
def image_of(ftl: Ftl, slot: int) -> int:
    """Address of a buffer slot's page."""
    return ftl.images + (slot << ftl.page_shift)


@jit_inline
def media_of(ftl: Ftl, ppn: int) -> int:
    """Address of a flash page's data."""
    return ftl.media + (ppn << ftl.page_shift)


@jit_inline
def read_page(ftl: Ftl, lpn: int) -> int:
    """Address of the page's bytes, in flash or in the buffer; 0: unmapped, reads as zeros.

    Good until the next call that writes, deallocates or collects garbage.
    """
    entry = get_u32(ftl.map, lpn)
    if entry & BUFFERED_BIT != 0:
        return image_of(ftl, entry & SLOT_MASK)
    return media_of(ftl, entry - 1) if entry != 0 else 0


@jit_inline
def submit_read(ftl: Ftl, nand: Nand, now: int, traffic: int, lpn: int, nbytes: int, job: int) -> int:
    """Charge reading ``nbytes`` of the page to ``job``; unmapped and buffered pages take no flash time.

    :returns: 0, or Unrecovered Read Error: more bits are wrong than the ECC and all retries can mend
    """
    entry = get_u32(ftl.map, lpn)
    if entry == 0 or entry & BUFFERED_BIT != 0:
        return 0
    return 0 if read_flash(ftl, nand, now, traffic, entry - 1, nbytes, job) >= 0 else _UNRECOVERED


@jit_inline
def set_entry(ftl: Ftl, lpn: int, entry: int) -> None:
    """Store an entry that is not 0 over another that is not 0, and mark its chunk."""
    put_u32(ftl.map, lpn, entry)
    store_u8(ftl.dirty, lpn >> CHUNK_BITS, 1)


@jit_inline
def touch_chunk(ftl: Ftl, lpn: int) -> None:
    """The chunk's image in the map file is out of date although the entry itself stays."""
    store_u8(ftl.dirty, lpn >> CHUNK_BITS, 1)


@jit_inline
def count_mapped(ftl: Ftl, lpn: int, delta: int) -> None:
    """An entry became mapped (+1) or unmapped (-1)."""
    chunk = lpn >> CHUNK_BITS
    put_u16(ftl.chunk_pages, chunk, get_u16(ftl.chunk_pages, chunk) + delta)
    ftl.mapped += delta


@jit_inline
def publish(ftl: Ftl) -> None:
    """Everything up to ``seq`` is in the map (and on flash): a checkpoint may start from here."""
    store_i64(ftl.words, PUBLISHED, ftl.seq)


@jit_inline
def entry_is(ftl: Ftl, lpn: int, ppn: int) -> int:
    """Whether ``ppn`` is this logical page's version on flash: 0 no, 1 in the map, 2 behind a buffered one."""
    entry = get_u32(ftl.map, lpn)
    if entry == ppn + 1:
        return 1
    if entry & BUFFERED_BIT != 0 and slot_at(ftl.slots, entry & SLOT_MASK).old == ppn + 1:
        return 2
    return 0


@jit
def bad_mask(ftl: Ftl, lpn: int) -> int:
    """The page's logical blocks that were marked uncorrectable (or lost), one bit each."""
    entry = get_u32(ftl.map, lpn)
    if entry & BUFFERED_BIT != 0:
        return slot_at(ftl.slots, entry & SLOT_MASK).bad
    return oob_at(ftl.oob, entry - 1).bad if entry != 0 else 0
