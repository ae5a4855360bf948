"""Tables beyond stored FP32 sums, on real drive processes: row types, weights, seeds, updates, swaps, rights."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from emucsd import Drive
from emucsd.errors import DriveDied, EmucsdError, InvalidArgument, LookupRefused
from emucsd.lookup import IDS, IndexOutOfRange
from emucsd.rights import READ, WRITE, NoRight, Owner, check_right
from emucsd.rowtypes import DTYPES, decode, encode, generated_rows
from emucsd.table import Table, TableOpen, TableShapeError, generated
from emucsd.traces import Bags, bags_of, sums_in_order
from emucsd.volume import Volume
from emucsd_wire.nvme import Io, Status

Rows = NDArray[np.float32]
ROWS, DIM = 3000, 33


@pytest.fixture(scope="module")
def drive() -> Iterator[Drive]:
    settings = {"lookup.cache_rows": 4096}
    with Drive.start("rmssd", size=64 << 20, clock="virtual", memory=256 << 20, settings=settings) as started:
        yield started


def made(rows: int = ROWS, dim: int = DIM, seed: int = 0) -> Rows:
    """Rows whose sums depend on the order of additions."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, dim)) * 10.0 ** rng.integers(-3, 4, (rows, 1))).astype(np.float32)


def equal(left: Rows, right: Rows) -> bool:
    """Bit for bit."""
    return bool(np.array_equal(left.view(np.uint32), right.view(np.uint32)))


def random_bags(lengths: list[int], rows: int = ROWS, seed: int = 0) -> Bags:
    counts = np.asarray(lengths, np.int64)
    return bags_of(counts, np.random.default_rng(seed).integers(0, rows, int(counts.sum())))


BAGS = random_bags([80, 0, 1, 7, 300])


# -- row types


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row_bytes", [None, 0, 256])
def test_row_types(drive: Drive, dtype: str, row_bytes: int | None) -> None:
    """Rows of every type, within pages or packed: what comes back is what is summed, and it is found again."""
    rows = made()
    wanted = decode(encode(rows, DTYPES[dtype]), DTYPES[dtype], DIM)
    with Table.create(drive, "typed", rows, dtype=dtype, row_bytes=row_bytes) as table:
        assert equal(table.read_rows(), wanted)
        assert equal(table.read_rows(7, 5), wanted[7:12])
        assert equal(table.lookup(BAGS.indices, BAGS.offsets[:-1]), sums_in_order(wanted, BAGS))
        packed = row_bytes == 0 or (row_bytes is None and dtype == "float32")
        assert (table.stats.split == 0) == (not packed)
        table.write_rows(100, made(50, DIM, 1))
        wanted[100:150] = decode(encode(made(50, DIM, 1), DTYPES[dtype]), DTYPES[dtype], DIM)
    with Table.open(drive, "typed") as table:
        assert table.info.dtype == dtype
        assert equal(table.lookup(BAGS.indices, BAGS.offsets[:-1]), sums_in_order(wanted, BAGS))
    Table.drop(drive, "typed")


def test_wrong_types(drive: Drive) -> None:
    """Unknown row types, rows closer than they are long, and quantised seeds are refused before anything is written."""
    for error, options in (
        (InvalidArgument, {"dtype": "float64"}),
        (TableShapeError, {"row_bytes": 131}),
        (InvalidArgument, {"mode": 0o1777}),
    ):
        with pytest.raises(error):
            Table.create(drive, "wrong", made(), **options)
    with pytest.raises(TableShapeError):
        Table.create(drive, "wrong", generated(1, 10, 10), dtype="int8")
    assert "wrong" not in [info.name for info in Table.list(drive)]


# -- weights, means, padding


@pytest.fixture(scope="module")
def table(drive: Drive) -> Iterator[Table]:
    with Table.create(drive, "plain", made()) as created:
        yield created


def test_as_torch(table: Table) -> None:
    """Means equal PyTorch's bit for bit, with padding and without; weighted sums but for its fused multiply-adds."""
    torch = pytest.importorskip("torch")
    bag = torch.nn.functional.embedding_bag
    rows, ids = torch.from_numpy(made()), torch.from_numpy(BAGS.indices)
    starts = torch.from_numpy(BAGS.offsets[:-1])
    padding = int(BAGS.indices[3])
    for mode in ("sum", "mean"):
        for padding_idx in (None, padding, padding - ROWS):
            theirs = bag(ids, rows, starts, mode=mode, padding_idx=padding_idx).numpy()
            mine = table.lookup(BAGS.indices, BAGS.offsets[:-1], mode=mode, padding_idx=padding_idx)
            assert equal(mine, theirs), (mode, padding_idx)
    weights = np.random.default_rng(1).standard_normal(len(BAGS.indices)).astype(np.float32)
    theirs = bag(ids, rows, starts, mode="sum", per_sample_weights=torch.from_numpy(weights)).numpy()
    mine = table.lookup(BAGS.indices, BAGS.offsets[:-1], per_sample_weights=weights)
    assert np.allclose(mine, theirs, rtol=1e-4, atol=1e-2)


