"""Blocks: their kinds, free blocks by wear, open blocks and the write pointer.

A block is named by its global number, ``ppn >> page_bits``. Free blocks of a plane lie in a heap ordered by erase
count: hot data takes the youngest block, data that garbage collection moves (it will stay longer) the oldest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from emucsd_firmware.ftl.state import (
    BAD,
    FAILED,
    FREE,
    FULL,
    LIMBO,
    OPEN,
    REFRESH,
    STREAMS,
    Die,
    Ftl,
    Place,
    die_at,
    header_at,
    place_at,
)
from emucsd_wire.words import get_i64, get_u8, get_u32, jit, jit_inline, put_i64, put_u8, put_u32, store_i64

# by name: a libc function keeps its callers cacheable
_pwrite: Any = types.ExternalFunction("pwrite", types.int64(types.int32, types.int64, types.int64, types.int64))

_WRITTEN_SHIFT = 16
_STREAM_SHIFT = 8


@jit_inline
def header_word(kind: int, stream: int, written: int) -> int:
    """Kind, stream and write pointer as the one word that changes at once."""
    return kind | stream << _STREAM_SHIFT | written << _WRITTEN_SHIFT


@jit_inline
def word_kind(word: int) -> int:
    return word & 0xFF


@jit_inline
def word_stream(word: int) -> int:
    return (word >> _STREAM_SHIFT) & 0xFF


@jit_inline
def word_written(word: int) -> int:
    return word >> _WRITTEN_SHIFT


@jit_inline
def set_word(ftl: Ftl, block: int, word: int) -> None:
    """Publish a block's state on flash: an ordered store, after everything that it vouches for."""
    store_i64(ftl.headers, block * _HEADER_WORDS, word)


_HEADER_WORDS = 8  # a Header is 64 bytes, its word the first of them


@jit_inline
def written(ftl: Ftl, block: int) -> int:
    """Pages of the block below its write pointer."""
    return word_written(header_at(ftl.headers, block).word)


@jit_inline
def die_of(ftl: Ftl, block: int) -> int:
    return block >> ftl.block_bits


@jit_inline
def plane_of(ftl: Ftl, block: int) -> int:
    """The drive-wide number of the plane that the block lies in."""
    mask = (1 << ftl.plane_bits) - 1
    return (block >> ftl.block_bits << ftl.plane_bits) | (block & mask)


@jit_inline
def add_valid(ftl: Ftl, block: int, delta: int) -> None:
    put_u32(ftl.valid, block, get_u32(ftl.valid, block) + delta)


@jit
def update_collecting(ftl: Ftl, die: Die) -> None:
    """Set the die's mark by its free blocks: on below gc_low, off from gc_high."""
    before = die.collecting | (1 if die.pending > 0 else 0)
    if die.free < ftl.gc_low:
        die.collecting = 1
    elif die.free >= ftl.gc_high:
        die.collecting = 0
    _recount(ftl, die, before)


@jit_inline
def _recount(ftl: Ftl, die: Die, before: int) -> None:
    ftl.collecting_dies += (die.collecting | (1 if die.pending > 0 else 0)) - before


@jit
def add_pending(ftl: Ftl, die: Die, delta: int) -> None:
    """Blocks of the die that must be moved, whatever they hold, became more or fewer."""
    before = die.collecting | (1 if die.pending > 0 else 0)
    die.pending += delta
    _recount(ftl, die, before)


@jit
def push_free(ftl: Ftl, block: int) -> None:
    """Put a block into its plane's heap of free ones."""
    plane = plane_of(ftl, block)
    heap = ftl.heaps + 8 * plane * ftl.plane_blocks
    child = get_i64(ftl.heap_counts, plane)
    put_i64(ftl.heap_counts, plane, child + 1)
    key = get_u32(ftl.erases, block) << 32 | block
    while child > 0:
        parent = (child - 1) >> 1
        other = get_i64(heap, parent)
        if other <= key:
            break
        put_i64(heap, child, other)
        child = parent
    put_i64(heap, child, key)
    die = die_at(ftl.die_table, die_of(ftl, block))
    die.free += 1
    update_collecting(ftl, die)


@jit
def _sift_down(heap: int, count: int, parent: int, key: int) -> None:
    """Put ``key`` at ``parent`` or below, so that the heap holds."""
    while True:
        child = 2 * parent + 1
        if child >= count:
            break
        if child + 1 < count and get_i64(heap, child + 1) < get_i64(heap, child):
            child += 1
        if get_i64(heap, child) >= key:
            break
        put_i64(heap, parent, get_i64(heap, child))
        parent = child
    put_i64(heap, parent, key)


@jit
def take_free(ftl: Ftl, plane: int, oldest: int) -> int:
    """Take the plane's least worn free block (``oldest`` 1: the most worn), or -1."""
    heap = ftl.heaps + 8 * plane * ftl.plane_blocks
    count = get_i64(ftl.heap_counts, plane)
    if count == 0:
        return -1
    index = 0
    if oldest != 0:
        for other in range(count >> 1, count):  # the greatest key of a min-heap is a leaf
            if get_i64(heap, other) > get_i64(heap, index):
                index = other
    key = get_i64(heap, index)
    count -= 1
    put_i64(ftl.heap_counts, plane, count)
    if index < count:
        last = get_i64(heap, count)
        while index > 0 and get_i64(heap, (index - 1) >> 1) > last:
            put_i64(heap, index, get_i64(heap, (index - 1) >> 1))
            index = (index - 1) >> 1
        _sift_down(heap, count, index, last)
    die = die_at(ftl.die_table, plane >> ftl.plane_bits)
    die.free -= 1
    update_collecting(ftl, die)
    return key & 0xFFFF_FFFF


