"""I/O queues as the control plane sees them (Base 5.2.1 to 5.2.4): create, delete, and survive remapped memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from emucsd_firmware.errors import MemoryMapError
from emucsd_firmware.nvme.queues import QUEUES, VECTORS, QueueSet
from emucsd_firmware.nvme.registers import MQES
from emucsd_firmware.nvme.request import Refused, Request
from emucsd_wire.nvme import PAGE, Status
from emucsd_wire.registers import Bits, Word

if TYPE_CHECKING:
    from emucsd_firmware.controller import Controller

SQ_ENTRY_BITS, CQ_ENTRY_BITS = 6, 4


class QueueDword(Word):
    """CDW10 of the four commands."""

    qid = Bits(15, 0)
    qsize = Bits(31, 16)  # 0-based


class CqDword(Word):
    """CDW11 of Create I/O Completion Queue."""

    pc = Bits(0)
    ien = Bits(1)
    iv = Bits(31, 16)


class SqDword(Word):
    """CDW11 of Create I/O Submission Queue."""

    pc = Bits(0)
    qprio = Bits(2, 1)
    cqid = Bits(31, 16)


class IoQueues:
    """Which I/O queues of a port exist. The data plane's view of them is its QueueSet.

    A client may take a queue's memory away and bring it back elsewhere (QEMU does while firmware changes the memory
    map): such a queue is *suspended*, which the data plane sees as a queue that is not live, and goes on where it was.
    """

    def __init__(self, queues: QueueSet) -> None:
        self._queues = queues
        self.sqs: dict[int, int] = {}  # qid -> cqid
        self.cqs: set[int] = set()
        self.suspended: set[tuple[str, int]] = set()
        self.rung = np.zeros(2 * QUEUES, np.int64)  # last doorbell values that came as messages

    def any(self) -> bool:
        return bool(self.sqs or self.cqs)

    def create_cq(self, qid: int, iova: int, entries: int, vector: int) -> None:
        """:raises MemoryMapError: its memory is not mapped"""
        self._queues.create_cq(qid, iova, entries, vector)
        self.rung[2 * qid + 1] = 0
        self.cqs.add(qid)

    def create_sq(self, qid: int, iova: int, entries: int, cqid: int, priority: int) -> None:
        """:raises MemoryMapError: its memory is not mapped"""
        self._queues.create_sq(qid, iova, entries, cqid, priority)
        self.rung[2 * qid] = 0
        self.sqs[qid] = cqid

    def delete_cq(self, qid: int) -> None:
        self._queues.delete_cq(qid)
        self.suspended.discard(("cq", qid))
        self.cqs.remove(qid)

    def delete_sq(self, qid: int) -> None:
        self._queues.delete_sq(qid)
        self.suspended.discard(("sq", qid))
        del self.sqs[qid]

    def reset(self) -> None:
        """Controller reset: none is left, the admin queue's neither."""
        self._queues.reset()
        self.sqs.clear()
        self.cqs.clear()
        self.suspended.clear()
        self.rung[:] = 0

    def suspend(self, iova: int, size: int) -> None:
        """A range of memory is about to go: the data plane must leave the queues in it alone."""
        for kind, qid in self._queues.queues_in(iova, size):
            self._entries(kind)[qid]["live"] = 0
            self.suspended.add((kind, qid))
        self._queues.suspend_shadow(iova, size)
        self._list()

    def resume(self) -> None:
        """Memory was mapped: queues whose memory is back go on."""
        for kind, qid in list(self.suspended):
            queue = self._entries(kind)[qid]
            size = int(queue["entries"]) << (SQ_ENTRY_BITS if kind == "sq" else CQ_ENTRY_BITS)
            try:
                queue["address"] = self._queues.memory.address(int(queue["iova"]), size, writing=kind == "cq")
            except MemoryMapError:
                continue
            queue["live"] = 1
            self.suspended.remove((kind, qid))
        self._list()

    def _entries(self, kind: str) -> np.ndarray[tuple[int], np.dtype[np.void]]:
        return self._queues.sqs if kind == "sq" else self._queues.cqs

    def _list(self) -> None:
        """What the data plane polls."""
        live = [qid for qid in sorted(self.sqs) if self._queues.sqs[qid]["live"]]
        self._queues.record["live_sqs"][: len(live)] = live
        self._queues.record["live_count"] = len(live)


