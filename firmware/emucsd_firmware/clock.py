"""The drive's time: real or virtual, and the heap of what is due.

``real``: time is CLOCK_MONOTONIC; an event is run when the wall clock has passed its modelled time, and how late that
was is recorded. ``virtual``: time stands still between grants (``emucsd_wire.nvme.ClockWords``) and jumps from event
to event.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from emucsd_wire.layout import I64, State
from emucsd_wire.words import get_i64, jit, jit_inline, monotonic, pointer, put_i64

NEVER = 1 << 62
REAL, VIRTUAL = 0, 1
TOKEN_BITS = 24  # low bits of a heap entry's order word; above them a sequence number keeps ties first come, first out
_TOKEN_MASK = (1 << TOKEN_BITS) - 1

LATENESS_BUCKETS = 4096  # of 250 ns: a completion later than 1 ms counts in the last one
LATENESS_STEP = 250


class Clock(State):
    """Time and the binary heap of (time, order) pairs; ``heap`` holds ``capacity`` pairs of int64."""

    mode: I64
    now: I64
    heap: I64
    count: I64
    capacity: I64
    sequence: I64
    lateness: I64  # address of LATENESS_BUCKETS int64 counters
    late_max: I64


clock_at = pointer(Clock)


@jit_inline
def _before(heap: int, left: int, right: int) -> bool:
    """Whether entry ``left`` is due before entry ``right``; equal times keep their order of arrival."""
    a, b = get_i64(heap, 2 * left), get_i64(heap, 2 * right)
    if a != b:
        return a < b
    return get_i64(heap, 2 * left + 1) < get_i64(heap, 2 * right + 1)


@jit_inline
def _swap(heap: int, left: int, right: int) -> None:
    time, order = get_i64(heap, 2 * left), get_i64(heap, 2 * left + 1)
    put_i64(heap, 2 * left, get_i64(heap, 2 * right))
    put_i64(heap, 2 * left + 1, get_i64(heap, 2 * right + 1))
    put_i64(heap, 2 * right, time)
    put_i64(heap, 2 * right + 1, order)


@jit
def push(clock: Clock, time: int, token: int) -> None:
    """Make ``token`` (< 2**24) due at ``time``. The heap is sized for every command twice: it cannot overflow."""
    child = clock.count
    clock.count = child + 1
    clock.sequence += 1
    put_i64(clock.heap, 2 * child, time)
    put_i64(clock.heap, 2 * child + 1, (clock.sequence << TOKEN_BITS) | token)
    while child > 0:
        parent = (child - 1) >> 1
        if not _before(clock.heap, child, parent):
            break
        _swap(clock.heap, child, parent)
        child = parent


@jit_inline
def due(clock: Clock) -> int:
    """When the next token is due; NEVER when there is none."""
    return get_i64(clock.heap, 0) if clock.count > 0 else NEVER


@jit
def pop(clock: Clock) -> int:
    """Take the token that is due first. Call it only while ``due`` is not NEVER."""
    heap = clock.heap
    token = get_i64(heap, 1) & _TOKEN_MASK
    last = clock.count - 1
    clock.count = last
    put_i64(heap, 0, get_i64(heap, 2 * last))
    put_i64(heap, 1, get_i64(heap, 2 * last + 1))
    parent = 0
    while True:
        child = 2 * parent + 1
        if child >= last:
            break
        if child + 1 < last and _before(heap, child + 1, child):
            child += 1
        if not _before(heap, child, parent):
            break
        _swap(heap, child, parent)
        parent = child
    return token


@jit
def record_lateness(clock: Clock, modelled: int) -> None:
    """Real clock: how long after its modelled time a completion is being posted."""
    late = max(monotonic() - modelled, 0)
    bucket = min(late // LATENESS_STEP, LATENESS_BUCKETS - 1)
    put_i64(clock.lateness, bucket, get_i64(clock.lateness, bucket) + 1)
    clock.late_max = max(clock.late_max, late)


class ClockMemory:
    """Owns the heap and the lateness histogram behind a Clock record."""

    def __init__(self, mode: int, capacity: int) -> None:
        self.mode = mode
        self.heap = np.zeros(2 * capacity, np.int64)
        self.lateness = np.zeros(LATENESS_BUCKETS, np.int64)

    def fill(self, record: Any) -> None:
        """Write addresses and settings into the Clock record of a drive's state."""
        record["mode"] = self.mode
        record["heap"] = self.heap.ctypes.data
        record["capacity"] = len(self.heap) // 2
        record["lateness"] = self.lateness.ctypes.data

    def lateness_us(self, quantile: float) -> float:
        """The given quantile of lateness so far, in microseconds (0 when nothing was posted)."""
        total = int(self.lateness.sum())
        if total == 0:
            return 0.0
        index = int(np.searchsorted(np.cumsum(self.lateness), quantile * total))
        return (index + 0.5) * LATENESS_STEP / 1000