@jit
def open_block(ftl: Ftl, plane: int, stream: int, now: int) -> int:
    """Open a free block of the plane for a stream. :returns: 1, or 0 when the plane has none"""
    block = take_free(ftl, plane, 1 if stream == ftl.gc_stream and stream > 0 else 0)
    if block < 0:
        return 0
    header = header_at(ftl.headers, block)
    header.opened = ftl.seq
    header.born = ftl.age_base + now
    put_i64(ftl.stamps, block, 0)
    put_u32(ftl.valid, block, 0)
    put_u32(ftl.reads, block, 0)
    put_u8(ftl.kinds, block, OPEN)
    set_word(ftl, block, header_word(OPEN, stream, 0))
    place = place_at(ftl.places, plane * STREAMS + stream)
    place.next = block << ftl.page_bits
    place.end = place.next + ftl.pages
    place.fresh = 1 - get_u8(ftl.seen, block)
    put_u8(ftl.seen, block, 1)
    if place.fresh != 0:
        claim(ftl, place.next)
    return 1


@jit
def claim(ftl: Ftl, ppn: int) -> None:
    """Write zeros to a fresh block's next few pages, which the host's bytes then overwrite in memory.

    Faulting them in one by one costs ten times as much, since a file system reads around each; and it would read from
    the disk what an earlier life of the block left. Also, a full disk says so here, and not by killing the process.
    """
    count = ftl.claim_pages << ftl.page_shift
    if _pwrite(np.int32(ftl.data_fd), ftl.zero_page, count, ppn << ftl.page_shift) != count:
        ftl.disk_full = 1


@jit_inline
def plane_place(ftl: Ftl, plane: int, stream: int, reserve: int, now: int) -> int:
    """Index of the place for the stream's next page in this plane, or -1.

    Opens a block where need be, if that leaves ``reserve`` free blocks in the die.
    """
    index = plane * STREAMS + stream
    place = place_at(ftl.places, index)
    if place.next < place.end:
        return index
    if die_at(ftl.die_table, plane >> ftl.plane_bits).free <= reserve:
        return -1
    return index if open_block(ftl, plane, stream, now) != 0 else -1


@jit
def close_block(ftl: Ftl, place: Place, block: int, kind: int) -> None:
    """The block takes no more pages: it is FULL, or FAILED and to be emptied."""
    header = header_at(ftl.headers, block)
    header.closed = ftl.seq
    header.stamp = get_i64(ftl.stamps, block)
    word = header.word
    put_u8(ftl.kinds, block, kind)
    set_word(ftl, block, header_word(kind, word_stream(word), word_written(word)))
    place.next = 0
    place.end = 0
    if kind == FAILED:
        add_pending(ftl, die_at(ftl.die_table, die_of(ftl, block)), 1)


@jit
def mark_refresh(ftl: Ftl, block: int) -> None:
    """The block's data should move soon: too many reads or bit errors. An open one goes on until it is full."""
    if get_u8(ftl.kinds, block) == FULL:
        put_u8(ftl.kinds, block, REFRESH)
        add_pending(ftl, die_at(ftl.die_table, die_of(ftl, block)), 1)
        ftl.refreshes += 1


@jit
def retire(ftl: Ftl, block: int) -> None:
    """The block is bad from now on. Without spare blocks the drive can't promise its capacity: it goes read-only."""
    put_u8(ftl.kinds, block, BAD)
    set_word(ftl, block, header_word(BAD, 0, 0))
    die_at(ftl.die_table, die_of(ftl, block)).usable -= 1
    ftl.retired_blocks += 1
    ftl.spare_blocks -= 1
    if ftl.spare_blocks < 0:
        ftl.read_only = 1


@jit
def free_block(ftl: Ftl, block: int) -> None:
    """An erased block may be written again."""
    put_u8(ftl.kinds, block, FREE)
    set_word(ftl, block, header_word(FREE, 0, 0))
    push_free(ftl, block)


@jit
def set_aside(ftl: Ftl, block: int, failed: int) -> None:
    """Durability "machine": the copies of what this block held may not be on the disk yet; keep its old record."""
    if failed != 0:
        set_word(ftl, block, header_word(FAILED, 0, written(ftl, block)))
    put_u8(ftl.kinds, block, LIMBO)
    put_i64(ftl.limbo, ftl.limbo_count, block)
    ftl.limbo_count += 1


@jit
def release_limbo(ftl: Ftl) -> None:
    """Everything is on the disk: blocks that were set aside may be written again, or be given up."""
    for index in range(ftl.limbo_count):
        block = get_i64(ftl.limbo, index)
        if word_kind(header_at(ftl.headers, block).word) == FAILED:
            retire(ftl, block)
        else:
            free_block(ftl, block)
    ftl.limbo_count = 0
