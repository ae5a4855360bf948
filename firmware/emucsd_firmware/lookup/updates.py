"""Changes of tables between two requests: rows that an update stores, and two tables that exchange places.

Both wait in the translator's queue like everything else, and nothing else of it runs before they are done: so no
request sees half of one. What an update stores goes the way of a block write, page by page, and is as durable.
"""

from __future__ import annotations

from emucsd_firmware.ftl.state import Ftl
from emucsd_firmware.ftl.write import WHEN_DONE, commit_write, mark_bad, prepare_write
from emucsd_firmware.lookup.state import Lookup, Request, Table, extent_at, table_at
from emucsd_firmware.lookup.translator import extent_end, extent_of, row_id
from emucsd_firmware.nand.state import Nand
from emucsd_wire.nvme import Status
from emucsd_wire.words import copy, jit

PAGES = 8  # that an update writes at a time: block I/O need not wait for more
ROOM = 1024  # operations that so many writes may need, garbage collection and all

_UNRECOVERED = int(Status.UNRECOVERED_READ)


@jit
def _overlay(lookup: Lookup, ftl: Ftl, table: Table, lpn: int, inside: int, count: int, image: int, source: int) -> int:
    """Put ``count`` bytes into the image of a page. 0, or Unrecovered Read Error: part of a block that is lost."""
    if ftl.image_bad != 0:
        first, last = inside >> table.lba_shift, (inside + count - 1) >> table.lba_shift
        bits = ((1 << (last - first + 1)) - 1) << first
        if ftl.image_bad & bits != 0:
            if (inside | count) & ((1 << table.lba_shift) - 1) != 0:
                return _UNRECOVERED
            mark_bad(ftl, lpn, first, last - first + 1, 0)
    copy(image + inside, source, count)
    return 0


@jit
def _commit(lookup: Lookup, ftl: Ftl, nand: Nand, now: int, request: Request, lpn: int) -> int:
    """0, or the status of the failure. The request ends no earlier than the write may complete."""
    early = commit_write(ftl, nand, now, lookup.first_job + request.number, lpn, 0)
    if early < WHEN_DONE:
        return -early
    request.floor = max(request.floor, early)
    return 0


@jit
def store_rows(lookup: Lookup, ftl: Ftl, nand: Nand, now: int, request: Request, table: Table) -> None:
    """Store rows from ``request.cursor`` on, as many as fit PAGES pages. ``request.status`` says what failed."""
    page_bytes, job = 1 << lookup.page_shift, lookup.first_job + request.number
    pages, opened, image, status = 0, -1, 0, 0
    while request.cursor < request.ids:
        byte = row_id(request, request.cursor) * table.stride
        end, extent = byte + table.row_bytes, extent_of(table, byte)
        source = request.content + request.cursor * table.row_bytes
        if (
            opened >= 0
            and pages >= PAGES
            and (extent_at(table.extents, extent).base + byte) >> lookup.page_shift != opened
        ):
            break
        while byte < end and status == 0:
            if byte >= extent_end(table, extent):
                extent += 1
            place = extent_at(table.extents, extent).base + byte
            lpn, inside = place >> lookup.page_shift, place & (page_bytes - 1)
            piece = min(page_bytes - inside, extent_end(table, extent) - byte, end - byte)
            if lpn != opened:
                if opened >= 0:
                    status = _commit(lookup, ftl, nand, now, request, opened)
                    opened = -1
                if status == 0:
                    image = prepare_write(ftl, nand, now, job, lpn, 0)
                    opened, pages = lpn, pages + 1
                    status = -image if image < 0 else 0
            if status == 0:
                status = _overlay(lookup, ftl, table, lpn, inside, piece, image, source)
            source += piece
            byte += piece
        if status != 0:
            request.position = request.cursor
            request.status = status
            return
        request.cursor += 1
        table.updated += 1
    if opened >= 0:
        request.status = _commit(lookup, ftl, nand, now, request, opened)


@jit
def exchange(lookup: Lookup, first: Table, second: Table) -> None:
    """Two tables of one shape change places; their handles, names and counters stay."""
    for index in range(max(first.extent_count, second.extent_count) + 1):
        one, two = extent_at(first.extents, index), extent_at(second.extents, index)
        one.first, two.first = two.first, one.first
        one.base, two.base = two.base, one.base
    first.extent_count, second.extent_count = second.extent_count, first.extent_count
    first.whole, second.whole = second.whole, first.whole
    first.generated, second.generated = second.generated, first.generated
    first.seed, second.seed = second.seed, first.seed
    first.version += 1
    second.version += 1


@jit
def swap(lookup: Lookup, request: Request) -> None:
    """Carry out a SWAP, unless one of the tables was closed meanwhile."""
    first, second = table_at(lookup.tables, request.table), table_at(lookup.tables, request.other)
    if first.handle != 0 and second.handle != 0:
        exchange(lookup, first, second)
