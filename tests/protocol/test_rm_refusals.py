"""Bad input to inference sessions: each gets its status, has no effect, and the drive serves on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from emucsd.traces import Bags
from emucsd_firmware.mlp.graph import Graph
from emucsd_wire import rm
from emucsd_wire.nvme import Io, Status
from emucsd_wire.rm import RmAdmin, RmFlag
from emucsd_wire.vendor import VendorAdmin
from tests.protocol.io_host import open_drive
from tests.protocol.rm_host import ALL, RmHost, Shape, batch_of, cat, dot, same
from tests.unit.nvme_host import DATA_AT

LAYER_AT = rm.RM_MODEL.size
LAYER = rm.RM_LAYER


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RmHost]:
    settings: dict[str, Any] = {"mlp.dram_bytes": 1 << 20}
    with open_drive(tmp_path_factory.mktemp("drive"), "null", **settings) as drive:
        yield RmHost(drive)


class Opened:
    """A session that works, and what it is asked after every refusal."""

    def __init__(self, host: RmHost) -> None:
        self.host, self.shape = host, Shape(cat(), depth=2)
        self.tables = host.tables(self.shape.graph)
        self.number = host.open(self.shape, self.tables)
        self.batch = batch_of(self.tables, 5, np.full((2, 6), 3), 1)
        self.wanted = self.shape.answer(self.tables, self.batch)

    def works(self) -> bool:
        return same(self.host.infer(self.number, self.shape, self.batch, 200), self.wanted)


@pytest.fixture(scope="module")
def opened(host: RmHost) -> Opened:
    return Opened(host)


# -- RM_OPEN

Change = Callable[[bytearray], None]


def model(**values: Any) -> Change:
    """The header with other values."""

    def change(data: bytearray) -> None:
        header = rm.RM_MODEL.unpack(data)._replace(**values)
        data[: rm.RM_MODEL.size] = rm.RM_MODEL.pack(header)

    return change


def layer(number: int, **values: Any) -> Change:
    """A layer with other values."""

    def change(data: bytearray) -> None:
        at = LAYER_AT + number * LAYER.size
        data[at : at + LAYER.size] = LAYER.pack(LAYER.unpack(data, at)._replace(**values))

    return change


def table(number: int, **values: Any) -> Change:
    """A table with other values; the model has four layers."""

    def change(data: bytearray) -> None:
        at = LAYER_AT + 4 * LAYER.size + number * rm.RM_TABLE.size
        data[at : at + rm.RM_TABLE.size] = rm.RM_TABLE.pack(rm.RM_TABLE.unpack(data, at)._replace(**values))

    return change


def cut(data: bytearray) -> None:
    del data[-4:]


BAD_MODELS: list[tuple[str, Change, Status]] = [
    ("version", model(version=2), Status.INVALID_FIELD),
    ("flags", model(flags=0x8000), Status.INVALID_FIELD),
    ("interaction", model(interaction=2), Status.RM_MODEL),
    ("budget", model(budget=3), Status.RM_MODEL),
    ("depth 0", model(depth=0), Status.RM_MODEL),
    ("depth 9", model(depth=9), Status.RM_MODEL),
    ("no samples", model(samples=0), Status.RM_MODEL),
    ("many samples", model(samples=rm.MAX_SAMPLES + 1), Status.RM_MODEL),
    ("dense width", model(dense=6), Status.RM_MODEL),
    ("groups", model(bottom=1, top=3), Status.RM_MODEL),
    ("short", cut, Status.RM_MODEL),
    ("dot of different widths", model(interaction=1), Status.RM_MODEL),
    ("layers with NO_MLP", model(flags=RmFlag.NO_MLP), Status.RM_MODEL),
    ("bottom chain", layer(0, outputs=13), Status.RM_MODEL),
    ("concatenation", layer(1, outputs=7), Status.RM_MODEL),
    ("top chain", layer(3, inputs=32), Status.RM_MODEL),
    ("no outputs", layer(3, outputs=0), Status.RM_MODEL),
    ("activation", layer(2, activation=3), Status.RM_MODEL),
    ("group", layer(2, group=2), Status.RM_MODEL),
    ("kernel", layer(3, kc=3), Status.RM_MODEL),
    ("outputs of a batch", layer(3, outputs=40_000), Status.RM_MODEL),
    ("pooling", table(0, pooling=2), Status.RM_MODEL),
    ("no table", table(1, handle=0), Status.LOOKUP_NO_TABLE),
    ("old table", table(1, handle=999), Status.LOOKUP_NO_TABLE),
]


@pytest.mark.parametrize(("change", "status"), [m[1:] for m in BAD_MODELS], ids=[m[0] for m in BAD_MODELS])
def test_models(host: RmHost, opened: Opened, change: Change, status: Status) -> None:
    """A model that can't be is refused with the status that says why."""
    handles = [table.handle for table in opened.tables]
    data = bytearray(opened.shape.pack(handles))
    change(data)
    assert host.opening(opened.shape, handles, bytes(data)).status == status
    assert opened.works()


