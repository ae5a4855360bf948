"""Inference sessions: outputs bit for bit, batches in flight, mini-batches, and the pipeline's times."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from emucsd_firmware.drive import Drive
from emucsd_firmware.mlp.graph import Graph
from emucsd_firmware.mlp.mapping import Mapping
from emucsd_firmware.session.state import Mini
from emucsd_wire import rm
from emucsd_wire.nvme import Io, Status
from emucsd_wire.rm import Placement, RmFlag
from tests.protocol.io_host import open_drive
from tests.protocol.rm_host import ALL, OUT_AT, RmHost, Shape, batch_of, cat, dot, same
from tests.unit.nvme_host import DATA_AT

FLASH: dict[str, Any] = {"geometry.channels": 2, "geometry.blocks": 64, "link.delay_ns": 0, "link.bytes_per_us": 0}
SMALL: dict[str, Any] = {"mlp.fpga": "XC7A200T", "mlp.share": 0.1, "mlp.dram_bytes_per_us": 2000}  # weights go to DRAM
WIDE = cat(dense=64, bottom=(256, 128, 6))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RmHost]:
    """On flash that takes time, virtual clock."""
    with open_drive(tmp_path_factory.mktemp("drive"), "rmssd", **FLASH) as drive:
        yield RmHost(drive)


@pytest.fixture
def session(host: RmHost) -> Iterator[RmHost]:
    """The host, with whatever it has opened closed again."""
    yield host
    host.close_all()


def lengths(tables: int, samples: int, seed: int = 0, most: int = 6) -> NDArray[np.int64]:
    """Of bags; some are empty."""
    return np.random.default_rng(seed).integers(0, most, (tables, samples))


MODELS = {
    "cat": cat(),
    "cat, one table": cat(dims=(32,)),
    "cat, no bottom": cat(dims=(3, 8, 1), bottom=()),
    "cat, no dense": cat(dims=(8, 4), dense=0, bottom=()),
    "dot": dot(),
    "dot, one table": dot(tables=1, dim=17),
}


@pytest.mark.parametrize("name", MODELS)
def test_outputs(session: RmHost, name: str) -> None:
    """CAT and DOT, tables of different widths, with and without bottom layers, empty bags: NumPy's bits."""
    shape = Shape(MODELS[name])
    tables = session.tables(shape.graph)
    number = session.open(shape, tables)
    for seed, samples in enumerate((1, 7, 64)):
        batch = batch_of(tables, shape.graph.dense, lengths(len(tables), samples, seed), seed)
        assert same(session.infer(number, shape, batch), shape.answer(tables, batch))
    nothing = batch_of(tables, shape.graph.dense, np.zeros((len(tables), 3), np.int64))
    assert same(session.infer(number, shape, nothing), shape.answer(tables, nothing))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("kind", ["mean", "weighted"])
def test_kinds_of_inputs(session: RmHost, kind: str, wide: bool) -> None:
    """Means, weights, and ids of 4 and 8 bytes: NumPy's bits."""
    shape = Shape(cat(dims=(8, 16, 8)), poolings=[0, 1, 0] if kind == "mean" else [])
    tables = session.tables(shape.graph)
    number = session.open(shape, tables)
    batch = batch_of(tables, shape.graph.dense, lengths(3, 21, 1), 1, weighted=kind == "weighted")
    assert same(session.infer(number, shape, batch, wide=wide), shape.answer(tables, batch))


def test_an_update_meanwhile(session: RmHost) -> None:
    """Rows that change while a batch is under way: each sample saw all of the old or of the new, and dw0 says so."""
    shape = Shape(Graph(dense=0, dims=(4,) * 12, top=cat(dims=(4,) * 12, dense=0, bottom=()).top), samples=400)
    tables = [session.table(20, 4, seed) for seed in range(12)]
    number = session.open(shape, tables)
    batch = batch_of(tables, 0, np.full((12, 400), 3, np.int64), 9)
    rows = np.arange(80, dtype=np.float32).reshape(20, 4)
    data = np.arange(20, dtype="<u8").tobytes() + rows.tobytes()
    assert session.send(number, batch.pack()).status == 0
    words = {"cdw10": 20, "cdw11": tables[3].handle, "cdw12": len(data)}
    assert session.io(Io.TABLE_UPDATE, data=data, **words).status == 0
    done = session.receive(number, 8 * 400)
    assert (done.status, done.dw0) == (0, 1)
    found = session.outputs(400, 2)
    old, new = (
        shape.answer(tables, batch),
        shape.answer([*tables[:3], tables[3]._replace(rows=rows), *tables[4:]], batch),
    )
    fresh = (found == new).all(1)
    assert ((found == old).all(1) | fresh).all()
    assert 0 < fresh.sum() < 400
    assert same(session.infer(number, shape, batch), new)  # and dw0 is 0 again


