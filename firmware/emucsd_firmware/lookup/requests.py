"""Lookup requests: what LOOKUP_SEND leaves with the drive under a tag, until LOOKUP_READ takes the sums away.

A request is checked whole before it has any effect. The translator then takes requests in turn, a slice of vectors at
a time (``pump``), so that neither a long request nor a short path buffer holds up the rest of the drive. Its sums
are ready when its last vector has left the flash and the translator and the adders had time for their work.
"""

from __future__ import annotations

from emucsd_firmware.ftl.state import Ftl
from emucsd_firmware.lookup.fmc import path_room, read_vectors, room_again
from emucsd_firmware.lookup.state import (
    FREE,
    NEVER,
    QUEUED,
    READING,
    READY,
    Lookup,
    Request,
    Table,
    request_at,
    table_at,
)
from emucsd_firmware.lookup.translator import first_out_of_range, translate
from emucsd_firmware.lookup.vsum import add_slice, clear
from emucsd_firmware.nand.jobs import close_job, open_job
from emucsd_firmware.nand.state import Nand
from emucsd_wire.nvme import Status
from emucsd_wire.vendor import LOOKUP_HEADER, MAX_PAYLOAD, MAX_RESULT, MAX_TABLES, MAX_TAGS, LookupFlag
from emucsd_wire.words import get_i64, get_u8, get_u16, get_u32, jit, jit_inline, jit_unit, put_i64

_INVALID_FIELD = int(Status.INVALID_FIELD)
_SIZE_LIMIT = int(Status.COMMAND_SIZE_LIMIT)
_NO_TABLE = int(Status.LOOKUP_NO_TABLE)
_INDEX_RANGE = int(Status.LOOKUP_INDEX_RANGE)
_OFFSETS = int(Status.LOOKUP_OFFSETS)
_BUSY = int(Status.LOOKUP_BUSY)
_NO_REQUEST = int(Status.LOOKUP_NO_REQUEST)

_HEADER = LOOKUP_HEADER.size
_HANDLE, _GRAIN, _ID_BYTES = (LOOKUP_HEADER.offset(name) for name in ("handle", "grain", "id_bytes"))
_FLAGS, _BAGS, _IDS = (LOOKUP_HEADER.offset(name) for name in ("flags", "bags", "ids"))
_CARRY = int(LookupFlag.CARRY)


@jit_inline
def _tag_cell(port: int, tag: int) -> int:
    return port * MAX_TAGS + tag


@jit
def payload(lookup: Lookup, port: int, tag: int, count: int) -> int:
    """Where the data of a LOOKUP_SEND is to be copied before ``send`` is called, or a negative status. No effect."""
    if tag < 0 or tag >= MAX_TAGS or count < _HEADER:
        return -_INVALID_FIELD
    if count > MAX_PAYLOAD:
        return -_SIZE_LIMIT
    if get_i64(lookup.tags, _tag_cell(port, tag)) != 0 or lookup.free < 0:
        return -_BUSY
    return lookup.payloads + lookup.free * MAX_PAYLOAD


@jit_inline
def _table_of(lookup: Lookup, port: int, handle: int) -> int:
    """The slot of an open table, or -1. Handles carry a generation: an old one finds nothing."""
    slot = handle % MAX_TABLES
    table = table_at(lookup.tables, slot)
    return slot if handle != 0 and table.handle == handle and table.port == port else -1


@jit
def _parse(lookup: Lookup, request: Request, port: int, data: int, count: int) -> int:
    """Read the header into ``request`` and check sizes. 0 or a status."""
    slot = _table_of(lookup, port, get_u32(data + _HANDLE, 0))
    if slot < 0:
        return _NO_TABLE
    grain, id_bytes, flags = get_u8(data + _GRAIN, 0), get_u8(data + _ID_BYTES, 0), get_u16(data + _FLAGS, 0)
    bags, ids = get_u32(data + _BAGS, 0), get_u32(data + _IDS, 0)
    if grain > 1 or (id_bytes != 4 and id_bytes != 8) or flags > _CARRY or bags == 0:
        return _INVALID_FIELD
    row_bytes = table_at(lookup.tables, slot).row_bytes
    if bags * row_bytes > MAX_RESULT:
        return _SIZE_LIMIT
    offsets = _HEADER + (row_bytes if flags & _CARRY else 0)
    indices = (offsets + 4 * (bags + 1) + 7) & -8
    if indices + ids * id_bytes != count:
        return _INVALID_FIELD
    request.table = slot
    request.grain = grain
    request.bags = bags
    request.ids = ids
    request.id_bytes = id_bytes
    request.carry = data + _HEADER if flags & _CARRY else 0
    request.offsets = data + offsets
    request.indices = data + indices
    request.result_bytes = bags * row_bytes
    return 0


