"""The client's poll loops, compiled: a batch carried on, one command submitted, completions awaited, time let go on.

Every loop comes back to Python after about ``slice_ns`` (so that a signal is seen and a dead drive found) and can be
called again to go on. While a burst is awaited the *last* of its completion entries is watched, so that the lines which
the drive is still writing stay with the drive.

Virtual clock (``emucsd_wire.nvme.ClockWords``): the drive looks at its queues only in a grant, and completions are
looked at here only right after one, on every ring. So what the client does depends on virtual time alone.
"""

from __future__ import annotations

import numpy as np
from numba import types

from emucsd.ring import (
    DRIVE_NOW,
    GRANTED,
    HOST_NOW,
    SINGLE,
    UNSENT,
    WAIT,
    Batch,
    HostClock,
    Ring,
    batch_at,
    enter,
    fill,
    give_slot,
    host_clock_at,
    posted,
    reap,
    ring_at,
    ring_doorbells,
    send_unsent,
    slot_at,
    take_slot,
    wake,
)
from emucsd_wire.words import (
    get_i64,
    jit,
    jit_inline,
    load_i64,
    monotonic,
    put_i64,
    relax,
    store_i64,
    yield_core,
)

DONE, AGAIN, CORRUPT, GRANT = 0, 1, 3, 4  # what a call came back for; UNSENT (2) is ring's

PATIENCE = 48  # spins on the last entry of a burst before any entry will do
_CHECK = 512  # spins between looks at the clock
_YIELD_NS = 10_000  # this long without a completion: yield at every look, the drive may wait for this very core
_SLEEP_NS = 20_000_000  # and this long: sleep

_usleep = types.ExternalFunction("usleep", types.int32(types.uint32))


@jit
def _settle(clock: HostClock) -> int:
    """Take what the grant that has just come posted, on every ring. 0, or CORRUPT."""
    for index in range(clock.ring_count):
        if reap(ring_at(get_i64(clock.rings, index), 0), clock.now) < 0:
            return CORRUPT
    return 0


@jit
def _grant(ring: Ring, until: int, stop: int) -> int:
    """Let the drive go on: to its next completion, but not past ``until`` when that is above now.

    0, or AGAIN at ``stop``, UNSENT, CORRUPT, or GRANT: the words are not mapped, so Python has to ask by messages.
    """
    clock = host_clock_at(ring.clock, 0)
    if clock.waiting == 0:
        clock.until = until
        if ring.words == 0:
            return GRANT
        clock.waiting = load_i64(ring.words, GRANTED) + 1
        store_i64(ring.words, HOST_NOW, max(until, clock.now))
        store_i64(ring.words, WAIT, clock.waiting)
        if wake(ring) != 0:
            return UNSENT
    spins = 0
    while load_i64(ring.words, GRANTED) != clock.waiting:
        relax()
        spins += 1
        if spins & (_CHECK - 1) == 0:
            if monotonic() >= stop:
                return AGAIN
            if spins > 16 * _CHECK:
                yield_core()
    clock.waiting = 0
    clock.now = max(clock.now, load_i64(ring.words, DRIVE_NOW))
    return _settle(clock)


@jit_inline
def _room(ring: Ring, batch: Batch) -> int:
    return min(batch.depth - (batch.next - batch.finished), ring.free_count, batch.count - batch.next)


@jit
def _pause(now: int, last: int) -> None:
    """What a spinning loop does at a look at the clock, by how long nothing has come."""
    if now - last > _SLEEP_NS:
        _usleep(np.uint32(100))
    elif now - last > _YIELD_NS:
        yield_core()


@jit
def _run_real(ring: Ring, batch: Batch, slice_ns: int) -> int:
    now = monotonic()
    stop, last, idle = now + slice_ns, now, 0
    while batch.finished < batch.count:
        room = _room(ring, batch)
        if room > 0 and (room >= batch.burst or idle >= PATIENCE or batch.next == batch.finished):
            if batch.arrivals != 0:
                now = monotonic()
            if fill(ring, batch, room, now) > 0:
                if ring_doorbells(ring) != 0:
                    return UNSENT
                idle = 0
        ahead = min(batch.burst, batch.next - batch.finished) - 1 if idle < PATIENCE else 0
        if posted(ring, max(ahead, 0)):
            now = monotonic()
            last, idle = now, 0
            if reap(ring, now) < 0:
                return CORRUPT
            if now >= stop:
                return AGAIN
            continue
        relax()
        idle += 1
        if idle & (_CHECK - 1) == 0:
            now = monotonic()
            if now >= stop:
                return AGAIN
            _pause(now, last)
    return DONE


