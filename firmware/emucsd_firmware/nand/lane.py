"""A lane: a channel on which only vector reads (class LOOKUP) are under way, run with one event for each of them.

Where every read goes through array and register alone (no command time, cache read, multi-plane or suspend) and no
other class competes, nothing remains to be decided once the array of a die ends: the bus serves pages in that order,
so the end of the transfer is known, and with it when the die takes the read that waits next. A lane therefore keeps

- the dies' queues as everywhere, but the read that the array works on stays first in its queue until the array ends;
- a ring of ``Due``: for each die with a queue the end of its array, or, where it is idle until then, an arrival;
- a ring of ``Leave``: pages on their way out whose transfer has not ended yet.

What counts, counts in its time all the same: a read has ended, for its job and for ``room``, when time has reached the
end of its transfer. Whatever a lane cannot do (another class or kind, a read that arrives before one that is queued)
closes it: ``close_lane`` puts the channel into the state that the general model would be in. It is opened again by a
vector read, when no others are under way. ``Nand.lanes`` says whether channels may run like this.
"""

from __future__ import annotations

from emucsd_firmware.nand.events import link
from emucsd_firmware.nand.jobs import end_job
from emucsd_firmware.nand.state import (
    BUSY,
    DRAINING,
    LOOKUP,
    NEVER,
    READ,
    Channel,
    Die,
    Nand,
    Op,
    Queue,
    channel_at,
    die_at,
    due_at,
    job_at,
    leave_at,
    op_at,
    queue_at,
)
from emucsd_wire.words import get_i64, jit, jit_inline, jit_unit, put_i64


@jit_inline
def _place(nand: Nand, channel: Channel, first: int, beyond: int, time: int, code: int) -> None:
    """Put an event where it belongs among those at positions ``first`` to ``beyond``. It mostly is the last."""
    dues, mask = channel.dues, nand.ring_mask
    while beyond != first:
        other = due_at(dues, (beyond - 1) & mask)
        if other.time < time or (other.time == time and other.die < code):
            break
        moved = due_at(dues, beyond & mask)
        moved.time = other.time
        moved.die = other.die
        beyond -= 1
    due = due_at(dues, beyond & mask)
    due.time = time
    due.die = code


# ---- a read arrives ----


@jit
def _rouse(nand: Nand, channel: Channel, die: Die, number: int, op: Op) -> None:
    """The first read in a die's queue: the array takes it when the register is empty, or when it arrives."""
    time, code = op.arrival, 2 * number
    if channel.now < die.freed and time <= die.freed:
        time, code = die.freed + op.array_ns, 2 * number + 1
    beyond = channel.due_beyond
    _place(nand, channel, channel.due_first, beyond, time, code)
    channel.due_beyond = beyond + 1
    if time < get_i64(nand.nexts, die.channel):
        put_i64(nand.nexts, die.channel, time)
        nand.next = min(nand.next, time)


@jit_inline
def join(nand: Nand, now: int, array_ns: int, ppn: int, nbytes: int, job: int) -> bool:
    """A vector read arrives at its die. False, and no effect, where its channel does not run as a lane or can't go on.

    The caller has made sure that there is room, and that reads take time.
    """
    number = ppn >> nand.die_shift
    die = die_at(nand.dies, number)
    channel = channel_at(nand.channels, die.channel)
    queue = queue_at(nand.queues, number * 4 + LOOKUP)
    arrival = max(now, channel.now)
    tail = queue.tail
    if channel.lane == 0:
        return False
    if tail >= 0 and op_at(nand.ops, tail).arrival > arrival:
        return False
    index = nand.free
    op = op_at(nand.ops, index)
    nand.free = op.next
    nand.room -= 1
    op.arrival = arrival
    op.array_ns = array_ns
    op.bus_ns = (nbytes * nand.transfer_ns + 4095) >> 12
    op.job = job
    op.next = -1
    op.die = number
    op.passed = 0
    op.kind = READ
    op.traffic = LOOKUP
    op.plane = 0
    op.leaving = 0
    if job >= 0:
        job_at(nand.jobs, job).pending += 1
    queue.nbytes += nbytes
    queue.tail = index
    if tail >= 0:
        op_at(nand.ops, tail).next = index
    else:
        queue.head = index
        _rouse(nand, channel, die, number, op)
    return True


# ---- time passes ----


@jit_inline
def _end(nand: Nand, index: int, free: int, now: int) -> None:
    """A transfer has ended: as ``jobs.end_operation``, but that whoever calls keeps the list of free operations."""
    op = op_at(nand.ops, index)
    number = op.job
    op.next = free
    if number >= 0:
        job = job_at(nand.jobs, number)
        pending = job.pending - 1
        job.pending = pending
        if now > job.finish:
            job.finish = now
        if pending == 0:
            end_job(nand, number)


@jit_inline
def _read_ends(nand: Nand, channel: Channel, queue: Queue, op: Op, now: int) -> int:
    """The array has read. The page leaves when those before it have. :returns: the end of its transfer"""
    array_ns, bus_ns = op.array_ns, op.bus_ns
    queue.busy_ns += array_ns
    queue.wait_ns += now - array_ns - op.arrival
    queue.reads += 1
    channel.busy_ns += bus_ns
    return max(now, channel.bus_end) + bus_ns