@jit
def first_bad_offset(offsets: int, bags: int, ids: int) -> int:
    """Position of the first offset that falls, passes the ids, or does not start at 0 or end at ``ids``; or -1."""
    last = 0
    for bag in range(bags + 1):
        offset = get_u32(offsets, bag)
        if offset < last or offset > ids or (bag == 0 and offset != 0) or (bag == bags and offset != ids):
            return bag
        last = offset
    return -1


@jit_unit
def send(lookup: Lookup, now: int, port: int, tag: int, count: int) -> int:
    """Take up the request whose ``count`` bytes were copied to ``payload()``. 0, or a status and ``lookup.position``.

    A refused request has no effect. An accepted one is worked on by ``pump``.
    """
    lookup.position = 0
    data = payload(lookup, port, tag, count)
    if data < 0:
        return -data
    number = lookup.free
    request = request_at(lookup.requests, number)
    status = _parse(lookup, request, port, data, count)
    if status != 0:
        return status
    table = table_at(lookup.tables, request.table)
    bad = first_bad_offset(request.offsets, request.bags, request.ids)
    if bad >= 0:
        lookup.position = bad
        return _OFFSETS
    bad = first_out_of_range(table, request)
    if bad >= 0:
        lookup.position = bad
        return _INDEX_RANGE
    lookup.free = request.next
    request.number = number
    request.state = QUEUED
    request.port = port
    request.tag = tag
    request.cursor = 0
    request.bag = 0
    request.started = now
    request.status = 0
    request.position = 0
    request.abandoned = 0
    request.waiter = -1
    put_i64(lookup.tags, _tag_cell(port, tag), number + 1)
    table.active += 1
    _append(lookup, request)
    lookup.wake = min(lookup.wake, now)
    return 0


@jit_inline
def _append(lookup: Lookup, request: Request) -> None:
    """To the end of the translator's queue."""
    request.next = -1
    if lookup.head < 0:
        lookup.head = request.number
    else:
        request_at(lookup.requests, lookup.tail).next = request.number
    lookup.tail = request.number


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
    if request.abandoned != 0 or request.status != 0:
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
        _begin(lookup, nand, request)
    count = min(most, request.ids - request.cursor)
    translate(lookup, table, request, count)
    count = read_vectors(lookup, ftl, nand, now, request, table, count)
    add_slice(lookup, request, table, count)
    request.cursor += count
    lookup.translator_free = now + _nanoseconds(lookup, count * lookup.translate_cycles)
    if request.cursor == request.ids or request.status != 0:
        _leave_queue(lookup, nand, now, request, table)


@jit
def _begin(lookup: Lookup, nand: Nand, request: Request) -> None:
    request.state = READING
    request.above = -1
    request.below = lookup.reading
    if lookup.reading >= 0:
        request_at(lookup.requests, lookup.reading).above = request.number
    lookup.reading = request.number
    open_job(nand, lookup.first_job + request.number)
    clear(request)


@jit
def _leave_queue(lookup: Lookup, nand: Nand, now: int, request: Request, table: Table) -> None:
    """The translator is done with a request: all its reads are out, or it has failed, or nobody wants it."""
    lookup.head = request.next
    if request.state == QUEUED:
        _begin(lookup, nand, request)
    _charge(lookup, request, table)
    finish = close_job(nand, lookup.first_job + request.number, now)
    if finish >= 0:
        _settle(lookup, request, finish)


