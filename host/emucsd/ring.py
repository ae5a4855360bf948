"""One queue pair as compiled code: entries, doorbells, completions. The loops over them are in ``poll``.

Two things make it fast beside a drive that polls on another core: doorbells are rung once a burst, both of the pair in
one 64-bit store; and a submission entry is a template with a few words patched.

Sleeping drive: after a doorbell and a full fence, ``asleep`` = 1 means that the doorbell is to be repeated as a
message; its bytes lie prepared, and ``send`` takes them from here. Without a mapped doorbell page that is the only way.
"""

from __future__ import annotations

import numpy as np
from numba import types

import emucsd.compiled  # noqa: F401  (first: it chooses where what follows is cached)
from emucsd_wire.layout import I64, State
from emucsd_wire.nvme import PAGE
from emucsd_wire.words import (
    fence,
    get_i64,
    get_u8,
    get_u16,
    jit,
    jit_inline,
    load_i64,
    pointer,
    put_i64,
    put_u16,
    put_u32,
    store_i64,
)

UNSENT = 2  # a doorbell message is owed: the socket takes none now
FREE, SINGLE = -2, -1  # Slot.index of an unused slot, and of a command that belongs to no batch

TAIL, HEAD = 1, 2  # bits of Ring.unsent; their messages lie MESSAGE bytes apart in Ring.messages, in this order
MESSAGE = 64
MESSAGE_BYTES = 36  # vfio-user header 16, REGION_WRITE 16, and the doorbell's value

# words of emucsd_wire.nvme.ClockWords
HOST_NOW, WAIT, GRANTED, DRIVE_NOW, ASLEEP = 1, 2, 3, 4, 5

_CID_MASK = ~0xFFFF_0000
_SEND_FLAGS = 0x40 | 0x4000  # MSG_DONTWAIT | MSG_NOSIGNAL

_send = types.ExternalFunction("send", types.int64(types.int32, types.int64, types.int64, types.int32))


class Slot(State):
    """A command identifier's state; the identifier is the slot's number."""

    index: I64  # position in the batch, or FREE, or SINGLE
    submitted: I64
    finished: I64
    result: I64  # completion dword 0 and, above it, dword 1
    status: I64  # completion status without the phase: SC 7:0, SCT 10:8, CRD 12:11, More 13, DNR 14; -1: it is out
    released: I64  # a single whose owner has gone: its slot is freed on completion


class HostClock(State):
    """The host's side of a virtual clock, shared by every I/O ring of a drive."""

    now: I64  # the drive's time at the last grant, which is when commands entered now arrive
    until: I64  # the time that the next grant is not to pass; not above ``now``: the next completion, whenever it is
    waiting: I64  # the grant that was asked for and has not come yet, or 0
    rings: I64  # addresses of the rings that follow this clock
    ring_count: I64


class Ring(State):
    """A submission queue, its completion queue, and the slots of the commands between them."""

    sq: I64
    cq: I64
    entries: I64
    tail: I64
    head: I64
    phase: I64
    rung_tail: I64
    rung_head: I64
    doorbell: I64  # address of the pair (tail, head) in the mapped page; 0: doorbells are messages
    words: I64  # address of the ClockWords; 0: not mapped
    messages: I64
    socket: I64
    unsent: I64
    slots: I64  # address of Slot[slot_count]
    slot_count: I64
    lists: I64  # one page a slot, for its PRP list
    free: I64  # stack of free slots
    free_count: I64
    done: I64  # stack of finished singles that nobody has taken yet
    done_count: I64
    clock: I64  # address of a HostClock; 0: real time
    batch: I64  # the batch whose commands are out; never 0
    doorbells: I64  # counters
    wakes: I64
    commands: I64


