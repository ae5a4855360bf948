"""EV-FMC: reads vectors from the dies they lie on, and only their own bytes where the grain allows it.

Reads go out in index order and finish as the dies and channels let them (``nand.timing``); the bytes themselves are
at hand at once, because a page's newest content is (``ftl.mapping``). What a die serves next when block I/O waits
there too is the scheduling policy's, in ``nand``.
"""

from __future__ import annotations

from emucsd_firmware.ftl.mapping import UNMAPPED, location, prefetch_page, read_page, submit_read
from emucsd_firmware.ftl.state import Ftl
from emucsd_firmware.lookup.state import ROW_BYTES, Lookup, Request, Table, extent_at
from emucsd_firmware.lookup.translator import extent_end, extent_of
from emucsd_firmware.nand.timing import LOOKUP, Nand
from emucsd_wire.words import copy, fill, get_i64, jit, jit_inline, prefetch, put_i64

LINE = 64


@jit_inline
def _count(table: Table, where: int, nbytes: int) -> None:
    """Account for one read: ``where`` is a physical page, or why there was none to read."""
    if where >= 0:
        table.flash_reads += 1
        table.flash_bytes += nbytes
    elif where == UNMAPPED:
        table.unwritten += 1
    else:
        table.buffered += 1


@jit
def _gather(
    lookup: Lookup, ftl: Ftl, nand: Nand, now: int, request: Request, table: Table, byte: int, target: int
) -> int:
    """Put the vector at table byte ``byte`` together at ``target`` from its pieces. 0, or the failed one's status."""
    page_bytes, end = 1 << lookup.page_shift, byte + table.row_bytes
    job = lookup.first_job + request.number
    extent = extent_of(table, byte)
    while byte < end:
        if byte >= extent_end(table, extent):
            extent += 1
        place = extent_at(table.extents, extent).base + byte
        lpn, inside = place >> lookup.page_shift, place & (page_bytes - 1)
        piece = min(page_bytes - inside, extent_end(table, extent) - byte, end - byte)
        nbytes = page_bytes if request.grain != 0 else piece
        _count(table, location(ftl, lpn), nbytes)
        status = submit_read(ftl, nand, now, LOOKUP, lpn, nbytes, job)
        if status != 0:
            return status
        page = read_page(ftl, lpn)
        if page == 0:
            fill(target, 0, piece)
        else:
            copy(target, page + inside, piece)
        target += piece
        byte += piece
    table.split += 1
    return 0


@jit
def read_vectors(lookup: Lookup, ftl: Ftl, nand: Nand, now: int, request: Request, table: Table, count: int) -> int:
    """Send out the reads of the slice's vectors and fill ``lookup.rows`` with where their bytes are.

    :returns: ``count``, or less when the next vector cannot be read: ``request.status`` says why
    """
    shift, width, job = lookup.page_shift, table.row_bytes, lookup.first_job + request.number
    mask = (1 << shift) - 1
    nbytes = mask + 1 if request.grain != 0 else width
    for index in range(count):
        prefetch_page(ftl, get_i64(lookup.places, index) >> shift)
    for index in range(count):
        place = get_i64(lookup.places, index)
        if place < 0:
            row = lookup.pieces + index * ROW_BYTES
            status = _gather(lookup, ftl, nand, now, request, table, -1 - place, row)
        else:
            lpn = place >> shift
            page = read_page(ftl, lpn)
            row = lookup.zeros if page == 0 else page + (place & mask)
            for line in range(0, width, LINE):
                prefetch(row + line)
            _count(table, location(ftl, lpn), nbytes)
            status = submit_read(ftl, nand, now, LOOKUP, lpn, nbytes, job)
        if status != 0:
            request.status = status
            request.position = request.cursor + index
            return index
        put_i64(lookup.rows, index, row)
    return count
