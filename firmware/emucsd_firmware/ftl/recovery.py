"""Opening a drive: block tables from their headers; after a crash the map from its last checkpoint and what came after.

Every page carries its logical page and a sequence number, so for each logical page the newest record wins; trims take
part by their numbers. Only blocks that hold pages newer than the checkpoint are read: open ones, and those closed
since. A whole rescan is the same with a checkpoint that covers nothing.
"""

from __future__ import annotations

from emucsd_firmware.ftl.blocks import (
    close_block,
    plane_of,
    push_free,
    update_collecting,
    word_kind,
    word_stream,
    word_written,
)
from emucsd_firmware.ftl.buffer import empty_buffer
from emucsd_firmware.ftl.program import oob_whole
from emucsd_firmware.ftl.state import (
    ABSENT,
    BAD,
    BUFFERED_BIT,
    CHUNK,
    CHUNK_BITS,
    FAILED,
    FREE,
    FULL,
    OPEN,
    PUBLISHED,
    STREAMS,
    Ftl,
    die_at,
    ftl_at,
    header_at,
    oob_at,
    place_at,
    trim_record_at,
)
from emucsd_firmware.ftl.trim import trim_check
from emucsd_firmware.nand.reliability import factory_bad
from emucsd_firmware.nand.state import nand_at
from emucsd_wire.layout import I64, State
from emucsd_wire.words import get_u8, get_u32, jit, jit_inline, pointer, put_i64, put_u8, put_u16, put_u32, store_i64


class Found(State):
    """What opening came across."""

    usable: I64  # blocks that are not bad
    bad: I64
    corrupt: I64  # headers that make no sense: first such block + 1
    blocks: I64  # that were read for newer pages
    pages: I64  # newer than the checkpoint
    torn: I64  # pages below a write pointer whose record or data is not whole
    trims: I64  # newer than the checkpoint
    lost: I64  # map entries that led nowhere
    marked: I64  # newer pages with a bad mask


found_at = pointer(Found)


@jit
def mark_factory_bad(address: int, nand_address: int) -> int:
    """Write the headers of blocks that are bad from the beginning. :returns: how many"""
    ftl = ftl_at(address, 0)
    nand = nand_at(nand_address, 0)
    count = 0
    for number in range(ftl.dies):
        first = number << ftl.block_bits
        for block in range(first, first + ftl.blocks):
            if factory_bad(nand.reliability, block) != 0:
                header_at(ftl.headers, block).word = BAD
                count += 1
    return count


@jit
def load_blocks(address: int, found_address: int, clean: int) -> None:
    """Fill the block tables, free heaps and places from the headers; ``clean``: valid and read counts too."""
    ftl = ftl_at(address, 0)
    found = found_at(found_address, 0)
    empty_buffer(ftl)
    for number in range(ftl.dies):
        die = die_at(ftl.die_table, number)
        for offset in range(1 << ftl.block_bits):
            block = (number << ftl.block_bits) | offset
            if offset >= ftl.blocks:
                put_u8(ftl.kinds, block, ABSENT)
                continue
            kind = _load_block(ftl, found, block, clean)
            if kind == BAD:
                found.bad += 1
            else:
                die.usable += 1
                found.usable += 1
            if kind == FAILED:
                die.pending += 1


@jit
def _load_block(ftl: Ftl, found: Found, block: int, clean: int) -> int:
    header = header_at(ftl.headers, block)
    word = header.word
    kind = word_kind(word)
    if kind > BAD or word_written(word) > ftl.pages or word_written(word) < 0 or word_stream(word) >= STREAMS:
        if found.corrupt == 0:
            found.corrupt = block + 1
        return kind
    ftl.seq = max(ftl.seq, header.opened, header.closed)
    put_u8(ftl.kinds, block, kind)
    put_u32(ftl.erases, block, header.erases)
    put_i64(ftl.stamps, block, header.stamp if kind != OPEN else 0)
    if clean != 0 and kind != FREE and kind != BAD:
        put_u32(ftl.valid, block, header.valid)
        put_u32(ftl.reads, block, header.reads)
    if kind == FREE:
        push_free(ftl, block)
    elif kind == OPEN:
        _adopt(ftl, block, word)
    return kind


