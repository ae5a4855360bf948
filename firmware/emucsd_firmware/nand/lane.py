"""A lane: a channel on which only vector reads (class LOOKUP) are under way, run with one event for each of them.

Where every read goes through array and register alone (no command time, cache read, multi-plane or suspend) and no
other class competes, nothing remains to be decided once the array of a die ends: the bus serves pages in that order,
so the end of the transfer is known, and with it when the die takes the read that waits next. A lane therefore keeps

- the dies' queues as everywhere, but the read that the array works on stays first in its queue until the array ends;
- a ring of ``Due``: for each die with a queue the end of its array, or, where it is idle until then, an arrival;
- a ring of ``Leave``: pages on their way out whose transfer has not ended yet.

What counts, counts in its time all the same: a read has ended, for its job and for ``room``, when time has reached the
end of its transfer. Whatever a lane cannot do (another class or kind, a read that arrives before one that is queued)
closes it, see ``nand.switch``. ``Nand.lanes`` says whether channels may run like this.
"""

from __future__ import annotations

from emucsd_firmware.nand.jobs import end_job
from emucsd_firmware.nand.state import (
    LOOKUP,
    NEVER,
    READ,
    Channel,
    Die,
    Nand,
    Op,
    channel_at,
    die_at,
    due_at,
    job_at,
    leave_at,
    op_at,
    queue_at,
)
from emucsd_wire.words import get_i64, jit, jit_inline, jit_unit, put_i64

ENTRY = 16  # bytes of an entry of a ring, Due or Leave; positions and their mask are in bytes
QUEUE = 64  # bytes of a Queue
DIE_SHIFT = 8  # Due.die is the offset of a die's queues in their table: QUEUE << 2 for each die
ARRIVAL = 1  # and this, when an operation arrives at an idle die


@jit_inline
def place(dues: int, mask: int, first: int, beyond: int, time: int, code: int) -> None:
    """Put an event where it belongs among those at positions ``first`` to ``beyond``. It mostly is the last."""
    while beyond != first:
        other = due_at(dues + ((beyond - ENTRY) & mask), 0)
        if other.time < time or (other.time == time and other.die < code):
            break
        moved = due_at(dues + (beyond & mask), 0)
        moved.time = other.time
        moved.die = other.die
        beyond -= ENTRY
    due = due_at(dues + (beyond & mask), 0)
    due.time = time
    due.die = code


# ---- a read arrives ----


@jit
def _rouse(nand: Nand, channel: Channel, die: Die, number: int, op: Op, freed: int) -> None:
    """The first read in a die's queue: the array takes it when the register is empty, or when it arrives."""
    time, code = op.arrival, (number << DIE_SHIFT) + ARRIVAL
    if channel.now < freed and time <= freed:
        time, code = freed + op.array_ns, number << DIE_SHIFT
    beyond = channel.due_beyond
    place(channel.dues, nand.ring_mask, channel.due_first, beyond, time, code)
    channel.due_beyond = beyond + ENTRY
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
    bus_ns = (nbytes * nand.transfer_ns + 4095) >> 12
    op.arrival = arrival
    op.array_ns = array_ns
    op.bus_ns = bus_ns
    op.job = job
    op.next = -1
    op.die = number
    op.passed = 0
    op.kind = READ
    op.traffic = LOOKUP
    op.plane = 0
    op.leaving = 0
    freed = die.freed
    end = max(freed, arrival) + array_ns + bus_ns
    die.freed = end
    if job >= 0:
        record = job_at(nand.jobs, job)
        record.pending += 1
        record.soonest = max(record.soonest, end)
    queue.nbytes += nbytes
    queue.tail = index
    if tail >= 0:
        op_at(nand.ops, tail).next = index
    else:
        queue.head = index
        _rouse(nand, channel, die, number, op, freed)
    return True


# ---- time passes ----


@jit_inline
def _end(nand: Nand, jobs: int, op: Op, now: int) -> None:
    """A transfer has ended: as ``jobs.end_operation``, but that whoever calls keeps the list of free operations."""
    number = op.job
    if number >= 0:
        job = job_at(jobs, number)
        pending = job.pending - 1
        job.pending = pending
        job.finish = max(job.finish, now)
        if pending == 0:
            end_job(nand, number)


