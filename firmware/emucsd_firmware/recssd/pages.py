"""The processor's work: what it does with a request's pairs, and with the pages that flash brings.

A request's pairs are passed over twice, as in the published firmware. First the configuration is processed: each
pair's row is looked for in the row cache. Then a read is issued for each flash page that the others lie on, unless the
die's page buffer holds it; a page crosses its channel whole. When one arrives the processor adds its rows to their
results, in FP32, and puts them into the row cache.

One processor does all this in turn: what arrives goes first, then requests, in slices, so that none holds up the rest
of the drive. A request that finds a die's queue full goes behind the others. The sums themselves are made in the first
pass, in the order of the pairs: so they do not depend on which page was faster.
"""

from __future__ import annotations

from emucsd_firmware.ftl.mapping import bad_mask, location, prefetch_page, read_page, submit_read
from emucsd_firmware.ftl.state import Ftl
from emucsd_firmware.lookup.vsum import add_rows
from emucsd_firmware.nand.jobs import close_job, open_job
from emucsd_firmware.nand.state import LOOKUP, Nand
from emucsd_firmware.recssd.caches import add_page, add_row, has_page, has_row
from emucsd_firmware.recssd.requests import first_sector, last_sector, settle
from emucsd_firmware.recssd.state import (
    CONFIG,
    ISSUE,
    NEVER,
    READING,
    RecSsd,
    SlsRequest,
    page_read_at,
    sls_at,
    waiter_at,
)
from emucsd_firmware.recssd.waiters import answer_complete, expire, nanoseconds
from emucsd_wire.nvme import Status
from emucsd_wire.words import copy, fill, get_i64, get_u32, jit, jit_unit, put_i64, put_u32

SLICE = 64  # pairs that are taken up at a time
ROOM = 16384  # flash operations that are left to the rest of the drive
POLL_NS = 10_000  # until it looks again whether there are that many
_DONE = 1 << 31  # of a pair's result: its row is in the sums, and its time is paid
_UNRECOVERED = int(Status.UNRECOVERED_READ)


@jit_unit
def pump(recssd: RecSsd, ftl: Ftl, nand: Nand, now: int) -> None:
    """A slice of work. To be called when ``recssd.wake`` has come; it says when to call again."""
    if now < recssd.wake:
        return
    expire(recssd, now)
    room = 1 if nand.room >= ROOM or nand.instant != 0 else 0
    if recssd.head >= 0 and recssd.stalled == 0 and recssd.processor_free <= now and room != 0:
        _turn(recssd, ftl, nand, now)
    recssd.wake = NEVER
    if recssd.head >= 0 and recssd.stalled == 0:
        recssd.wake = max(now if room != 0 else now + POLL_NS, recssd.processor_free)
    if recssd.early >= 0:
        recssd.wake = min(recssd.wake, waiter_at(recssd.waiters, recssd.early).deadline)


@jit
def _turn(recssd: RecSsd, ftl: Ftl, nand: Nand, now: int) -> None:
    """One slice of the first request in the ring that can go on."""
    for _ in range(recssd.ringed):
        request = sls_at(recssd.requests, recssd.head)
        before = request.cursor
        if request.abandoned == 0 and request.status == 0:
            if request.phase == CONFIG:
                _configure(recssd, ftl, request, now)
                return
            _issue(recssd, ftl, nand, request, now)
        if request.cursor == request.count or request.abandoned != 0 or request.status != 0:
            _leave_ring(recssd, request)
            answer_complete(recssd, request, max(now, recssd.processor_free))
            settle(request)
            return
        if request.cursor > before:
            return
        _go_behind(recssd, request)
    recssd.stalled = 1


@jit
def _leave_ring(recssd: RecSsd, request: SlsRequest) -> None:
    request.phase = READING
    recssd.head = request.next
    recssd.ringed -= 1
    request.next = -1


@jit
def _go_behind(recssd: RecSsd, request: SlsRequest) -> None:
    if recssd.ringed > 1:
        recssd.head = request.next
        sls_at(recssd.requests, recssd.tail).next = request.number
        recssd.tail = request.number
        request.next = -1


@jit
def _spend(recssd: RecSsd, start: int, end: int) -> None:
    recssd.processor_free = end
    recssd.counters.busy_ns += end - start


@jit
def _add_ns(recssd: RecSsd, request: SlsRequest) -> int:
    """Adding a row that the row cache holds."""
    return nanoseconds(recssd, recssd.element_cycles * request.dim)


