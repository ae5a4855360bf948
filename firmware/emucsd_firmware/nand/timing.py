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
"""

from __future__ import annotations

from emucsd_firmware.nand.jobs import abandon_job, close_job, end_operation, job_finish, open_job, pop_done
from emucsd_firmware.nand.state import (
    BACKGROUND,
    BLOCK,
    BUSY,
    DRAINING,
    ERASE,
    FREE,
    LOADING,
    LOOKUP,
    NEVER,
    PAUSING,
    PROGRAM,
    READ,
    STALLED,
    Channel,
    Die,
    Nand,
    Op,
    Queue,
    channel_at,
    die_at,
    job_at,
    op_at,
    queue_at,
    wide,
)
from emucsd_firmware.policies.schedule import schedule as _plain_schedule
from emucsd_wire.words import get_i64, jit, jit_inline, put_i64

__all__ = [
    *("BACKGROUND", "BLOCK", "ERASE", "LOOKUP", "NEVER", "PROGRAM", "READ", "abandon_job", "advance"),
    *("advance_until_done", "close_job", "job_finish", "next_event", "open_job", "pop_done", "room", "submit"),
]

WINDOW = 16  # queued operations that a free die looks at for other planes

schedule = jit(_plain_schedule)


# ---- submission ----


@jit_inline
def room(nand: Nand) -> int:
    """Operations that can be submitted before the pool is full."""
    return nand.room


@jit_inline
def next_event(nand: Nand) -> int:
    """The earliest time at which something happens, NEVER if nothing is under way."""
    return nand.next


@jit
def _squeeze(nand: Nand) -> int:
    """The pool is full: run until an operation ends. :returns: the time of that"""
    nand.squeezes += 1
    now = 0
    while nand.room == 0:
        now = nand.next
        advance(nand, now)
    return now


@jit
def _at_once(nand: Nand, now: int, kind: int, traffic: int, ppn: int, nbytes: int, job: int) -> None:
    """An operation that takes no time: counted, and that is all."""
    _count(queue_at(nand.queues, (ppn >> nand.die_shift) * 4 + traffic), kind)
    queue_at(nand.queues, (ppn >> nand.die_shift) * 4 + traffic).nbytes += nbytes
    if job >= 0 and job_at(nand.jobs, job).finish < now:
        job_at(nand.jobs, job).finish = now


@jit_inline
def _count(queue: Queue, kind: int) -> None:
    if kind == READ:
        queue.reads += 1
    elif kind == PROGRAM:
        queue.programs += 1
    else:
        queue.erases += 1


@jit
def submit(nand: Nand, now: int, kind: int, traffic: int, ppn: int, nbytes: int, job: int, retries: int) -> None:
    """An operation arrives at its die.

    :param now: its arrival; one before the channel's last event counts as at that event
    :param ppn: any page of the block for an erase
    :param nbytes: what crosses the channel; of an erase, nothing does
    :param job: an open job, or -1: nobody waits
    :param retries: read-retry steps, see ``reliability.read_outcome``

    When the pool is full (see ``room``) the submitter is held up in simulated time: events are run until an operation
    ends, and this one arrives then at the earliest.
    """
    if nand.instant != 0 or (traffic == BACKGROUND and nand.instant_background != 0):
        _at_once(nand, now, kind, traffic, ppn, nbytes, job)
        return
    if nand.room == 0:
        now = max(now, _squeeze(nand))
    number = ppn >> nand.die_shift
    die = die_at(nand.dies, number)
    channel = channel_at(nand.channels, die.channel)
    if now < channel.now:
        now = channel.now
    index = nand.free
    op = op_at(nand.ops, index)
    nand.free = op.next
    nand.room -= 1
    op.arrival = now
    op.job = job
    op.next = -1
    op.die = number
    op.kind = kind
    op.traffic = traffic
    op.plane = (ppn >> nand.page_bits) & (nand.planes - 1)
    op.leaving = 0
    op.passed = 0
    queue_at(nand.queues, number * 4 + traffic).nbytes += nbytes
    op.bus_ns = (nbytes * nand.transfer_ns + 4095) >> 12
    if kind == READ:
        op.array_ns = nand.read_ns + retries * nand.retry_ns
    elif kind == PROGRAM:
        op.array_ns = nand.program_ns
    else:
        op.array_ns = nand.erase_ns
        op.bus_ns = 0
    if job >= 0:
        job_at(nand.jobs, job).pending += 1
    _enqueue(nand, die, number, index, op, now)
    if now < die.wake and (die.phase == FREE or _may_pause(nand, die, op)):
        die.wake = now
        _move(nand, channel, die, number)
        if now < get_i64(nand.nexts, die.channel):
            put_i64(nand.nexts, die.channel, now)
            if now < nand.next:
                nand.next = now


@jit_inline
def _enqueue(nand: Nand, die: Die, number: int, index: int, op: Op, now: int) -> None:
    """Into the queue of its class, by arrival."""
    queue = queue_at(nand.queues, number * 4 + op.traffic)
    tail = wide(queue.tail)
    if tail < 0:
        queue.head = index
        queue.tail = index
        die.waiting |= 1 << op.traffic
    elif op_at(nand.ops, tail).arrival <= now:
        op_at(nand.ops, tail).next = index
        queue.tail = index
    else:
        _insert(nand, queue, index, now)
    if nand.suspend != 0 and op.kind == READ:
        queue.reads_waiting += 1


@jit
def _insert(nand: Nand, queue: Queue, index: int, now: int) -> None:
    """Before the first operation that arrives later: there is one."""
    before, place = -1, wide(queue.head)
    while op_at(nand.ops, place).arrival <= now:
        before, place = place, wide(op_at(nand.ops, place).next)
    op_at(nand.ops, index).next = place
    if before < 0:
        queue.head = index
    else:
        op_at(nand.ops, before).next = index


@jit_inline
def _may_pause(nand: Nand, die: Die, op: Op) -> bool:
    """Whether this operation's arrival can interrupt what the die's array is doing."""
    return bool(
        nand.suspend != 0 and op.kind == READ and op.traffic != BACKGROUND and die.phase == BUSY and die.kind != READ
    )


# ---- a channel's event list: its dies by (due, number) ----


@jit_inline
def _link(nand: Nand, channel: Channel, die: Die, number: int, due: int) -> None:
    """Into the list. Times mostly ascend, so the search starts at the end."""
    dies = nand.dies
    before, after = channel.last, -1
    while before >= 0:
        other = die_at(dies, before)
        if other.due < due or (other.due == due and before < number):
            break
        after = before
        before = other.before
    die.due = due
    die.before = before
    die.after = after
    if before < 0:
        channel.first = number
        channel.due = due
    else:
        die_at(dies, before).after = number
    if after < 0:
        channel.last = number
    else:
        die_at(dies, after).before = number


@jit
def _unlink(nand: Nand, channel: Channel, die: Die) -> None:
    before, after = die.before, die.after
    if before < 0:
        channel.first = after
        channel.due = die_at(nand.dies, after).due if after >= 0 else NEVER
    else:
        die_at(nand.dies, before).after = after
    if after < 0:
        channel.last = before
    else:
        die_at(nand.dies, after).before = before
    die.due = NEVER


@jit
def _move(nand: Nand, channel: Channel, die: Die, number: int) -> None:
    """To where the earlier of end and wake puts it."""
    if die.due < NEVER:
        _unlink(nand, channel, die)
    due = min(die.end, die.wake)
    if due < NEVER:
        _link(nand, channel, die, number, due)


# ---- the bus ----


@jit_inline
def _bus_time(nand: Nand, op: Op) -> int:
    if op.leaving != 0:
        return wide(op.bus_ns)
    return nand.command_ns + (wide(op.bus_ns) if op.kind == PROGRAM else 0)


@jit_inline
def _transfer(nand: Nand, channel: Channel, first: int, last: int, now: int) -> None:
    """A list of operations is ready for the bus: behind those that were ready before."""
    if channel.bus_tail >= 0:
        op_at(nand.ops, channel.bus_tail).next = first
    else:
        time = _bus_time(nand, op_at(nand.ops, first))
        channel.bus_head = first
        channel.bus_end = now + time
        channel.busy_ns += time
    channel.bus_tail = last


@jit_inline
def _send(nand: Nand, channel: Channel, die: Die, now: int) -> None:
    """The group's pages are in the register: onto the bus with them."""
    index = die.group
    while index >= 0:
        op = op_at(nand.ops, index)
        op.leaving = 1
        index = wide(op.next)
    die.outgoing = die.members
    _transfer(nand, channel, die.group, die.group_last, now)


