"""What waits at a die: a queue for each traffic class, by arrival, and which operation of which class comes next."""

from __future__ import annotations

from emucsd_firmware.nand.state import (
    BACKGROUND,
    BLOCK,
    LOOKUP,
    NEVER,
    PROGRAM,
    READ,
    Die,
    Nand,
    Op,
    Queue,
    op_at,
    queue_at,
)
from emucsd_firmware.policy import schedule
from emucsd_wire.words import jit, jit_inline


@jit_inline
def count(queue: Queue, kind: int) -> None:
    if kind == READ:
        queue.reads += 1
    elif kind == PROGRAM:
        queue.programs += 1
    else:
        queue.erases += 1


@jit_inline
def enqueue(nand: Nand, die: Die, queue: Queue, index: int, op: Op) -> None:
    """Into the queue of its class, behind what arrived before it or together with it."""
    tail, now = queue.tail, op.arrival
    if tail < 0:
        queue.head = index
        queue.tail = index
        die.waiting |= 1 << op.traffic
    elif op_at(nand.ops, tail).arrival <= now:
        op_at(nand.ops, tail).next = index
        queue.tail = index
    else:
        before, place = -1, queue.head
        while op_at(nand.ops, place).arrival <= now:
            before, place = place, op_at(nand.ops, place).next
        op.next = place
        if before < 0:
            queue.head = index
        else:
            op_at(nand.ops, before).next = index
    if nand.suspend != 0 and op.kind == READ:
        queue.reads_waiting += 1


@jit_inline
def take(nand: Nand, die: Die, queue: Queue, before: int, op: Op, now: int) -> None:
    """Out of the queue, where it comes after ``before`` (-1: first)."""
    following = op.next
    if before >= 0:
        op_at(nand.ops, before).next = following
    else:
        queue.head = following
    if following < 0:
        queue.tail = before
        if before < 0:
            die.waiting &= ~(1 << op.traffic)
    op.next = -1
    queue.wait_ns += now - op.arrival
    count(queue, op.kind)
    if nand.suspend != 0 and op.kind == READ:
        queue.reads_waiting -= 1


@jit
def before_first_read(nand: Nand, queue: Queue) -> int:
    """What comes before the queue's first read, -1 when it is the first: there is one."""
    before, index = -1, queue.head
    while op_at(nand.ops, index).kind != READ:
        before, index = index, op_at(nand.ops, index).next
    return before


@jit_inline
def after(nand: Nand, queue: Queue, before: int) -> int:
    """The operation that comes after ``before``, or the first."""
    return op_at(nand.ops, before).next if before >= 0 else queue.head


@jit_inline
def _age(nand: Nand, number: int, traffic: int, now: int) -> int:
    """How long the oldest operation of a class has waited; negative: until it arrives, -NEVER if there is none."""
    head = queue_at(nand.queues, number * 4 + traffic).head
    return now - op_at(nand.ops, head).arrival if head >= 0 else -NEVER


@jit
def _read_age(nand: Nand, number: int, traffic: int, now: int) -> int:
    """As _age, for the oldest read of a class."""
    queue = queue_at(nand.queues, number * 4 + traffic)
    if queue.reads_waiting == 0:
        return -NEVER
    return now - op_at(nand.ops, after(nand, queue, before_first_read(nand, queue))).arrival


@jit
def next_read(nand: Nand, number: int) -> int:
    """When the first read of a host arrives, or has arrived, at a die; NEVER when none is queued."""
    return -max(_read_age(nand, number, BLOCK, 0), _read_age(nand, number, LOOKUP, 0))


@jit
def choose(nand: Nand, die: Die, number: int, now: int, reads: int) -> int:
    """The class to serve next; or -n when nothing waits but something arrives in n ns, or -NEVER.

    The policy is asked when more than one class waits. If it names one that doesn't, the lowest that does is taken.

    :param reads: 1: only reads of hosts are looked at
    """
    if reads != 0:
        block, lookup, background = _read_age(nand, number, BLOCK, now), _read_age(nand, number, LOOKUP, now), -NEVER
    else:
        block, lookup = _age(nand, number, BLOCK, now), _age(nand, number, LOOKUP, now)
        background = _age(nand, number, BACKGROUND, now)
    if (block >= 0) + (lookup >= 0) + (background >= 0) > 1:
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
        if (chosen == LOOKUP and lookup >= 0) or (chosen == BACKGROUND and background >= 0):
            return int(chosen)
    if block >= 0:
        return BLOCK
    if lookup >= 0:
        return LOOKUP
    return BACKGROUND if background >= 0 else max(block, lookup, background)