def test_whole_pages(session: RmHost) -> None:
    """With PAGE_GRAIN pages leave the dies: the same outputs, later."""
    seconds, outputs = [], []
    tables = session.tables(cat())
    for flags in (ALL, ALL | RmFlag.PAGE_GRAIN):
        shape = Shape(cat(), flags=flags)
        number = session.open(shape, tables)
        batch = batch_of(tables, shape.graph.dense, np.full((2, 64), 4), 2)
        before = session.drive.clock_now()
        outputs.append(session.infer(number, shape, batch))
        seconds.append(session.drive.clock_now() - before)
        assert same(outputs[-1], shape.answer(tables, batch))
    assert seconds[1] > 1.05 * seconds[0]


def test_sums_alone(session: RmHost) -> None:
    """NO_MLP: the concatenated sums, and no engine is taken."""
    graph = Graph(dense=0, dims=(8, 3, 16))
    shape = Shape(graph, flags=RmFlag.NO_MLP)
    tables = session.tables(graph)
    number = session.open(shape, tables)
    batch = batch_of(tables, 0, lengths(3, 40), 3)
    assert same(session.infer(number, shape, batch), shape.sums(tables, batch))
    info = session.info(number)
    assert (info.out, info.layers, info.lut, info.top_ns, info.inferred) == (27, 0, 0, 0, 40)


def test_a_table_twice(session: RmHost) -> None:
    """A table may stand for two of a model's."""
    graph = cat(dims=(8, 8))
    shape, table = Shape(graph), session.table(60, 8)
    number = session.open(shape, [table, table])
    batch = batch_of([table, table], graph.dense, lengths(2, 9), 4)
    assert same(session.infer(number, shape, batch), shape.answer([table, table], batch))


def test_registers(session: RmHost) -> None:
    """Parameters may come from the registers, and the registers count batches when their time has come."""
    shape = Shape(cat())
    tables = session.tables(shape.graph)
    number = session.open(shape, tables)
    assert session.registers(number) == rm.RmRegisters(0, 0, 0, number, 0, 0, 0, bytes(24))
    batch = batch_of(tables, 5, lengths(2, 8), 5)
    at = rm.RM_REGISTERS_OFFSET + number % rm.MAX_SESSIONS * rm.RM_REGISTERS.size
    for word, value in enumerate((batch.samples, batch.lookups, 0, 77, 78)):
        session.port.region_write(0, at + 4 * word, value.to_bytes(4, "little"))
    assert session.registers(number) == rm.RmRegisters(8, batch.lookups, 0, number, 0, 0, 0, bytes(24))
    blank = rm.RmBatch(0, 0, 0, bytes(20))
    data = batch.pack(header=blank)
    session.poke(OUT_AT, bytes(8))
    session.submit_io(session.sqe(Io.RM_SEND, 1, **command(session, number, data, 0)))
    while session.registers(number).accepted == 0:
        session.drive.step()
    assert session.registers(number).ready == 0
    (done,) = session.wait_io(1)
    while session.registers(number).ready == 0:
        session.drive.step()
    assert session.drive.clock_now() >= finish(session.drive, number)
    answer = session.receive(number, 8 * batch.samples)
    assert (done.status, answer.status) == (0, 0)
    assert same(session.outputs(8, 2), shape.answer(tables, batch))
    assert session.close_session(number).status == 0
    assert session.registers(number) == rm.RmRegisters(0, 0, 0, 0, 0, 0, 0, bytes(24))


def command(host: RmHost, number: int, data: bytes, tag: int) -> dict[str, int]:
    """Put an RM_SEND's data into memory. :returns: the fields of its entry"""
    host.poke(DATA_AT, data)
    prp1, prp2 = host.prps(len(data))
    return {"prp1": prp1, "prp2": prp2, "cdw10": number, "cdw11": tag, "cdw12": len(data)}


def finish(drive: Drive, number: int) -> int:
    """When the session's last batch ended."""
    slot = number % rm.MAX_SESSIONS
    batches = drive.sessions_memory.batches[slot * rm.MAX_DEPTH : (slot + 1) * rm.MAX_DEPTH]
    return int(batches["finish"].max())


# -- several batches in flight