@jit_inline
def _bus_done(nand: Nand, channel: Channel, now: int) -> None:
    """A transfer ends."""
    index = channel.bus_head
    op = op_at(nand.ops, index)
    number = wide(op.die)
    following = wide(op.next)
    channel.bus_head = following
    if following >= 0:
        time = _bus_time(nand, op_at(nand.ops, following))
        channel.bus_end = now + time
        channel.busy_ns += time
    else:
        channel.bus_tail = -1
        channel.bus_end = NEVER
    die = die_at(nand.dies, number)
    if op.leaving == 0:
        _loaded(nand, channel, die, number, index, now)
        return
    end_operation(nand, index, now)
    die.outgoing -= 1
    if die.outgoing == 0:
        phase = die.phase
        if phase == DRAINING:
            _serve(nand, channel, die, number, now)
        elif phase == STALLED:
            _send(nand, channel, die, now)
            _serve(nand, channel, die, number, now)


@jit
def _loaded(nand: Nand, channel: Channel, die: Die, number: int, index: int, now: int) -> None:
    """One of the group has come in; with the last one the array starts."""
    op = op_at(nand.ops, index)
    op.next = -1
    if die.group < 0:
        die.group = index
    else:
        op_at(nand.ops, die.group_last).next = index
    die.group_last = index
    die.incoming -= 1
    if die.incoming == 0:
        _work(nand, channel, die, number, die.array_ns, now)


