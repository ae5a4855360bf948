"""Between the general model and the lane: a channel's state in the one said in the terms of the other, exactly.

``close_lane``: an operation comes that a lane cannot take. What the lane foresaw has not happened yet. ``open_lane``: a
vector read comes to an idle channel. ``resume_lane``: vector reads have been alone on a busy one for a while.
"""

from __future__ import annotations

from emucsd_firmware.nand.events import link
from emucsd_firmware.nand.lane import ARRIVAL, DIE_SHIFT, ENTRY, place
from emucsd_firmware.nand.state import (
    BUSY,
    DRAINING,
    FREE,
    LOOKUP,
    NEVER,
    READ,
    Channel,
    Die,
    Nand,
    channel_at,
    die_at,
    due_at,
    leave_at,
    op_at,
    queue_at,
)
from emucsd_wire.words import get_i64, jit, jit_inline


@jit
def lane_again(nand: Nand, index: int) -> bool:
    """A vector read arrives at a channel that is no lane. :returns: now it is one

    Only after ``Nand.patience`` such reads without any others: to change over is work for each operation that waits.
    """
    channel = channel_at(nand.channels, index)
    if get_i64(nand.nexts, index) == NEVER:
        open_lane(nand, channel, index)
        return True
    if channel.others != 0:
        return False
    channel.alone += 1
    if channel.alone <= nand.patience:
        return False
    resume_lane(nand, channel, index)
    return True


@jit
def open_lane(nand: Nand, channel: Channel, index: int) -> None:
    """The channel is idle: from now on it is a lane."""
    dies = nand.die_count // nand.channel_count
    for number in range(index * dies, (index + 1) * dies):
        die = die_at(nand.dies, number)
        die.freed = -1
        die.since = queue_at(nand.queues, number * 4 + LOOKUP).reads
    channel.bus_end = -1
    channel.lane = 1


@jit
def close_lane(nand: Nand, channel: Channel, index: int) -> None:
    """Put the channel into the state that the general model would be in: what was foreseen has not happened yet."""
    dues, leaves, mask = channel.dues, channel.leaves, nand.ring_mask
    channel.lane = 0
    channel.alone = 0
    for position in range(channel.leave_first, channel.leave_beyond, ENTRY):
        leave = leave_at(leaves + (position & mask), 0)
        _leaving(nand, channel, leave.op, leave.time, position == channel.leave_first)
    if channel.leave_first == channel.leave_beyond:
        channel.bus_end = NEVER
    channel.leave_first = channel.leave_beyond
    for position in range(channel.due_first, channel.due_beyond, ENTRY):
        due = due_at(dues + (position & mask), 0)
        number = due.die >> DIE_SHIFT
        _standing(nand, channel, die_at(nand.dies, number), number, due.time, due.die & ARRIVAL)
    channel.due_first = channel.due_beyond
    dies = nand.die_count // nand.channel_count
    for number in range(index * dies, (index + 1) * dies):
        queue = queue_at(nand.queues, number * 4 + LOOKUP)
        die = die_at(nand.dies, number)
        if queue.head >= 0:
            die.waiting = 1 << LOOKUP
        if queue.reads != die.since:
            die.served = LOOKUP


@jit
def _leaving(nand: Nand, channel: Channel, index: int, end: int, first: bool) -> None:
    """A page on its way out: on the bus, or, after the first, waiting for it."""
    op = op_at(nand.ops, index)
    op.leaving = 1
    op.next = -1
    if first:
        channel.bus_head = index
        channel.bus_end = end
    else:
        op_at(nand.ops, channel.bus_tail).next = index
        channel.busy_ns -= op.bus_ns
    channel.bus_tail = index
    die = die_at(nand.dies, op.die)
    die.phase = DRAINING
    die.kind = READ
    die.outgoing = 1
    die.members = 1
    die.group = index
    die.group_last = index


@jit
def _standing(nand: Nand, channel: Channel, die: Die, number: int, time: int, arrival: int) -> None:
    """A die whose queue is not empty: its array reads, or will when its register is empty, or it waits for arrivals."""
    queue = queue_at(nand.queues, number * 4 + LOOKUP)
    index = queue.head
    op = op_at(nand.ops, index)
    begun = time - op.array_ns
    if arrival != 0:
        if die.phase != DRAINING:
            die.wake = time
            link(nand, channel, die, number, time)
    elif begun <= channel.now:
        queue.head = op.next
        if queue.head < 0:
            queue.tail = -1
        op.next = -1
        queue.busy_ns += op.array_ns
        queue.wait_ns += begun - op.arrival
        queue.reads += 1
        die.phase = BUSY
        die.kind = READ
        die.members = 1
        die.group = index
        die.group_last = index
        die.end = time
        link(nand, channel, die, number, time)


@jit
def resume_lane(nand: Nand, channel: Channel, index: int) -> None:
    """Only vector reads are under way: from now on the channel is a lane."""
    bus_end = channel.bus_end
    open_lane(nand, channel, index)
    channel.bus_end = _foresee_bus(nand, channel, bus_end)
    dies = nand.die_count // nand.channel_count
    for number in range(index * dies, (index + 1) * dies):
        _foresee(nand, channel, die_at(nand.dies, number), number)
    channel.first = -1
    channel.last = -1
    channel.due = NEVER


@jit
def _foresee_bus(nand: Nand, channel: Channel, bus_end: int) -> int:
    """The pages on their way out, each after the one before. :returns: the end of the last one, or -1"""
    index, end = channel.bus_head, -1
    while index >= 0:
        op = op_at(nand.ops, index)
        if end < 0:
            end = bus_end
        else:
            end += op.bus_ns
            channel.busy_ns += op.bus_ns
        leave = leave_at(channel.leaves + (channel.leave_beyond & nand.ring_mask), 0)
        leave.time = end
        leave.op = index
        channel.leave_beyond += ENTRY
        die_at(nand.dies, op.die).freed = end
        index = op.next
    channel.bus_head = -1
    channel.bus_tail = -1
    return end


@jit
def _foresee(nand: Nand, channel: Channel, die: Die, number: int) -> None:
    """What the die does next, and when all that is queued there has left if the bus is free."""
    queue = queue_at(nand.queues, number * 4 + LOOKUP)
    if die.phase == BUSY:
        op = op_at(nand.ops, die.group)
        begun = die.end - op.array_ns
        op.next = queue.head
        queue.head = die.group
        if queue.tail < 0:
            queue.tail = die.group
        queue.busy_ns -= op.array_ns
        queue.wait_ns -= begun - op.arrival
        queue.reads -= 1
        die.freed = begun
        _due(nand, channel, die.end, number << DIE_SHIFT)
    elif queue.head >= 0:
        op = op_at(nand.ops, queue.head)
        if die.phase == DRAINING and op.arrival <= die.freed:
            _due(nand, channel, die.freed + op.array_ns, number << DIE_SHIFT)
        else:
            _due(nand, channel, op.arrival, (number << DIE_SHIFT) + ARRIVAL)
    index = queue.head
    while index >= 0:
        op = op_at(nand.ops, index)
        die.freed = max(die.freed, op.arrival) + op.array_ns + op.bus_ns
        index = op.next
    die.since = queue.reads
    die.phase = FREE
    die.waiting = 0
    die.outgoing = 0
    die.due = NEVER
    die.end = NEVER
    die.wake = NEVER


@jit_inline
def _due(nand: Nand, channel: Channel, time: int, code: int) -> None:
    place(channel.dues, nand.ring_mask, channel.due_first, channel.due_beyond, time, code)
    channel.due_beyond += ENTRY
