"""EV-FMC: reads vectors from the dies they lie on, and only their own bytes where the grain allows it.

Reads go out in index order and finish as the dies and channels let them (``nand.timing``); the bytes themselves are
at hand at once, because a page's newest content is (``ftl.mapping``). What a die serves next when block I/O waits
there too is the scheduling policy's, in ``nand``.
"""

from __future__ import annotations

from emucsd_firmware.ftl.mapping import UNMAPPED, bad_mask, location, prefetch_page, read_page, submit_read
from emucsd_firmware.ftl.state import Ftl
from emucsd_firmware.lookup.cache import prefetch_set, seek
from emucsd_firmware.lookup.generate import generate
from emucsd_firmware.lookup.state import (
    PREFETCH,
    READING,
    ROW_BYTES,
    SUM,
    Lookup,
    Request,
    Table,
    extent_at,
    request_at,
    table_at,
)
from emucsd_firmware.lookup.translator import extent_end, extent_of, row_id
from emucsd_firmware.nand.state import LOOKUP, Nand, job_at
from emucsd_firmware.nand.timing import next_event, submit_vector, vectors_alone
from emucsd_wire.nvme import Status
from emucsd_wire.words import copy, fill, get_i64, get_u32, jit, jit_inline, jit_unit, prefetch, put_i64

LINE = 64
AHEAD = 64  # rows of the next slice: some 16 KiB, which the first-level cache holds
_UNRECOVERED = int(Status.UNRECOVERED_READ)


@jit
def path_room(lookup: Lookup, nand: Nand) -> int:
    """Reads that may go out: places of the path buffer that no read holds, and the NAND model's own room."""
    if vectors_alone(nand):  # all that is under way is ours: no need to ask every request
        return min(lookup.path_buffer - (nand.pool - nand.room), nand.room)
    room, number = lookup.path_buffer, lookup.reading
    while number >= 0:
        room -= job_at(nand.jobs, lookup.first_job + number).pending
        number = request_at(lookup.requests, number).below
    if lookup.head >= 0 and request_at(lookup.requests, lookup.head).state == READING:
        room += 1  # its job is held open, which is no read
    return min(room, nand.room)


@jit
def room_again(lookup: Lookup, nand: Nand, now: int, request: Request, table: Table, room: int) -> int:
    """A time by which the path buffer cannot yet have run dry: to look at it at every event would be waste.

    That many reads need at least their time on the channels, and all but the first of each die a whole array read.
    """
    wanted = lookup.refill - room
    nbytes = (1 << lookup.page_shift) if request.grain != 0 else table.row_bytes
    bus_ns = wanted * nbytes * nand.transfer_ns // (4096 * nand.channel_count)
    together = nand.die_count * (nand.planes if nand.multi_plane != 0 else 1)
    array_ns = (wanted - 1) // together * nand.read_ns if nand.page_register == 0 else 0
    return max(now + max(bus_ns, array_ns), next_event(nand))


@jit_unit
def _read(
    ftl: Ftl, nand: Nand, now: int, table: Table, lpn: int, inside: int, count: int, nbytes: int, job: int
) -> int:
    """Send out one read, of ``count`` bytes at ``inside`` the page. 0, or Unrecovered Read Error."""
    where = location(ftl, lpn)
    if where == UNMAPPED:
        if table.generated != 0:
            table.flash_reads += 1
            table.flash_bytes += nbytes
            ftl.flash_reads += 1
            submit_vector(nand, now, striped(ftl, lpn), nbytes, job)
        else:
            table.unwritten += 1
        return 0
    if where >= 0:
        table.flash_reads += 1
        table.flash_bytes += nbytes
    else:
        table.buffered += 1
    status = submit_read(ftl, nand, now, LOOKUP, lpn, nbytes, job)
    if status == 0 and ftl.marked_pages != 0 and _marked(ftl, table, lpn, inside, count):
        return _UNRECOVERED
    return status


@jit_inline
def striped(ftl: Ftl, lpn: int) -> int:
    """The flash page that a logical page would have if pages had been striped in order, and never moved."""
    turn = lpn // ftl.planes
    plane = get_u32(ftl.stripes, lpn - turn * ftl.planes)
    die, plane = plane >> ftl.plane_bits, plane & ((1 << ftl.plane_bits) - 1)
    block = (turn >> ftl.page_bits) % ftl.plane_blocks
    page = turn & ((1 << ftl.page_bits) - 1)
    return (die << ftl.die_shift) | (((block << ftl.plane_bits) | plane) << ftl.page_bits) | page