@jit_inline
def _transfers_end(nand: Nand, channel: Channel, until: int) -> None:
    """What was on its way out, as far as it has left by then."""
    leaves, mask = channel.leaves, nand.ring_mask
    first, beyond, free = channel.leave_first, channel.leave_beyond, nand.free
    while first != beyond and leave_at(leaves + (first & mask), 0).time <= until:
        leave = leave_at(leaves + (first & mask), 0)
        first += ENTRY
        channel.now = leave.time
        op = op_at(nand.ops, leave.op)
        op.next = free
        free = leave.op
        nand.room += 1
        _end(nand, nand.jobs, op, leave.time)
    channel.leave_first = first
    nand.free = free


@jit_inline
def _next(nand: Nand, channel: Channel) -> int:
    mask, soonest = nand.ring_mask, NEVER
    if channel.due_first != channel.due_beyond:
        soonest = due_at(channel.dues + (channel.due_first & mask), 0).time
    if channel.leave_first != channel.leave_beyond:
        soonest = min(soonest, leave_at(channel.leaves + (channel.leave_first & mask), 0).time)
    return soonest


@jit_inline
def _leaves(channel: Channel, mask: int, time: int, index: int) -> None:
    """A page is on its way out until then."""
    leave = leave_at(channel.leaves + (channel.leave_beyond & mask), 0)
    leave.time = time
    leave.op = index
    channel.leave_beyond += ENTRY


@jit_unit
def run_lane(nand: Nand, channel: Channel, until: int) -> int:
    """Run a lane's events up to and including a time. :returns: when the next one is, or NEVER"""
    if channel.leave_first != channel.leave_beyond:
        _transfers_end(nand, channel, until)
    ops, jobs, queues = nand.ops, nand.jobs, nand.queues + LOOKUP * QUEUE
    dues, mask, first, beyond = channel.dues, nand.ring_mask, channel.due_first, channel.due_beyond
    latest, bus_end, busy_ns, free, ended = channel.now, channel.bus_end, channel.busy_ns, nand.free, 0
    while first != beyond and due_at(dues + (first & mask), 0).time <= until:
        due = due_at(dues + (first & mask), 0)
        now, code = due.time, due.die
        first += ENTRY
        if code & ARRIVAL != 0:
            latest = max(latest, now)
            code -= ARRIVAL
            time = now + op_at(ops, queue_at(queues + code, 0).head).array_ns
            place(dues, mask, first, beyond, time, code)
            beyond += ENTRY
            continue
        queue = queue_at(queues + code, 0)
        index = queue.head
        op = op_at(ops, index)
        array_ns, bus_ns = op.array_ns, op.bus_ns
        queue.busy_ns += array_ns
        queue.wait_ns += now - array_ns - op.arrival
        queue.reads += 1
        busy_ns += bus_ns
        if bus_end > now:
            if op_at(ops, queue.tail).arrival <= now:  # else the die will rest, and make up for the time
                die_at(nand.dies, code >> DIE_SHIFT).freed += bus_end - now
            bus_end += bus_ns
        else:
            bus_end = now + bus_ns
        following = op.next
        queue.head = following
        if following >= 0:
            other = op_at(ops, following)
            time = bus_end + other.array_ns
            if other.arrival > bus_end:
                time, code = other.arrival, code + ARRIVAL
            place(dues, mask, first, beyond, time, code)
            beyond += ENTRY
        else:
            queue.tail = -1
            die_at(nand.dies, code >> DIE_SHIFT).freed = bus_end
        if bus_end <= until:
            op.next = free
            free = index
            ended += 1
            latest = bus_end
            _end(nand, jobs, op, bus_end)
        else:
            latest = max(latest, now)
            _leaves(channel, mask, bus_end, index)
    channel.now = latest
    channel.due_first, channel.due_beyond = first, beyond
    channel.bus_end, channel.busy_ns = bus_end, busy_ns
    nand.free = free
    nand.room += ended
    return _next(nand, channel)
