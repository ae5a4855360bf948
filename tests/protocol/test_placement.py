"""Placed tables on a real drive: asked by ids, equal to the bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from emucsd import Drive
from emucsd.errors import InvalidArgument
from emucsd.lookup import IndexOutOfRange
from emucsd.placement import Placed, Placement, PlacementError, by_coaccess, by_frequency
from emucsd.table import Table
from emucsd.traces import bags_of, sums_in_order
from emucsd.volume import NameUnknown, Volume

ROWS, DIM = 3000, 32


@pytest.fixture(scope="module")
def drive() -> Iterator[Drive]:
    with Drive.start("rmssd", size=16 << 20, clock="virtual", memory=64 << 20) as started:
        yield started


def test_equal_to_the_bit(drive: Drive) -> None:
    """Sums, rows read and rows written by id are those of the table in the order of its ids, also after a reopening."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((ROWS, DIM), np.float32)
    bags = bags_of(np.full(200, 10), rng.integers(0, ROWS, 2000))
    with Placed.create(drive, "hot", rows, by_coaccess(bags, ROWS, 32, 16)) as table:
        assert np.array_equal(table.lookup(*bags.pair), sums_in_order(rows, bags))
        assert np.array_equal(table.lookup(bags.indices.reshape(200, 10)), sums_in_order(rows, bags))
        assert np.array_equal(table.read_rows(40, 70), rows[40:110])
        rows[500:540] = rng.standard_normal((40, DIM), np.float32)
        table.write_rows(500, rows[500:540])
    with Placed.open(drive, "hot") as again:
        assert again.placement.method == "co-access"
        assert (len(again), again.dim, again.name) == (ROWS, DIM, "hot")
        assert np.array_equal(again.lookup(*bags.pair), sums_in_order(rows, bags))
        assert np.array_equal(again.read_rows(), rows)
        assert again.stats.vectors == len(bags.indices)
    Placed.drop(drive, "hot")
    for name in ("hot", "hot.places"):
        assert name not in Volume.open(drive.namespace())


def test_refusals(drive: Drive) -> None:
    """Ids and maps that do not fit are refused before anything is sent or stored."""
    rows = np.zeros((8, 4), np.float32)
    learnt = by_frequency(bags_of(np.array([2]), np.array([5, 5])), 8, 4)
    with Placed.create(drive, "small", rows, learnt) as table:
        for ids, at in (([0, 8], 1), ([-1], 0)):
            with pytest.raises(IndexOutOfRange) as caught:
                table.lookup(ids, [0])
            assert caught.value.position == at
            assert caught.value.value == ids[at]
        with pytest.raises(InvalidArgument, match="float64"):
            table.lookup([0.5], [0])
        with pytest.raises(InvalidArgument, match="rows 7 to 8"):
            table.write_rows(7, rows[:2])
        with pytest.raises(InvalidArgument, match="rows 7 to 8"):
            table.read_rows(7, 2)
    with pytest.raises(PlacementError, match="8 rows"):
        Placed.create(drive, "other", rows[:7], learnt)
    with pytest.raises(PlacementError, match="places empty"):
        Placed.create(drive, "other", rows, Placement(np.zeros(8, np.uint32), "none"))
    assert "other" not in Volume.open(drive.namespace())
    Table.create(drive, "plain", rows).close()
    with pytest.raises(NameUnknown, match="plain"):
        Placed.open(drive, "plain")
    Table.drop(drive, "plain")
    Placed.drop(drive, "small")


def test_changes_by_id(drive: Drive) -> None:
    """Updates, swaps and ids that stand for nothing go by ids as well."""
    rng = np.random.default_rng(3)
    rows, others = rng.standard_normal((2, 64, 8), np.float32)
    bags = bags_of(np.array([5, 3]), rng.integers(0, 64, 8))
    learnt = by_frequency(bags, 64, 16)
    with Placed.create(drive, "one", rows, learnt) as one, Placed.create(drive, "other", others, learnt) as other:
        rows[[7, 60]] = rng.standard_normal((2, 8), np.float32)
        one.update([60, 7], rows[[60, 7]])
        assert np.array_equal(one.lookup(*bags.pair), sums_in_order(rows, bags))
        one.swap(other)
        assert np.array_equal(one.lookup(*bags.pair), sums_in_order(others, bags))
        assert np.array_equal(other.lookup([[1, 63, 2]], padding_idx=-1)[0], rows[1] + rows[2])
        with pytest.raises(InvalidArgument, match="cache_rows"):
            one.prefetch([1, 2])
        third = Placed.create(drive, "third", rows, Placement(learnt.places[::-1].copy(), "other"))
        with third, pytest.raises(PlacementError, match="different maps"):
            one.swap(third)
    for name in ("one", "other", "third"):
        Placed.drop(drive, name)