def test_weights(table: Table) -> None:
    """Weighted sums are NumPy's, a product and a sum at a time, also of bags longer than a command; so are means."""
    lengths = [5, 0, 3 * IDS, 200_000, 2]
    bags = random_bags(lengths, seed=3)
    weights = np.random.default_rng(2).standard_normal(len(bags.indices)).astype(np.float32)
    rows, wanted, plain = made(), np.zeros((5, DIM), np.float32), np.zeros((5, DIM), np.float32)
    for n in range(5):
        for at in range(bags.offsets[n], bags.offsets[n + 1]):
            row = rows[bags.indices[at]]
            wanted[n] += weights[at] * row
            plain[n] += row
    assert equal(table.lookup(bags.indices, bags.offsets[:-1], per_sample_weights=weights), wanted)
    means = plain / np.maximum(lengths, 1).astype(np.float32)[:, None]
    assert equal(table.lookup(bags.indices, bags.offsets[:-1], mode="mean"), means)
    two = table.lookup([[1, 2], [3, 4]], per_sample_weights=[[1, 0], [0, 1]])
    assert equal(two, rows[[1, 4]] + np.float32(0) * two)


def test_bad_modes(table: Table) -> None:
    """Another mode, weights of another shape, and weighted means are refused."""
    for options in ({"mode": "max"}, {"per_sample_weights": [1, 2]}, {"mode": "mean", "per_sample_weights": [1]}):
        with pytest.raises(InvalidArgument):
            table.lookup([1], [0], **options)


# -- the hot cache


def test_prefetch(drive: Drive) -> None:
    """Rows that were fetched ahead are hits, and quicker."""
    ids = np.arange(0, 2000, 2)
    with Table.create(drive, "fresh", made(), row_bytes=256) as fresh:
        first = drive.clock.now
        fresh.lookup(ids + 1, [0])
        cold = drive.clock.now - first
        fresh.prefetch(ids)
        drive.clock.think(50_000_000)
        hits, first = fresh.stats.hits, drive.clock.now
        fresh.lookup(ids, [0])
        assert fresh.stats.hits - hits == 1000
        assert (drive.clock.now - first) * 5 < cold
        with pytest.raises(IndexOutOfRange):
            fresh.prefetch([ROWS])
    Table.drop(drive, "fresh")


def test_no_cache() -> None:
    """A drive without the cache says how to get one."""
    with Drive.start("null", size=16 << 20) as plain, Table.create(plain, "any", made(10, 4)) as table:
        with pytest.raises(InvalidArgument, match="cache_rows"):
            table.prefetch([1])
        assert table.lookup([1], [0]).any()


# -- generated


def test_generated(drive: Drive) -> None:
    """A generated table is there at once, found again, summed as NumPy makes it, and cannot be changed."""
    rows = generated_rows(77, np.arange(5000), 16)
    bags = random_bags([80] * 50 + [0], 5000)
    Table.create(drive, "made", generated(77, 5000, 16)).close()
    with Table.open(drive, "made") as table:
        assert table.info.seed == 77
        assert equal(table.lookup(bags.indices, bags.offsets[:-1]), sums_in_order(rows, bags))
        assert equal(table.read_rows(10, 20), rows[10:30])
        assert table.stats.unwritten == 0
        with pytest.raises(InvalidArgument, match="generated"):
            table.update([1], rows[:1])
        with pytest.raises(InvalidArgument, match="generated"):
            table.write_rows(1, rows[:1])
        assert not table.namespace.read(table.info.extents[0].slba, 8).any()
        with pytest.raises(LookupRefused):
            drive.passthrough("io", Io.TABLE_UPDATE, 1, data=bytes(72), cdw10=1, cdw11=table._handle().handle, cdw12=72)
    Table.drop(drive, "made")


def test_no_generated_file(tmp_path: Path) -> None:
    """A file holds rows of its own; a seed in their place is refused, and no file is left."""
    with pytest.raises(TableShapeError, match="volume"):
        Table.create_file(tmp_path / "rows", generated(1, 10, 4))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


# -- changes


