"""Lookup requests: what LOOKUP_SEND leaves with the drive under a tag, until LOOKUP_READ takes the sums away.

A request is checked whole before it has any effect, and then worked on in its turn (``lookup.queue``).
"""

from __future__ import annotations

from emucsd_firmware.lookup.queue import check, enqueue, give, job_done, pop_done, pump, set_taken, take
from emucsd_firmware.lookup.state import (
    FREE,
    PREFETCH,
    READY,
    SUM,
    SWAP,
    UPDATE,
    Lookup,
    Request,
    lookup_at,
    request_at,
    table_at,
)
from emucsd_firmware.lookup.translator import first_out_of_range
from emucsd_wire.nvme import Status
from emucsd_wire.vendor import LOOKUP_HEADER, MAX_PAYLOAD, MAX_RESULT, MAX_TABLES, MAX_TAGS, LookupFlag
from emucsd_wire.words import get_i64, get_u8, get_u16, get_u32, jit, jit_inline, jit_unit, put_i64

__all__ = [
    "drop",
    "forget_waiter",
    "job_done",
    "payload",
    "pop_done",
    "pump",
    "queue_swap",
    "read",
    "release",
    "reset_port",
    "send",
    "table_of",
    "update",
    "update_payload",
]

_INVALID_FIELD = int(Status.INVALID_FIELD)
_SIZE_LIMIT = int(Status.COMMAND_SIZE_LIMIT)
_NO_TABLE = int(Status.LOOKUP_NO_TABLE)
_BUSY = int(Status.LOOKUP_BUSY)
_INDEX_RANGE = int(Status.LOOKUP_INDEX_RANGE)
_SHAPE = int(Status.LOOKUP_TABLE_SHAPE)
_NO_REQUEST = int(Status.LOOKUP_NO_REQUEST)

_HEADER = LOOKUP_HEADER.size
_HANDLE, _GRAIN, _ID_BYTES = (LOOKUP_HEADER.offset(name) for name in ("handle", "grain", "id_bytes"))
_FLAGS, _BAGS, _IDS = (LOOKUP_HEADER.offset(name) for name in ("flags", "bags", "ids"))
_CARRY, _WEIGHTED = int(LookupFlag.CARRY), int(LookupFlag.WEIGHTED)
_MEAN, _PREFETCH = int(LookupFlag.MEAN), int(LookupFlag.PREFETCH)


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
def table_of(lookup: Lookup, port: int, handle: int) -> int:
    """The slot of an open table, or -1. Handles carry a generation: an old one finds nothing."""
    slot = handle % MAX_TABLES
    table = table_at(lookup.tables, slot)
    return slot if handle != 0 and table.handle == handle and table.port == port else -1


@jit
def _parse(lookup: Lookup, request: Request, port: int, data: int, count: int) -> int:
    """Read the header into ``request`` and check sizes. 0 or a status."""
    slot = table_of(lookup, port, get_u32(data + _HANDLE, 0))
    if slot < 0:
        return _NO_TABLE
    grain, id_bytes, flags = get_u8(data + _GRAIN, 0), get_u8(data + _ID_BYTES, 0), get_u16(data + _FLAGS, 0)
    bags, ids = get_u32(data + _BAGS, 0), get_u32(data + _IDS, 0)
    if grain > 1 or (id_bytes != 4 and id_bytes != 8) or bags == 0 or not _flags_fit(lookup, flags, bags):
        return _INVALID_FIELD
    sum_bytes = table_at(lookup.tables, slot).sum_bytes
    if bags * sum_bytes > MAX_RESULT:
        return _SIZE_LIMIT
    offsets = _HEADER + (sum_bytes if flags & _CARRY else 0)
    indices = (offsets + 4 * (bags + 1) + 7) & -8
    end = indices + ids * id_bytes
    weights = (end + 7) & -8
    if (weights + 4 * ids if flags & _WEIGHTED else end) != count:
        return _INVALID_FIELD
    request.kind = PREFETCH if flags & _PREFETCH else SUM
    request.table = slot
    request.grain = grain
    request.bags = bags
    request.ids = ids
    request.id_bytes = id_bytes
    request.carry = data + _HEADER if flags & _CARRY else 0
    request.offsets = data + offsets
    request.indices = data + indices
    request.weights = data + weights if flags & _WEIGHTED else 0
    request.mean = 1 if flags & _MEAN else 0
    request.result = lookup.results + request.number * MAX_RESULT
    request.stride = sum_bytes
    request.result_bytes = bags * sum_bytes
    return 0