# ---- a die ----


@jit_inline
def _work(nand: Nand, channel: Channel, die: Die, number: int, time: int, now: int) -> None:
    """The array works on the group for this time."""
    die.phase = BUSY
    die.end = now + time
    if die.kind != READ and nand.suspend != 0:
        die.wake = max(now, _next_read(nand, die, number))
        _link(nand, channel, die, number, min(die.end, die.wake))
    else:
        _link(nand, channel, die, number, die.end)


@jit
def _die_due(nand: Nand, channel: Channel, now: int) -> None:
    """The first die of the channel's list is due."""
    number = channel.first
    die = die_at(nand.dies, number)
    after = die.after
    channel.first = after
    if after < 0:
        channel.last = -1
        channel.due = NEVER
    else:
        other = die_at(nand.dies, after)
        other.before = -1
        channel.due = other.due
    die.due = NEVER
    if die.end > now:  # so it is wake that has come
        die.wake = NEVER
        if die.phase == FREE:
            _serve(nand, channel, die, number, now)
        else:
            _pause(nand, channel, die, number, now)
        return
    die.end = NEVER
    die.wake = NEVER
    if die.phase == BUSY:
        if die.kind == READ:
            if die.outgoing > 0:
                die.phase = STALLED
                return
            _send(nand, channel, die, now)
            if nand.cache_read == 0:
                die.phase = DRAINING
                return
        else:
            _end_group(nand, die, now)
    _serve(nand, channel, die, number, now)


@jit
def _end_group(nand: Nand, die: Die, now: int) -> None:
    """A program or an erase ends, on all its planes."""
    index = die.group
    while index >= 0:
        following = wide(op_at(nand.ops, index).next)
        end_operation(nand, index, now)
        index = following


@jit
def _serve(nand: Nand, channel: Channel, die: Die, number: int, now: int) -> None:
    """The array is free: start the next operation, or rest until one arrives."""
    die.phase = FREE
    if die.paused >= 0:
        _serve_paused(nand, channel, die, number, now)
        return
    waiting = die.waiting
    if waiting == 0:
        return
    if waiting & (waiting - 1) == 0:
        traffic = waiting >> 1
        arrival = op_at(nand.ops, queue_at(nand.queues, number * 4 + traffic).head).arrival
        if arrival > now:
            die.wake = arrival
            _link(nand, channel, die, number, arrival)
            return
    else:
        traffic = _choose(nand, channel, die, number, now)
        if traffic < 0:
            return
    queue = queue_at(nand.queues, number * 4 + traffic)
    before, index = -1, wide(queue.head)
    if nand.suspend != 0 and traffic != BACKGROUND and op_at(nand.ops, index).kind != READ:
        before, index = _passing(nand, queue, now)
    if die.outgoing > 0 and op_at(nand.ops, index).kind != READ:
        die.phase = DRAINING
        return
    if before >= 0:
        op_at(nand.ops, queue.head).passed += 1
    die.served = traffic
    _start(nand, channel, die, number, traffic, before, index, now)


@jit
def _passing(nand: Nand, queue: Queue, now: int) -> tuple[int, int]:
    """A program or an erase is first in the queue. :returns: what comes before the operation to take, and that one"""
    head = wide(queue.head)
    if queue.reads_waiting == 0 or op_at(nand.ops, head).passed >= nand.suspend_reads:
        return -1, head
    before, index = _first_read(nand, queue)
    if op_at(nand.ops, index).arrival > now:
        return -1, head
    return before, index