def test_update(drive: Drive) -> None:
    """Rows are replaced in any order, the last of an id stays, their neighbours too; more than a command at once."""
    for dtype, dim in (("float32", 7), ("int8", 33), ("float32", 2048)):
        count = 4000 if dim < 100 else 300
        rows = made(count, dim)
        with Table.create(drive, "changing", rows, dtype=dtype) as table:
            kind = DTYPES[dtype]
            rows = decode(encode(rows, kind), kind, dim)
            rng = np.random.default_rng(1)
            for size in (1, 5, 2000):
                ids = rng.integers(0, count, size)
                fresh = made(size, dim, size)
                table.update(ids, fresh)
                for number, row in zip(ids, decode(encode(fresh, kind), kind, dim), strict=True):
                    rows[number] = row
                assert equal(table.read_rows(), rows)
                everything = np.arange(count)
                assert equal(table.lookup(everything, everything), rows + np.float32(0))
            assert table.stats.version >= 3
            for wrong in (count, -1, 1 << 40):
                with pytest.raises(IndexOutOfRange):
                    table.update([wrong], made(1, dim))
            with pytest.raises(TableShapeError):
                table.update([1, 2], made(1, dim))
        Table.drop(drive, "changing")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ({"cdw10": 1, "cdw12": 8 + 4 * DIM}, Status.LOOKUP_NO_TABLE),
        ({"cdw10": 0, "cdw12": 0}, Status.INVALID_FIELD),
        ({"cdw10": 2, "cdw12": 8 + 4 * DIM}, Status.INVALID_FIELD),
        ({"cdw10": 1, "cdw12": 2 << 20}, Status.COMMAND_SIZE_LIMIT),
        ({"cdw10": 1, "cdw12": 8 + 4 * DIM}, Status.LOOKUP_INDEX_RANGE),
    ],
)
def test_bad_updates(drive: Drive, table: Table, words: dict[str, int], status: Status) -> None:
    """Updates with wrong sizes, handles and ids are refused, and change nothing."""
    handle = 12345 if status == Status.LOOKUP_NO_TABLE else table._handle().handle
    data = np.full(8 + 4 * DIM, 255, np.uint8)
    with pytest.raises(EmucsdError) as caught:
        drive.passthrough("io", Io.TABLE_UPDATE, 1, data=data, cdw11=handle, **words)  # type: ignore[arg-type]
    assert getattr(caught.value, "status", None) == status
    assert table.stats.updated == 0


def test_never_a_mix() -> None:
    """Readers in a loop see each table wholly as it was or wholly as it is, while it is swapped and updated."""
    count, dim = 600, 16
    everything = np.arange(count)
    with Drive.start("null", size=32 << 20, queues=4, memory=256 << 20) as drive:
        states = [np.full((count, dim), n, np.float32) for n in range(2)]
        tables = [Table.create(drive, f"state{n}", rows) for n, rows in enumerate(states)]
        wrong: list[object] = []
        done = threading.Event()

        def read(table: Table) -> None:
            try:
                while not done.is_set():
                    sums = table.lookup(everything, everything)
                    if len(np.unique(sums)) != 1:
                        wrong.append(np.unique(sums))
            except BaseException as error:
                wrong.append(error)

        readers = [threading.Thread(target=read, args=(table,)) for table in (*tables, tables[0])]
        for reader in readers:
            reader.start()
        try:
            for turn in range(60):
                tables[0].swap(tables[1])
                tables[turn % 2].update(everything, np.full((count, dim), 2 + turn, np.float32))
        finally:
            done.set()
            for reader in readers:
                reader.join()
        assert wrong == []
        assert [t.lookup([5], [0])[0, 0] for t in tables] == [t.read_rows(5, 1)[0, 0] for t in tables]
        for table in tables:
            table.close()


def test_swap_survives(tmp_path: Path) -> None:
    """A swap is there after a kill; so is what an update brought; names keep their owners."""
    for turn in range(3):
        with Drive.start("null", size=32 << 20, store=tmp_path) as drive:
            if turn == 0:
                Table.create(drive, "a", made(seed=1), mode=0o644).close()
                Table.create(drive, "b", made(seed=2)).close()
            with Table.open(drive, "a") as a, Table.open(drive, "b") as b:
                first, second = made(seed=1 + turn % 2), made(seed=2 - turn % 2)
                first[:turn] = second[:turn] = -1
                assert equal(a.read_rows(), first)
                assert equal(b.lookup(np.arange(ROWS), np.arange(ROWS)), second + np.float32(0))
                assert a.info.owner is not None
                assert a.info.owner.mode == 0o644
                a.swap(b)
                for table in (a, b):
                    table.update([turn], np.full((1, DIM), -1, np.float32))
            assert drive.process is not None
            drive.process.kill()
            with pytest.raises(DriveDied):
                drive.namespace()