def test_several_batches(session: RmHost) -> None:
    """As many as ``depth`` go in before the first is read; they may be read in any order; one more is refused."""
    shape = Shape(cat(), depth=3)
    tables = session.tables(shape.graph)
    number = session.open(shape, tables)
    batches = [batch_of(tables, 5, lengths(2, 30, seed), seed) for seed in range(4)]
    for tag in (10, 11, 12):
        assert session.send(number, batches[tag - 10].pack(), tag).status == 0
    assert session.send(number, batches[3].pack(), 13).status == Status.RM_BUSY
    assert session.send(number, batches[0].pack(), 11).status == Status.RM_BUSY
    for tag in (12, 10, 11):
        assert session.receive(number, 8 * 30, tag).status == 0
        assert same(session.outputs(30, 2), shape.answer(tables, batches[tag - 10]))
    assert session.registers(number)[4:7] == (3, 3, 0)
    assert session.receive(number, 8 * 30, 10).status == Status.RM_NO_BATCH


def test_without_pipeline(session: RmHost) -> None:
    """Without PIPELINE the next batch is refused until the one before has been read."""
    shape = Shape(cat(), flags=ALL & ~RmFlag.PIPELINE, depth=4)
    tables = session.tables(shape.graph)
    number = session.open(shape, tables)
    batch = batch_of(tables, 5, lengths(2, 4), 6)
    assert session.send(number, batch.pack(), 0).status == 0
    session.drive.step(500)
    assert session.send(number, batch.pack(), 1).status == Status.RM_BUSY
    assert session.receive(number, 8 * 4).status == 0
    assert same(session.infer(number, shape, batch, 1), shape.answer(tables, batch))
    assert session.info(number).depth == 1


def test_sessions_side_by_side(session: RmHost) -> None:
    """Three models at work at once, each with batches in flight, all answer right."""
    shapes = [Shape(cat()), Shape(dot()), Shape(Graph(dense=0, dims=(4, 4)), flags=RmFlag.NO_MLP | ALL)]
    opened = []
    for shape in shapes:
        tables = session.tables(shape.graph)
        opened.append((shape, tables, session.open(shape, tables)))
    sent = []
    for tag in range(2):
        for shape, tables, number in opened:
            batch = batch_of(tables, shape.graph.dense, lengths(len(tables), 50, tag), tag)
            assert session.send(number, batch.pack(), tag).status == 0
            sent.append((shape, tables, number, tag, batch))
    for shape, tables, number, tag, batch in reversed(sent):
        out = shape.graph.outputs
        assert session.receive(number, 4 * 50 * out, tag).status == 0
        assert same(session.outputs(50, out), shape.answer(tables, batch))
    stats = session.drive.stats()["sessions"]
    assert (stats["flying"], stats["backlog"], len(stats["sessions"])) == (0, 0, 3)
    assert [told["inferred"] for told in stats["sessions"]] == [100, 100, 100]


def test_more_requests_than_fly(session: RmHost) -> None:
    """A batch of more mini-batches and tables than requests may be out waits its turn and loses nothing."""
    shape = Shape(cat(dims=(4,) * 12), samples=400)
    tables = [session.table(20, 4, seed) for seed in range(12)]
    number = session.open(shape, tables)
    batch = batch_of(tables, 5, np.ones((12, 400), np.int64), 7)
    assert session.info(number).minibatch * 1024 < 400 * 12
    assert session.send(number, batch.pack()).status == 0
    assert session.drive.stats()["sessions"]["backlog"] == 1
    assert session.receive(number, 8 * 400).status == 0
    assert same(session.outputs(400, 2), shape.answer(tables, batch))


# -- times


def mapping_of(host: RmHost, number: int) -> Mapping:
    return host.drive.sessions._open[number % rm.MAX_SESSIONS].mapping


def ready_times(host: RmHost, number: int, place: int, count: int) -> list[int]:
    """When the sums of each mini-batch were there, of the batch at a place."""
    minis = host.drive.sessions._open[number % rm.MAX_SESSIONS].buffers.minis.view(Mini.dtype)
    samples = len(minis) // host.drive.sessions._open[number % rm.MAX_SESSIONS].buffers.depth
    return minis["ready"][place * samples :][:count].tolist()  # type: ignore[no-any-return]