@jit
def _flags_fit(lookup: Lookup, flags: int, bags: int) -> bool:
    """Whether these flags mean something together, and here."""
    if flags & _PREFETCH:
        return flags == _PREFETCH and bags == 1 and lookup.hot.rows != 0
    return flags <= _CARRY | _WEIGHTED | _MEAN and flags & (_CARRY | _MEAN) != _CARRY | _MEAN


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
    follower = request.next
    set_taken(request)
    status = _parse(lookup, request, port, data, count)
    if status == 0:
        status = check(lookup, request)
    if status != 0:
        request.state = FREE
        return status
    lookup.free = follower
    request.port = port
    if request.kind == PREFETCH:
        request.abandoned = 1  # there is nothing to read: it frees itself
    else:
        request.tag = tag
        put_i64(lookup.tags, _tag_cell(port, tag), number + 1)
    enqueue(lookup, now, number)
    return 0


@jit
def update_payload(lookup: Lookup, port: int, handle: int, rows: int, count: int) -> int:
    """Where the data of a TABLE_UPDATE is to be copied before ``update`` is called, or a negative status. No effect."""
    slot = table_of(lookup, port, handle)
    if slot < 0:
        return -_NO_TABLE
    table = table_at(lookup.tables, slot)
    if table.generated != 0:
        return -_SHAPE
    if count > MAX_PAYLOAD:
        return -_SIZE_LIMIT
    if rows < 1 or count != rows * (8 + table.row_bytes):
        return -_INVALID_FIELD
    return lookup.payloads + lookup.free * MAX_PAYLOAD if lookup.free >= 0 else -_BUSY


@jit_unit
def update(lookup: Lookup, now: int, port: int, handle: int, rows: int, waiter: int) -> int:
    """Take up the update whose data was copied to ``update_payload()``. 0, or a status and ``lookup.position``.

    It comes out of ``pop_done`` for ``waiter`` once the rows are stored.
    """
    number = lookup.free
    request = request_at(lookup.requests, number)
    follower = request.next
    set_taken(request)
    request.kind = UPDATE
    request.table = table_of(lookup, port, handle)
    request.bags = 0
    request.ids = rows
    request.id_bytes = 8
    request.indices = lookup.payloads + number * MAX_PAYLOAD
    request.content = request.indices + 8 * rows
    bad = first_out_of_range(table_at(lookup.tables, request.table), request)
    if bad >= 0:
        lookup.position = bad
        request.state = FREE
        return _INDEX_RANGE
    lookup.free = follower
    request.port = port
    request.waiter = waiter
    enqueue(lookup, now, number)
    return 0


@jit
def queue_swap(address: int, now: int, port: int, first: int, second: int) -> int:
    """Have two tables, by their slots, exchange places once all that is queued is done. 0 or a status.

    :param address: of the Lookup record
    """
    lookup = lookup_at(address, 0)
    number = take(lookup)
    if number < 0:
        return _BUSY
    request = request_at(lookup.requests, number)
    request.kind = SWAP
    request.port = port
    request.table = first
    request.other = second
    request.ids = 0
    request.bags = 0
    request.abandoned = 1  # nobody waits: what is sent after this is queued behind it
    table_at(lookup.tables, second).active += 1
    enqueue(lookup, now, number)
    return 0


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
def release(lookup: Lookup, number: int) -> None:
    """Free a READY request that has been read, or an update that is over."""
    request = request_at(lookup.requests, number)
    if request.tag >= 0:
        put_i64(lookup.tags, _tag_cell(request.port, request.tag), 0)
    give(lookup, number)


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
        give(lookup, request.number)
    return 0


@jit
def reset_port(lookup: Lookup, port: int) -> None:
    """Drop every request of a port, as a controller reset does. Those on the flash finish there, unseen.

    Updates that were taken are stored all the same: no request may see a part of one.
    """
    for tag in range(MAX_TAGS):
        cell = get_i64(lookup.tags, _tag_cell(port, tag))
        if cell != 0:
            forget_waiter(lookup, cell - 1)
            drop(lookup, port, tag)
    for number in range(lookup.request_count):
        request = request_at(lookup.requests, number)
        if request.kind == UPDATE and request.port == port and request.state != FREE:
            forget_waiter(lookup, number)
            request.abandoned = 1
