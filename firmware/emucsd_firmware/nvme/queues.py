"""Submission and completion queues: doorbells, shadow doorbells, fetching and posting (Base 3.3, 4.1, 4.2, B.5).

Queue 0 of a port is its admin queue: the data plane only notices its doorbell; the control plane fetches from it and
posts to it with the same functions. Bytes 8..15 of a completion (queue ids, command id, status with the phase bit)
are one 64-bit release store behind the rest: a host that polls the phase never sees half a completion.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import MutableSequence
from typing import Annotated, Any

import numpy as np

from emucsd_firmware.errors import MemoryMapError
from emucsd_firmware.memory import AddressTable, Memory
from emucsd_wire.layout import I64, Array, State
from emucsd_wire.nvme import CLOCK_WORDS_OFFSET, PAGE, Register, Status
from emucsd_wire.rm import RM_REGISTERS_OFFSET
from emucsd_wire.words import get_i64, jit, jit_inline, load_u32, pointer, put_i64, signal, store_i64, store_u32

IO_QUEUES = 64  # pairs a port
QUEUES = IO_QUEUES + 1
VECTORS = QUEUES
BAR0_USED = RM_REGISTERS_OFFSET + PAGE  # registers, then the doorbell page, then the sessions' registers
NAMESPACES = 32  # nsids 1..32
ERROR_RING = 64
_UNRECOVERED, _WRITE_FAULT = int(Status.UNRECOVERED_READ), int(Status.WRITE_FAULT)


class SubmissionQueue(State):
    """``address`` is that of slot 0 in this process; ``generation`` tells completions of a deleted queue from ours."""

    live: I64
    address: I64
    entries: I64
    head: I64
    tail: I64
    cqid: I64
    generation: I64
    iova: I64
    bad_doorbells: I64
    priority: I64


class CompletionQueue(State):
    """``held``..``held_last``: command slots whose completion waits for room, in order (slot + 1; 0 is none)."""

    live: I64
    address: I64
    entries: I64
    tail: I64
    head: I64
    phase: I64
    vector: I64  # -1 when interrupts are off
    raised: I64  # completions that were posted since the interrupt was last raised
    since: I64  # when the first of them was noticed, 0 for not yet
    signalled: I64  # when the interrupt was last raised
    told: I64  # where the host's head was then
    look_ns: I64  # how long the host takes from an interrupt until its head has moved, on average
    measured: I64  # the interrupt that ``look_ns`` knows of
    depth: I64  # the most completions that lately waited for the host at a time
    immediate: I64  # its vector is not coalesced (feature 09h)
    held: I64
    held_last: I64
    iova: I64
    bad_doorbells: I64


class Traffic(State):
    """Blocks of one namespace that crossed one port, counted when they did; nothing but power takes them back.

    A command that fails on the way may have moved a part of its data: all of it counts as ``bytes_failed``.
    """

    reads: I64
    writes: I64
    compares: I64
    bytes_read: I64
    bytes_written: I64
    bytes_compared: I64
    failed: I64  # commands, whatever they were; also of a namespace that this port may not have
    bytes_failed: I64
    rows: I64  # that RecSSD's requests asked for; they stay in the drive


class NamespaceState(State):
    """A namespace as one port sees it; ``attached`` 0 means that commands get Invalid Namespace."""

    attached: I64
    blocks: I64
    lba_shift: I64
    first_lpn: I64
    write_protected: I64
    traffic: Traffic


class ErrorRecord(State):
    """A failed I/O command, for the Error Information log."""

    sqid: I64
    cid: I64
    status: I64
    lba: I64
    nsid: I64


class Counters(State):
    """What SMART and ``status`` tell; bytes are those that crossed the port's link as data."""

    reads: I64
    writes: I64
    other: I64
    failed: I64
    blocks_read: I64  # in units of 512 bytes
    blocks_written: I64
    link_out: I64  # bytes to the host
    link_in: I64
    lookups: I64
    vectors: I64
    interrupts: I64
    doorbells: I64
    busy_ns: I64
    media_errors: I64