@jit
def _run_virtual(ring: Ring, batch: Batch, slice_ns: int) -> int:
    clock = host_clock_at(ring.clock, 0)
    stop = monotonic() + slice_ns
    rounds = 0
    while batch.finished < batch.count:
        room, until = _room(ring, batch), 0
        if room > 0 and clock.waiting == 0:
            if fill(ring, batch, room, clock.now) > 0 and ring_doorbells(ring) != 0:
                return UNSENT
            if batch.arrivals != 0 and _room(ring, batch) > 0:
                until = batch.start + get_i64(batch.arrivals, batch.next)
        code = _grant(ring, until, stop)
        if code != 0:
            return code
        rounds += 1
        if rounds & (_CHECK - 1) == 0 and monotonic() >= stop:
            return AGAIN
    return DONE


@jit
def run(ring_address: int, batch_address: int, slice_ns: int) -> int:
    """Carry the batch on for at most about ``slice_ns``. DONE, or why it came back: AGAIN, UNSENT, CORRUPT, GRANT."""
    ring = ring_at(ring_address, 0)
    batch = batch_at(batch_address, 0)
    ring.batch = batch_address
    if ring.unsent != 0 and send_unsent(ring) != 0:
        return UNSENT
    code = _run_virtual(ring, batch, slice_ns) if ring.clock != 0 else _run_real(ring, batch, slice_ns)
    if code == DONE:
        unseen = ring.head - ring.rung_head
        if unseen < 0:
            unseen += ring.entries
        if 2 * unseen > ring.entries and ring_doorbells(ring) != 0:
            return UNSENT
    return code


@jit
def submit(ring_address: int, template: int, address: int, size: int) -> int:
    """Enter one command, without its doorbell. Its slot, or -1 when the queue is full."""
    ring = ring_at(ring_address, 0)
    if ring.free_count == 0:
        return -1
    now = host_clock_at(ring.clock, 0).now if ring.clock != 0 else monotonic()
    number = take_slot(ring, SINGLE, now)
    slot_at(ring.slots, number).released = 0
    enter(ring, template, number, address, size)
    return number


@jit
def flush(ring_address: int) -> int:
    """Ring the doorbells for everything entered. DONE or UNSENT."""
    ring = ring_at(ring_address, 0)
    if ring.unsent != 0 and send_unsent(ring) != 0:
        return UNSENT
    return ring_doorbells(ring)


@jit_inline
def _enough(ring: Ring, want: int, number: int) -> bool:
    return ring.done_count >= want or (number >= 0 and slot_at(ring.slots, number).status >= 0)


@jit
def poll(ring_address: int, want: int, number: int, slice_ns: int) -> int:
    """Take completions until ``want`` singles wait to be taken, or slot ``number`` (if not -1) has completed.

    Under a virtual clock the drive is let go on for that. DONE, AGAIN after ``slice_ns``, UNSENT, CORRUPT or GRANT.
    """
    ring = ring_at(ring_address, 0)
    if ring.unsent != 0 and send_unsent(ring) != 0:
        return UNSENT
    last = monotonic()
    stop, idle = last + slice_ns, 0
    if ring.clock != 0:
        while not _enough(ring, want, number):
            code = _grant(ring, 0, stop)
            if code != 0:
                return code
        return DONE
    while True:
        if reap(ring, monotonic()) < 0:
            return CORRUPT
        if _enough(ring, want, number):
            return DONE
        relax()
        idle += 1
        if idle & 63 == 0 or slice_ns == 0:
            now = monotonic()
            if now >= stop:
                return AGAIN
            _pause(now, last)


@jit
def think(ring_address: int, until: int, slice_ns: int) -> int:
    """Virtual clock: let the drive go on to ``until``. DONE, or why it came back early."""
    ring = ring_at(ring_address, 0)
    clock = host_clock_at(ring.clock, 0)
    stop = monotonic() + slice_ns
    while clock.now < until:
        code = _grant(ring, until, stop)
        if code != 0:
            return code
    return DONE


@jit
def settle(clock_address: int) -> int:
    """After a grant that Python asked for by messages. DONE or CORRUPT."""
    return _settle(host_clock_at(clock_address, 0))


@jit
def release(ring_address: int, number: int) -> None:
    """Give a slot back: of a taken completion now, of a command still out when it completes."""
    ring = ring_at(ring_address, 0)
    slot = slot_at(ring.slots, number)
    index = 0
    while index < ring.done_count:
        if get_i64(ring.done, index) == number:
            ring.done_count -= 1
            put_i64(ring.done, index, get_i64(ring.done, ring.done_count))
            give_slot(ring, number)
            return
        index += 1
    slot.released = 1
