"""Tables and a model over two drives: equal answers, time that both share, and one drive that dies."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from emucsd import Drive
from emucsd.errors import InvalidArgument
from emucsd.lookup import IndexOutOfRange
from emucsd.sharding import Fleet, ShardedTable, ShardedTables, ShardLost
from emucsd.table import Table, lookup_many
from emucsd.traces import Bags, bags_of, sums_in_order

ROWS, DIM = 4000, 32


def start() -> Drive:
    return Drive.start("rmssd", size=32 << 20, clock="virtual", memory=64 << 20)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with start() as first, start() as second, Fleet([first, second]) as both:
        yield both


def some_bags(seed: int, bags: int = 100, length: int = 40) -> Bags:
    rng = np.random.default_rng(seed)
    return bags_of(np.full(bags, length), rng.integers(0, ROWS, bags * length))


def test_row_wise(fleet: Fleet) -> None:
    """Rows dealt to two drives sum up within FP32's rounding, the same in every run; reads and writes go by ids."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((ROWS + 1, DIM), np.float32)
    bags = some_bags(1)
    with ShardedTable.create(fleet, "wide", rows) as table:
        assert (len(table), table.dim) == (ROWS + 1, DIM)
        sums = table.lookup(*bags.pair)
        assert np.allclose(sums, sums_in_order(rows, bags), rtol=1e-5, atol=1e-5)
        assert np.array_equal(sums, table.lookup(*bags.pair))
        assert np.array_equal(table.lookup([[7, 8], [9, 9]], mode="mean")[1], rows[9])
        rows[101:404] = rng.standard_normal((303, DIM), np.float32)
        table.write_rows(101, rows[101:404])
    with ShardedTable.open(fleet, "wide") as again:
        assert np.array_equal(again.read_rows(), rows)
        assert np.array_equal(again.read_rows(101, 1), rows[101:102])
        with pytest.raises(IndexOutOfRange) as caught:
            again.lookup([3, ROWS + 1], [0])
        assert (caught.value.position, caught.value.value) == (1, ROWS + 1)
        with pytest.raises(InvalidArgument, match="rows"):
            again.read_rows(ROWS, 2)
    ShardedTable.drop(fleet, "wide")
    assert [Table.list(drive) for drive in fleet.drives] == [[], []]
    with pytest.raises(InvalidArgument, match="each needs one"):
        ShardedTable.create(fleet, "tiny", rows[:1])


def test_table_wise(fleet: Fleet) -> None:
    """Whole tables over two drives give one drive's sums to the bit, in half of its time."""
    rng = np.random.default_rng(0)
    data = {f"t{number}": rng.standard_normal((ROWS, DIM), np.float32) for number in range(4)}
    asked = [some_bags(number, 400) for number in range(4)]
    first = fleet.drives[0]
    alone = [Table.create(first, f"alone-{name}", rows) for name, rows in data.items()]
    began = first.clock.now
    wanted = lookup_many(alone, [bags.pair for bags in asked])
    one = first.clock.now - began
    fleet.align()
    with ShardedTables.create(fleet, data, [80, 80, 80, 80]) as tables:
        assert sorted(tables.places) == [0, 0, 1, 1]
        began = fleet.now
        found = tables.lookup([bags.pair for bags in asked])
        two = fleet.now - began
        for mine, right in zip(found, wanted, strict=True):
            assert np.array_equal(mine, right)
        assert 1.9 < one / two < 2.1
        again = tables.lookup_batches([[bags.part(at, at + 50).pair for bags in asked] for at in (0, 50)])
        assert np.array_equal(again[1][3], wanted[3][50:100])
        with pytest.raises(InvalidArgument, match="there are 4"):
            tables.lookup([asked[0].pair])
    for table in alone:
        table.close()
    with pytest.raises(InvalidArgument, match="no drive"):
        ShardedTables(Fleet(fleet.drives[1:]), alone[:1])


def test_clocks_are_one(fleet: Fleet) -> None:
    """After a joint step both drives' clocks have passed as far, and the host's thinking passes on both."""
    with ShardedTable.create(fleet, "clocks", (ROWS, DIM)) as table:
        for number in range(3):
            table.lookup(np.arange(number, 200, 2), [0])  # one drive has all the work
            passed = {fleet._passed(drive) for drive in range(2)}
            assert len(passed) == 1
        before = fleet.now
        fleet.think(12_345)
        assert fleet.now == before + 12_345
    ShardedTable.drop(fleet, "clocks")


def test_a_drive_that_dies() -> None:
    """When one drive's process ends, what it holds is named, at once and ever after; the other one serves on."""
    rows = np.ones((100, 8), np.float32)
    with start() as first, start() as second, Fleet([first, second]) as fleet:
        table = ShardedTable.create(fleet, "t", rows)
        assert table.lookup([1, 2, 3], [0])[0, 0] == 3
        assert second.process is not None
        second.process.kill()
        for _ in range(2):
            with pytest.raises(ShardLost) as caught:
                table.lookup([1, 2, 3], [0])
            assert caught.value.number == 1
            assert caught.value.held == ("t.1of2",)
        assert table.shards[0].lookup([1, 2, 3], [0])[0, 0] == 3
        table.close()