class PortState(State):
    """One NVMe controller of the drive. ``live_sqs`` lists the I/O submission queues that are polled."""

    number: I64
    enabled: I64
    bypass: I64  # port 1: no PCIe link, no front end (Newport's path from the ISP engine to flash)
    trapped: I64  # doorbell writes come as messages: nobody has to poll a mapped page
    sqs: I64
    cqs: I64
    live_sqs: Annotated[MutableSequence[int], Array("<i8", IO_QUEUES)]
    live_count: I64
    doorbells: I64
    shadow: I64
    eventidx: I64
    words: I64  # ClockWords
    vectors: I64  # eventfd of each MSI-X vector as int64, -1 for none
    coalesce_ns: I64  # feature 08h: the most that an interrupt may be delayed; 0 for not at all
    coalesce_entries: I64  # and the completions that end the delay
    admin_seen: I64  # tail that the control plane has been told of
    admin_fd: I64
    namespaces: I64  # NamespaceState[NAMESPACES + 1], index nsid
    errors: I64  # ErrorRecord[ERROR_RING]
    error_count: I64
    posted: I64  # completions so far
    outstanding: I64  # commands fetched and not completed
    busy_since: I64
    link_out_free: I64
    link_in_free: I64
    front_end_free: I64
    memory: Memory
    counters: Counters


sq_at = pointer(SubmissionQueue)
cq_at = pointer(CompletionQueue)
port_at = pointer(PortState)
namespace_at = pointer(NamespaceState)
error_at = pointer(ErrorRecord)


@jit_inline
def read_tail(port: PortState, qid: int) -> int:
    """The host's tail doorbell of a submission queue, from the shadow buffer where there is one."""
    if port.shadow != 0 and qid != 0:
        return load_u32(port.shadow, 2 * qid)
    return load_u32(port.doorbells, 2 * qid)


@jit_inline
def read_head(port: PortState, qid: int) -> int:
    """The host's head doorbell of a completion queue."""
    if port.shadow != 0 and qid != 0:
        return load_u32(port.shadow, 2 * qid + 1)
    return load_u32(port.doorbells, 2 * qid + 1)


@jit_inline
def refresh_tail(port: PortState, qid: int) -> int:
    """Take over a new tail. :returns: how many entries wait. A value past the queue's end is counted and ignored."""
    sq = sq_at(port.sqs, qid)
    tail = read_tail(port, qid)
    if tail != sq.tail:
        if tail >= sq.entries:
            sq.bad_doorbells += 1
            sq.tail = sq.tail
            return 0
        sq.tail = tail
        port.counters.doorbells += 1
    waiting = sq.tail - sq.head
    return waiting if waiting >= 0 else waiting + sq.entries


@jit_inline
def arm(port: PortState, qid: int, asleep: int) -> None:
    """Set the EventIdx of a queue: due at the next doorbell when the drive sleeps, else as far off as it can be."""
    sq = sq_at(port.sqs, qid)
    store_u32(port.eventidx, 2 * qid, sq.tail if asleep != 0 else (sq.tail - 1) & 0xFFFF)


@jit_inline
def has_room(port: PortState, qid: int) -> bool:
    """Whether a completion queue can take one more entry."""
    cq = cq_at(port.cqs, qid)
    if cq.live == 0:
        return False  # its memory is unmapped for now, or it was deleted
    following = cq.tail + 1
    if following == cq.entries:
        following = 0
    if following != cq.head:
        return True
    head = read_head(port, qid)
    if head >= cq.entries:
        cq.bad_doorbells += 1
        return False
    cq.head = head
    return following != head


@jit
def post(port: PortState, sqid: int, cid: int, status: int, dw0: int, dw1: int) -> None:
    """Write one completion; the caller has checked ``has_room``. ``status`` is SCT << 8 | SC (with DNR where set)."""
    sq = sq_at(port.sqs, sqid)
    cq = cq_at(port.cqs, sq.cqid)
    entry = cq.address + 16 * cq.tail
    put_i64(entry, 0, (dw0 & 0xFFFFFFFF) | (dw1 << 32))
    low = (sq.head & 0xFFFF) | (sqid << 16)
    high = (cid & 0xFFFF) | (((status << 1) | cq.phase) << 16)
    store_i64(entry, 1, low | (high << 32))
    cq.tail += 1
    if cq.tail == cq.entries:
        cq.tail = 0
        cq.phase ^= 1
    cq.raised += 1
    port.posted += 1


