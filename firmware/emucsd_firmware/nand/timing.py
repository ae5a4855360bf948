"""The NAND model's time: an exact discrete-event simulation of dies and channels.

An operation goes through at most three steps, each after the other:

1. *in*: its command, and for a program its data, cross the channel to the die;
2. *array*: the die works for the operation's time;
3. *out*: a read's bytes, only those asked for, cross the channel from the die's register.

A channel carries one transfer at a time, in the order in which they became ready. A die that is free chooses a class
(``policy.schedule``) and takes that class's oldest operation. It takes the next one when the register is empty again,
or, with ``cache_read``, as soon as the array has read the page. With ``multi_plane`` it takes along what waits behind
that operation on other planes, of the same kind, up to WINDOW operations further on: all share the longest array time.
With ``suspend`` the reads of hosts (classes BLOCK and LOOKUP) pass programs and erases: those that wait before them in
their own class's queue, and the one that runs, which pauses for ``suspend_ns`` and later goes on with what was left
of it. At most ``suspend_reads`` array reads pass any one program or erase; one that would end within ``suspend_ns`` is
let end.

Nothing is decided before its time, so that late arrivals compete fairly: an operation may be submitted with any arrival
from the time of its channel's last event on, also in the future, in any order. At equal times the channel's transfers
end first, then dies in order of number; operations that arrive together queue in the order of submission.

Channels share nothing but jobs, and a job's end is the maximum over its operations: ``advance`` runs one channel after
the other, and the result is as if all events had been run in one order of time.

Where only vector reads are under way on a channel it runs as a lane: the same times from fewer events, ``nand.lane``.
"""

from __future__ import annotations

from emucsd_firmware.nand.die import bus_due, die_due
from emucsd_firmware.nand.events import move
from emucsd_firmware.nand.jobs import abandon_job, close_job, job_finish, open_job, pop_done, soonest_end
from emucsd_firmware.nand.lane import join, run_lane
from emucsd_firmware.nand.queues import count, enqueue
from emucsd_firmware.nand.register import remember, taken_along
from emucsd_firmware.nand.state import (
    BACKGROUND,
    BLOCK,
    BUSY,
    ERASE,
    FREE,
    LOOKUP,
    NEVER,
    PROGRAM,
    READ,
    Channel,
    Die,
    Nand,
    channel_at,
    die_at,
    job_at,
    op_at,
    queue_at,
)
from emucsd_firmware.nand.switch import close_lane, lane_again
from emucsd_wire.words import get_i64, jit, jit_inline, jit_unit, put_i64

__all__ = [
    "BACKGROUND",
    "BLOCK",
    "ERASE",
    "LOOKUP",
    "NEVER",
    "PROGRAM",
    "READ",
    "abandon_job",
    "advance",
    "advance_until_done",
    "close_job",
    "job_finish",
    "next_event",
    "open_job",
    "pop_done",
    "room",
    "submit",
    "submit_vector",
    "vectors_alone",
]


@jit_inline
def room(nand: Nand) -> int:
    """Operations that can be submitted before the pool is full."""
    return nand.room


@jit_inline
def next_event(nand: Nand) -> int:
    """The earliest time at which something happens, NEVER if nothing is under way."""
    return nand.next


@jit_inline
def _array_time(nand: Nand, kind: int, retries: int) -> int:
    if kind == READ:
        return nand.read_ns + retries * nand.retry_ns
    return nand.program_ns if kind == PROGRAM else nand.erase_ns


@jit
def _pass_by(nand: Nand, now: int, kind: int, traffic: int, ppn: int, nbytes: int, job: int, retries: int) -> None:
    """An operation that does not go through the model: one that takes no time, or the pool is full."""
    end = now
    if nand.instant == 0 and (traffic != BACKGROUND or nand.instant_background == 0):
        end += nand.command_ns + _array_time(nand, kind, retries) + ((nbytes * nand.transfer_ns + 4095) >> 12)
        nand.overflows += 1
    queue = queue_at(nand.queues, (ppn >> nand.die_shift) * 4 + traffic)
    queue.nbytes += nbytes
    count(queue, kind)
    if kind == READ and traffic == LOOKUP:
        die_at(nand.dies, ppn >> nand.die_shift).since += 1  # counted, but no die took it
    if job >= 0 and job_at(nand.jobs, job).finish < end:
        job_at(nand.jobs, job).finish = end


@jit_inline
def _by_lane(
    nand: Nand,
    channel: Channel,
    index: int,
    now: int,
    kind: int,
    traffic: int,
    ppn: int,
    nbytes: int,
    job: int,
    retries: int,
) -> bool:
    """Whether an operation went into its channel's lane. If it can't, the channel is no lane any more."""
    if traffic != LOOKUP or kind != READ:
        channel.others += 1
    else:
        lane = nand.lanes != 0 and (channel.lane != 0 or lane_again(nand, index))
        if lane and join(nand, now, _array_time(nand, kind, retries), ppn, nbytes, job):
            return True
    if channel.lane != 0:
        close_lane(nand, channel, index)
    return False


