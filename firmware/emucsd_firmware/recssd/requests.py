"""A RecSSD request: from its write, which is checked whole before it has any effect, to its last read.

Eight can be in the drive (one more is refused; the published firmware stopped with an assertion). The processor works
on them in turn (``pages``); what it costs of its time is charged where it is spent.
"""

from __future__ import annotations

from emucsd_firmware.recssd.state import CONFIG, FREE, READING, RecSsd, SlsRequest, sls_at, waiter_at
from emucsd_firmware.recssd.waiters import adopt, answer_complete, free_waiter, hold_early, nanoseconds, promise
from emucsd_wire.nvme import Status
from emucsd_wire.recssd import (
    ATTRIBUTE,
    MAX_CONFIG,
    MAX_LENGTH,
    MAX_REQUESTS,
    MAX_SECTORS,
    SECTOR,
    SLS_CONFIG,
    SLS_PAIR,
    TABLE_IDS,
)
from emucsd_wire.words import fill, get_i64, get_u32, jit, put_i64

_INVALID_FIELD = int(Status.INVALID_FIELD)
_SIZE_LIMIT = int(Status.COMMAND_SIZE_LIMIT)
_SHAPE = int(Status.LOOKUP_TABLE_SHAPE)
_INDEX_RANGE = int(Status.LOOKUP_INDEX_RANGE)
_OFFSETS = int(Status.LOOKUP_OFFSETS)
_BUSY = int(Status.LOOKUP_BUSY)