@jit
def interrupt(port: PortState, qid: int) -> None:
    """Raise the vector of a completion queue, once for all that was posted since the last time."""
    cq = cq_at(port.cqs, qid)
    cq.raised = 0
    if cq.vector >= 0:
        fd = get_i64(port.vectors, cq.vector)
        if fd >= 0:
            signal(fd)
            port.counters.interrupts += 1


@jit
def record_error(port: PortState, sqid: int, cid: int, status: int, lba: int, nsid: int) -> None:
    """Remember a failed I/O command for the Error Information log."""
    entry = error_at(port.errors, port.error_count % ERROR_RING)
    entry.sqid = sqid
    entry.cid = cid
    entry.status = status
    entry.lba = lba
    entry.nsid = nsid
    port.error_count += 1
    port.counters.failed += 1
    if nsid > 0 and nsid <= NAMESPACES:
        namespace_at(port.namespaces, nsid).traffic.failed += 1
    if status == _UNRECOVERED or status == _WRITE_FAULT:
        port.counters.media_errors += 1


@jit
def _post_at(address: int, sqid: int, cid: int, status: int, dw0: int, dw1: int) -> int:
    port = port_at(address, 0)
    sq = sq_at(port.sqs, sqid)
    if not has_room(port, sq.cqid):
        return 0
    post(port, sqid, cid, status, dw0, dw1)
    interrupt(port, sq.cqid)
    return 1