@jit_inline
def _first_read(nand: Nand, queue: Queue) -> tuple[int, int]:
    """What comes before the queue's first read (-1: nothing), and that read: there is one."""
    before, index = -1, wide(queue.head)
    while op_at(nand.ops, index).kind != READ:
        before, index = index, wide(op_at(nand.ops, index).next)
    return before, index


@jit
def _next_read(nand: Nand, die: Die, number: int) -> int:
    """When the next read arrives, or has arrived, that could interrupt this die's group; NEVER: none does."""
    soonest = NEVER
    if op_at(nand.ops, die.group).passed >= nand.suspend_reads:
        return soonest
    for traffic in range(2):
        queue = queue_at(nand.queues, number * 4 + traffic)
        if queue.reads_waiting > 0:
            soonest = min(soonest, op_at(nand.ops, _first_read(nand, queue)[1]).arrival)
    return soonest


@jit
def _pause(nand: Nand, channel: Channel, die: Die, number: int, now: int) -> None:
    """A read that may pass has arrived while a program or an erase runs."""
    left = die.end - now
    if op_at(nand.ops, die.group).passed < nand.suspend_reads and left > nand.suspend_ns:
        die.paused, die.paused_last, die.paused_kind, die.paused_ns = die.group, die.group_last, die.kind, left
        die.pauses += 1
        die.phase = PAUSING
        die.end = now + nand.suspend_ns
        queue_at(nand.queues, number * 4 + op_at(nand.ops, die.group).traffic).busy_ns += nand.suspend_ns
    _link(nand, channel, die, number, die.end)


@jit
def _serve_paused(nand: Nand, channel: Channel, die: Die, number: int, now: int) -> None:
    """A program or an erase is suspended: a read that passes it, or on with it."""
    head = op_at(nand.ops, die.paused)
    if head.passed < nand.suspend_reads:
        traffic = _choose_read(nand, die, number, now)
        if traffic >= 0:
            queue = queue_at(nand.queues, number * 4 + traffic)
            before, index = _first_read(nand, queue)
            head.passed += 1
            die.served = traffic
            _start(nand, channel, die, number, traffic, before, index, now)
            return
    if die.outgoing > 0:
        die.phase = DRAINING
        return
    die.group, die.group_last, die.kind = die.paused, die.paused_last, die.paused_kind
    die.paused = -1
    _work(nand, channel, die, number, die.paused_ns, now)


@jit
def _age(nand: Nand, number: int, traffic: int, now: int) -> int:
    """How long the oldest operation of a class has waited; negative: until it arrives, -NEVER if there is none."""
    head = wide(queue_at(nand.queues, number * 4 + traffic).head)
    return now - op_at(nand.ops, head).arrival if head >= 0 else -NEVER


@jit
def _ask(nand: Nand, die: Die, number: int, block: int, lookup: int, background: int) -> int:
    """The policy's answer, or the lowest class that waits if it names one that doesn't. Ages; negative: not there."""
    queues, first = nand.queues, number * 4
    chosen = schedule(
        die.served,
        max(block, -1),
        max(lookup, -1),
        max(background, -1),
        queue_at(queues, first + BLOCK).busy_ns,
        queue_at(queues, first + LOOKUP).busy_ns,
        queue_at(queues, first + BACKGROUND).busy_ns,
    )
    if (chosen == BLOCK and block >= 0) or (chosen == LOOKUP and lookup >= 0):
        return int(chosen)
    if chosen == BACKGROUND and background >= 0:
        return BACKGROUND
    if block >= 0:
        return BLOCK
    return LOOKUP if lookup >= 0 else BACKGROUND


@jit
def _choose(nand: Nand, channel: Channel, die: Die, number: int, now: int) -> int:
    """The class to serve when more than one queue holds something; -1: nothing has arrived, the die rests."""
    block = _age(nand, number, BLOCK, now)
    lookup = _age(nand, number, LOOKUP, now)
    background = _age(nand, number, BACKGROUND, now)
    oldest = max(block, lookup, background)
    if oldest < 0:
        die.wake = now - oldest
        _link(nand, channel, die, number, die.wake)
        return -1
    if (block >= 0) + (lookup >= 0) + (background >= 0) > 1:
        return _ask(nand, die, number, block, lookup, background)
    if block >= 0:
        return BLOCK
    return LOOKUP if lookup >= 0 else BACKGROUND


@jit
def _read_age(nand: Nand, number: int, traffic: int, now: int) -> int:
    """As _age, for the oldest read of a class."""
    queue = queue_at(nand.queues, number * 4 + traffic)
    if queue.reads_waiting == 0:
        return -NEVER
    return now - op_at(nand.ops, _first_read(nand, queue)[1]).arrival


