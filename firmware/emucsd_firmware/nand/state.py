"""What the NAND model keeps in memory. Times are ns on the drive's clock; ``NEVER`` is later than all of them.

``Nand`` is the root and holds addresses of tables: ``Op`` (a pool), ``Job``, ``Queue`` (4 for each die, one a traffic
class, the last unused), ``Die``, ``Channel``, and one int64 for each channel: when its next event is. Where a channel
runs as a lane (``nand.lane``) its events are in two rings, of ``Due`` and ``Leave``, and nothing but the queues, the
operations and what the fields of ``Die`` and ``Channel`` say is valid.
"""

from __future__ import annotations

from typing import Annotated

from emucsd_firmware.nand.reliability import Reliability
from emucsd_wire.layout import I32, I64, State
from emucsd_wire.words import pointer

I8 = Annotated[int, "i1"]  # signed, as everything in compiled code: an unsigned field makes unsigned arithmetic
I16 = Annotated[int, "<i2"]

NEVER = 1 << 62
MEMO = 2048  # places where a waiting read of the same page is looked for; a power of two

READ, PROGRAM, ERASE = 0, 1, 2  # kinds of operation
BLOCK, LOOKUP, BACKGROUND = 0, 1, 2  # traffic classes: host block I/O, vector reads, GC and refresh

# phases of a die
FREE = 0  # starts whatever arrives
DRAINING = 1  # waits until the pages in its register have left over the channel
LOADING = 2  # waits for commands and data to come in over the channel
BUSY = 3  # the array works
STALLED = 4  # the array has read pages, but those before them are still in the cache register
PAUSING = 5  # a program or an erase is being suspended


class Op(State):
    """One flash operation, from its arrival to its end. Two fill a cache line."""

    arrival: I64
    array_ns: I32
    bus_ns: I32  # for its data; the command's time is the same for all
    job: I32  # -1: nobody waits
    next: I32  # in the queue, on the bus, in the die's group, or in the pool's free list
    die: I16
    passed: I16  # array reads that went before it
    kind: I8
    traffic: I8
    plane: I8
    leaving: I8  # a read whose page is in the register, on its way out


class Job(State):
    """What somebody waits for: any number of operations."""

    finish: I64  # the latest end among the operations that have ended
    soonest: I64  # its reads of class LOOKUP can't all have ended before; must not change once it is closed
    pending: I32
    error: I32  # for those who submit: the engine only clears it
    next: I32  # in the done list, or in the list of closed jobs that have not ended
    before: I32


class Queue(State):
    """Operations of one class that wait at one die, by arrival, and what the die has done for that class."""

    head: I32
    tail: I32
    reads_waiting: I64  # kept only where reads may pass
    busy_ns: I64  # array time
    wait_ns: I64  # from arrival until the die took it
    reads: I64
    programs: I64
    erases: I64
    nbytes: I64  # over the channel, both directions


class Die(State):
    """One die. ``due`` is its place in its channel's event list: NEVER when it isn't there."""

    due: I64  # the earlier of end and wake
    before: I64
    after: I64
    end: I64  # of what the array does
    phase: I64
    kind: I64
    waiting: I64  # classes whose queue isn't empty, as bits
    outgoing: I64  # pages in the (cache) register

    group: I64  # operations in the array, or coming in: first and last
    group_last: I64
    members: I64
    served: I64  # class
    paused: I64  # a suspended group: first, last, kind, what is left of its time; -1: none
    wake: I64  # when to look for an operation that will have arrived
    channel: I64
    incoming: I64  # of the group, still on the bus

    array_ns: I64  # of the group: its longest
    paused_last: I64
    paused_kind: I64
    paused_ns: I64
    pauses: I64  # suspensions so far
    freed: I64  # lane: when all that is queued has left, or a little before; exact where nothing is queued
    since: I64  # lane: the reads of class LOOKUP that the die had taken when the lane was opened
    page: I64  # page_register: the page that the register holds, or that the array reads into it, + 1; 0: none


class Due(State):
    """Lane: when something happens at a die. A ring of them, by (time, die), has each die at most once."""

    time: I64
    die: I64  # 256 * number: the array has read; 256 * number + 1: an operation arrives at an idle die


class Leave(State):
    """Lane: a read whose page leaves over the channel, now or next. A ring of them, by time."""

    time: I64  # of its end
    op: I64


class Channel(State):
    """One channel: its bus, and its dies' events in order of (time, die)."""

    due: I64  # of the first die in the list
    bus_end: I64  # lane: of the last transfer that is known, however long ago
    now: I64  # time of the last event here
    first: I64
    last: I64
    bus_head: I64  # the operation being transferred, and those after it
    bus_tail: I64
    busy_ns: I64

    lane: I64  # 1: this channel runs as a lane
    others: I32  # operations under way that are no reads of class LOOKUP: none in a lane
    alone: I32  # reads of class LOOKUP that came since there were none, as far as they didn't make it a lane
    dues: I64  # addresses of the rings, whose size is one for all
    leaves: I64
    due_first: I64  # positions count on, in bytes; in the ring they are taken modulo its size
    due_beyond: I64
    leave_first: I64
    leave_beyond: I64


class Nand(State):
    """The root of the model. Filled by ``NandModel.fill``; the upper fields are settings, the lower ones change."""

    instant: I64  # 1: nothing takes time, submit() ends at once
    instant_background: I64  # 1: operations of class BACKGROUND take no time
    read_ns: I64
    program_ns: I64
    erase_ns: I64
    transfer_ns: I64  # for 4096 bytes
    command_ns: I64
    retry_ns: I64
    max_retries: I64
    suspend_ns: I64
    suspend_reads: I64
    suspend: I64  # these three 0 or 1
    cache_read: I64
    multi_plane: I64
    lanes: I64  # 1: channels may run as lanes
    patience: I64  # so many vector reads alone make a busy channel a lane again
    page_register: I64  # 1: reads of class LOOKUP find the page that the register holds
    planes: I64
    page_bits: I64
    die_shift: I64  # ppn >> die_shift is the die
    channel_count: I64
    die_count: I64
    job_count: I64
    pool: I64  # operations in all
    ops: I64  # addresses
    jobs: I64
    queues: I64
    dies: I64
    channels: I64
    nexts: I64
    ring_mask: I64  # of a lane's rings: their size in bytes - 1
    pages: I64  # page_register: address of uint32[pool], the page of each read that waits, + 1; else 0
    memo: I64  # page_register: address of uint32[MEMO], operations by their page, + 1; 0: none
    reliability: Reliability

    next: I64  # time of the next event
    free: I64  # pool: first free operation, and how many
    room: I64
    closed: I64  # jobs that were closed and have not ended: only these can end by flash operations alone
    done_first: I64  # jobs that ended, by (finish, job)
    done_last: I64
    done_hint: I64
    overflows: I64  # operations that found the pool full
    closed_first: I64  # those closed jobs, by soonest
    closed_last: I64
    merged: I64  # page_register: reads that another one of the same page and job took along
    register_hits: I64  # and those that found their page in the register


op_at = pointer(Op)
job_at = pointer(Job)
queue_at = pointer(Queue)
die_at = pointer(Die)
due_at = pointer(Due)
leave_at = pointer(Leave)
channel_at = pointer(Channel)
nand_at = pointer(Nand)