class QueueSet:
    """Owns the queues, doorbell page, vectors and namespace views behind one PortState record.

    Everything here changes shared state: call it with the data plane out of compiled code (``plane.paused()``).
    """

    def __init__(self, record: Any, number: int, *, bypass: bool, mode: int) -> None:
        """:param record: np.void view of the PortState inside a drive's state
        :param mode: the clock's mode, published in the clock words
        """
        self.record = record
        self.sqs = np.zeros(QUEUES, SubmissionQueue.dtype)
        self.cqs = np.zeros(QUEUES, CompletionQueue.dtype)
        self.namespaces = np.zeros(NAMESPACES + 1, NamespaceState.dtype)
        self.errors = np.zeros(ERROR_RING, ErrorRecord.dtype)
        self.vectors = np.full(VECTORS, -1, np.int64)
        self.memory = AddressTable()
        self._shadow_iovas: tuple[int, int] | None = None
        self.doorbell_fd = os.memfd_create(f"emucsd-doorbells-{number}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        # the pages lie where they lie in BAR0: a client that adds the area's offset to the region's needs no wrap
        os.ftruncate(self.doorbell_fd, BAR0_USED)
        self._page = mmap.mmap(self.doorbell_fd, BAR0_USED - Register.DOORBELLS, offset=Register.DOORBELLS)
        self.doorbells = np.frombuffer(self._page, "<u4", count=PAGE // 4)
        self.sessions = np.frombuffer(self._page, np.uint8, offset=RM_REGISTERS_OFFSET - Register.DOORBELLS)
        self.words = np.frombuffer(self._page, "<i8", offset=CLOCK_WORDS_OFFSET - Register.DOORBELLS)
        self.words[0] = mode
        self.admin_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        record["number"], record["bypass"], record["admin_fd"] = number, int(bypass), self.admin_fd
        for name in ("sqs", "cqs", "namespaces", "errors", "vectors", "doorbells", "words"):
            record[name] = getattr(self, name).ctypes.data
        self.memory.attach(record["memory"])

    def create_cq(self, qid: int, iova: int, entries: int, vector: int) -> None:
        """:param vector: -1 when interrupts are off. :raises MemoryMapError: the queue's memory is not mapped"""
        address = self.memory.address(iova, 16 * entries, writing=True)
        self.doorbells[2 * qid + 1] = 0  # hosts do not zero the shared page: a stale head would lose entries
        cq = self.cqs[qid]
        held = int(cq["held"]), int(cq["held_last"])  # of an earlier queue of this number; the data plane frees them
        self.cqs[qid] = np.zeros((), CompletionQueue.dtype)
        cq["live"], cq["address"], cq["entries"], cq["iova"] = 1, address, entries, iova
        cq["phase"], cq["vector"] = 1, vector
        cq["held"], cq["held_last"] = held

    def create_sq(self, qid: int, iova: int, entries: int, cqid: int, priority: int = 0) -> None:
        """:raises MemoryMapError: the queue's memory is not mapped"""
        address = self.memory.address(iova, 64 * entries)
        self.doorbells[2 * qid] = 0
        generation = int(self.sqs[qid]["generation"]) + 1
        self.sqs[qid] = np.zeros((), SubmissionQueue.dtype)
        sq = self.sqs[qid]
        sq["live"], sq["address"], sq["entries"], sq["iova"] = 1, address, entries, iova
        sq["cqid"], sq["generation"], sq["priority"] = cqid, generation, priority
        if qid == 0:
            self.record["admin_seen"] = 0
        self._list()

    def delete_sq(self, qid: int) -> None:
        """Commands of this queue that are still under way complete into nothing (their generation has passed)."""
        self.sqs[qid]["live"] = 0
        self.sqs[qid]["generation"] += 1
        self.doorbells[2 * qid] = 0
        self._list()

    def delete_cq(self, qid: int) -> None:
        self.cqs[qid]["live"] = 0
        self.doorbells[2 * qid + 1] = 0

    def sqs_of(self, cqid: int) -> list[int]:
        """Submission queues that complete into a completion queue."""
        return [qid for qid in range(QUEUES) if self.sqs[qid]["live"] and self.sqs[qid]["cqid"] == cqid]

    def reset(self) -> None:
        """Controller reset: no queue, no shadow doorbells; the doorbell page reads zero."""
        for qid in range(QUEUES):
            self.delete_sq(qid)
            self.delete_cq(qid)
        self.record["enabled"] = 0
        self.record["shadow"] = self.record["eventidx"] = 0
        self._shadow_iovas = None

    def queues_in(self, iova: int, size: int) -> list[tuple[str, int]]:
        """Live queues whose memory lies in a range that is about to be unmapped."""
        found = [("sq", q) for q in range(QUEUES) if self.sqs[q]["live"] and iova <= self.sqs[q]["iova"] < iova + size]
        return found + [
            ("cq", q) for q in range(QUEUES) if self.cqs[q]["live"] and iova <= self.cqs[q]["iova"] < iova + size
        ]

    def set_shadow(self, shadow_iova: int, eventidx_iova: int) -> None:
        """Doorbell Buffer Config: both buffers start from the doorbells of now (Base B.5).

        :raises MemoryMapError: a buffer is not mapped for writing
        """
        shadow = self.memory.address(shadow_iova, PAGE, writing=True)
        eventidx = self.memory.address(eventidx_iova, PAGE, writing=True)
        values = self.doorbells[: 2 * QUEUES]
        for base in (shadow, eventidx):
            for index, value in enumerate(values):
                _store_word(base, index, int(value))
        self.record["shadow"], self.record["eventidx"] = shadow, eventidx
        self._shadow_iovas = (shadow_iova, eventidx_iova)

    def suspend_shadow(self, iova: int, size: int) -> None:
        """A range is about to be unmapped: leave shadow doorbells in it alone."""
        if self._shadow_iovas and any(iova <= at < iova + size for at in self._shadow_iovas):
            self.record["shadow"] = self.record["eventidx"] = 0

    def resume_shadow(self) -> None:
        """Memory was mapped: shadow doorbells that were lost with theirs may be back."""
        if self._shadow_iovas and not self.record["shadow"]:
            try:
                found = [self.memory.address(at, PAGE, writing=True) for at in self._shadow_iovas]
            except MemoryMapError:
                return
            self.record["shadow"], self.record["eventidx"] = found

    def _list(self) -> None:
        live = [qid for qid in range(1, QUEUES) if self.sqs[qid]["live"]]
        self.record["live_sqs"][: len(live)] = live
        self.record["live_count"] = len(live)

    @property
    def address(self) -> int:
        """Address of the PortState record."""
        return int(self.record.__array_interface__["data"][0])

    def post(self, sqid: int, cid: int, status: int, dw0: int = 0, dw1: int = 0) -> bool:
        """Post a completion from the control plane (admin queue) and raise its vector. False: the queue is full."""
        return bool(_post_at(self.address, sqid, cid, status, dw0, dw1))

    def close(self) -> None:
        os.close(self.admin_fd)
        os.close(self.doorbell_fd)


@jit
def _store_word(base: int, index: int, value: int) -> None:
    store_u32(base, index, value)
