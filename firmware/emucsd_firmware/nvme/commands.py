"""Commands in flight: slots from one pool, from the moment an entry is fetched until its completion is posted.

A slot's number is also its job in the NAND model. Three moments can move a slot on: it is fetched (``front_end``:
link and controller cost until the command may act), its media work ends (``respond``: data goes back over the link),
and its completion is due (``complete``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from emucsd_firmware.clock import REAL, Clock, push, record_lateness
from emucsd_firmware.nvme.queues import PortState, cq_at, has_room, post, record_error, sq_at
from emucsd_wire.layout import I64, State
from emucsd_wire.nvme import DNR, SQE, Sqe, Status
from emucsd_wire.words import copy, get_i64, jit, jit_inline, jit_unit, pointer, pointer_to, put_i64, signed

_COMPARE_FAILURE = int(Status.COMPARE_FAILURE)
_SANITIZING, _FORMATTING = int(Status.SANITIZE_IN_PROGRESS), int(Status.FORMAT_IN_PROGRESS)
_NOT_READY, _LOOKUP_BUSY = int(Status.NAMESPACE_NOT_READY), int(Status.LOOKUP_BUSY)

SLOTS = 16384  # commands in flight over both ports; a full pool stops fetching
EXECUTE, COMPLETE = 0, 1  # low bit of a clock token; the slot is above it


class Command(State):
    """One command. ``ready`` is the earliest time at which it may complete, ``outgoing`` its data for the host."""

    port: I64
    sqid: I64
    generation: I64
    cid: I64
    opcode: I64
    nsid: I64
    status: I64
    dw0: I64
    dw1: I64
    lba: I64
    arrived: I64
    ready: I64
    outgoing: I64
    incoming: I64
    durable: I64  # must reach the disk before it completes (Flush, FUA with durability "machine")
    following: I64  # next slot + 1 in the list that holds it


class Commands(State):
    """The pool: ``free`` is a stack of slot numbers."""

    slots: I64
    sqes: I64
    free: I64
    free_count: I64
    held: I64  # completions that wait for room in their queue
    syncing: I64  # first slot + 1 of those that wait for the disk


class Costs(State):
    """What a command pays outside the flash (profile sections ``link`` and ``front_end``)."""

    link_bytes_per_us: I64
    link_delay_ns: I64
    command_ns: I64
    page_ns: I64
    free: I64  # 1 when all of it is zero


command_at = pointer(Command)
commands_at = pointer(Commands)
sqe_at = pointer_to(Sqe, SQE.dtype)


@jit_inline
def take(commands: Commands) -> int:
    """A free slot; the caller has checked ``free_count``."""
    commands.free_count -= 1
    return get_i64(commands.free, commands.free_count)


@jit_inline
def release(commands: Commands, slot: int) -> None:
    put_i64(commands.free, commands.free_count, slot)
    commands.free_count += 1


@jit
def leave(clock: Clock, commands: Commands, port: PortState, slot: int) -> None:
    """A command has ended, posted or not: its slot is free, and its port may have become idle."""
    release(commands, slot)
    port.outstanding -= 1
    if port.outstanding == 0:
        port.counters.busy_ns += clock.now - port.busy_since


@jit
def rest(clock: Clock, port: PortState) -> None:
    """A command only waits for somebody else from now on: that is no work of the controller's."""
    port.outstanding -= 1
    if port.outstanding == 0:
        port.counters.busy_ns += clock.now - port.busy_since


@jit
def resume(clock: Clock, port: PortState) -> None:
    """A command that rested goes on."""
    if port.outstanding == 0:
        port.busy_since = clock.now
    port.outstanding += 1


@jit
def load(commands: Commands, port: PortState, qid: int, slot: int, now: int) -> None:
    """Copy the entry at the queue's head into a slot: the host may change its memory at any moment after."""
    sq = sq_at(port.sqs, qid)
    target = commands.sqes + 64 * slot
    copy(target, sq.address + 64 * sq.head, 64)
    sq.head += 1
    if sq.head == sq.entries:
        sq.head = 0
    sqe = sqe_at(target, 0)
    command = command_at(commands.slots, slot)
    command.port = port.number
    command.sqid = qid
    command.generation = sq.generation
    command.cid = signed(sqe.cid)
    command.opcode = signed(sqe.opcode)
    command.nsid = signed(sqe.nsid)
    command.status = 0
    command.dw0 = 0
    command.dw1 = 0
    command.lba = 0
    command.arrived = now
    command.ready = now
    command.outgoing = 0
    command.incoming = 0
    command.durable = 0
    command.following = 0
    if port.outstanding == 0:
        port.busy_since = now
    port.outstanding += 1