@jit
def _vector_ns(recssd: RecSsd, request: SlsRequest) -> int:
    """Taking a row out of a page: adding it, and copying it into the row cache."""
    element = recssd.element_cycles + (recssd.copy_cycles if recssd.cache_entries != 0 else 0)
    return nanoseconds(recssd, recssd.vector_cycles + element * request.dim)


@jit
def _place(request: SlsRequest, position: int) -> int:
    """Flash address of a pair's row."""
    return request.base + get_u32(request.pairs, 2 * position + 1) * request.row_bytes


@jit
def _configure(recssd: RecSsd, ftl: Ftl, request: SlsRequest, now: int) -> None:
    """A slice of the first pass: sums, and the row cache."""
    end = min(request.cursor + SLICE, request.count)
    for position in range(request.cursor, end):
        prefetch_page(ftl, _place(request, position) >> recssd.page_shift)
    time, pair_ns, add_ns = now, nanoseconds(recssd, recssd.pair_cycles), _add_ns(recssd, request)
    for position in range(request.cursor, end):
        time += pair_ns
        _add(recssd, ftl, request, position)
        ppn = location(ftl, _place(request, position) >> recssd.page_shift)
        row = get_u32(request.pairs, 2 * position + 1)
        if has_row(recssd, request.table_id, row, request.row_bytes, ppn):
            time += add_ns
            recssd.counters.cache_hits += 1
            _pay(request, position, time)
        else:
            recssd.counters.cache_misses += 1
    recssd.counters.pairs += end - request.cursor
    request.cursor = end
    if end == request.count:
        request.phase, request.cursor, request.processed = ISSUE, 0, time
        recssd.counters.config_process_ns += time - request.started
    _spend(recssd, now, time)
    answer_complete(recssd, request, time)


@jit
def _add(recssd: RecSsd, ftl: Ftl, request: SlsRequest, position: int) -> None:
    """Add a pair's row, as it is now, to its result."""
    place, width, mask = _place(request, position), request.row_bytes, (1 << recssd.page_shift) - 1
    lpn, inside = place >> recssd.page_shift, place & mask
    if inside + width <= mask + 1:
        page = read_page(ftl, lpn)
        row = page + inside if page != 0 else recssd.zeros
    else:
        row, taken = recssd.scratch, 0
        while taken < width:
            piece = min(mask + 1 - inside, width - taken)
            page = read_page(ftl, lpn)
            if page != 0:
                copy(row + taken, page + inside, piece)
            else:
                fill(row + taken, 0, piece)
            taken += piece
            lpn, inside = lpn + 1, 0
    put_i64(recssd.cell, 0, row)
    add_rows(request.result + get_u32(request.pairs, 2 * position) * width, recssd.cell, 1, request.dim)


@jit
def _pay(request: SlsRequest, position: int, time: int) -> None:
    """A pair's row is in its result at ``time``: its sectors wait for one contribution less."""
    for sector in range(first_sector(request, position), last_sector(request, position) + 1):
        put_i64(request.pending, sector, get_i64(request.pending, sector) - 1)
        put_i64(request.ready, sector, max(get_i64(request.ready, sector), time))
    put_u32(request.pairs, 2 * position, get_u32(request.pairs, 2 * position) | _DONE)


@jit
def _paid(request: SlsRequest, position: int) -> bool:
    return get_u32(request.pairs, 2 * position) & _DONE != 0


@jit
def _issue(recssd: RecSsd, ftl: Ftl, nand: Nand, request: SlsRequest, now: int) -> None:
    """A slice of the second pass: a read for each page that unpaid pairs lie on. Stops where a queue is full."""
    most = min(request.cursor + SLICE, request.count)
    time, shift = now, recssd.page_shift
    while request.cursor < most:
        first = request.cursor
        if _paid(request, first):
            request.cursor += 1
            continue
        lpn = _place(request, first) >> shift
        if recssd.free_read < 0 or not _queue_room(recssd, ftl, nand, lpn):
            break
        last, after = lpn, first
        while after < most and _place(request, after) >> shift == lpn:
            if not _paid(request, after):
                last = (_place(request, after) + request.row_bytes - 1) >> shift
            after += 1
        time += nanoseconds(recssd, recssd.page_cycles)
        time = _send(recssd, ftl, nand, request, after, lpn, last - lpn + 1, time)
        if request.status != 0:
            break
        request.cursor = after
    _spend(recssd, now, time)


