"""The translator's queue: requests in the order in which they came, one after the other, whoever sent them.

A request is taken from a list of free ones (``take``), filled, looked over (``check``) and put at the queue's end
(``enqueue``). The translator takes requests in turn, a slice of vectors at a time (``pump``), so that neither a long
request nor a short path buffer holds up the rest of the drive; but it begins no request before the one in front of it
has been read, added and left. A change of a table relies on that order: it stands between two requests. The sums
are ready when the last vector has left the flash and the translator and the adders had time for their work.

A request of a tag then waits for its LOOKUP_READ; one with an ``owner`` comes out of ``pop_settled``, and is the
owner's until it is given back (``give``).
"""

from __future__ import annotations

from emucsd_firmware.ftl.state import Ftl
from emucsd_firmware.lookup.fmc import path_room, prefetch_ahead, read_vectors, room_again
from emucsd_firmware.lookup.state import (
    FREE,
    NEVER,
    QUEUED,
    READING,
    READY,
    SUM,
    SWAP,
    TAGGED,
    TAKEN,
    UPDATE,
    Lookup,
    Request,
    Table,
    request_at,
    table_at,
)
from emucsd_firmware.lookup.translator import first_out_of_range, translate
from emucsd_firmware.lookup.updates import ROOM, store_rows, swap
from emucsd_firmware.lookup.vsum import add_slice, average, clear
from emucsd_firmware.nand.jobs import close_job, open_job
from emucsd_firmware.nand.state import Nand
from emucsd_firmware.nand.timing import next_event
from emucsd_wire.nvme import Status
from emucsd_wire.words import get_u32, jit, jit_inline, jit_unit

_INDEX_RANGE = int(Status.LOOKUP_INDEX_RANGE)
_OFFSETS = int(Status.LOOKUP_OFFSETS)


@jit
def take(lookup: Lookup) -> int:
    """A free request for a caller with memory of its own, or -1: all are in use.

    The caller fills ``table`` (slot), ``grain``, ``bags``, ``first``, ``ids``, ``id_bytes``, ``offsets``, ``indices``,
    ``result``, ``stride`` and ``owner``; ``weights`` and ``mean`` are 0 unless it does. Its memory stays until the
    request has come out of ``pop_settled``.
    """
    number = lookup.spare
    if number >= 0:
        request = request_at(lookup.requests, number)
        lookup.spare = request.next
        set_taken(request)
    return number


@jit
def set_taken(request: Request) -> None:
    """A request that has left its list of free ones, as it is before anybody fills it."""
    request.state = TAKEN
    request.kind = SUM
    request.owner = -1
    request.port = -1
    request.tag = -1
    request.grain = 0
    request.first = 0
    request.carry = 0
    request.weights = 0
    request.mean = 0
    request.status = 0
    request.position = 0
    request.abandoned = 0
    request.waiter = -1
    request.result_bytes = 0


@jit
def give(lookup: Lookup, number: int) -> None:
    """Free a request that was taken and not yet queued, or that came out of ``pop_settled`` or ``pop_done``."""
    request = request_at(lookup.requests, number)
    if request.state != TAKEN:
        table_at(lookup.tables, request.table).active -= 1
    request.state = FREE
    if number >= TAGGED:
        request.next = lookup.spare
        lookup.spare = number
    else:
        request.next = lookup.free
        lookup.free = number


@jit
def first_bad_offset(offsets: int, bags: int, first: int, ids: int) -> int:
    """Which offset is the first that falls, passes ``ids``, or does not start at ``first`` or end at ``ids``; or -1."""
    last = first
    for bag in range(bags + 1):
        offset = get_u32(offsets, bag)
        if offset < last or offset > ids or (bag == 0 and offset != first) or (bag == bags and offset != ids):
            return bag
        last = offset
    return -1


