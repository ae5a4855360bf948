"""Tables and lookups through the client, on real drive processes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from emucsd import Drive
from emucsd.errors import DriveDied, InvalidArgument, InvalidNamespace, LookupRefused, NvmeError
from emucsd.lookup import GROUP, IDS, IndexOutOfRange, RowUnreadable, lookups_of
from emucsd.table import NotATable, Table, TableClosed, TableShapeError, lookup_many
from emucsd.traces import Bags, bags_of, sums_in_order
from emucsd.volume import UNIT, NameTaken, NameUnknown, Volume, VolumeFull, VolumeMissing
from emucsd_wire.nvme import Io, Status
from emucsd_wire.vendor import MAX_TAGS, TABLE_ENTRY, TABLE_LIST_BYTES, VendorAdmin, name_hash

Rows = NDArray[np.float32]

ROWS, DIM = 20_000, 32


@pytest.fixture(scope="module")
def drive() -> Iterator[Drive]:
    with Drive.start("rmssd", size=32 << 20, clock="virtual", queues=2, memory=256 << 20) as started:
        yield started


def made(rows: int, dim: int, seed: int = 0) -> Rows:
    """Rows whose sums depend on the order of additions."""
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.integers(-3, 4, (rows, 1))
    return (rng.standard_normal((rows, dim)) * scale).astype(np.float32)


@pytest.fixture(scope="module")
def rows() -> Rows:
    return made(ROWS, DIM)


@pytest.fixture(scope="module")
def table(drive: Drive, rows: Rows) -> Iterator[Table]:
    with Table.create(drive, "shared", rows) as created:
        yield created


def equal(left: Rows, right: Rows) -> bool:
    """Bit for bit."""
    return bool(np.array_equal(left.view(np.uint32), right.view(np.uint32)))


def random_bags(lengths: list[int] | NDArray[np.int64], rows: int, seed: int = 0) -> Bags:
    counts = np.asarray(lengths, np.int64)
    return bags_of(counts, np.random.default_rng(seed).integers(0, rows, int(counts.sum())))


# -- lookups


@pytest.mark.parametrize("grain", ["vector", "page"])
def test_lookup(table: Table, rows: Rows, grain: str) -> None:
    """Sums equal NumPy's in index order bit for bit, and an empty bag is zeros."""
    bags = random_bags([80, 0, 1, 7, 0], ROWS)
    sums = table.lookup(bags.indices, bags.offsets[:-1], grain=grain)  # type: ignore[arg-type]
    assert equal(sums, sums_in_order(rows, bags))
    assert (len(table), table.dim, table.dtype) == (ROWS, DIM, np.dtype(np.float32))


def test_equals_torch(table: Table, rows: Rows) -> None:
    """The same arguments give torch.nn.functional.embedding_bag's answer, bit for bit."""
    torch = pytest.importorskip("torch")
    bags = random_bags([80] * 50 + [0, 3], ROWS, 5)
    theirs = torch.nn.functional.embedding_bag(
        torch.from_numpy(bags.indices), torch.from_numpy(rows), torch.from_numpy(bags.offsets[:-1]), mode="sum"
    )
    assert equal(table.lookup(bags.indices, bags.offsets[:-1]), theirs.numpy())


def test_forms_of_arguments(drive: Drive, table: Table, rows: Rows) -> None:
    """Lists, two-dimensional indices, a last offset, and outputs in the drive's memory or not all mean the same."""
    ids = np.arange(12).reshape(3, 4)
    wanted = sums_in_order(rows, Bags(ids.reshape(-1), np.array([0, 4, 8, 12])))
    for dtype in (np.int32, np.uint16, np.uint64):
        assert equal(table.lookup(ids.astype(dtype)), wanted)
    assert equal(table.lookup(ids.reshape(-1).tolist(), [0, 4, 8]), wanted)
    assert equal(table.lookup(ids.reshape(-1), [0, 4, 8, 12], include_last_offset=True), wanted)
    for out in (np.empty((3, DIM), np.float32), drive.alloc((3, DIM), np.float32)):
        assert table.lookup(ids, out=out) is out
        assert equal(out, wanted)
    assert table.lookup([], []).shape == (0, DIM)
    assert table.lookup(np.empty((2, 0), int)).tolist() == np.zeros((2, DIM)).tolist()