@jit
def _adopt(ftl: Ftl, block: int, word: int) -> None:
    """Go on writing an open block where it was left; close it if its stream exists no more.

    Records above the write pointer are wiped: they are of this life of the block, and would pass for whole once the
    pointer has passed them, should the computer crash before what is written there now is on the disk. (Their pages
    were never synced: a sync brings the pointer to the disk too.)
    """
    stream = word_stream(word)
    first = block << ftl.page_bits
    place = place_at(ftl.places, plane_of(ftl, block) * STREAMS + stream)
    written = word_written(word)
    put_i64(ftl.stamps, block, ftl.host_programs)
    newest = written - 1  # pages of a block are numbered upwards; those that a computer's crash tore say nothing
    while newest >= 0 and oob_whole(ftl, first + newest) == 0:
        newest -= 1
    if newest >= 0:
        ftl.seq = max(ftl.seq, oob_at(ftl.oob, first + newest).seq)
    if stream < ftl.streams and place.next == place.end and written < ftl.pages:
        place.next = first + written
        place.end = first + ftl.pages
        for ppn in range(place.next, place.end):
            if oob_at(ftl.oob, ppn).check != 0:
                oob_at(ftl.oob, ppn).check = 0
        return
    next_page, end = place.next, place.end
    close_block(ftl, place, block, FULL)
    place.next = next_page
    place.end = end


@jit
def finish_open(address: int) -> None:
    """Last: marks that follow from the free blocks, and the words that other threads read."""
    ftl = ftl_at(address, 0)
    ftl.collecting_dies = 0
    for number in range(ftl.dies):
        die = die_at(ftl.die_table, number)
        die.collecting = 0
        ftl.collecting_dies += 1 if die.pending > 0 else 0
        update_collecting(ftl, die)
    store_i64(ftl.words, PUBLISHED, ftl.seq)


@jit_inline
def _touched(ftl: Ftl, block: int, since: int) -> bool:
    """Whether the block may hold pages newer than ``since``."""
    kind = get_u8(ftl.kinds, block)
    return kind == OPEN or ((kind == FULL or kind == FAILED) and header_at(ftl.headers, block).closed > since)


@jit
def _record_of(ftl: Ftl, lpn: int, ppn: int, since: int) -> int:
    """Seq of the version that the map has at ``ppn``: -1 when there is no such version, 0 when it is old."""
    block = ppn >> ftl.page_bits
    if block >= ftl.block_end:
        return -1
    if not _touched(ftl, block, since):
        return 0
    if ppn & (ftl.pages - 1) >= word_written(header_at(ftl.headers, block).word):
        return -1
    record = oob_at(ftl.oob, ppn)
    return record.seq if record.lpn == lpn and oob_whole(ftl, ppn) != 0 else -1


@jit
def replay(address: int, found_address: int, since: int) -> None:
    """Bring the map up to the newest page of every logical page, from pages newer than ``since``."""
    ftl = ftl_at(address, 0)
    found = found_at(found_address, 0)
    for block in range(ftl.block_end):
        if not _touched(ftl, block, since):
            continue
        found.blocks += 1
        first = block << ftl.page_bits
        for ppn in range(first, first + word_written(header_at(ftl.headers, block).word)):
            _replay_page(ftl, found, ppn, since)


@jit
def _replay_page(ftl: Ftl, found: Found, ppn: int, since: int) -> None:
    record = oob_at(ftl.oob, ppn)
    if oob_whole(ftl, ppn) == 0:
        found.torn += 1
        return
    ftl.seq = max(ftl.seq, record.seq)
    if record.seq <= since or record.lpn < 0 or record.lpn >= ftl.lpn_end:
        return
    found.pages += 1
    if record.bad != 0:
        found.marked += 1
    entry = get_u32(ftl.map, record.lpn)
    if entry != 0 and entry & BUFFERED_BIT == 0 and _record_of(ftl, record.lpn, entry - 1, since) >= record.seq:
        return
    put_u32(ftl.map, record.lpn, ppn + 1)
    put_u8(ftl.dirty, record.lpn >> CHUNK_BITS, 1)