def test_killed_while_changing(tmp_path: Path) -> None:
    """Killed at any moment of a loop of swaps and updates: each table has one whole state, each row is old or new."""
    count, dim, states = 64, 16, (10, 20)
    for turn in range(3):
        with Drive.start("null", size=32 << 20, store=tmp_path, queues=2) as drive:
            if turn == 0:
                for state in states:
                    Table.create(drive, f"s{state}", np.full((count, dim), state, np.float32)).close()
            first, second = (Table.open(drive, f"s{state}") for state in states)
            found = [table.read_rows() for table in (first, second)]
            assert {int(rows[-1, 0]) // 10 * 10 for rows in found} == set(states)
            for rows in found:
                assert len(np.unique(rows // 10)) == 1
                assert (rows == rows[:, :1]).all()
            assert drive.process is not None
            killer = threading.Timer(0.3 + 0.17 * turn, drive.process.kill)
            killer.start()
            with pytest.raises(EmucsdError):
                _change_for_ever(first, second)
            killer.join()


def _change_for_ever(first: Table, second: Table) -> None:
    """Swap, and change half of the rows within their state (its tens)."""
    half = len(first) // 2
    for step in itertools.count():
        first.swap(second)
        base = int(first.read_rows(len(first) - 1, 1)[0, 0]) // 10 * 10
        first.update(np.arange(half), np.full((half, first.dim), base + step % 10, np.float32))


def test_swap_refused(drive: Drive, table: Table) -> None:
    """Only two tables of one shape and type, of one volume, and not a table with itself."""
    with (
        Table.create(drive, "other", made(ROWS, DIM + 1)) as other,
        Table.create(drive, "eight", made(), dtype="int8") as eight,
        Table.open(drive, "plain") as again,
    ):
        for wrong in (other, eight):
            with pytest.raises(TableShapeError):
                table.swap(wrong)
        with pytest.raises(InvalidArgument, match="itself"):
            table.swap(again)
    for name in ("other", "eight"):
        Table.drop(drive, name)


def test_followed(drive: Drive) -> None:
    """Another handle on a table reads and writes where its rows lie after somebody else's swap."""
    with (
        Table.create(drive, "a", made(seed=1)) as a,
        Table.create(drive, "b", made(seed=2)) as b,
        Table.open(drive, "a") as elsewhere,
    ):
        a.swap(b)
        assert equal(elsewhere.read_rows(), made(seed=2))
        elsewhere.write_rows(0, made(1, DIM, 5))
        assert equal(a.lookup([0], [0]), made(1, DIM, 5) + np.float32(0))
        assert equal(b.read_rows(), made(seed=1))
    for name in "ab":
        Table.drop(drive, name)


# -- rights


def test_drop_open(drive: Drive) -> None:
    """A table that is open is not dropped."""
    with Table.create(drive, "busy", made(10, 4)):
        with pytest.raises(TableOpen, match="busy"):
            Table.drop(drive, "busy")
        assert "busy" in Volume.open(drive.namespace())
    Table.drop(drive, "busy")


def test_rights() -> None:
    """Owner, group and others have what the mode gives them, root everything; a refusal says whose it is."""
    owner = Owner(1000, 100, 0o640)
    allowed = [
        [owner.allows(wanted, uid, frozenset(groups)) for wanted in (READ, WRITE)]
        for uid, groups in ((1000, [5]), (7, [100]), (7, [5]), (0, [5]))
    ]
    assert allowed == [[True, True], [True, False], [False, False], [True, True]]
    check_right("free", None, WRITE)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user for a while")
def test_rights_of_others(drive: Drive) -> None:
    """Another user opens only what the mode allows, changes only what it allows, and makes tables of its own only."""
    Table.create(drive, "mine", made(10, 4)).close()
    Table.create(drive, "shown", made(10, 4), mode=0o644).close()
    os.seteuid(12345)
    try:
        with pytest.raises(NoRight, match=r"user 12345 may not read table 'mine': it is user 0's.*0o600"):
            Table.open(drive, "mine")
        with Table.open(drive, "shown") as table:
            assert table.lookup([1], [0]).any()
            with pytest.raises(NoRight, match="may not change"):
                table.update([1], made(1, 4))
            with pytest.raises(NoRight, match="may not change"):
                table.write_rows(0, made(1, 4))
        with pytest.raises(NoRight):
            Table.drop(drive, "shown")
        with pytest.raises(NoRight):
            Table.create(drive, "theirs", made(10, 4), owner=0)
    finally:
        os.seteuid(0)
    for name in ("mine", "shown"):
        Table.drop(drive, name)