@jit
def _charge(lookup: Lookup, request: Request, table: Table) -> None:
    """The adders' time for a request's vectors; they take those of all requests in turn."""
    start = max(lookup.adder_free, request.started)
    lookup.adder_free = start + _nanoseconds(lookup, request.cursor * table.add_cycles)
    request.floor = max(lookup.adder_free, lookup.translator_free + _nanoseconds(lookup, table.add_cycles))
    table.requests += 1
    table.bags += request.bags
    table.vectors += request.cursor
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
        _free(lookup, request)
        return
    table = table_at(lookup.tables, request.table)
    request.ready = max(finish + _nanoseconds(lookup, table.add_cycles), request.floor)
    request.state = READY
    if request.waiter >= 0:
        request.next = -1
        if lookup.done < 0:
            lookup.done = request.number
        else:
            request_at(lookup.requests, lookup.done_tail).next = request.number
        lookup.done_tail = request.number


@jit
def _free(lookup: Lookup, request: Request) -> None:
    table_at(lookup.tables, request.table).active -= 1
    request.state = FREE
    request.next = lookup.free
    lookup.free = request.number


@jit
def job_done(lookup: Lookup, job: int, finish: int) -> None:
    """The NAND model has finished a job that belongs to a request. Who waits for it comes out of ``pop_done``."""
    _settle(lookup, request_at(lookup.requests, job - lookup.first_job), finish)


@jit
def read(lookup: Lookup, port: int, tag: int, count: int, waiter: int) -> int:
    """LOOKUP_READ: the number of the tag's request, or a negative status.

    Where its state is READY, ``ready`` is when its sums are (maybe still to come) and ``status`` is how it went. Else
    ``waiter`` is remembered, and the request comes out of ``pop_done`` once it is READY. Then ``release`` it.

    :param count: the bytes that the host has room for; must be all of the result's
    :param waiter: a number >= 0 of the caller's, kept in ``request.waiter``
    """
    cell = get_i64(lookup.tags, _tag_cell(port, tag)) if 0 <= tag < MAX_TAGS else 0
    if cell == 0:
        return -_NO_REQUEST
    request = request_at(lookup.requests, cell - 1)
    if request.waiter >= 0:
        return -_BUSY
    if count != request.result_bytes:
        return -_INVALID_FIELD
    request.waiter = waiter
    return request.number


@jit
def pop_done(lookup: Lookup) -> int:
    """The next request that became READY after somebody waited for it, or -1."""
    number = lookup.done
    if number >= 0:
        lookup.done = request_at(lookup.requests, number).next
    return number


@jit
def release(lookup: Lookup, number: int) -> None:
    """Free a READY request that has been read."""
    request = request_at(lookup.requests, number)
    put_i64(lookup.tags, _tag_cell(request.port, request.tag), 0)
    _free(lookup, request)


@jit
def forget_waiter(lookup: Lookup, number: int) -> None:
    """The command that waited is gone (aborted, its queue deleted); the sums can still be read by another."""
    request_at(lookup.requests, number).waiter = -1


@jit
def drop(lookup: Lookup, port: int, tag: int) -> int:
    """LOOKUP_READ of 0 bytes: free the tag, whatever became of its request. 0 or a status."""
    cell = get_i64(lookup.tags, _tag_cell(port, tag)) if 0 <= tag < MAX_TAGS else 0
    if cell == 0:
        return _NO_REQUEST
    request = request_at(lookup.requests, cell - 1)
    if request.waiter >= 0:
        return _BUSY
    put_i64(lookup.tags, _tag_cell(port, tag), 0)
    request.abandoned = 1
    if request.state == READY:
        _free(lookup, request)
    return 0


@jit
def reset_port(lookup: Lookup, port: int) -> None:
    """Drop every request of a port, as a controller reset does. Those on the flash finish there, unseen."""
    for tag in range(MAX_TAGS):
        cell = get_i64(lookup.tags, _tag_cell(port, tag))
        if cell != 0:
            forget_waiter(lookup, cell - 1)
            drop(lookup, port, tag)
