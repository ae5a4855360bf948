"""A die: what it starts when it is free, and what happens when its array is done. The rules are in ``timing``."""

from __future__ import annotations

from emucsd_firmware.nand.bus import next_transfer, send, transfer
from emucsd_firmware.nand.events import link, pop
from emucsd_firmware.nand.jobs import end_operation
from emucsd_firmware.nand.queues import after, before_first_read, choose, next_read, take
from emucsd_firmware.nand.register import array_time
from emucsd_firmware.nand.state import (
    BACKGROUND,
    BUSY,
    DRAINING,
    FREE,
    LOADING,
    NEVER,
    PAUSING,
    PROGRAM,
    READ,
    STALLED,
    Channel,
    Die,
    Nand,
    Queue,
    die_at,
    op_at,
    queue_at,
)
from emucsd_wire.words import jit, jit_inline

WINDOW = 16  # queued operations that a free die looks at for other planes


@jit_inline
def work(nand: Nand, channel: Channel, die: Die, number: int, time: int, now: int) -> None:
    """The array works on the group for this time. A read of a host may interrupt a program or an erase."""
    die.phase = BUSY
    due = now + time
    die.end = due
    if die.kind != READ and nand.suspend != 0 and op_at(nand.ops, die.group).passed < nand.suspend_reads:
        die.wake = max(now, next_read(nand, number))
        due = min(due, die.wake)
    link(nand, channel, die, number, due)


@jit
def _company(nand: Nand, die: Die, queue: Queue, before: int, time: int, now: int) -> int:
    """Multi-plane: append to the group what waits next and can go along. :returns: the group's longest array time"""
    op = op_at(nand.ops, die.group)
    kind, planes = op.kind, 1 << op.plane
    place = after(nand, queue, before)
    for _ in range(WINDOW):
        if place < 0 or die.members == nand.planes:
            break
        op = op_at(nand.ops, place)
        following = op.next
        if op.kind != kind or op.arrival > now:
            break
        if planes & (1 << op.plane) == 0:
            planes |= 1 << op.plane
            time = max(time, op.array_ns)
            take(nand, die, queue, before, op, now)
            op_at(nand.ops, die.group_last).next = place
            die.group_last = place
            die.members += 1
        else:
            before = place
        place = following
    return time


@jit
def _start(
    nand: Nand, channel: Channel, die: Die, number: int, queue: Queue, before: int, index: int, now: int
) -> None:
    """Begin an operation that comes after ``before`` in its queue, and those that can go along with it."""
    op = op_at(nand.ops, index)
    kind, time = op.kind, op.array_ns
    die.served = op.traffic
    take(nand, die, queue, before, op, now)
    if nand.page_register != 0:
        time = array_time(nand, die, index, op, time)
    die.kind = kind
    die.group = index
    die.group_last = index
    die.members = 1
    if nand.multi_plane != 0:
        time = _company(nand, die, queue, before, time, now)
    queue.busy_ns += time
    if kind == PROGRAM or nand.command_ns > 0:
        first = die.group
        die.phase = LOADING
        die.array_ns = time
        die.incoming = die.members
        die.group = -1
        transfer(nand, channel, first, die.group_last, now)
    else:
        work(nand, channel, die, number, time, now)


@jit
def _serve_paused(nand: Nand, channel: Channel, die: Die, number: int, now: int) -> None:
    """A program or an erase is suspended: a read that passes it, or on with it."""
    head = op_at(nand.ops, die.paused)
    traffic = choose(nand, die, number, now, 1) if head.passed < nand.suspend_reads else -1
    if traffic >= 0:
        queue = queue_at(nand.queues, number * 4 + traffic)
        before = before_first_read(nand, queue)
        head.passed += 1
        _start(nand, channel, die, number, queue, before, after(nand, queue, before), now)
    elif die.outgoing > 0:
        die.phase = DRAINING
    else:
        die.group = die.paused
        die.group_last = die.paused_last
        die.kind = die.paused_kind
        die.paused = -1
        work(nand, channel, die, number, die.paused_ns, now)