def test_many_requests(table: Table, rows: Rows) -> None:
    """More bags than a request and a group of requests hold, and a bag longer than a request: the order stays."""
    lengths = [5] * 30_000 + [3 * IDS, 0, 140_000, 2, 300_000, 1]
    bags = random_bags(lengths, ROWS)
    assert len(bags.indices) > GROUP * IDS
    assert equal(table.lookup(bags.indices, bags.offsets[:-1]), sums_in_order_fast(rows, bags))


def sums_in_order_fast(rows: Rows, bags: Bags) -> Rows:
    """As ``sums_in_order``, for a few very long bags."""
    lengths = np.diff(bags.offsets)
    usual = np.minimum(lengths, 5)
    heads = np.concatenate([np.arange(s, s + n) for s, n in zip(bags.offsets[:-1], usual, strict=True)])
    sums = sums_in_order(rows, bags_of(usual, bags.indices[heads]))
    for bag in np.flatnonzero(lengths > 5):
        for row in bags.indices[bags.offsets[bag] + 5 : bags.offsets[bag + 1]]:
            sums[bag] += rows[row]
    return sums


@settings(max_examples=25)
@given(st.data())
def test_any_table(drive: Drive, data: st.DataObject) -> None:
    """Any width, in any number of extents, from an array or in chunks: what is stored is what is read and summed."""
    dim = data.draw(st.one_of(st.integers(1, 100), st.sampled_from([1000, 2048, 8192])))
    count = data.draw(st.integers(1, max(min(3000, (1 << 20) // (4 * dim)), 2)))
    extent = data.draw(st.sampled_from([None, UNIT, 3 * UNIT]))
    values, cuts = made(count, dim, count), sorted(data.draw(st.lists(st.integers(0, count), max_size=4)))
    source: tuple[object, ...] = (values,)
    if data.draw(st.booleans()):
        source = ((count, dim), iter(np.split(values, cuts)))
    lengths = data.draw(st.lists(st.sampled_from([0, 1, 5, 90]), min_size=1, max_size=20))
    bags = random_bags(lengths, count)
    with Table.create(drive, "any", *source, extent_bytes=extent) as table:  # type: ignore[arg-type]
        try:
            assert equal(table.read_rows(), values)
            assert equal(table.lookup(bags.indices, bags.offsets[:-1]), sums_in_order(values, bags))
        finally:
            table.close()
            Table.drop(drive, "any")


def test_lookup_many(drive: Drive, table: Table, rows: Rows) -> None:
    """Several tables are asked together, more than a group of requests holds."""
    with Table.create(drive, "second", made(50, 3)) as second:
        tables = [table, second] * (GROUP + 1)
        bags = [random_bags([4, 0, 9], len(t), n) for n, t in enumerate(tables)]
        sums = lookup_many(tables, [(b.indices, b.offsets[:-1]) for b in bags])
        for found, some, which in zip(sums, bags, tables, strict=True):
            assert equal(found, sums_in_order(rows if which is table else made(50, 3), some))
    Table.drop(drive, "second")
    with pytest.raises(InvalidArgument, match="2 tables, 1 sets"):
        lookup_many([table, table], [([1], [0])])


def test_threads(table: Table, rows: Rows) -> None:
    """Lookups from several threads at once do not mix."""
    wrong: list[int] = []

    def work(seed: int) -> None:
        for turn in range(5):
            bags = random_bags([80] * 20, ROWS, 100 * seed + turn)
            if not equal(table.lookup(bags.indices, bags.offsets[:-1]), sums_in_order(rows, bags)):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# -- refusals


@pytest.mark.parametrize("value", [ROWS, -1, 1 << 32, 1 << 40])
def test_id_out_of_range(table: Table, value: int) -> None:
    """The first id out of range is named by position and value, in the first request or a later one."""
    for position in (0, 3, 5 * IDS + 1):
        ids = np.zeros(6 * IDS, np.int64)
        ids[position] = value
        ids[-1] = ROWS
        with pytest.raises(IndexOutOfRange) as caught:
            table.lookup(ids, np.arange(0, 6 * IDS, 100))
        assert (caught.value.position, caught.value.value, caught.value.rows) == (position, value, ROWS)
        assert isinstance(caught.value.__cause__, LookupRefused)
    assert len(lookups_of(table.drive)._tags) == MAX_TAGS
    assert table.lookup([1], [0]).any()


@pytest.mark.parametrize(
    ("indices", "offsets", "text"),
    [
        ([1.5], [0], "whole numbers"),
        ([1], None, "without offsets"),
        ([[1]], [0], "one row"),
        ([1], [0.5], "one row"),
        ([1, 2], [1], r"offsets\[0\] = 1"),
        ([1, 2], [0, 2, 1], r"offsets\[2\] = 1"),
        ([1, 2], [0, 3], r"offsets\[2\] = 2"),
        ([1 << 63], [0], "2\\*\\*63"),
    ],
)
def test_bad_arguments(table: Table, indices: object, offsets: object, text: str) -> None:
    """Arguments that make no bags are refused before anything is sent."""
    with pytest.raises(InvalidArgument, match=text):
        table.lookup(indices, offsets)  # type: ignore[arg-type]


def test_bad_outputs(table: Table) -> None:
    """An output of another shape or dtype, and an unknown grain, are named."""
    for out in (np.empty((2, DIM), np.float32), np.empty((1, DIM), np.float64)):
        with pytest.raises(InvalidArgument, match="out is"):
            table.lookup([1], [0], out=out)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="grain"):
        table.lookup([1], [0], grain="row")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((2, 2)),
        np.zeros((2, 2), np.float16),
        np.zeros(4, np.float32),
        np.zeros((0, 4), np.float32),
        np.zeros((4, 0), np.float32),
        np.zeros((1, 8193), np.float32),
        [[1.0]],
        (1, 2, 3),
        (0, 4),
    ],
)
def test_wrong_shapes(drive: Drive, table: Table, data: object) -> None:
    """Rows that are no FP32[rows, dim] are refused before anything is written."""
    free = Volume.open(drive.namespace()).free_bytes
    with pytest.raises(TableShapeError):
        Table.create(drive, "wrong", data)  # type: ignore[arg-type]
    assert Volume.open(drive.namespace()).free_bytes == free


@pytest.mark.parametrize("chunks", [[made(3, 4)], [made(3, 4), made(3, 4)], [made(5, 5)], [made(5, 4).astype(float)]])
def test_wrong_chunks(drive: Drive, table: Table, chunks: list[Rows]) -> None:
    """Chunks that bring other rows than announced leave no table behind."""
    with pytest.raises(TableShapeError):
        Table.create(drive, "wrong", (5, 4), chunks)
    assert "wrong" not in [info.name for info in Table.list(drive)]


def test_names(drive: Drive, table: Table) -> None:
    """Taken, unknown and foreign names are three errors."""
    with pytest.raises(NameTaken):
        Table.create(drive, "shared", made(1, 1))
    with pytest.raises(NameUnknown):
        Table.open(drive, "nobody")
    with pytest.raises(NameUnknown):
        Table.drop(drive, "nobody")
    volume = Volume.open(drive.namespace())
    volume.create("log", 10)
    with pytest.raises(NotATable):
        Table.open(drive, "log")
    volume.remove("log")


def test_no_room(drive: Drive, table: Table) -> None:
    """A table larger than what is free is refused with the sizes."""
    with pytest.raises(VolumeFull, match="bytes are wanted"):
        Table.create(drive, "huge", (1 << 20, 256))


def test_closed() -> None:
    """A closed table says so, and one that a reset has closed, too; opened again it answers. In real time, too."""
    with Drive.start("null", size=16 << 20) as other, Table.create(other, "mortal", made(10, 4)) as mine:
        assert mine.lookup([3], [0]).any()
        other.reset()
        with pytest.raises(TableClosed, match="reset"):
            mine.lookup([3], [0])
        with Table.open(other, "mortal") as again:
            assert equal(again.lookup([3], [0]), made(10, 4)[3:4] + np.float32(0))
        with pytest.raises(TableClosed, match="closed"):
            again.lookup([3], [0])
        Table.drop(other, "mortal")


def test_namespace_gone() -> None:
    """A table whose namespace is formatted, or deleted, is closed; the volume on it is gone, too."""
    with Drive.start("null", size=32 << 20) as drive:
        drive.admin.delete_namespace(1)
        for _ in range(2):
            space = drive.create_namespace(2048)
            table = Table.create(drive, "mortal", made(10, 4), nsid=space.nsid)
            assert table.lookup([3], [0]).any()
            drive.admin.format(space.nsid)
            with pytest.raises(TableClosed):
                table.lookup([3], [0])
            with pytest.raises(VolumeMissing):
                Table.open(drive, "mortal", nsid=space.nsid)
            again = Table.create(drive, "mortal", made(10, 4), nsid=space.nsid)
            drive.admin.delete_namespace(space.nsid)
            with pytest.raises((TableClosed, InvalidNamespace)):
                again.lookup([3], [0])


# -- rows


def test_write_rows(drive: Drive) -> None:
    """Rows can be stored anew, across blocks and extents, and their neighbours stay."""
    values = made(9000, 7)
    with Table.create(drive, "changing", values, extent_bytes=UNIT) as table:
        for first, count in ((0, 1), (17, 500), (8999, 1), (1170, 2)):
            values[first : first + count] = made(count, 7, first + 1)
            table.write_rows(first, values[first : first + count])
        assert equal(table.read_rows(), values)
        bags = random_bags([900] * 10, 9000)
        assert equal(table.lookup(bags.indices, bags.offsets[:-1]), sums_in_order(values, bags))
        with pytest.raises(InvalidArgument, match="rows 8999 to 9000"):
            table.write_rows(8999, made(2, 7))
        with pytest.raises(TableShapeError):
            table.write_rows(0, made(2, 8))
    Table.drop(drive, "changing")


def test_zero_rows(drive: Drive) -> None:
    """A shape without chunks makes rows of zeros, also where another table was before."""
    for _ in range(2):
        with Table.create(drive, "blank", (5000, 16)) as blank:
            assert not blank.lookup(np.arange(5000), [0]).any()
            blank.write_rows(0, made(5000, 16))
        Table.drop(drive, "blank")


def test_unreadable_row(drive: Drive) -> None:
    """A row that the flash has lost is an error that names it; the others are still there; writing it heals it."""
    values = made(64, 32)
    with Table.create(drive, "hurt", values) as table:
        space, first = table.namespace, table.info.extents[0].slba
        space.write_uncorrectable(first + 1, 1)  # rows 4 to 7
        with pytest.raises(RowUnreadable) as caught:
            table.lookup([0, 1, 2, 3, 8, 6, 9], [0, 4])
        assert (caught.value.position, caught.value.value) == (5, 6)
        assert equal(table.lookup([0, 8], [0]), sums_in_order(values, Bags(np.array([0, 8]), np.array([0, 2]))))
        table.write_rows(4, values[4:8])
        assert equal(table.lookup([6], [0]), values[6:7] + np.float32(0))
    Table.drop(drive, "hurt")


# -- the drive's side


def test_beside_block_io(drive: Drive, table: Table, rows: Rows) -> None:
    """Lookups and block I/O share the drive: both get their own data."""
    space = drive.namespace()
    base = space.blocks - 4096
    pattern = np.random.default_rng(3).integers(0, 256, 2 << 20, np.uint8)
    space.write(base, pattern)
    for turn in range(4):
        bags = random_bags([80] * 100, ROWS, turn)
        assert equal(table.lookup(bags.indices, bags.offsets[:-1]), sums_in_order(rows, bags))
        assert np.array_equal(space.read(base, 4096), pattern)
    space.deallocate(base, 4096)


def test_listed_and_counted(drive: Drive, table: Table) -> None:
    """TABLE_LIST tells the open tables, TABLE_STATS what a table's lookups did to the flash."""
    answer = drive.passthrough("admin", VendorAdmin.TABLE_LIST, length=TABLE_LIST_BYTES, cdw10=TABLE_LIST_BYTES)
    entry = TABLE_ENTRY.unpack(answer.data.tobytes())
    assert answer.dw0 == 1
    assert (entry.rows, entry.dim, entry.name_hash) == (ROWS, DIM, name_hash("shared"))
    before = table.stats
    table.lookup(np.arange(100), [0, 50])
    after = table.stats
    assert (after.vectors - before.vectors, after.bags - before.bags, after.requests - before.requests) == (100, 2, 1)
    assert after.flash_reads - before.flash_reads == 100
    assert after.flash_bytes - before.flash_bytes == 100 * 4 * DIM


def test_grain_costs(drive: Drive, table: Table) -> None:
    """Whole pages take the flash longer than vectors do, and virtual time says by how much, every time the same."""
    took = []
    for grain in ("vector", "page", "vector"):
        first = drive.clock.now
        table.lookup(np.arange(0, ROWS, 7), [0], grain=grain)
        took.append(drive.clock.now - first)
    assert took[1] > 1.5 * took[0]


@pytest.mark.parametrize(
    ("opcode", "words", "status"),
    [
        (VendorAdmin.TABLE_CLOSE, {"cdw11": 12345}, Status.LOOKUP_NO_TABLE),
        (VendorAdmin.TABLE_OPEN, {"cdw10": 63}, Status.INVALID_FIELD),
        (VendorAdmin.TABLE_OPEN, {"cdw10": 1 << 31}, Status.INVALID_FIELD),
        (VendorAdmin.TABLE_LIST, {"cdw10": 0}, Status.INVALID_FIELD),
        (VendorAdmin.TABLE_STATS, {"cdw10": 64}, Status.INVALID_FIELD),
    ],
)
def test_bad_admin(drive: Drive, opcode: int, words: dict[str, int], status: Status) -> None:
    """Table commands with wrong sizes or handles are refused with their status."""
    for dword10 in (words.get("cdw10", 0),):
        with pytest.raises(NvmeError) as caught:
            drive.passthrough("admin", opcode, cdw10=dword10, cdw11=words.get("cdw11", 0))
        assert caught.value.status == status


@pytest.mark.parametrize(
    ("opcode", "tag", "size", "status"),
    [
        (Io.LOOKUP_SEND, 256, 64, Status.INVALID_FIELD),
        (Io.LOOKUP_SEND, 1, 8, Status.INVALID_FIELD),
        (Io.LOOKUP_SEND, 1, 2 << 20, Status.COMMAND_SIZE_LIMIT),
        (Io.LOOKUP_READ, 1, 128, Status.LOOKUP_NO_REQUEST),
        (Io.LOOKUP_READ, 256, 128, Status.LOOKUP_NO_REQUEST),
        (Io.LOOKUP_READ, 1, 0, Status.LOOKUP_NO_REQUEST),
    ],
)
def test_bad_lookups(drive: Drive, opcode: int, tag: int, size: int, status: Status) -> None:
    """Lookup commands with impossible tags and sizes are refused with their status."""
    with pytest.raises(NvmeError) as caught:
        drive.passthrough("io", opcode, 1, length=128, cdw10=tag, cdw12=size)
    assert caught.value.status == status


# -- persistence


def dying(drive: Drive, rows: Rows) -> Iterator[Rows]:
    """Chunks of a table; the drive is killed between two of them."""
    assert drive.process is not None
    yield rows
    yield rows
    drive.process.kill()
    yield rows


def test_survives_restart(tmp_path: Path, rows: Rows) -> None:
    """Tables are found by another process after a clean stop and after kill -9; one half written leaves nothing."""
    bags = random_bags([80] * 40, ROWS)
    for turn in range(3):
        with Drive.start("rmssd", size=32 << 20, store=tmp_path, clock="virtual") as drive:
            if turn == 0:
                with pytest.raises(VolumeMissing):
                    Table.open(drive, "kept")
                assert Table.list(drive) == []
                Table.create(drive, "kept", rows).close()
            with Table.open(drive, "kept") as table:
                assert [info.name for info in Table.list(drive)] == ["kept"]
                assert equal(table.lookup(bags.indices, bags.offsets[:-1]), sums_in_order(rows, bags))
            if turn == 1:
                with pytest.raises(DriveDied):
                    Table.create(drive, "half", (3 * ROWS, DIM), dying(drive, rows))