def test_other_openings(host: RmHost, opened: Opened) -> None:
    """No top layers, too short a header, dot products of one vector; sizes that no model has."""
    only_bottom = Shape(Graph(dense=5, bottom=cat().bottom, dims=(8, 16)))
    handles = [table.handle for table in opened.tables]
    assert host.opening(only_bottom, handles).status == Status.RM_MODEL
    for count in (0, rm.RM_MODEL.size - 1, rm.RM_OPEN_BYTES + 1):
        assert host.refused(RmAdmin.RM_OPEN, cdw10=count) == Status.INVALID_FIELD
    assert opened.works()


def test_budget_and_dram(host: RmHost, opened: Opened) -> None:
    """Kernels that the FPGA has no room for, and weights beyond the device's DRAM, are refused apart."""
    handles = [table.handle for table in opened.tables]
    huge = cat(dense=512, bottom=(512, 512, 6))
    data = bytearray(Shape(huge).pack(handles))
    for number in range(3):
        layer(number, kr=512, kc=512 if number < 2 else 6)(data)
    assert host.opening(opened.shape, handles, bytes(data)).status == Status.RM_BUDGET
    big = Shape(cat(dense=4096, bottom=(4096, 512, 6)))
    data = bytearray(big.pack(handles))
    model(budget=rm.Budget.XC7A200T)(data)
    assert host.opening(big, handles, bytes(data)).status == Status.RM_DRAM
    wide = Shape(Graph(dense=0, dims=(16,) * 60), flags=RmFlag.NO_MLP | ALL, depth=8, samples=273)
    number = host.open(wide, [opened.tables[1]] * 60)
    assert host.close_session(number).status == 0
    assert opened.works()


def test_too_many_sessions(host: RmHost, opened: Opened) -> None:
    """The seventeenth is refused; a closed one makes room, under another id."""
    shape = Shape(Graph(dense=0, dims=(8,)), flags=RmFlag.NO_MLP)
    numbers = [host.open(shape, opened.tables[:1]) for _ in range(rm.MAX_SESSIONS - 1)]
    assert host.opening(shape, [opened.tables[0].handle]).status == Status.RM_SESSIONS_FULL
    assert host.close_session(numbers[3]).status == 0
    again = host.open(shape, opened.tables[:1])
    assert again not in numbers
    assert again % rm.MAX_SESSIONS == numbers[3] % rm.MAX_SESSIONS
    assert host.close_session(numbers[3]).status == Status.RM_NO_SESSION
    for number in [again, *numbers[:3], *numbers[4:]]:
        assert host.close_session(number).status == 0
    assert opened.works()


def test_a_tables_session(host: RmHost, opened: Opened) -> None:
    """A table of a session can't be closed, until the session is."""
    shape, own = Shape(Graph(dense=0, dims=(4,)), flags=RmFlag.NO_MLP), host.table(10, 4)
    number = host.open(shape, [own])
    assert host.refused(VendorAdmin.TABLE_CLOSE, cdw11=own.handle) == Status.LOOKUP_BUSY
    assert host.close_session(number).status == 0
    host.ok(VendorAdmin.TABLE_CLOSE, cdw11=own.handle)
    assert host.opening(shape, [own.handle]).status == Status.LOOKUP_NO_TABLE
    assert opened.works()


# -- RM_WEIGHTS, RM_CLOSE, RM_INFO


