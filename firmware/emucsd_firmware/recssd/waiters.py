"""Reads that are held: until their write comes, or until their sectors are complete. Then somebody takes them away."""

from __future__ import annotations

from emucsd_firmware.recssd.state import EARLY_NS, RecSsd, SlsRequest, Waiter, waiter_at
from emucsd_wire.nvme import Status
from emucsd_wire.words import get_i64, jit

_INVALID_FIELD = int(Status.INVALID_FIELD)
_NO_REQUEST = int(Status.LOOKUP_NO_REQUEST)


@jit
def nanoseconds(recssd: RecSsd, cycles: int) -> int:
    """Of the processor."""
    return (cycles * recssd.cycle_ps + 999) // 1000


@jit
def finished(recssd: RecSsd, number: int, ready: int, status: int) -> None:
    """Put a held read into the queue of answered ones."""
    waiter = waiter_at(recssd.waiters, number)
    waiter.ready, waiter.status, waiter.next = ready, status, -1
    if recssd.done < 0:
        recssd.done = number
    else:
        waiter_at(recssd.waiters, recssd.done_last).next = number
    recssd.done_last = number
    recssd.wake = min(recssd.wake, ready)  # somebody looks at what is answered then


@jit
def pop_done(recssd: RecSsd) -> int:
    """The next read that is answered, or -1."""
    number = recssd.done
    if number >= 0:
        recssd.done = waiter_at(recssd.waiters, number).next
    return number


@jit
def disown_answered(recssd: RecSsd, port: int) -> None:
    """A controller reset: what was answered to a port and not taken away is nothing any more."""
    number = recssd.done
    while number >= 0:
        waiter = waiter_at(recssd.waiters, number)
        if waiter.port == port:
            waiter.request, waiter.status = -1, _NO_REQUEST
        number = waiter.next


@jit
def free_waiter(recssd: RecSsd, number: int) -> None:
    """Its command is done with."""
    waiter_at(recssd.waiters, number).next = recssd.free_waiter
    recssd.free_waiter = number


@jit
def hold_early(recssd: RecSsd, number: int, now: int) -> None:
    """Its write is still on the way, or will never come: then its deadline does."""
    waiter = waiter_at(recssd.waiters, number)
    waiter.request, waiter.next, waiter.deadline = -1, -1, now + EARLY_NS
    if recssd.early < 0:
        recssd.early = number
    else:
        waiter_at(recssd.waiters, recssd.early_last).next = number
    recssd.early_last = number
    recssd.wake = min(recssd.wake, waiter.deadline)


@jit
def expire(recssd: RecSsd, now: int) -> None:
    """Answer reads whose write has not come in time. They stand in order of their deadlines."""
    while recssd.early >= 0:
        number = recssd.early
        waiter = waiter_at(recssd.waiters, number)
        if waiter.deadline > now:
            return
        recssd.early = waiter.next
        finished(recssd, number, now, _NO_REQUEST)


@jit
def promise(recssd: RecSsd, request: SlsRequest, number: int, now: int) -> None:
    """Give a read the next sectors of a request, and hold it until they are complete."""
    waiter = waiter_at(recssd.waiters, number)
    if request.asked + waiter.sectors > request.sectors:
        finished(recssd, number, now, _INVALID_FIELD)
        return
    waiter.request, waiter.first, waiter.next = request.number, request.asked, -1
    request.asked += waiter.sectors
    if request.waiting < 0:
        request.waiting = number
    else:
        waiter_at(recssd.waiters, request.waiting_last).next = number
    request.waiting_last = number


@jit
def adopt(recssd: RecSsd, request: SlsRequest, now: int) -> None:
    """The write has come: its early reads, in their order, become its own."""
    number, before = recssd.early, -1
    while number >= 0:
        waiter = waiter_at(recssd.waiters, number)
        after = waiter.next
        if waiter.port == request.port and waiter.nsid == request.nsid and waiter.slba == request.slba:
            if before < 0:
                recssd.early = after
            else:
                waiter_at(recssd.waiters, before).next = after
            if after < 0:
                recssd.early_last = before
            promise(recssd, request, number, now)
        else:
            before = number
        number = after


@jit
def _complete(request: SlsRequest, waiter: Waiter) -> int:
    """When a read's sectors were complete, or -1."""
    ready = 0
    for sector in range(waiter.first, waiter.first + waiter.sectors):
        if get_i64(request.pending, sector) > 0:
            return -1
        ready = max(ready, get_i64(request.ready, sector))
    return ready


@jit
def answer_complete(recssd: RecSsd, request: SlsRequest, now: int) -> None:
    """Answer the held reads that need wait no longer: in their order, as the firmware sends sectors one by one."""
    while request.waiting >= 0:
        number = request.waiting
        waiter = waiter_at(recssd.waiters, number)
        ready = now if request.status != 0 else _complete(request, waiter)
        if ready < 0:
            return
        request.waiting = waiter.next
        finished(recssd, number, max(ready, now), request.status)


@jit
def pop_early(recssd: RecSsd, port: int) -> int:
    """Take the first of a port's reads that wait for their write, or -1."""
    number, before = recssd.early, -1
    while number >= 0:
        waiter = waiter_at(recssd.waiters, number)
        if waiter.port == port:
            if before < 0:
                recssd.early = waiter.next
            else:
                waiter_at(recssd.waiters, before).next = waiter.next
            if waiter.next < 0:
                recssd.early_last = before
            return number
        before, number = number, waiter.next
    return -1


@jit
def send_off(recssd: RecSsd, number: int) -> int:
    """The processor sends an answered read's sectors off. :returns: when they are on their way"""
    waiter = waiter_at(recssd.waiters, number)
    if waiter.status != 0:
        return waiter.ready
    start = max(waiter.ready, recssd.processor_free)
    end = start + nanoseconds(recssd, recssd.sector_cycles * waiter.sectors)
    recssd.processor_free = end
    recssd.counters.busy_ns += end - start
    recssd.counters.return_ns += end - waiter.since
    recssd.counters.sectors += waiter.sectors
    return end