_HEADER, _PAIR = SLS_CONFIG.size, SLS_PAIR.size
_ATTRIBUTE, _LENGTH, _RESULTS, _INPUTS, _TABLE = (SLS_CONFIG.offset(field.name) // 4 for field in SLS_CONFIG)


@jit
def find(recssd: RecSsd, port: int, nsid: int, slba: int) -> int:
    """The number of a request, or -1."""
    for number in range(MAX_REQUESTS):
        request = sls_at(recssd.requests, number)
        ours = request.port == port and request.nsid == nsid and request.slba == slba
        if ours and request.phase != FREE and request.abandoned == 0:
            return number
    return -1


@jit
def place(recssd: RecSsd, port: int, nsid: int, slba: int, count: int) -> int:
    """A free request's number, or a negative status. ``config_of`` says where its data are to be copied. No effect."""
    if count > MAX_CONFIG:
        return -_SIZE_LIMIT
    if find(recssd, port, nsid, slba) >= 0:
        recssd.counters.refused += 1
        return -_BUSY
    for number in range(MAX_REQUESTS):
        if sls_at(recssd.requests, number).phase == FREE:
            return number
    recssd.counters.refused += 1
    return -_BUSY


@jit
def config_of(recssd: RecSsd, number: int) -> int:
    """Address of a request's MAX_CONFIG bytes."""
    return sls_at(recssd.requests, number).pairs - _HEADER


@jit
def _parse(recssd: RecSsd, request: SlsRequest, count: int, space: int) -> int:
    """Check sizes and every pair. 0, or a status and ``recssd.position``."""
    data = request.pairs - _HEADER
    dim, results, inputs = get_u32(data, _LENGTH), get_u32(data, _RESULTS), get_u32(data, _INPUTS)
    if get_u32(data, _ATTRIBUTE) != ATTRIBUTE or dim < 1 or dim > MAX_LENGTH or get_u32(data, _TABLE) >= TABLE_IDS:
        return _SHAPE
    if results < 1 or _HEADER + _PAIR * inputs > count:
        return _INVALID_FIELD
    row_bytes = ATTRIBUTE * dim
    if results * row_bytes > MAX_SECTORS * SECTOR:
        return _SIZE_LIMIT
    request.count, request.dim, request.row_bytes = inputs, dim, row_bytes
    request.table_id = get_u32(data, _TABLE)
    request.sectors = (results * row_bytes + SECTOR - 1) // SECTOR
    rows, last = space // row_bytes, 0
    for position in range(inputs):
        row = get_u32(request.pairs, 2 * position + 1)
        if row >= rows or get_u32(request.pairs, 2 * position) >= results or row < last:
            recssd.position = position
            return _OFFSETS if row < last else _INDEX_RANGE
        last = row
    return 0


@jit
def start(
    recssd: RecSsd, now: int, number: int, port: int, nsid: int, slba: int, base: int, space: int, count: int
) -> int:
    """Take up the request whose ``count`` bytes lie at ``config_of``. 0, or a status and ``recssd.position``.

    :param base: flash address (lpn, then byte) of the table's row 0
    :param space: bytes from there to the namespace's end
    :returns: the write completes when ``recssd.processor_free`` has come
    """
    recssd.position = 0
    request = sls_at(recssd.requests, number)
    status = _parse(recssd, request, count, space)
    if status != 0:
        recssd.counters.refused += 1
        return status
    request.port, request.nsid, request.slba = port, nsid, slba
    request.phase, request.base, request.cursor, request.open = CONFIG, base, 0, 0
    request.asked, request.given, request.status, request.position = 0, 0, 0, 0
    request.abandoned, request.waiting, request.waiting_last, request.next = 0, -1, -1, -1
    request.started = now
    recssd.processor_free = max(now, recssd.processor_free) + nanoseconds(recssd, recssd.request_cycles)
    recssd.counters.busy_ns += nanoseconds(recssd, recssd.request_cycles)
    fill(request.result, 0, request.sectors * SECTOR)  # before anything is added: hits of the row cache count
    _expect(request, recssd.processor_free)
    if recssd.head < 0:
        recssd.head = number
    else:
        sls_at(recssd.requests, recssd.tail).next = number
    recssd.tail = number
    recssd.ringed += 1
    recssd.counters.config_write_ns += recssd.processor_free - now
    recssd.wake = min(recssd.wake, recssd.processor_free)
    recssd.stalled = 0
    adopt(recssd, request, now)
    return 0


@jit
def first_sector(request: SlsRequest, position: int) -> int:
    """The first of the sectors that a pair's result lies in; bit 31 of a pair's result says that it is done."""
    return (get_u32(request.pairs, 2 * position) & 0x7FFF_FFFF) * request.row_bytes // SECTOR


@jit
def last_sector(request: SlsRequest, position: int) -> int:
    return ((get_u32(request.pairs, 2 * position) & 0x7FFF_FFFF) * request.row_bytes + request.row_bytes - 1) // SECTOR


@jit
def _expect(request: SlsRequest, ready: int) -> None:
    """Count what each sector of the results waits for; one without contributions is complete at once."""
    for sector in range(request.sectors):
        put_i64(request.pending, sector, 0)
        put_i64(request.ready, sector, ready)
    for position in range(request.count):
        for sector in range(first_sector(request, position), last_sector(request, position) + 1):
            put_i64(request.pending, sector, get_i64(request.pending, sector) + 1)


@jit
def read(recssd: RecSsd, now: int, port: int, nsid: int, slba: int, sectors: int, slot: int) -> int:
    """A read of the next sectors: 0, and it comes out of ``waiters.pop_done`` in time; or a status."""
    number = recssd.free_waiter
    if number < 0:
        recssd.counters.refused += 1
        return _BUSY
    waiter = waiter_at(recssd.waiters, number)
    recssd.free_waiter = waiter.next
    waiter.slot, waiter.port, waiter.nsid, waiter.slba = slot, port, nsid, slba
    waiter.sectors, waiter.request, waiter.since = sectors, -1, now
    found = find(recssd, port, nsid, slba)
    if found < 0:
        hold_early(recssd, number, now)
        return 0
    request = sls_at(recssd.requests, found)
    promise(recssd, request, number, now)
    answer_complete(recssd, request, now)
    return 0


@jit
def given(recssd: RecSsd, number: int, ready: int) -> None:
    """An answered read has been taken away, its last byte at ``ready``: free it, and its request with the last one."""
    waiter = waiter_at(recssd.waiters, number)
    if waiter.request >= 0:
        request = sls_at(recssd.requests, waiter.request)
        request.given += waiter.sectors
        if request.given >= request.sectors:
            recssd.counters.requests += 1
            recssd.counters.request_ns += ready - request.started
            if request.status != 0:
                recssd.counters.failed += 1
            request.abandoned = 1
            settle(request)
    free_waiter(recssd, number)


@jit
def settle(request: SlsRequest) -> None:
    """Free a request that nobody will read and that has nothing out."""
    if request.abandoned != 0 and request.phase == READING and request.open == 0:
        request.phase = FREE


@jit
def pop_held(recssd: RecSsd, number: int) -> int:
    """Take the first held read of a request, or -1."""
    request = sls_at(recssd.requests, number)
    held = request.waiting
    if held >= 0:
        request.waiting = waiter_at(recssd.waiters, held).next
    return held


@jit
def abandon(recssd: RecSsd, number: int) -> None:
    """Its port was reset: it ends unseen, when what it has out on the flash is back."""
    request = sls_at(recssd.requests, number)
    request.abandoned = 1
    settle(request)
