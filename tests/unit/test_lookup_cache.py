"""The hot cache: what is a hit, what enters, what it saves, and that it never serves a row that has moved."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emucsd.traces import AMAZON, Bags, draw, sums_in_order
from emucsd_firmware.policies import caching
from emucsd_wire.nvme import Status
from emucsd_wire.vendor import MAX_TABLES
from tests.unit.lookup_rig import Answer, Rig, payload
from tests.unit.test_lookup_engine import equal, filled, rows_of

SPAN = [(0, 2048)]
PREFETCH = 8


def make(rows: int = 64, ways: int = 8, **changes: Any) -> Rig:
    rig = Rig(**{"lookup.cache_rows": rows, "lookup.cache_ways": ways, **changes})
    rig.place(list(range(256)))
    filled(rig)
    return rig


def look(rig: Rig, handle: int, ids: list[int] | np.ndarray[Any, Any], now: int = 0) -> Answer:
    """One bag of FP32[32]."""
    indices = np.asarray(ids)
    return rig.answer(payload(handle, indices, np.array([0, len(indices)]), 32), 1, 32, now=now)


def counted(rig: Rig, handle: int) -> tuple[int, int]:
    """(hits, misses) of a table."""
    table = rig.tables.records[handle % MAX_TABLES]
    return int(table["hits"]), int(table["misses"])


def test_hits() -> None:
    """A row that was looked up before is a hit: no flash read, the cache's cycles instead of the array's time."""
    rig = make()
    handle, table = rig.open(8192, 32, SPAN), rows_of(rig, 32, SPAN)
    first = look(rig, handle, [5, 77])
    assert counted(rig, handle) == (0, 2)
    second = look(rig, handle, [5, 77], now=1_000_000)
    assert counted(rig, handle) == (2, 2)
    assert first.ready > 14_000
    assert second.ready == 1_000_000 + 2 * 4 * 5 + 5
    for answer in (first, second):
        assert equal(answer.sums, sums_in_order(table, Bags(np.array([5, 77]), np.array([0, 2]))))
    stats, flash = rig.tables.records[handle % MAX_TABLES], rig.nand.snapshot()["classes"]["lookup"]
    assert stats["flash_reads"] == flash["reads"] == 2
    assert stats["admitted"] == 2


def test_on_its_way() -> None:
    """A row that another request is still reading is no hit; one that the request itself reads need not come twice."""
    rig = make()
    handle = rig.open(8192, 32, SPAN)
    once = look(rig, handle, [9]).ready
    rig.tables.records["hits"], rig.tables.records["misses"] = 0, 0
    other = make()
    twice = look(other, other.open(8192, 32, SPAN), [9, 9, 9])
    assert counted(other, other.open(8192, 32, SPAN)) == (2, 1)
    assert once <= twice.ready <= once + 10 * 5  # its end is that of the one read, but for cycles of 5 ns
    data = payload(handle, np.array([11]), np.array([0, 1]), 32)
    assert [rig.send(data, tag=tag) for tag in (0, 1)] == [0, 0]
    rig.run()
    assert counted(rig, handle) == (0, 2)
    assert [rig.drop(tag) for tag in (0, 1)] == [0, 0]
    look(rig, handle, [9, 11])
    assert counted(rig, handle) == (2, 2)


def test_moved() -> None:
    """A row whose page was written anew, or collected, is read again; its bytes are always the newest."""
    rig = make()
    handle = rig.open(8192, 32, SPAN)
    look(rig, handle, [5])
    old, new = int(rig.map[0]) - 1, int(rig.map[200]) - 1
    rig.media[new] = rig.media[old] ^ 1
    rig.map[0] = new + 1
    found = look(rig, handle, [5])
    assert counted(rig, handle) == (0, 2)
    assert equal(found.sums[0], rig.media[new][5 * 128 : 6 * 128].view(np.float32) + np.float32(0))
    look(rig, handle, [5])
    assert counted(rig, handle) == (1, 2)


def test_admission() -> None:
    """Once a set is full, a row enters at its second touch; the row not used for longest leaves."""
    rig = make(rows=4, ways=4)
    handle = rig.open(8192, 32, SPAN)
    for row in (1, 2, 3, 4, 1):
        look(rig, handle, [row])
    look(rig, handle, [5])
    table = rig.tables.records[handle % MAX_TABLES]
    assert (table["admitted"], table["evicted"]) == (4, 0)
    look(rig, handle, [5])
    assert (table["admitted"], table["evicted"]) == (5, 1)
    hits = int(table["hits"])
    look(rig, handle, [1, 3, 4, 5])
    assert table["hits"] == hits + 4
    look(rig, handle, [2])
    assert table["hits"] == hits + 4


@pytest.mark.parametrize(("touches", "empty", "enters"), [(1, 0, False), (1, 1, True), (2, 0, True), (9, 0, True)])
def test_second_touch(touches: int, empty: int, enters: bool) -> None:
    """The default policy: empty places at once, others at the second touch; the plain one takes every row."""
    assert caching.second_touch(touches, empty, 8) == enters
    assert caching.first_touch(touches, empty, 8)


def test_prefetch() -> None:
    """Prefetched rows are hits later; a prefetch takes flash time, no adders, and neither tag nor request for good."""
    rig = make()
    handle = rig.open(8192, 32, SPAN)
    ids = np.arange(20) * 7
    assert rig.send(payload(handle, ids, np.array([0, 20]), 32, flags=PREFETCH), tag=3) == 0
    assert rig.request(0, tag=3) == -Status.LOOKUP_NO_REQUEST
    assert rig.run() > 14_000
    assert not rig.tables.records["active"].any()
    look(rig, handle, ids)
    assert counted(rig, handle) == (20, 20)
    for flags in (PREFETCH | 4, PREFETCH | 1, 16):
        assert rig.send(payload(handle, ids, np.array([0, 20]), 32, flags=flags)) == Status.INVALID_FIELD
    assert rig.send(payload(handle, ids, np.array([0, 9, 20]), 32, flags=PREFETCH)) == Status.INVALID_FIELD


def test_no_cache() -> None:
    """A drive without the cache counts no hits and misses, and refuses to fetch ahead."""
    rig = Rig()
    rig.place(list(range(256)))
    handle = rig.open(8192, 32, SPAN)
    look(rig, handle, [5])
    look(rig, handle, [5])
    assert counted(rig, handle) == (0, 0)
    data = payload(handle, np.array([1]), np.array([0, 1]), 32, flags=PREFETCH)
    assert rig.send(data) == Status.INVALID_FIELD


def test_generated_rows() -> None:
    """Rows that are made from a seed are cached like others."""
    rig = make()
    handle = rig.open(8192, 32, SPAN, seed=1)
    rig.map[:] = 0
    first, second = look(rig, handle, [3, 4, 900]), look(rig, handle, [3, 4, 900])
    assert equal(first.sums, second.sums)
    assert counted(rig, handle) == (3, 3)


def test_every_knob_counts() -> None:
    """Rows, ways and cycles each change a lookup's time or its hits."""
    ids = draw(AMAZON, 8192, 4000, np.random.default_rng(1))

    def run(**changes: Any) -> tuple[int, int]:
        rig = make(**changes)
        handle, ready = rig.open(8192, 32, SPAN), 0
        for part in np.split(ids, 40):
            ready = look(rig, handle, part, now=ready).ready
        return ready, counted(rig, handle)[0]

    base, base_hits = run(rows=256)
    larger, larger_hits = run(rows=1024)
    assert larger_hits > base_hits
    assert larger < base
    assert run(rows=256, ways=1)[1] != base_hits
    assert run(rows=256, **{"lookup.cache_cycles": 40_000})[0] > base


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.integers(0, 1 << 16))
def test_against_a_model(seed: int) -> None:
    """Hits are those of a dict of sets with the same policy and LRU; sums are NumPy's with any traffic."""
    rng = np.random.default_rng(seed)
    rig = _MODEL
    handle, table = rig.open(8192, 32, SPAN), rows_of(rig, 32, SPAN)
    rig.memory.places["key"] = 0
    _SEEN[:] = 0
    kept: list[int] = []  # of the one set, newest first
    touches: dict[int, int] = {}
    wanted, before = 0, counted(rig, handle)[0]
    for row in rng.integers(0, 12, 120):
        found = look(rig, handle, [int(row)])
        assert equal(found.sums[0], table[row] + np.float32(0))
        if row in kept:
            wanted += 1
            kept.remove(row)
            kept.insert(0, row)
            continue
        empty = len(kept) < 8
        touches[row] = touches.get(row, 0) + 1
        if empty or touches[row] >= 2:
            kept = [row, *kept[:7]]
    assert counted(rig, handle)[0] - before == wanted
    rig.tables.close(0, handle)


_MODEL = make(rows=8, ways=8)
_SEEN = np.zeros(1 << 16, np.uint32)  # so large that no two rows share a counter
_MODEL.lookup["hot"]["seen"], _MODEL.lookup["hot"]["seen_mask"] = _SEEN.ctypes.data, len(_SEEN) - 1