@jit
def check(lookup: Lookup, request: Request) -> int:
    """Whether a request can be worked on: 0, or a status, and ``lookup.position`` of the first bad offset or id."""
    bad = first_bad_offset(request.offsets, request.bags, request.first, request.ids)
    if bad >= 0:
        lookup.position = bad
        return _OFFSETS
    bad = first_out_of_range(table_at(lookup.tables, request.table), request)
    if bad >= 0:
        lookup.position = bad
        return _INDEX_RANGE
    return 0


@jit
def enqueue(lookup: Lookup, now: int, number: int) -> None:
    """Put a filled request at the end of the translator's queue."""
    request = request_at(lookup.requests, number)
    request.state = QUEUED
    request.cursor = request.first
    request.bag = 0
    request.hits = 0
    request.floor = 0
    request.started = now
    request.next = -1
    table_at(lookup.tables, request.table).active += 1
    if lookup.head < 0:
        lookup.head = number
    else:
        request_at(lookup.requests, lookup.tail).next = number
    lookup.tail = number
    lookup.wake = min(lookup.wake, now)


@jit_inline
def _nanoseconds(lookup: Lookup, cycles: int) -> int:
    return (cycles * lookup.cycle_ps + 999) // 1000


@jit_unit
def pump(lookup: Lookup, ftl: Ftl, nand: Nand, now: int) -> None:
    """One slice of the translator's work. To be called when ``lookup.wake`` has come; it says when to call again."""
    if now < lookup.wake or lookup.head < 0:
        return
    request = request_at(lookup.requests, lookup.head)
    table = table_at(lookup.tables, request.table)
    if request.kind >= UPDATE:
        if not _change(lookup, ftl, nand, now, request, table):
            return
    elif (request.abandoned != 0 and request.kind == SUM) or request.status != 0:
        _leave_queue(lookup, nand, now, request, table)
    else:
        room = path_room(lookup, nand)
        if room < lookup.refill:
            lookup.wake = room_again(lookup, nand, now, request, table, room)
            return
        _slice(lookup, ftl, nand, now, request, table, min(room, table.slice))
    lookup.wake = max(now, lookup.translator_free) if lookup.head >= 0 else NEVER


@jit
def _slice(lookup: Lookup, ftl: Ftl, nand: Nand, now: int, request: Request, table: Table, most: int) -> None:
    """Translate, read and add up to ``most`` of a request's vectors; let go of it when they were the last ones."""
    if request.state == QUEUED:
        _begin(lookup, nand, request, table)
        if request.kind == SUM:
            clear(request, table)
    count = min(most, request.ids - request.cursor)
    translate(lookup, table, request, count)
    count = read_vectors(lookup, ftl, nand, now, request, table, count)
    if request.kind == SUM:
        add_slice(lookup, request, table, count)
    request.cursor += count
    lookup.translator_free = now + _nanoseconds(lookup, count * lookup.translate_cycles)
    if request.cursor == request.ids or request.status != 0:
        if request.mean != 0 and request.status == 0:
            average(request, table)
        _leave_queue(lookup, nand, now, request, table)
    prefetch_ahead(lookup, ftl)


@jit
def _change(lookup: Lookup, ftl: Ftl, nand: Nand, now: int, request: Request, table: Table) -> bool:
    """A slice of an update, or a swap. :returns: False: there is no room on the flash yet, ``wake`` says when"""
    if request.state == QUEUED:
        _begin(lookup, nand, request, table)
    if request.status == 0 and request.kind == SWAP:
        swap(lookup, request)
    elif request.status == 0:
        if nand.room < ROOM:
            lookup.wake = max(now, next_event(nand))
            return False
        store_rows(lookup, ftl, nand, now, request, table)
    if request.kind == SWAP or request.cursor == request.ids or request.status != 0:
        if request.kind == UPDATE and request.cursor != request.first:
            table.version += 1
        _leave_queue(lookup, nand, now, request, table)
    return True


@jit
def _begin(lookup: Lookup, nand: Nand, request: Request, table: Table) -> None:
    request.state = READING
    request.above = -1
    request.below = lookup.reading
    if lookup.reading >= 0:
        request_at(lookup.requests, lookup.reading).above = request.number
    lookup.reading = request.number
    lookup.serial += 1
    request.serial = lookup.serial
    request.version = table.version
    open_job(nand, lookup.first_job + request.number)


