"""State of the inference sessions: sessions, their batches, and the memory that both use."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import MutableSequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from emucsd_firmware.lookup.state import Request
from emucsd_firmware.mlp.engine import Run
from emucsd_wire.layout import I64, Array, State
from emucsd_wire.rm import MAX_DEPTH, MAX_RM_PAYLOAD, MAX_SAMPLES, MAX_SESSION_TABLES, MAX_SESSIONS
from emucsd_wire.words import pointer

NEVER = 1 << 62
BATCHES = MAX_SESSIONS * MAX_DEPTH
FLYING = 1024  # lookup requests that sessions have out at a time: others find some free even so

# Batch.state; WORKING: its samples are on their way, READY: its time has come, it waits to be read
FREE, WORKING, READY = 0, 1, 2

# what a session computes
NOTHING, BOTTOM, TOP = 0, 1, 2


class Mini(State):
    """A mini-batch of a batch."""

    pending: I64  # tables whose sums are not there
    ready: I64  # when the last of those that are there were


class Batch(State):
    """One RM_SEND, from its arrival until its RM_READ.

    ``timed``, ``bottomed``, ``settled`` and ``topped`` only grow: how far it has come.
    """

    number: I64
    state: I64
    tag: I64
    samples: I64
    lookups: I64
    id_bytes: I64
    arrived: I64
    payload: I64
    dense: I64  # address of FP32[samples, dense]
    offsets: I64
    ids: I64
    weights: I64  # address of FP32[lookups], or 0
    rows: I64  # address of the samples' rows: [bottom output, sums of table 0, …], Session.stride bytes each
    outputs: I64  # address of FP32[samples, out]
    minis: I64  # address of Mini[count]
    count: I64  # mini-batches
    mini: I64  # the next request to be sent to the lookup engine is for this mini-batch
    table: I64  # and this table
    timed: I64  # mini-batches whose way through the stages has its times
    settled: I64  # samples whose sums are there
    bottomed: I64  # samples whose bottom MLP has been computed
    topped: I64  # samples whose outputs have been computed
    finish: I64  # when the last mini-batch that has its times leaves the top unit
    versions: I64  # address of int64[tables]: the version of each table that its first request saw, -1 for none yet
    changed: I64  # a later one saw another
    status: I64
    position: I64  # of the id that ``status`` is about
    dropped: I64  # nobody will read it
    waiter: I64  # who waits for it (a number of the caller's), or -1
    next: I64  # in the list of batches that are ready and waited for, or -1


class Session(State):
    """One open model. ``id`` is 0 when the slot is free."""

    id: I64
    generation: I64
    port: I64
    tables: I64
    slots: Annotated[MutableSequence[int], Array("<i8", MAX_SESSION_TABLES)]  # of the lookup engine's tables
    columns: Annotated[MutableSequence[int], Array("<i8", MAX_SESSION_TABLES)]  # byte of a row where their sums begin
    means: Annotated[MutableSequence[int], Array("<i8", MAX_SESSION_TABLES)]
    grain: I64
    dense: I64  # numbers a sample
    samples: I64  # of a batch, at most
    depth: I64  # batches in flight
    minibatch: I64  # samples that go through the stages together
    out: I64  # numbers a sample
    stride: I64  # bytes of a row
    group: I64  # samples that are computed together
    program: I64  # address of the model's Program
    bottom: I64  # address of a Program of its first ``bottom_stages`` alone: those that need no sums
    bottom_stages: I64
    run: Run  # what is being computed
    running: I64  # NOTHING, BOTTOM or TOP
    batch: I64  # number of the batch that it is of
    chunk: I64  # samples of it
    embedding_times: I64  # address of int64[minibatch + 1]: a stage's ns for so many samples
    tail_times: I64  # and what of the embedding stage's is left when the last sums are there
    bottom_times: I64
    top_times: I64
    embedding_free: I64  # when the stage's unit takes its next mini-batch
    bottom_free: I64
    top_free: I64
    count: I64  # batches under way
    order: Annotated[MutableSequence[int], Array("<i8", MAX_DEPTH)]  # their numbers, the oldest first
    registers: I64  # address of its RmRegisters
    accepted: I64
    ended: I64
    failed: I64
    inferred: I64
    lookups: I64
    embedding_busy: I64
    bottom_busy: I64
    top_busy: I64
    stall: I64


class Sessions(State):
    """All sessions of one drive."""

    sessions: I64  # address of Session[MAX_SESSIONS]
    batches: I64  # address of Batch[BATCHES]; those of a session lie together
    wake: I64  # when ``pipeline.ripen`` is to be called next; NEVER when no batch has its last time
    work: I64  # bit n: session n may have something to compute
    turn: I64  # the session that computes next
    feeding: I64  # the session whose requests go out next
    flying: I64  # lookup requests that are out
    backlog: I64  # batches that have requests to send out yet
    done: I64  # head of the list of batches that are ready and waited for, or -1
    done_tail: I64
    position: I64  # of the first bad id or offset, after a refusal
    slices: I64  # of computation so far
    probe: Request  # for checks


session_at = pointer(Session)
batch_at = pointer(Batch)
mini_at = pointer(Mini)
sessions_at = pointer(Sessions)


def anonymous(size: int) -> NDArray[np.uint8]:
    """Zeroed memory that costs nothing until it is touched."""
    return np.frombuffer(mmap.mmap(-1, max(size, 1)), np.uint8)


class SessionsMemory:
    """Owns the records behind a Sessions record; what a session itself needs is its SessionBuffers'."""

    def __init__(self) -> None:
        self.sessions = np.zeros(MAX_SESSIONS, Session.dtype)
        self.batches = np.zeros(BATCHES, Batch.dtype)
        self.batches["number"] = np.arange(BATCHES)
        self.batches["waiter"] = -1
        self.record: Any = None

    def fill(self, record: Any) -> None:
        """Write addresses into the Sessions record of a drive's state."""
        self.record = record
        record["sessions"], record["batches"] = self.sessions.ctypes.data, self.batches.ctypes.data
        record["wake"] = NEVER
        record["done"] = record["done_tail"] = -1

    @staticmethod
    def store(address: int, values: NDArray[Any]) -> None:
        """Write an array's bytes at an address: the registers lie in a page that a host shares."""
        ctypes.memmove(address, values.ctypes.data, values.nbytes)


class SessionBuffers:
    """The memory of one open session: payloads, rows, outputs and mini-batches of each batch in flight.

    :param stride: bytes of a sample's row
    :param out: bytes of a sample's outputs
    """

    def __init__(self, depth: int, samples: int, stride: int, out: int, tables: int) -> None:
        self.depth = depth
        self.payloads = anonymous(depth * MAX_RM_PAYLOAD)
        self.rows = anonymous(depth * samples * stride)
        self.outputs = anonymous(depth * samples * out)
        self.minis = anonymous(depth * samples * Mini.dtype.itemsize)
        self.versions = np.zeros((depth, tables), np.int64)

    def fill(self, batches: Any) -> None:
        """Write addresses into a session's ``depth`` Batch records."""
        names = {"payload": "payloads", "rows": "rows", "outputs": "outputs", "minis": "minis", "versions": "versions"}
        for field, name in names.items():
            memory = getattr(self, name)
            step = memory.nbytes // self.depth
            batches[field][: self.depth] = memory.ctypes.data + step * np.arange(self.depth)


assert MAX_SAMPLES * MAX_SESSION_TABLES * BATCHES < 1 << 62  # what ``requests`` makes an owner of