class Model:
    """The three stages in plain Python."""

    def __init__(self, mapped: Mapping) -> None:
        self.mapped = mapped
        self.embedding = self.bottom = self.top = 0

    def run(self, samples: int, arrived: int, ready: list[int]) -> int:
        """:returns: when a batch's last mini-batch is out"""
        for first, there in zip(range(0, samples, self.mapped.minibatch), ready, strict=True):
            n = min(self.mapped.minibatch, samples - first)
            times = self.mapped
            begun = max(arrived, self.embedding)
            self.embedding = max(there + int(times.tail_ns[n]), begun + int(times.embedding_ns[n]))
            self.bottom = max(arrived, self.bottom) + int(times.bottom_ns[n])
            self.top = max(self.embedding, self.bottom, self.top) + int(times.top_ns[n])
        return self.top


@pytest.mark.parametrize("flags", [ALL, RmFlag.PIPELINE, RmFlag.DECOMPOSE | RmFlag.PIPELINE])
@pytest.mark.parametrize("graph", [cat(), WIDE], ids=["cat", "wide"])
def test_times(tmp_path_factory: pytest.TempPathFactory, flags: RmFlag, graph: Graph) -> None:
    """Batches end when a plain model of the three stages says, mini-batches of one sample and of several."""
    with open_drive(tmp_path_factory.mktemp("timed"), "rmssd", **{**FLASH, **SMALL, "lookup.path_buffer": 4}) as drive:
        host = RmHost(drive)
        shape = Shape(graph, flags=flags, depth=4)
        tables = host.tables(graph)
        number = host.open(shape, tables)
        mapped, model = mapping_of(host, number), Model(mapping_of(host, number))
        if graph is WIDE and flags == ALL:
            assert mapped.minibatch > 1
            assert any(unit.placement == Placement.DRAM for unit in mapped.layers)
        batches = [batch_of(tables, graph.dense, np.full((2, samples), 3), samples) for samples in (33, 1, 64)]
        arrived = []
        for tag, batch in enumerate(batches):
            assert host.send(number, batch.pack(), tag).status == 0
            arrived.append(int(drive.sessions_memory.batches[number % rm.MAX_SESSIONS * rm.MAX_DEPTH + tag]["arrived"]))
        for tag, batch in enumerate(batches):
            assert host.receive(number, 8 * batch.samples, tag).status == 0
            ready = ready_times(host, number, tag, -(-batch.samples // mapped.minibatch))
            assert drive.clock_now() >= model.run(batch.samples, arrived[tag], ready)
            record = drive.sessions_memory.batches[number % rm.MAX_SESSIONS * rm.MAX_DEPTH + tag]
            assert int(record["finish"]) == model.top
            assert same(host.outputs(batch.samples, 2), shape.answer(tables, batch))
        info = host.info(number)
        assert info.lookups == sum(batch.lookups for batch in batches)
        assert info.top_busy_ns == sum(
            int(mapped.top_ns[min(mapped.minibatch, batch.samples - first)])
            for batch in batches
            for first in range(0, batch.samples, mapped.minibatch)
        )


def test_a_read_answers_when_its_time_has_come(session: RmHost) -> None:
    """The completion's virtual time is the batch's end; another run of the same inputs takes the same time."""
    shape = Shape(cat())
    tables = session.tables(shape.graph)
    number = session.open(shape, tables)
    batch = batch_of(tables, 5, np.full((2, 16), 5), 8)
    taken = []
    for tag in range(2):
        start = session.drive.clock_now()
        session.infer(number, shape, batch, tag)
        assert session.drive.clock_now() == finish(session.drive, number)
        taken.append(session.drive.clock_now() - start)
    assert taken[0] == taken[1] > 14_000


def test_info(session: RmHost) -> None:
    """RM_INFO tells layers, kernels, resources and counters as they are."""
    shape = Shape(cat(), depth=2)
    tables = session.tables(shape.graph)
    number = session.open(shape, tables)
    info, mapped = session.info(number), mapping_of(session, number)
    assert (info.bottom, info.top, info.tables, info.dense, info.out, info.depth) == (2, 2, 2, 5, 2, 2)
    assert (info.layers, info.minibatch) == (len(mapped.layers), mapped.minibatch)
    assert (info.lut, info.dsp, info.weights) == (mapped.resources.lut, mapped.resources.dsp, shape.graph.weight_bytes)
    data = session.drive.sessions.info(0, number)[rm.RM_INFO.size :]
    told = [rm.RM_LAYER_INFO.unpack(data, rm.RM_LAYER_INFO.size * n) for n in range(info.layers)]
    assert [(layer.kr, layer.kc) for layer in told] == [(unit.kernel.kr, unit.kernel.kc) for unit in mapped.layers]
    assert data[rm.RM_LAYER_INFO.size * info.layers :].strip(b"\0") == b""