class Batch(State):
    """Commands as columns. A stride of 0 repeats one value; an address of 0 leaves a field as the template has it."""

    count: I64
    next: I64
    finished: I64
    depth: I64
    burst: I64
    start: I64  # ns to which arrivals are relative
    templates: I64  # 64-byte submission entries
    template_stride: I64
    opcodes: I64  # u8
    opcode_stride: I64
    lbas: I64  # i64 into cdw10 and cdw11
    lba_stride: I64
    blocks: I64  # u16, 0-based, into cdw12 15:0
    block_stride: I64
    buffers: I64  # i64 addresses of data
    buffer_stride: I64
    sizes: I64  # i64 bytes of data
    size_stride: I64
    arrivals: I64  # i64 ns: not submitted before; 0: as soon as there is room
    statuses: I64  # out, u16: SCT << 8 | SC
    results: I64  # out, i64, as Slot.result; 0: not wanted
    latencies: I64  # out, i64 ns; 0: not wanted
    submitted: I64  # out, i64 ns; 0: not wanted
    failed: I64


slot_at = pointer(Slot)
host_clock_at = pointer(HostClock)
ring_at = pointer(Ring)
batch_at = pointer(Batch)


# -- doorbells -------------------------------------------------------------------------------------------------------


@jit
def send_unsent(ring: Ring) -> int:
    """Send the messages that are owed, oldest kind first. 0, or UNSENT when the socket takes none now."""
    sock = np.int32(ring.socket)
    if ring.unsent & HEAD != 0:
        put_u32(ring.messages + MESSAGE + 32, 0, ring.head)
        if _send(sock, ring.messages + MESSAGE, MESSAGE_BYTES, np.int32(_SEND_FLAGS)) != MESSAGE_BYTES:
            return UNSENT
        ring.unsent &= ~HEAD
    if ring.unsent & TAIL != 0:
        put_u32(ring.messages + 32, 0, ring.tail)
        if _send(sock, ring.messages, MESSAGE_BYTES, np.int32(_SEND_FLAGS)) != MESSAGE_BYTES:
            return UNSENT
        ring.unsent &= ~TAIL
    return 0


@jit
def wake(ring: Ring) -> int:
    """Repeat the doorbell as a message when the drive sleeps. The caller has stored what the drive is to see."""
    fence()
    if load_i64(ring.words, ASLEEP) != 0:
        ring.wakes += 1
        ring.unsent |= TAIL
        return send_unsent(ring)
    return 0


@jit
def ring_doorbells(ring: Ring) -> int:
    """Tell the drive the new tail and, with it, the new head. 0 or UNSENT."""
    if ring.tail == ring.rung_tail and ring.head == ring.rung_head:
        return 0
    ring.doorbells += 1
    if ring.doorbell == 0:
        if ring.head != ring.rung_head:
            ring.unsent |= HEAD
        if ring.tail != ring.rung_tail:
            ring.unsent |= TAIL
    else:
        store_i64(ring.doorbell, 0, ring.tail | (ring.head << 32))
    ring.rung_tail = ring.tail
    ring.rung_head = ring.head
    if ring.doorbell == 0:
        return send_unsent(ring)
    return wake(ring) if ring.clock == 0 else 0  # under a virtual clock only a grant makes the drive look


# -- entries ---------------------------------------------------------------------------------------------------------


@jit_inline
def _second_prp(ring: Ring, slot: int, address: int, size: int) -> int:
    """PRP2 of ``size`` bytes at ``address``: none, the second page, or this slot's list (Base 4.1.1)."""
    second = (address & ~(PAGE - 1)) + PAGE
    end = address + size
    if end <= second:
        return 0
    if end <= second + PAGE:
        return second
    at = ring.lists + slot * PAGE
    index = 0
    while second < end:
        put_i64(at, index, second)
        second += PAGE
        index += 1
    return at


@jit_inline
def enter(ring: Ring, template: int, slot: int, address: int, size: int) -> int:
    """Put one entry at the tail and move the tail on; returns the entry's address for further patches."""
    entry = ring.sq + ring.tail * 64
    put_i64(entry, 0, (get_i64(template, 0) & _CID_MASK) | (slot << 16))
    put_i64(entry, 1, get_i64(template, 1))
    put_i64(entry, 2, get_i64(template, 2))
    if size > 0:
        put_i64(entry, 3, address)
        put_i64(entry, 4, _second_prp(ring, slot, address, size))
    else:
        put_i64(entry, 3, get_i64(template, 3))
        put_i64(entry, 4, get_i64(template, 4))
    put_i64(entry, 5, get_i64(template, 5))
    put_i64(entry, 6, get_i64(template, 6))
    put_i64(entry, 7, get_i64(template, 7))
    tail = ring.tail + 1
    ring.tail = tail if tail < ring.entries else 0
    ring.commands += 1
    return entry