@jit
def _serve(nand: Nand, channel: Channel, die: Die, number: int, now: int) -> None:
    """The array is free: start the next operation, or rest until one arrives."""
    die.phase = FREE
    waiting = die.waiting
    if die.paused >= 0:
        _serve_paused(nand, channel, die, number, now)
        return
    if waiting == 0:
        return
    if waiting & (waiting - 1) == 0:
        traffic = waiting >> 1
        arrival = op_at(nand.ops, queue_at(nand.queues, number * 4 + traffic).head).arrival
        if arrival > now:
            traffic = now - arrival
    else:
        traffic = choose(nand, die, number, now, 0)
    if traffic < 0:
        die.wake = now - traffic
        link(nand, channel, die, number, die.wake)
        return
    queue = queue_at(nand.queues, number * 4 + traffic)
    before, index = -1, queue.head
    head = op_at(nand.ops, index)
    if head.kind != READ:
        if nand.suspend != 0 and traffic != BACKGROUND and queue.reads_waiting > 0 and head.passed < nand.suspend_reads:
            place = before_first_read(nand, queue)
            if op_at(nand.ops, after(nand, queue, place)).arrival <= now:
                before, index = place, after(nand, queue, place)
        if before >= 0:
            head.passed += 1
        elif die.outgoing > 0:
            die.phase = DRAINING
            return
    _start(nand, channel, die, number, queue, before, index, now)


@jit
def _pause(nand: Nand, channel: Channel, die: Die, number: int, now: int) -> None:
    """A read that may pass has arrived while a program or an erase runs. One that is about to end may do so."""
    left = die.end - now
    op = op_at(nand.ops, die.group)
    if op.passed < nand.suspend_reads and left > nand.suspend_ns:
        die.paused = die.group
        die.paused_last = die.group_last
        die.paused_kind = die.kind
        die.paused_ns = left
        die.pauses += 1
        die.phase = PAUSING
        die.end = now + nand.suspend_ns
        queue_at(nand.queues, number * 4 + op.traffic).busy_ns += nand.suspend_ns
    link(nand, channel, die, number, die.end)


@jit
def die_due(nand: Nand, channel: Channel, now: int) -> None:
    """The first die in the channel's list is due."""
    number = pop(nand, channel)
    die = die_at(nand.dies, number)
    ended = die.end <= now
    phase = die.phase
    die.wake = NEVER
    if ended:
        die.end = NEVER
    elif phase == BUSY:
        _pause(nand, channel, die, number, now)
        return
    if ended and phase == BUSY:
        if die.kind != READ:
            index = die.group
            while index >= 0:
                following = op_at(nand.ops, index).next
                end_operation(nand, channel, index, now)
                index = following
        elif die.outgoing > 0:
            die.phase = STALLED
            return
        else:
            send(nand, channel, die, now)
            if nand.cache_read == 0:
                die.phase = DRAINING
                return
    _serve(nand, channel, die, number, now)


@jit_inline
def bus_due(nand: Nand, channel: Channel, now: int) -> None:
    """The channel's transfer ends."""
    index = next_transfer(nand, channel, now)
    op = op_at(nand.ops, index)
    number = op.die
    die = die_at(nand.dies, number)
    if op.leaving == 0:  # the die has got it; with the last of its group the array starts
        op.next = -1
        if die.group < 0:
            die.group = index
        else:
            op_at(nand.ops, die.group_last).next = index
        die.group_last = index
        die.incoming -= 1
        if die.incoming == 0:
            work(nand, channel, die, number, die.array_ns, now)
        return
    end_operation(nand, channel, index, now)
    die.outgoing -= 1
    if die.outgoing == 0:
        if die.phase == STALLED:
            send(nand, channel, die, now)
            _serve(nand, channel, die, number, now)
        elif die.phase == DRAINING:
            _serve(nand, channel, die, number, now)