def test_weights(host: RmHost, opened: Opened) -> None:
    """Parts outside of a layer are refused; a batch is, while weights are missing, and says the layer."""
    shape = Shape(cat())
    number = host.open(shape, opened.tables, weights=False)
    assert host.send(number, opened.batch.pack())[1:4] == (Status.RM_WEIGHTS, True, 0)
    sizes = [rm.weight_bytes(layer.inputs, layer.outputs) for layer in shape.graph.layers]
    parameters = [np.concatenate([w.ravel(), b]).tobytes() for w, b in shape.parameters]
    for bad_layer, data, offset in ((4, bytes(4), 0), (0, bytes(4), sizes[0]), (0, bytes(4), 2), (0, bytes(6), 0)):
        assert host.load(number, bad_layer, data, offset).status == Status.RM_WEIGHTS
    assert host.load(number, 0, b"").status == Status.INVALID_FIELD
    assert host.load(number + 16, 0, bytes(4)).status == Status.RM_NO_SESSION
    for index in (0, 1, 3):
        assert host.load(number, index, parameters[index]).status == 0
    half = sizes[2] // 8 * 4
    assert host.load(number, 2, parameters[2][half:], half).status == 0
    assert host.send(number, opened.batch.pack())[1:4] == (Status.RM_WEIGHTS, True, 2)
    assert host.load(number, 2, parameters[2][:half]).status == 0
    assert same(host.infer(number, shape, opened.batch), opened.wanted)
    assert host.load(number, 2, bytes(sizes[2])).status == 0  # anew
    assert not same(host.infer(number, shape, opened.batch), opened.wanted)
    assert host.close_session(number).status == 0
    assert opened.works()


def test_ids_of_sessions(host: RmHost, opened: Opened) -> None:
    """Ids that never were, of closed sessions, and on the other port find nothing."""
    other = RmHost(host.drive, 1)
    numbers = (0, 1, opened.number + 16, 0xFFFF_FFFF)
    for who, number in [(host, n) for n in numbers] + [(other, opened.number)]:
        assert who.close_session(number).status == Status.RM_NO_SESSION
        assert who.refused(RmAdmin.RM_INFO, cdw10=rm.RM_INFO_BYTES, cdw11=number) == Status.RM_NO_SESSION
        assert who.send(number, opened.batch.pack()).status == Status.RM_NO_SESSION
        assert who.receive(number, 48).status == Status.RM_NO_SESSION
        assert who.receive(number, 0).status == Status.RM_NO_SESSION
    assert host.refused(RmAdmin.RM_INFO, cdw10=64, cdw11=opened.number) == Status.INVALID_FIELD
    assert opened.works()


# -- RM_SEND


def header(opened: Opened, **values: Any) -> bytes:
    """The batch with another header."""
    batch = opened.batch
    return batch.pack(header=rm.RmBatch(batch.samples, batch.lookups, 0, bytes(20))._replace(**values))


def changed(opened: Opened, table_: int, position: int, value: int) -> bytes:
    """The batch with another id."""
    bags = [Bags(bags.indices.copy(), bags.offsets) for bags in opened.batch.bags]
    bags[table_].indices[position] = value
    return opened.batch._replace(bags=bags).pack()


def offset(opened: Opened, index: int, value: int) -> bytes:
    """The batch with another offset."""
    data = bytearray(opened.batch.pack())
    at = rm.batch_layout(6, opened.batch.lookups, 0, dense=5, tables=2).offsets + 4 * index
    data[at : at + 4] = value.to_bytes(4, "little")
    return bytes(data)


def test_batches(host: RmHost, opened: Opened) -> None:
    """Sizes, flags, offsets and ids: each refused before any effect, with the position in dw0."""
    rows = [len(table.rows) for table in opened.tables]
    cases: list[tuple[bytes, Status, int]] = [
        (header(opened, samples=5), Status.RM_BATCH, 0),
        (header(opened, samples=7), Status.RM_BATCH, 0),
        (header(opened, samples=65), Status.RM_BATCH, 0),
        (header(opened, samples=0xFFFF_FFFF), Status.RM_BATCH, 0),
        (header(opened, samples=0), Status.RM_BATCH, 0),  # the registers say 0 as well
        (header(opened, lookups=35), Status.RM_BATCH, 0),
        (header(opened, lookups=0xFFFF_FFFF), Status.RM_BATCH, 0),
        (header(opened, flags=rm.RmBatchFlag.WEIGHTED), Status.RM_BATCH, 0),
        (header(opened, flags=rm.RmBatchFlag.WIDE_IDS), Status.RM_BATCH, 0),
        (header(opened, flags=4), Status.INVALID_FIELD, 0),
        (opened.batch.pack()[:-4], Status.RM_BATCH, 0),
        (opened.batch.pack() + bytes(4), Status.RM_BATCH, 0),
        (bytes(rm.RM_BATCH.size - 4), Status.INVALID_FIELD, 0),
        (changed(opened, 0, 4, rows[0]), Status.LOOKUP_INDEX_RANGE, 4),
        (changed(opened, 1, 17, rows[1]), Status.LOOKUP_INDEX_RANGE, 35),
        (changed(opened, 1, 0, 0xFFFF_FFFF), Status.LOOKUP_INDEX_RANGE, 18),
        (offset(opened, 0, 1), Status.LOOKUP_OFFSETS, 0),
        (offset(opened, 5, 19), Status.LOOKUP_OFFSETS, 6),
        (offset(opened, 12, 35), Status.LOOKUP_OFFSETS, 12),
        (offset(opened, 12, 37), Status.LOOKUP_OFFSETS, 12),
        (offset(opened, 7, 0xFFFF_FFFF), Status.LOOKUP_OFFSETS, 7),
    ]
    before = host.info(opened.number)
    for data, status, position in cases:
        done = host.send(opened.number, data)
        assert (done.status, done.dw0) == (status, position)
    assert host.info(opened.number) == before
    wide = bytearray(opened.batch.pack(wide=True))
    wide[-1] = 0x80
    done = host.send(opened.number, bytes(wide))
    assert (done.status, done.dw0) == (Status.LOOKUP_INDEX_RANGE, 35)
    assert opened.works()