@jit
def _choose_read(nand: Nand, die: Die, number: int, now: int) -> int:
    """The class whose read passes the suspended group; -1: none has arrived."""
    block = _read_age(nand, number, BLOCK, now)
    lookup = _read_age(nand, number, LOOKUP, now)
    if block >= 0 and lookup >= 0:
        return _ask(nand, die, number, block, lookup, -1)
    if block >= 0:
        return BLOCK
    return LOOKUP if lookup >= 0 else -1


@jit_inline
def _take(nand: Nand, die: Die, queue: Queue, traffic: int, before: int, op: Op, now: int) -> None:
    """Out of the queue, where it comes after ``before``."""
    following = wide(op.next)
    if before >= 0:
        op_at(nand.ops, before).next = following
    else:
        queue.head = following
    if following < 0:
        queue.tail = before
        if before < 0:
            die.waiting &= ~(1 << traffic)
    op.next = -1
    queue.wait_ns += now - op.arrival
    _count(queue, wide(op.kind))
    if nand.suspend != 0 and op.kind == READ:
        queue.reads_waiting -= 1


@jit
def _company(nand: Nand, die: Die, queue: Queue, traffic: int, before: int, first: int, now: int) -> int:
    """Multi-plane: append to the group what waits next and can go along. :returns: the group's longest array time"""
    op = op_at(nand.ops, first)
    kind, time, planes = wide(op.kind), wide(op.array_ns), 1 << wide(op.plane)
    place = wide(op_at(nand.ops, before).next) if before >= 0 else wide(queue.head)
    for _ in range(WINDOW):
        if place < 0 or die.members == nand.planes:
            break
        op = op_at(nand.ops, place)
        following = wide(op.next)
        if op.kind != kind or op.arrival > now:
            break
        if planes & (1 << wide(op.plane)) == 0:
            planes |= 1 << wide(op.plane)
            time = max(time, wide(op.array_ns))
            _take(nand, die, queue, traffic, before, op, now)
            op_at(nand.ops, die.group_last).next = place
            die.group_last = place
            die.members += 1
        else:
            before = place
        place = following
    return time


@jit_inline
def _start(
    nand: Nand, channel: Channel, die: Die, number: int, traffic: int, before: int, index: int, now: int
) -> None:
    """Begin an operation that waits after ``before`` in its queue, and those that can go along with it."""
    queue = queue_at(nand.queues, number * 4 + traffic)
    op = op_at(nand.ops, index)
    kind = wide(op.kind)
    time = wide(op.array_ns)
    _take(nand, die, queue, traffic, before, op, now)
    die.kind = kind
    die.group = index
    die.group_last = index
    die.members = 1
    if nand.multi_plane != 0:
        time = _company(nand, die, queue, traffic, before, index, now)
    queue.busy_ns += time
    if kind == PROGRAM or nand.command_ns > 0:
        first, last = die.group, die.group_last
        die.phase = LOADING
        die.array_ns = time
        die.incoming = die.members
        die.group = -1
        _transfer(nand, channel, first, last, now)
    else:
        _work(nand, channel, die, number, time, now)


# ---- running ----


@jit
def _run(nand: Nand, index: int, until: int) -> int:
    """All events of one channel up to a time. :returns: when its next one is"""
    channel = channel_at(nand.channels, index)
    while True:
        if channel.bus_end <= channel.due:
            now = channel.bus_end
            if now > until:
                return now
            channel.now = now
            _bus_done(nand, channel, now)
        else:
            now = channel.due
            if now > until:
                return now
            channel.now = now
            _die_due(nand, channel, now)


@jit
def advance(nand: Nand, until: int) -> None:
    """Run all events up to and including a time. NEVER runs everything that is under way."""
    if nand.next > until:
        return
    until = min(until, NEVER - 1)
    nexts = nand.nexts
    soonest = NEVER
    for index in range(nand.channel_count):
        time = get_i64(nexts, index)
        if time <= until:
            time = _run(nand, index, until)
            put_i64(nexts, index, time)
        soonest = min(soonest, time)
    nand.next = soonest


@jit
def advance_until_done(nand: Nand, until: int) -> int:
    """Run events in order of time until a job has ended or the time has come. :returns: the time reached"""
    while nand.next <= until and nand.next < NEVER:
        now = nand.next
        advance(nand, now)
        if nand.done_first >= 0:
            return now
    return until