@jit
def link_time(costs: Costs, count: int) -> int:
    """Nanoseconds that ``count`` bytes occupy one direction of the link."""
    if costs.link_bytes_per_us == 0:
        return 0
    return (count * 1000 + costs.link_bytes_per_us - 1) // costs.link_bytes_per_us


@jit
def front_end(costs: Costs, port: PortState, now: int, pages: int, incoming: int) -> int:
    """When a fetched command may act: doorbell and entry over the link, the controller's turn, then its data."""
    start = max(now + costs.link_delay_ns, port.front_end_free)
    port.front_end_free = start + costs.command_ns + pages * costs.page_ns
    arrival = port.front_end_free
    if incoming > 0:
        port.link_in_free = max(arrival, port.link_in_free) + link_time(costs, incoming)
        arrival = port.link_in_free + costs.link_delay_ns
    return arrival


@jit_unit
def respond(clock: Clock, costs: Costs, commands: Commands, port: PortState, slot: int, when: int) -> None:
    """The media work of a command ended at ``when``: send its data over the link, then complete it."""
    command = command_at(commands.slots, slot)
    when = max(when, command.ready)
    if port.bypass == 0 and costs.free == 0:
        if command.outgoing > 0 and command.status == 0:
            port.link_out_free = max(when, port.link_out_free) + link_time(costs, command.outgoing)
            when = port.link_out_free
        when += costs.link_delay_ns
    command.ready = when
    if command.durable != 0:
        command.following = commands.syncing
        commands.syncing = slot + 1
    elif when <= clock.now:
        complete(clock, commands, port, slot)
    else:
        push(clock, when, 2 * slot + COMPLETE)


@jit_unit
def complete(clock: Clock, commands: Commands, port: PortState, slot: int) -> None:
    """Post the completion, or hold it until its queue has room. A deleted queue's commands end here in silence."""
    command = command_at(commands.slots, slot)
    sq = sq_at(port.sqs, command.sqid)
    if sq.generation != command.generation:
        leave(clock, commands, port, slot)
        return
    cq = cq_at(port.cqs, sq.cqid)
    if cq.held != 0 or not has_room(port, sq.cqid):
        _hold(commands, port, sq.cqid, slot)
        return
    _post(clock, commands, port, slot)


@jit
def _post(clock: Clock, commands: Commands, port: PortState, slot: int) -> None:
    command = command_at(commands.slots, slot)
    status = command.status
    if status != 0:
        record_error(port, command.sqid, command.cid, status, command.lba, command.nsid)
        if not _worth_retrying(status):
            status |= DNR
    else:
        port.counters.link_out += command.outgoing
        port.counters.link_in += command.incoming
    if clock.mode == REAL and command.ready > command.arrived:
        record_lateness(clock, command.ready)
    post(port, command.sqid, command.cid, status, command.dw0, command.dw1)
    leave(clock, commands, port, slot)


@jit_inline
def _worth_retrying(status: int) -> bool:
    """Media errors may pass, and so does what says that the drive is at something else; other errors repeat."""
    media = status >> 8 == 2 and status != _COMPARE_FAILURE
    return media or status == _SANITIZING or status == _FORMATTING or status == _NOT_READY or status == _LOOKUP_BUSY


@jit
def _hold(commands: Commands, port: PortState, cqid: int, slot: int) -> None:
    cq = cq_at(port.cqs, cqid)
    command_at(commands.slots, slot).following = 0
    if cq.held == 0:
        cq.held = slot + 1
    else:
        command_at(commands.slots, cq.held_last - 1).following = slot + 1
    cq.held_last = slot + 1
    commands.held += 1


@jit
def retry_held(clock: Clock, commands: Commands, port: PortState, cqid: int) -> int:
    """Post what waited for room in a completion queue. :returns: how many left the list"""
    cq = cq_at(port.cqs, cqid)
    moved = 0
    while cq.held != 0:
        slot = cq.held - 1
        command = command_at(commands.slots, slot)
        sq = sq_at(port.sqs, command.sqid)
        alive = sq.generation == command.generation
        if alive and not has_room(port, cqid):
            break
        cq.held = command.following
        commands.held -= 1
        moved += 1
        if alive:
            _post(clock, commands, port, slot)
        else:
            leave(clock, commands, port, slot)
    return moved


class CommandPool:
    """Owns the slots behind a Commands record."""

    def __init__(self) -> None:
        self.slots = np.zeros(SLOTS, Command.dtype)
        self.sqes = np.zeros(SLOTS, SQE.dtype)
        self.free = np.arange(SLOTS - 1, -1, -1, dtype=np.int64)

    def fill(self, record: Any) -> None:
        """Write addresses into the Commands record of a drive's state."""
        record["slots"], record["sqes"] = self.slots.ctypes.data, self.sqes.ctypes.data
        record["free"], record["free_count"] = self.free.ctypes.data, SLOTS
