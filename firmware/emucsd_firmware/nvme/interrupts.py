"""When a completion queue's interrupt is raised: at once, or a little later together with what follows.

Two reasons to wait:

- the host has asked for fewer interrupts (features 08h and 09h, Base 5.1.25);
- it has been interrupted and has not looked yet. Its handler takes whatever is posted until it looks; then its head
  doorbell moves. Another interrupt is raised only if entries are left. An emulated processor pays dearly for each: its
  emulator wakes up, takes its lock, and throws the processor out of translated code. A host need not ring its head
  doorbell before it sleeps, so this has a limit; and it is done only where the head lies in memory (shadow doorbells).
  For the same reason a guest that is slow to look, and has several commands under way, is told of some together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from emucsd_firmware.clock import REAL
from emucsd_firmware.nvme.commands import retry_held
from emucsd_firmware.nvme.queues import QUEUES, PortState, cq_at, interrupt, read_head, sq_at
from emucsd_firmware.state import DriveState, port_of
from emucsd_wire.features import Coalescing, Feature, Interrupt
from emucsd_wire.words import jit, jit_unit, monotonic

LOOK_LIMIT_NS = 1_000_000
SLOW_LOOK_NS = 40_000  # a guest that takes longer is emulated: other threads must run before it sees its interrupt
TOGETHER = 4  # completions that are worth an interrupt of an emulated processor, where it has so many under way
GATHER_NS = 80_000  # the longest that the first of them waits for the others
UNSEEN_NS = 200_000  # an interrupt that the host has not followed for so long is raised again
TIME_UNIT_NS = 100_000  # of the aggregation time


@jit_unit
def notify(port: PortState, qid: int) -> int:
    """Raise the vector of a completion queue that has new entries, or let it wait. :returns: not 0 when it waits"""
    cq = cq_at(port.cqs, qid)
    coalesced = port.coalesce_ns != 0 and cq.immediate == 0
    if cq.vector < 0 or (port.shadow == 0 and not coalesced):
        interrupt(port, qid)
        return 0
    now = monotonic()
    if cq.since == 0:
        cq.since = now
    head = read_head(port, qid)
    if port.shadow != 0 and _not_now(port, qid, head, now) != 0:
        return cq.raised
    if coalesced and cq.raised < port.coalesce_entries and now - cq.since < port.coalesce_ns:
        return cq.raised
    cq.since = 0
    cq.signalled = now
    cq.told = head
    interrupt(port, qid)
    return 0


@jit
def _not_now(port: PortState, qid: int, head: int, now: int) -> int:
    """Whether a guest is better interrupted later, or (``raised`` is 0 then) not at all."""
    cq = cq_at(port.cqs, qid)
    if head == cq.tail:  # it has seen everything by itself
        cq.raised = 0
        cq.since = 0
        return 1
    unseen = cq.tail - head if cq.tail > head else cq.tail - head + cq.entries
    cq.depth = max(cq.depth, unseen)
    if head == cq.told and now - cq.signalled < UNSEEN_NS:
        return 1
    if cq.signalled != cq.measured:
        cq.measured = cq.signalled
        cq.look_ns += (min(now - cq.signalled, LOOK_LIMIT_NS) - cq.look_ns) >> 2
    if cq.look_ns < SLOW_LOOK_NS or unseen >= min(cq.depth, TOGETHER):
        return 0
    if now - cq.since < GATHER_NS:
        return 1
    cq.depth = unseen  # no more came: it has no more under way
    return 0


@jit_unit
def raise_interrupts(drive: DriveState) -> None:
    """One eventfd write for each completion queue that got entries, and another try for what had no room."""
    waiting = 0
    for number in range(2):
        port = port_of(drive, number)
        if drive.commands.held != 0:
            for qid in range(QUEUES):
                if cq_at(port.cqs, qid).held != 0:
                    retry_held(drive.clock, drive.commands, port, qid)
        for index in range(port.live_count):
            cqid = sq_at(port.sqs, port.live_sqs[index]).cqid
            if cq_at(port.cqs, cqid).raised == 0:
                continue
            if drive.clock.mode == REAL:
                if notify(port, cqid) != 0:
                    waiting += 1
                elif port.shadow != 0 and cq_at(port.cqs, cqid).look_ns > SLOW_LOOK_NS:
                    drive.aside = 1 if cq_at(port.cqs, cqid).depth < 2 else 0
            else:
                interrupt(port, cqid)
    drive.waiting = waiting


def apply(record: Any, cqs: np.ndarray[tuple[int], np.dtype[np.void]], value: Callable[[int, int], int]) -> None:
    """Bring features 08h and 09h to the data plane. Call it with the data plane out of compiled code.

    :param record: PortState
    :param value: of a feature, by its number and index
    """
    wanted = Coalescing(value(Feature.INTERRUPT_COALESCING, 0))
    record["coalesce_ns"] = wanted.time * TIME_UNIT_NS if wanted.thr else 0
    record["coalesce_entries"] = wanted.thr + 1  # 0-based
    for cq in cqs[1:]:
        if cq["live"] and cq["vector"] >= 0:
            cq["immediate"] = Interrupt(value(Feature.INTERRUPT_VECTOR, int(cq["vector"]))).cd