def test_commands(host: RmHost, opened: Opened) -> None:
    """Tags, sizes and namespaces that are not there."""
    data = opened.batch.pack()
    assert host.send(opened.number, data, 256).status == Status.INVALID_FIELD
    assert host.receive(opened.number, 48, 256).status == Status.RM_NO_BATCH
    words: dict[str, Any] = {"cdw10": opened.number, "cdw11": 0, "cdw12": rm.MAX_RM_PAYLOAD + 4}
    assert host.io(Io.RM_SEND, data=data, **words).status == Status.COMMAND_SIZE_LIMIT
    assert host.io(Io.RM_WEIGHTS, data=data, **words).status == Status.COMMAND_SIZE_LIMIT
    words["cdw12"] = len(data)
    assert host.io(Io.RM_SEND, 2, data=data, **words).status == Status.INVALID_NAMESPACE
    host.poke(DATA_AT, data)
    assert host.io(Io.RM_SEND, prp1=1 << 40, **words).status == Status.DATA_TRANSFER_ERROR
    assert host.send(opened.number, data).status == 0
    for count in (4, 44, 52, 1 << 20):
        assert host.receive(opened.number, count).status == Status.RM_BATCH
    assert host.receive(opened.number, 48).status == 0
    assert opened.works()


def test_dot_needs_equal_widths(host: RmHost, opened: Opened) -> None:
    """DOT over tables that are as wide as the bottom output, and over no others."""
    shape = Shape(dot(tables=2, dim=8))
    narrow = host.table(20, 4)
    eight = opened.tables[0]
    assert host.opening(shape, [eight.handle, narrow.handle]).status == Status.RM_MODEL
    number = host.open(shape, [eight, eight])
    batch = batch_of([eight, eight], 5, np.full((2, 4), 2), 3)
    assert same(host.infer(number, shape, batch), shape.answer([eight, eight], batch))
    assert host.close_session(number).status == 0


@pytest.mark.parametrize("seed", range(3))
def test_random_batches(host: RmHost, opened: Opened, seed: int) -> None:
    """Batches with random bytes and random models: each is refused or answered, and the drive serves on."""
    rng = np.random.default_rng(seed)
    handles = [table.handle for table in opened.tables]
    kinds = (opened.batch.pack(), opened.batch.pack(wide=True), header(opened, flags=1), header(opened, samples=0))
    for _ in range(150):
        data = bytearray(kinds[rng.integers(len(kinds))])
        for at in rng.integers(0, len(data) if rng.random() < 0.5 else rm.RM_BATCH.size, rng.integers(1, 5)):
            data[at] = rng.integers(256)
        del data[len(data) - int(rng.integers(3)) * 4 :]
        if host.send(opened.number, bytes(data), 7).status == 0:
            assert host.receive(opened.number, 48, 7).status in (0, Status.RM_BATCH)
            assert host.receive(opened.number, 0, 7).status in (0, Status.RM_NO_BATCH)
        model_ = bytearray(opened.shape.pack(handles))
        for at in rng.integers(0, len(model_), rng.integers(1, 4)):
            model_[at] = rng.integers(256)
        done = host.opening(opened.shape, handles, bytes(model_))
        if done.status == 0:
            assert host.close_session(done.dw0).status == 0
    assert opened.works()