@jit
def replay_trims(address: int, found_address: int, since: int, trims: int, newest: int, exists: int) -> int:
    """Unmap what was deallocated after ``since`` and not written again.

    :param trims: number of the first record to look at; -1: all that the journal still has, in whatever order
    :param newest: seq of the record before that one
    :param exists: address of a u8 for each map chunk: 0 where all of its entries are 0
    :returns: the number of the journal's next record
    """
    ftl = ftl_at(address, 0)
    found = found_at(found_address, 0)
    first = max(trims, 0)
    end = first
    for number in range(first, first + ftl.trim_slots):
        index = number & (ftl.trim_slots - 1)
        record = trim_record_at(ftl.journal, index)
        whole = record.check != 0 and record.check == trim_check(record, index)
        if whole and record.seq > newest:
            newest, end = record.seq, number + 1
            ftl.seq = max(ftl.seq, newest)
        elif trims >= 0:
            break
        if whole:
            found.trims += 1
            if record.seq > since:
                _replay_trim(ftl, record.lpn, record.count, record.seq, since, exists)
    return end


@jit
def _replay_trim(ftl: Ftl, lpn: int, count: int, seq: int, since: int, exists: int) -> None:
    end = min(lpn + count, ftl.lpn_end)
    lpn = max(lpn, 0)
    while lpn < end:
        chunk = lpn >> CHUNK_BITS
        stop = min(end, (chunk + 1) * CHUNK)
        if get_u8(exists, chunk) | get_u8(ftl.dirty, chunk) != 0:
            for page in range(lpn, stop):
                entry = get_u32(ftl.map, page)
                if entry != 0 and _record_of(ftl, page, entry - 1, since) < seq:
                    put_u32(ftl.map, page, 0)
                    put_u8(ftl.dirty, chunk, 1)
        lpn = stop


@jit
def recount(address: int, found_address: int, exists: int) -> None:
    """Count valid pages of each block and mapped pages of each chunk; drop entries that lead nowhere."""
    ftl = ftl_at(address, 0)
    found = found_at(found_address, 0)
    for chunk in range(ftl.lpn_end >> CHUNK_BITS):
        if get_u8(exists, chunk) | get_u8(ftl.dirty, chunk) == 0:
            continue
        count = 0
        for lpn in range(chunk * CHUNK, (chunk + 1) * CHUNK):
            entry = get_u32(ftl.map, lpn)
            if entry == 0:
                continue
            block = (entry - 1) >> ftl.page_bits
            if not _leads_somewhere(ftl, entry, block):
                found.lost += 1
                put_u32(ftl.map, lpn, 0)
                put_u8(ftl.dirty, chunk, 1)
                continue
            count += 1
            put_u32(ftl.valid, block, get_u32(ftl.valid, block) + 1)
        put_u16(ftl.chunk_pages, chunk, count)
        ftl.mapped += count


@jit_inline
def _leads_somewhere(ftl: Ftl, entry: int, block: int) -> bool:
    if entry & BUFFERED_BIT != 0 or block >= ftl.block_end:
        return False
    kind = get_u8(ftl.kinds, block)
    if kind != OPEN and kind != FULL and kind != FAILED:
        return False
    return (entry - 1) & (ftl.pages - 1) < word_written(header_at(ftl.headers, block).word)


@jit
def save_counts(address: int) -> None:
    """Before a clean stop: valid and read counts into the headers."""
    ftl = ftl_at(address, 0)
    for block in range(ftl.block_end):
        kind = get_u8(ftl.kinds, block)
        if kind == ABSENT or kind == FREE or kind == BAD:
            continue
        header = header_at(ftl.headers, block)
        header.valid = get_u32(ftl.valid, block)
        header.reads = get_u32(ftl.reads, block)
        if kind == OPEN:
            header.stamp = ftl.host_programs