@jit
def _marked(ftl: Ftl, table: Table, lpn: int, inside: int, count: int) -> bool:
    """Whether one of the logical blocks under these bytes was marked uncorrectable."""
    mask = bad_mask(ftl, lpn)
    for block in range(inside >> table.lba_shift, ((inside + count - 1) >> table.lba_shift) + 1):
        if (mask >> block) & 1 != 0:
            return True
    return False


@jit
def _gather(
    lookup: Lookup, ftl: Ftl, nand: Nand, now: int, request: Request, table: Table, byte: int, target: int
) -> int:
    """Put the vector at table byte ``byte`` together at ``target`` from its pieces. 0, or the failed one's status."""
    page_bytes, end = 1 << lookup.page_shift, byte + table.row_bytes
    job = lookup.first_job + request.number
    if table.generated != 0:
        generate(target, table.seed, byte // table.stride, table.dim)
    extent = extent_of(table, byte)
    while byte < end:
        if byte >= extent_end(table, extent):
            extent += 1
        place = extent_at(table.extents, extent).base + byte
        lpn, inside = place >> lookup.page_shift, place & (page_bytes - 1)
        piece = min(page_bytes - inside, extent_end(table, extent) - byte, end - byte)
        nbytes = page_bytes if request.grain != 0 else piece
        status = _read(ftl, nand, now, table, lpn, inside, piece, nbytes, job)
        if status != 0:
            return status
        page = read_page(ftl, lpn)
        if page != 0:
            copy(target, page + inside, piece)
        elif table.generated == 0:
            fill(target, 0, piece)
        target += piece
        byte += piece
    table.split += 1
    return 0


@jit
def read_vectors(lookup: Lookup, ftl: Ftl, nand: Nand, now: int, request: Request, table: Table, count: int) -> int:
    """Send out the reads of the slice's vectors and fill ``lookup.rows`` with where their bytes are.

    A read reaches its die when the translator, which starts with the slice at ``now``, is done with its index.

    :returns: ``count``, or less when the next vector cannot be read: ``request.status`` says why
    """
    for index in range(count):
        prefetch_page(ftl, get_i64(lookup.places, index) >> lookup.page_shift)
    done = 0
    if ftl.unreliable == 0 and ftl.marked_pages == 0:
        if table.generated != 0 or lookup.hot.rows != 0:
            done = _read_special(lookup, ftl, nand, now, request, table, count)
        else:
            done = _read_sound(lookup, ftl, nand, now, request, table, count)
    while done < count:
        status = _read_one(lookup, ftl, nand, _arrival(lookup, now, done), request, table, done)
        if status != 0:
            request.status = status
            request.position = request.cursor + done
            return done
        done += 1
    return count


@jit_inline
def _arrival(lookup: Lookup, now: int, index: int) -> int:
    return now + (((index + 1) * lookup.translate_step + 1023) >> 10)


@jit_inline
def _prefetch_row(row: int, width: int) -> None:
    prefetch(row)
    for line in range(LINE, width, LINE):
        prefetch(row + line)


@jit
def _read_sound(lookup: Lookup, ftl: Ftl, nand: Nand, now: int, request: Request, table: Table, count: int) -> int:
    """``read_vectors`` where nothing can fail, up to the first vector in pieces. :returns: vectors read"""
    shift, width, places, rows = lookup.page_shift, table.row_bytes, lookup.places, lookup.rows
    mask = (1 << shift) - 1
    nbytes = mask + 1 if request.grain != 0 else width
    step, job = lookup.translate_step, lookup.first_job + request.number
    reads, unwritten, clock = 0, 0, 1023
    index = 0
    while index < count:
        place = get_i64(places, index)
        if place < 0:
            break
        clock += step
        lpn = place >> shift
        row = read_page(ftl, lpn)
        if row == 0:
            row = lookup.zeros
            unwritten += 1
        else:
            row += place & mask
            _prefetch_row(row, width)
            where = location(ftl, lpn)
            if where >= 0:
                reads += 1
                submit_vector(nand, now + (clock >> 10), where, nbytes, job)
        put_i64(rows, index, row)
        index += 1
    ftl.flash_reads += reads
    table.flash_reads += reads
    table.flash_bytes += reads * nbytes
    table.unwritten += unwritten
    table.buffered += index - reads - unwritten
    return index


@jit
def prefetch_ahead(lookup: Lookup, ftl: Ftl) -> None:
    """Ask for the rows that the translator takes next: they come from memory while dies and channels are simulated."""
    if lookup.head < 0:
        return
    request = request_at(lookup.requests, lookup.head)
    if request.abandoned != 0 or request.status != 0:  # whose ids may be gone
        return
    table = table_at(lookup.tables, request.table)
    if request.kind != SUM or table.extent_count != 1 or table.whole == 0 or table.generated != 0:
        return
    shift, width, first = lookup.page_shift, table.row_bytes, request.cursor
    base, mask = extent_at(table.extents, 0).base, (1 << shift) - 1
    count = min(AHEAD, request.ids - first)
    for index in range(count):
        prefetch_page(ftl, (base + row_id(request, first + index) * width) >> shift)
    for index in range(count):
        place = base + row_id(request, first + index) * width
        row = read_page(ftl, place >> shift)
        if row != 0:
            _prefetch_row(row + (place & mask), width)


@jit
def _read_special(lookup: Lookup, ftl: Ftl, nand: Nand, now: int, request: Request, table: Table, count: int) -> int:
    """``_read_sound`` where rows may be made from a seed, or be in the hot cache."""
    shift, width, places, rows = lookup.page_shift, table.row_bytes, lookup.places, lookup.rows
    mask, pitch = (1 << shift) - 1, (width + LINE - 1) & -LINE
    nbytes = mask + 1 if request.grain != 0 else width
    step, job = lookup.translate_step, lookup.first_job + request.number
    forced = 1 if request.kind == PREFETCH else 0
    reads, hits, unwritten, buffered, clock = 0, 0, 0, 0, 1023
    index = 0
    if lookup.hot.rows != 0:
        for ahead in range(count):
            prefetch_set(lookup.hot, request.table, row_id(request, request.cursor + ahead))
    while index < count:
        place = get_i64(places, index)
        if place < 0:
            break
        clock += step
        lpn = place >> shift
        page, where = read_page(ftl, lpn), location(ftl, lpn)
        row = page + (place & mask)
        if page != 0:
            _prefetch_row(row, width)
        elif table.generated != 0:
            row = lookup.pieces + index * pitch
            generate(row, table.seed, row_id(request, request.cursor + index), table.dim)
            where = striped(ftl, lpn)
        else:
            row = lookup.zeros
        put_i64(rows, index, row)
        if where >= 0:
            if lookup.hot.rows != 0:
                hit = seek(lookup, request, table, row_id(request, request.cursor + index), where, forced)
            else:
                hit = 0
            if hit == 0:
                reads += 1
                submit_vector(nand, now + (clock >> 10), where, nbytes, job)
            hits += hit
        elif where == UNMAPPED:
            unwritten += 1
        else:
            buffered += 1
        index += 1
    ftl.flash_reads += reads
    table.flash_reads += reads
    table.flash_bytes += reads * nbytes
    table.unwritten += unwritten
    table.buffered += buffered
    return index


@jit_inline
def _cached(lookup: Lookup, ftl: Ftl, request: Request, table: Table, lpn: int, index: int) -> int:
    """Whether the slice's vector ``index``, which lies on page ``lpn`` alone, is a hit."""
    where = location(ftl, lpn)
    if where == UNMAPPED and table.generated != 0:
        where = striped(ftl, lpn)
    if where < 0 or lookup.hot.rows == 0:
        return 0
    forced = 1 if request.kind == PREFETCH else 0
    return seek(lookup, request, table, row_id(request, request.cursor + index), where, forced)


@jit
def _read_one(lookup: Lookup, ftl: Ftl, nand: Nand, now: int, request: Request, table: Table, index: int) -> int:
    """One vector of the slice, whatever it is. 0, or the status of its failure."""
    place, status = get_i64(lookup.places, index), 0
    if place < 0:
        row = lookup.pieces + index * ROW_BYTES
        status = _gather(lookup, ftl, nand, now, request, table, -1 - place, row)
    else:
        page_bytes, width = 1 << lookup.page_shift, table.row_bytes
        lpn, inside = place >> lookup.page_shift, place & (page_bytes - 1)
        nbytes = page_bytes if request.grain != 0 else width
        if _cached(lookup, ftl, request, table, lpn, index) == 0:
            status = _read(ftl, nand, now, table, lpn, inside, width, nbytes, lookup.first_job + request.number)
        page = read_page(ftl, lpn)
        if page == 0 and table.generated != 0:
            row = lookup.pieces + index * ROW_BYTES
            generate(row, table.seed, row_id(request, request.cursor + index), table.dim)
        else:
            row = lookup.zeros if page == 0 else page + inside
        _prefetch_row(row, width)
    put_i64(lookup.rows, index, row)
    return status
