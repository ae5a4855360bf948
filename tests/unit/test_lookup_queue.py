"""Requests of the drive's own callers: any piece of any memory, sums in place, in the order of the queue."""

from __future__ import annotations

import numpy as np
import pytest

from emucsd.traces import Bags, bags_of, sums_in_order
from emucsd_firmware.lookup.state import FREE, READY, REQUESTS, TAGGED
from emucsd_wire.nvme import Status
from emucsd_wire.vendor import MAX_TABLES
from tests.unit.lookup_rig import Rig, Rows, payload
from tests.unit.test_lookup_engine import equal, filled, rows_of

SPAN = [(8, 250)]


@pytest.fixture(scope="module")
def rig() -> Rig:
    made = Rig()
    made.place(list(range(256)))
    filled(made)
    return made


class Batch:
    """Ids, offsets and a result of ``width`` columns, as an inference session has them."""

    def __init__(self, bags: Bags, width: int) -> None:
        self.bags = bags
        self.ids = bags.indices.astype(np.uint32)
        self.offsets = bags.offsets.astype(np.uint32)
        self.sums = np.full((bags.count, width), 7, np.float32)

    def values(self, slot: int, first: int, last: int, column: int) -> dict[str, int]:
        """A request for bags ``first`` to ``last - 1``, with sums from ``column`` on."""
        return {
            "table": slot,
            "bags": last - first,
            "first": int(self.offsets[first]),
            "ids": int(self.offsets[last]),
            "id_bytes": 4,
            "offsets": self.offsets[first:].ctypes.data,
            "indices": self.ids.ctypes.data,
            "result": self.sums[first:, column:].ctypes.data,
            "stride": self.sums.strides[0],
            "owner": first,
        }


def batch(rows: int, count: int = 20, width: int = 50) -> Batch:
    rng = np.random.default_rng(count)
    lengths = rng.integers(0, 90, count)
    return Batch(bags_of(lengths, rng.integers(0, rows, int(lengths.sum()))), width)


def wanted(rows: Rows, made: Batch) -> Rows:
    return sums_in_order(rows, made.bags)


def test_in_place(rig: Rig) -> None:
    """Pieces of one batch, each with its own first id, put their sums side by side into rows of any width."""
    handle, table = rig.open(1000, 32, SPAN), rows_of(rig, 32, SPAN)
    slot, made = handle % MAX_TABLES, batch(1000)
    before = {name: int(rig.tables.records[slot][name]) for name in ("requests", "bags", "vectors")}
    for first in range(0, 20, 5):
        assert rig.enqueue(rig.own(made.values(slot, first, first + 5, 9))) == 0
    assert rig.tables.records[slot]["active"] == 4
    rig.run()
    settled = [rig.pop_settled() for _ in range(5)]
    assert settled[-1] == -1
    records = rig.memory.requests[settled[:-1]]
    assert sorted(records["owner"].tolist()) == [0, 5, 10, 15]
    assert (records["state"] == READY).all()
    assert (records["ready"] > 0).all()
    assert not records["status"].any()
    assert equal(np.ascontiguousarray(made.sums[:, 9:41]), wanted(table, made))
    assert (made.sums[:, :9] == 7).all()
    assert (made.sums[:, 41:] == 7).all()
    stats = rig.tables.records[slot]
    assert (stats["requests"] - before["requests"], stats["bags"] - before["bags"]) == (4, 20)
    assert stats["vectors"] - before["vectors"] == len(made.ids)
    for number in settled[:-1]:
        rig.give(number)
    assert rig.tables.records[slot]["active"] == 0
    assert (rig.memory.requests["state"] == FREE).all()
    rig.tables.close(0, handle)


def test_checked(rig: Rig) -> None:
    """Bad ids and offsets are found at their absolute position, and the request can be given back."""
    handle = rig.open(1000, 32, SPAN)
    made = batch(1000)
    number = rig.own(made.values(handle % MAX_TABLES, 5, 10, 0))
    at = int(made.offsets[5]) + 3
    good, made.ids[at] = int(made.ids[at]), 1000
    assert (rig.enqueue(number), rig.position) == (Status.LOOKUP_INDEX_RANGE, at)
    made.ids[at] = good
    made.offsets[7] -= made.offsets[7]
    assert (rig.enqueue(number), rig.position) == (Status.LOOKUP_OFFSETS, 2)
    rig.give(number)
    assert (rig.memory.requests["state"] == FREE).all()
    assert not rig.tables.records["active"].any()
    rig.tables.close(0, handle)


def test_beside_tags(rig: Rig) -> None:
    """All such requests in use leave the tags theirs, and the other way round; each comes out where it belongs."""
    handle, table = rig.open(1000, 32, SPAN), rows_of(rig, 32, SPAN)
    made = batch(1000, 2, 32)
    values = made.values(handle % MAX_TABLES, 0, 1, 0)
    numbers = [rig.own(values) for _ in range(REQUESTS - TAGGED)]
    assert rig.own(values) == -1
    for number in numbers[1:]:
        rig.give(number)
    assert rig.send(payload(handle, np.array([1, 2]), np.array([0, 2]), 32)) == 0
    assert rig.enqueue(numbers[0]) == 0
    rig.run()
    assert equal(rig.take(1, 32).sums[0], table[1] + np.float32(0) + table[2])
    assert [rig.pop_settled(), rig.pop_settled()] == [numbers[0], -1]
    rig.give(numbers[0])
    rig.tables.close(0, handle)


def test_abandoned(rig: Rig) -> None:
    """What its owner abandons, queued or under way, frees itself and touches none of the owner's memory any more."""
    handle = rig.open(1000, 32, SPAN)
    made = batch(1000)
    numbers = [rig.own(made.values(handle % MAX_TABLES, first, first + 5, 0)) for first in (0, 5, 10)]
    assert [rig.enqueue(number) for number in numbers] == [0, 0, 0]
    rig.run(1)
    before = made.sums.copy()
    for number in numbers:
        rig.abandon(number)
    rig.run()
    assert rig.pop_settled() == -1
    assert np.array_equal(made.sums, before)
    assert (rig.memory.requests["state"] == FREE).all()
    assert rig.lookup["reading"][0] == rig.lookup["head"][0] == -1
    rig.tables.close(0, handle)


def test_mean(rig: Rig) -> None:
    """A mean is the sum divided once by the number of ids; an empty bag's is zero."""
    handle, table = rig.open(1000, 32, SPAN), rows_of(rig, 32, SPAN)
    made = batch(1000, 12, 32)
    lengths = np.diff(made.bags.offsets)
    assert rig.enqueue(rig.own({**made.values(handle % MAX_TABLES, 0, 12, 0), "mean": 1})) == 0
    rig.run()
    rig.give(rig.pop_settled())
    assert equal(made.sums, wanted(table, made) / np.maximum(lengths, 1).astype(np.float32)[:, None])
    rig.tables.close(0, handle)