@jit
def _leave_queue(lookup: Lookup, nand: Nand, now: int, request: Request, table: Table) -> None:
    """The translator is done with a request: all its reads are out, or it has failed, or nobody wants it."""
    lookup.head = request.next
    if request.state == QUEUED:
        _begin(lookup, nand, request, table)
    if request.kind < UPDATE:
        _charge(lookup, request, table)
    elif request.kind == SWAP:
        table_at(lookup.tables, request.other).active -= 1
    finish = close_job(nand, lookup.first_job + request.number, now)
    if finish >= 0:
        _settle(lookup, request, finish)


@jit
def _charge(lookup: Lookup, request: Request, table: Table) -> None:
    """The cache's and the adders' time for a request's vectors; they take those of all requests in turn."""
    vectors = request.cursor - request.first
    added = vectors if request.kind == SUM else 0
    start = max(lookup.adder_free, request.started)
    lookup.adder_free = start + _nanoseconds(lookup, added * table.add_cycles)
    request.floor = max(lookup.adder_free, lookup.translator_free + _nanoseconds(lookup, table.add_cycles))
    if request.hits != 0:
        hot = lookup.hot
        hot.port_free = max(hot.port_free, request.started) + _nanoseconds(lookup, request.hits * hot.cycles)
        request.floor = max(request.floor, hot.port_free + _nanoseconds(lookup, table.add_cycles))
    table.requests += 1
    table.bags += request.bags
    table.vectors += vectors
    if request.status != 0:
        table.failed += 1


@jit
def _settle(lookup: Lookup, request: Request, finish: int) -> None:
    """The last vector left the flash at ``finish``."""
    if request.above >= 0:
        request_at(lookup.requests, request.above).below = request.below
    else:
        lookup.reading = request.below
    if request.below >= 0:
        request_at(lookup.requests, request.below).above = request.above
    if request.abandoned != 0:
        give(lookup, request.number)
        return
    table = table_at(lookup.tables, request.table)
    if request.kind < UPDATE:
        finish += _nanoseconds(lookup, table.add_cycles)
    request.ready = max(finish, request.floor)
    request.state = READY
    request.next = -1
    if request.owner >= 0:
        if lookup.settled < 0:
            lookup.settled = request.number
        else:
            request_at(lookup.requests, lookup.settled_tail).next = request.number
        lookup.settled_tail = request.number
    elif request.waiter >= 0:
        if lookup.done < 0:
            lookup.done = request.number
        else:
            request_at(lookup.requests, lookup.done_tail).next = request.number
        lookup.done_tail = request.number


@jit
def job_done(lookup: Lookup, job: int, finish: int) -> None:
    """The NAND model has finished a job that belongs to a request: see ``pop_done`` and ``pop_settled``."""
    _settle(lookup, request_at(lookup.requests, job - lookup.first_job), finish)


@jit
def pop_done(lookup: Lookup) -> int:
    """The next request that became READY after somebody waited for it, or -1."""
    number = lookup.done
    if number >= 0:
        lookup.done = request_at(lookup.requests, number).next
    return number


@jit
def pop_settled(lookup: Lookup) -> int:
    """The next READY request that has an owner, or -1. ``ready`` may still be to come; ``status`` says how it went."""
    while True:
        number = lookup.settled
        if number < 0:
            return -1
        request = request_at(lookup.requests, number)
        lookup.settled = request.next
        if request.abandoned == 0:
            return number
        give(lookup, number)


@jit
def abandon(lookup: Lookup, number: int) -> None:
    """An owner wants no more of a request that it has queued: from now on nothing of the owner's memory is touched.

    Reads that are out finish on the flash; the request then frees itself, and never comes out of ``pop_settled``.
    """
    request_at(lookup.requests, number).abandoned = 1