@jit_unit
def run_lane(nand: Nand, channel: Channel, until: int) -> int:
    """Run a lane's events up to and including a time. :returns: when the next one is, or NEVER"""
    dues, leaves, mask = channel.dues, channel.leaves, nand.ring_mask
    latest, free, ended = channel.now, nand.free, 0
    out, beyond = channel.leave_first, channel.leave_beyond
    while out != beyond and leave_at(leaves, out & mask).time <= until:
        leave = leave_at(leaves, out & mask)
        latest, index = leave.time, leave.op
        _end(nand, index, free, latest)
        free = index
        ended += 1
        out += 1
    first, last = channel.due_first, channel.due_beyond
    while first != last and due_at(dues, first & mask).time <= until:
        due = due_at(dues, first & mask)
        now, code = due.time, due.die
        first += 1
        latest = max(latest, now)
        queue = queue_at(nand.queues, (code >> 1) * 4 + LOOKUP)
        index = queue.head
        op = op_at(nand.ops, index)
        if code & 1 == 0:
            _place(nand, channel, first, last, now + op.array_ns, code + 1)
            last += 1
            continue
        end = _read_ends(nand, channel, queue, op, now)
        channel.bus_end = end
        following = op.next
        queue.head = following
        if following >= 0:
            op = op_at(nand.ops, following)
            arrival = op.arrival
            if arrival <= end:
                _place(nand, channel, first, last, end + op.array_ns, code)
            else:
                _place(nand, channel, first, last, arrival, code - 1)
            last += 1
        else:
            queue.tail = -1
            die_at(nand.dies, code >> 1).freed = end
        if end <= until:
            _end(nand, index, free, end)
            free = index
            ended += 1
            latest = end
        else:
            leave = leave_at(leaves, beyond & mask)
            leave.time = end
            leave.op = index
            leave.die = code >> 1
            beyond += 1
    channel.now = latest
    channel.due_first, channel.due_beyond = first, last
    channel.leave_first, channel.leave_beyond = out, beyond
    nand.free = free
    nand.room += ended
    soonest = due_at(dues, first & mask).time if first != last else NEVER
    if out != beyond:
        soonest = min(soonest, leave_at(leaves, out & mask).time)
    return soonest


@jit
def lane_quiet(nand: Nand, until: int) -> bool:
    """Whether all channels with anything to do are lanes, and no job ends if they run up to a time.

    :param until: less than an array's time from now: of each die at most two reads can end, both of them known
    """
    quiet = True
    for index in range(nand.channel_count):
        if get_i64(nand.nexts, index) <= until:
            channel = channel_at(nand.channels, index)
            if channel.lane == 0:
                return False
    for index in range(nand.channel_count):
        if get_i64(nand.nexts, index) <= until:
            quiet &= _count_off(nand, channel_at(nand.channels, index), until, -1)
    for index in range(nand.channel_count):
        if get_i64(nand.nexts, index) <= until:
            _count_off(nand, channel_at(nand.channels, index), until, 1)
    return quiet


@jit_inline
def _count_off(nand: Nand, channel: Channel, until: int, step: int) -> bool:
    """Add ``step`` to what the jobs wait for, for each read that may end by then. :returns: all still wait"""
    dues, leaves, mask = channel.dues, channel.leaves, nand.ring_mask
    quiet, position = 1, channel.leave_first
    while position != channel.leave_beyond and leave_at(leaves, position & mask).time <= until:
        number = op_at(nand.ops, leave_at(leaves, position & mask).op).job
        position += 1
        if number >= 0:
            job = job_at(nand.jobs, number)
            job.pending += step
            quiet &= job.pending != 0
    position = channel.due_first
    while position != channel.due_beyond and due_at(dues, position & mask).time <= until:
        queue = queue_at(nand.queues, (due_at(dues, position & mask).die >> 1) * 4 + LOOKUP)
        number = op_at(nand.ops, queue.head).job
        position += 1
        if number >= 0:
            job = job_at(nand.jobs, number)
            job.pending += step
            quiet &= job.pending != 0
    return quiet != 0


# ---- from the general model and back ----


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
    for position in range(channel.leave_first, channel.leave_beyond):
        leave = leave_at(leaves, position & mask)
        _leaving(nand, channel, leave.op, leave.time, position == channel.leave_first)
    if channel.leave_first == channel.leave_beyond:
        channel.bus_end = NEVER
    channel.leave_first = channel.leave_beyond
    for position in range(channel.due_first, channel.due_beyond):
        due = due_at(dues, position & mask)
        number = due.die >> 1
        _standing(nand, channel, die_at(nand.dies, number), number, due.time, due.die & 1)
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
def _standing(nand: Nand, channel: Channel, die: Die, number: int, time: int, reading: int) -> None:
    """A die whose queue is not empty: its array reads, or will when its register is empty, or it waits for arrivals."""
    queue = queue_at(nand.queues, number * 4 + LOOKUP)
    index = queue.head
    op = op_at(nand.ops, index)
    begun = time - op.array_ns
    if reading == 0:
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