@jit
def _queue_room(recssd: RecSsd, ftl: Ftl, nand: Nand, lpn: int) -> bool:
    ppn = location(ftl, lpn)
    return ppn < 0 or get_i64(recssd.in_flight, ppn >> nand.die_shift) < recssd.queue_depth


@jit
def _send(recssd: RecSsd, ftl: Ftl, nand: Nand, request: SlsRequest, after: int, lpn: int, lpns: int, time: int) -> int:
    """Read the pages of pairs ``cursor`` to ``after``. :returns: the processor's time, later where they were at hand"""
    number = recssd.free_read
    page = page_read_at(recssd.reads, number)
    recssd.free_read = page.next
    page.request, page.first, page.count = request.number, request.cursor, after - request.cursor
    page.lpn, page.lpns, page.submitted, page.die = lpn, lpns, time, -1
    job = recssd.first_job + number
    open_job(nand, job)
    recssd.counters.pages += 1
    for index in range(lpns):
        ppn = location(ftl, lpn + index)
        if ppn < 0:
            continue  # never written, or in the write buffer
        die = ppn >> nand.die_shift
        if has_page(recssd, die, ppn):
            recssd.counters.page_hits += 1
            continue
        page.die = die
        recssd.counters.flash_pages += 1
        if submit_read(ftl, nand, time, LOOKUP, lpn + index, 1 << recssd.page_shift, job) != 0:
            _fail(request, request.cursor)
    if ftl.marked_pages != 0:
        _check_marks(recssd, ftl, request, after)
    if page.die >= 0:
        put_i64(recssd.in_flight, page.die, get_i64(recssd.in_flight, page.die) + 1)
    request.open += 1
    finish = close_job(nand, job, time)
    return _arrived(recssd, ftl, nand, number, finish, max(finish, time)) if finish >= 0 else time


@jit
def _fail(request: SlsRequest, position: int) -> None:
    if request.status == 0:
        request.status, request.position = _UNRECOVERED, position


@jit
def _check_marks(recssd: RecSsd, ftl: Ftl, request: SlsRequest, after: int) -> None:
    """Rows on logical blocks that a host marked uncorrectable fail the request."""
    mask = (1 << recssd.page_shift) - 1
    for position in range(request.cursor, after):
        place = _place(request, position)
        end = place + request.row_bytes
        while place < end:
            piece = min(mask + 1 - (place & mask), end - place)
            bad = bad_mask(ftl, place >> recssd.page_shift)
            first, last = (place & mask) >> request.lba_shift, ((place & mask) + piece - 1) >> request.lba_shift
            for block in range(first, last + 1):
                if (bad >> block) & 1 != 0:
                    _fail(request, position)
            place += piece


@jit
def _arrived(recssd: RecSsd, ftl: Ftl, nand: Nand, number: int, finish: int, start: int) -> int:
    """Work from ``start`` on at the rows of pages that were there at ``finish``. :returns: when that is done"""
    page, counters = page_read_at(recssd.reads, number), recssd.counters
    request = sls_at(recssd.requests, page.request)
    if page.die >= 0:
        counters.flash_read_ns += finish - page.submitted
        put_i64(recssd.in_flight, page.die, get_i64(recssd.in_flight, page.die) - 1)
        for index in range(page.lpns):
            ppn = location(ftl, page.lpn + index)
            if ppn >= 0:
                add_page(recssd, ppn >> nand.die_shift, ppn)
    time, vector_ns = start, _vector_ns(recssd, request)
    for position in range(page.first, page.first + page.count):
        if not _paid(request, position):
            time += vector_ns
            _pay(request, position, time)
            row = get_u32(request.pairs, 2 * position + 1)
            ppn = location(ftl, _place(request, position) >> recssd.page_shift)
            add_row(recssd, request.table_id, row, request.row_bytes, ppn)
    counters.translate_ns += time - start
    request.open -= 1
    page.next = recssd.free_read
    recssd.free_read = number
    return time


@jit_unit
def page_done(recssd: RecSsd, ftl: Ftl, nand: Nand, job: int, finish: int) -> None:
    """The NAND model has finished a job that is a page read's: the processor works on it when it is free."""
    number = job - recssd.first_job
    request = sls_at(recssd.requests, page_read_at(recssd.reads, number).request)
    start = max(finish, recssd.processor_free)
    end = _arrived(recssd, ftl, nand, number, finish, start)
    _spend(recssd, start, end)
    recssd.stalled = 0
    if recssd.head >= 0:
        recssd.wake = min(recssd.wake, end)
    answer_complete(recssd, request, end)
    settle(request)