def create_cq(controller: Controller, request: Request) -> None:
    """Create I/O Completion Queue (05h)."""
    dword, how = QueueDword(request.sqe.cdw10), CqDword(request.sqe.cdw11)
    granted = controller.granted_queues.ncq + 1
    if not 1 <= dword.qid <= granted or dword.qid in controller.io_queues.cqs:
        raise Refused(Status.INVALID_QUEUE_ID, "cdw10")
    _check_memory(dword, how.pc, request, controller.registers.cc.iocqes == CQ_ENTRY_BITS)
    if how.iv >= VECTORS:
        raise Refused(Status.INVALID_VECTOR, "cdw11")
    with controller.drive.plane.paused():
        try:
            vector = how.iv if how.ien else -1
            controller.io_queues.create_cq(dword.qid, request.sqe.prp1, dword.qsize + 1, vector)
            controller.features.apply_coalescing()
        except MemoryMapError as problem:
            raise Refused(Status.INVALID_FIELD, "prp1") from problem


def create_sq(controller: Controller, request: Request) -> None:
    """Create I/O Submission Queue (01h)."""
    dword, how = QueueDword(request.sqe.cdw10), SqDword(request.sqe.cdw11)
    granted = controller.granted_queues
    if not 1 <= how.cqid <= granted.ncq + 1:
        raise Refused(Status.INVALID_QUEUE_ID, "cdw11")
    if how.cqid not in controller.io_queues.cqs:
        raise Refused(Status.CQ_INVALID, "cdw11")
    if not 1 <= dword.qid <= granted.nsq + 1 or dword.qid in controller.io_queues.sqs:
        raise Refused(Status.INVALID_QUEUE_ID, "cdw10")
    _check_memory(dword, how.pc, request, controller.registers.cc.iosqes == SQ_ENTRY_BITS)
    with controller.drive.plane.paused():
        try:
            controller.io_queues.create_sq(dword.qid, request.sqe.prp1, dword.qsize + 1, how.cqid, how.qprio)
        except MemoryMapError as problem:
            raise Refused(Status.INVALID_FIELD, "prp1") from problem


def delete_sq(controller: Controller, request: Request) -> None:
    """Delete I/O Submission Queue (00h): its commands that are under way end without completions."""
    qid = QueueDword(request.sqe.cdw10).qid
    if qid not in controller.io_queues.sqs:
        raise Refused(Status.INVALID_QUEUE_ID, "cdw10")
    with controller.drive.plane.paused():
        controller.io_queues.delete_sq(qid)


def delete_cq(controller: Controller, request: Request) -> None:
    """Delete I/O Completion Queue (04h): its submission queues must be gone."""
    qid = QueueDword(request.sqe.cdw10).qid
    if qid not in controller.io_queues.cqs:
        raise Refused(Status.INVALID_QUEUE_ID, "cdw10")
    if qid in controller.io_queues.sqs.values():
        raise Refused(Status.INVALID_QUEUE_DELETION, "cdw10")
    with controller.drive.plane.paused():
        controller.io_queues.delete_cq(qid)


def doorbell_buffer_config(controller: Controller, request: Request) -> None:
    """Doorbell Buffer Config (7Ch, Base 5.2.5), where doorbells are trapped: mapped ones need no such help."""
    if not controller.trapped:
        raise Refused(Status.INVALID_OPCODE, "opcode")
    sqe = request.sqe
    for field, address in (("prp1", sqe.prp1), ("prp2", sqe.prp2)):
        if address % PAGE:
            raise Refused(Status.INVALID_FIELD, field)
    with controller.drive.plane.paused():
        try:
            controller.queues.set_shadow(sqe.prp1, sqe.prp2)
        except MemoryMapError as problem:
            raise Refused(Status.INVALID_FIELD, "prp1") from problem


def _check_memory(dword: QueueDword, contiguous: int, request: Request, entry_size_known: bool) -> None:
    if not 1 <= dword.qsize <= MQES or not entry_size_known:
        raise Refused(Status.INVALID_QUEUE_SIZE, "cdw10")
    if not contiguous:  # CAP.CQR
        raise Refused(Status.INVALID_FIELD, "cdw11")
    if request.sqe.prp1 % PAGE:
        raise Refused(Status.PRP_OFFSET_INVALID, "prp1")
