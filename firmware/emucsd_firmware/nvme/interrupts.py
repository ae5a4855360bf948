"""When a completion queue's interrupt is raised: at once, or a little later together with what follows.

Two reasons to wait:

- the host has asked for fewer interrupts (features 08h and 09h, Base 5.1.25);
- it has been interrupted and has not looked yet. Its handler takes whatever is posted until it looks; then its head
  doorbell moves. Another interrupt is raised only if entries are left. An emulated processor pays dearly for each: its
  emulator wakes up, takes its lock, and throws the processor out of translated code. A host need not ring its head
  doorbell before it sleeps, so this has a limit; and it is done only where the head lies in memory (shadow doorbells).
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
from emucsd_wire.words import jit_unit, monotonic

UNSEEN_NS = 200_000  # an interrupt that the host has not followed for so long is raised again
TIME_UNIT_NS = 100_000  # of the aggregation time


@jit_unit
def notify(port: PortState, qid: int) -> int:
    """Raise the vector of a completion queue that has new entries, or let it wait. :returns: 1 when it waits"""
    cq = cq_at(port.cqs, qid)
    coalesced = port.coalesce_ns != 0 and cq.immediate == 0
    if cq.vector < 0 or (port.shadow == 0 and not coalesced):
        interrupt(port, qid)
        return 0
    now = monotonic()
    if cq.since == 0:
        cq.since = now
    head = read_head(port, qid)
    if port.shadow != 0:
        if head == cq.tail:  # it has seen everything by itself
            cq.raised = 0
            cq.since = 0
            return 0
        if head == cq.told and now - cq.signalled < UNSEEN_NS:
            return 1
    if coalesced and cq.raised < port.coalesce_entries and now - cq.since < port.coalesce_ns:
        return 1
    cq.since = 0
    cq.signalled = now
    cq.told = head
    interrupt(port, qid)
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
                waiting += notify(port, cqid)
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