@jit_inline
def take_slot(ring: Ring, index: int, now: int) -> int:
    """A free slot, marked as command ``index``'s. There must be one."""
    ring.free_count -= 1
    number = get_i64(ring.free, ring.free_count)
    slot = slot_at(ring.slots, number)
    slot.index = index
    slot.submitted = now
    slot.status = -1
    return number


@jit_inline
def give_slot(ring: Ring, number: int) -> None:
    slot_at(ring.slots, number).index = FREE
    put_i64(ring.free, ring.free_count, number)
    ring.free_count += 1


@jit
def fill(ring: Ring, batch: Batch, room: int, now: int) -> int:
    """Enter up to ``room`` commands of the batch that have arrived by ``now``; returns how many."""
    index, end = batch.next, batch.next + room
    while index < end:
        if batch.arrivals != 0 and batch.start + get_i64(batch.arrivals, index) > now:
            break
        number = take_slot(ring, index, now)
        size = get_i64(batch.sizes + index * batch.size_stride, 0) if batch.sizes != 0 else 0
        address = get_i64(batch.buffers + index * batch.buffer_stride, 0) if size > 0 else 0
        entry = enter(ring, batch.templates + index * batch.template_stride, number, address, size)
        if batch.opcodes != 0:
            opcode = get_u8(batch.opcodes + index * batch.opcode_stride, 0)
            put_i64(entry, 0, (get_i64(entry, 0) & ~0xFF) | opcode)
        if batch.lbas != 0:
            put_i64(entry, 5, get_i64(batch.lbas + index * batch.lba_stride, 0))
        if batch.blocks != 0:
            put_u16(entry, 24, get_u16(batch.blocks + index * batch.block_stride, 0))
        if batch.submitted != 0:
            put_i64(batch.submitted, index, now)
        index += 1
    filled = index - batch.next
    batch.next = index
    return filled


# -- completions -----------------------------------------------------------------------------------------------------


@jit_inline
def posted(ring: Ring, ahead: int) -> bool:
    """Whether the drive has posted the entry ``ahead`` places after the head."""
    at, phase = ring.head + ahead, ring.phase
    if at >= ring.entries:
        at -= ring.entries
        phase ^= 1
    return (load_i64(ring.cq + at * 16, 1) >> 48) & 1 == phase


@jit_inline
def _finish_batched(batch: Batch, slot: Slot, index: int, entry: int, status: int, now: int) -> None:
    status &= 0x7FF
    put_u16(batch.statuses, index, status)
    if status != 0:
        batch.failed += 1
    if batch.latencies != 0:
        put_i64(batch.latencies, index, now - slot.submitted)
    if batch.results != 0:
        put_i64(batch.results, index, get_i64(entry, 0))
    batch.finished += 1


@jit_inline
def _finish_single(ring: Ring, number: int, entry: int, status: int, now: int) -> None:
    slot = slot_at(ring.slots, number)
    if slot.released != 0:
        give_slot(ring, number)
        return
    slot.finished = now
    slot.status = status
    slot.result = get_i64(entry, 0)
    put_i64(ring.done, ring.done_count, number)
    ring.done_count += 1


@jit
def reap(ring: Ring, now: int) -> int:
    """Take every completion that is there. How many, or -1 for an entry that names no command that is out."""
    batch = batch_at(ring.batch, 0)
    taken = 0
    while True:
        entry = ring.cq + ring.head * 16
        word = load_i64(entry, 1)  # sqhd, sqid, cid, status: one load, so the phase vouches for all of it
        if (word >> 48) & 1 != ring.phase:
            return taken
        number = (word >> 32) & 0xFFFF
        if number >= ring.slot_count:
            return -1
        slot = slot_at(ring.slots, number)
        index = slot.index
        if index == FREE:
            return -1
        status = (word >> 49) & 0x7FFF
        if index >= 0:
            _finish_batched(batch, slot, index, entry, status, now)
            give_slot(ring, number)
        else:
            _finish_single(ring, number, entry, status, now)
        head = ring.head + 1
        if head == ring.entries:
            head = 0
            ring.phase ^= 1
        ring.head = head
        taken += 1