@jit_unit
def submit(nand: Nand, now: int, kind: int, traffic: int, ppn: int, nbytes: int, job: int, retries: int) -> None:
    """An operation arrives at its die.

    :param now: its arrival; one before the channel's last event counts as at that event
    :param ppn: any page of the block for an erase
    :param nbytes: what crosses the channel: 0 for an erase
    :param job: an open job, or -1: nobody waits
    :param retries: read-retry steps, see ``reliability.read_outcome``

    Whoever submits looks at ``room`` first. Past it nothing breaks, but the operation meets no other one: it takes the
    time that it would take alone, and is counted in ``overflows``.
    """
    if nand.room == 0 or nand.instant != 0 or (traffic == BACKGROUND and nand.instant_background != 0):
        _pass_by(nand, now, kind, traffic, ppn, nbytes, job, retries)
        return
    number = ppn >> nand.die_shift
    die = die_at(nand.dies, number)
    channel = channel_at(nand.channels, die.channel)
    if _by_lane(nand, channel, die.channel, now, kind, traffic, ppn, nbytes, job, retries):
        return
    now = max(now, channel.now)
    if nand.page_register != 0 and kind == READ and traffic == LOOKUP and taken_along(nand, now, ppn, nbytes, job):
        return
    index = nand.free
    op = op_at(nand.ops, index)
    nand.free = op.next
    nand.room -= 1
    array_ns, bus_ns = _array_time(nand, kind, retries), (nbytes * nand.transfer_ns + 4095) >> 12
    op.arrival = now
    op.array_ns = array_ns
    op.bus_ns = bus_ns
    op.job = job
    op.next = -1
    op.die = number
    op.passed = 0
    op.kind = kind
    op.traffic = traffic
    op.plane = (ppn >> nand.page_bits) & (nand.planes - 1)
    op.leaving = 0
    if nand.page_register != 0 and kind == READ:
        remember(nand, index, traffic, ppn)
        array_ns = 0  # perhaps
    if job >= 0:
        record = job_at(nand.jobs, job)
        record.pending += 1
        if traffic == LOOKUP:
            record.soonest = max(record.soonest, now + array_ns + bus_ns)
    queue = queue_at(nand.queues, number * 4 + traffic)
    queue.nbytes += nbytes
    enqueue(nand, die, queue, index, op)
    if now < die.wake:
        _tell(nand, channel, die, number, kind, traffic, now)


@jit_inline
def _tell(nand: Nand, channel: Channel, die: Die, number: int, kind: int, traffic: int, now: int) -> None:
    """What arrives comes before all else that the die waits for: one that is free, or runs what a read may pause."""
    pauses = nand.suspend != 0 and kind == READ and traffic != BACKGROUND and die.phase == BUSY and die.kind != READ
    if die.phase == FREE or pauses:
        die.wake = now
        move(nand, channel, die, number)
        if now < get_i64(nand.nexts, die.channel):
            put_i64(nand.nexts, die.channel, now)
            nand.next = min(nand.next, now)


@jit_inline
def submit_vector(nand: Nand, now: int, ppn: int, nbytes: int, job: int) -> None:
    """``submit`` for what lookups do most: a read of class LOOKUP that needs no retry. Fast where ``now`` ascends."""
    if nand.room == 0 or nand.instant != 0 or not join(nand, now, nand.read_ns, ppn, nbytes, job):
        submit(nand, now, READ, LOOKUP, ppn, nbytes, job, 0)


@jit_inline
def vectors_alone(nand: Nand) -> bool:
    """Whether all that is under way (``pool - room`` operations) are reads of class LOOKUP."""
    others = 0
    for index in range(nand.channel_count):
        others += channel_at(nand.channels, index).others
    return others == 0


@jit_inline
def _run(nand: Nand, channel: Channel, now: int, until: int) -> int:
    """Run a channel's events, the first of them at ``now``. :returns: when the next one is"""
    while now <= until:
        channel.now = now
        if channel.bus_end <= now:
            bus_due(nand, channel, now)
        else:
            die_due(nand, channel, now)
        now = min(channel.bus_end, channel.due)
    return now


@jit_unit
def advance(nand: Nand, until: int) -> None:
    """Run all events up to and including a time. NEVER runs everything that is under way."""
    if nand.next > until:
        return
    until = min(until, NEVER - 1)
    nexts = nand.nexts
    soonest = NEVER
    for index in range(nand.channel_count):
        now = get_i64(nexts, index)
        if now <= until:
            channel = channel_at(nand.channels, index)
            now = run_lane(nand, channel, until) if channel.lane != 0 else _run(nand, channel, now, until)
            put_i64(nexts, index, now)
        soonest = min(soonest, now)
    nand.next = soonest


@jit
def advance_until_done(nand: Nand, until: int) -> int:
    """Run events in order of time until a job has ended or the time has come. :returns: the time reached

    While every job is still open (a lookup whose vectors are being sent out) none can end: then the channels need not
    be run in step. Nor before the time at which the first of the closed jobs can end.
    """
    if nand.closed == 0:
        advance(nand, until)
        return until
    while nand.next <= until and nand.next < NEVER:
        now = nand.next
        advance(nand, min(max(now, soonest_end(nand) - 1), until))
        if nand.done_first >= 0:
            return now
    return until
