"""A host of inference sessions on a whole drive, stepped round by round, and what a session must answer in NumPy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emucsd.traces import Bags, sums_in_order
from emucsd_firmware.drive import Drive
from emucsd_firmware.mlp.graph import Activation, Graph, Interaction
from emucsd_wire import rm
from emucsd_wire.nvme import PAGE, Io
from emucsd_wire.rm import RmAdmin, RmBatchFlag, RmFlag
from emucsd_wire.vendor import TABLE_EXTENT, TABLE_HEADER, TableExtent, TableHeader, VendorAdmin
from tests.protocol.io_host import IoHost
from tests.unit.mlp_rig import chain, parameters, reference
from tests.unit.nvme_host import DATA_AT, IOVA, MIB, Done

F32 = NDArray[np.float32]
OUT_AT = DATA_AT + MIB  # where RM_READ puts outputs
LIST2_AT = IOVA + 3 * PAGE
ALL = RmFlag.DECOMPOSE | RmFlag.COMPOSE | RmFlag.SEARCH | RmFlag.PIPELINE


class Table(NamedTuple):
    """An open table and its rows."""

    handle: int
    rows: F32


class Batch(NamedTuple):
    """Inputs: FP32[samples, dense], and a list of bags for each table."""

    dense: F32
    bags: list[Bags]
    weights: F32 | None = None

    @property
    def samples(self) -> int:
        return len(self.dense)

    @property
    def lookups(self) -> int:
        return sum(len(bags.indices) for bags in self.bags)

    def pack(self, *, wide: bool = False, header: rm.RmBatch | None = None) -> bytes:
        """The data of an RM_SEND."""
        flags = (RmBatchFlag.WIDE_IDS if wide else 0) | (RmBatchFlag.WEIGHTED if self.weights is not None else 0)
        offsets, ids, start = [], [], 0
        for bags in self.bags:
            offsets.append(bags.offsets[:-1] + start)
            ids.append(bags.indices)
            start += len(bags.indices)
        layout = rm.batch_layout(self.samples, start, flags, dense=self.dense.shape[1], tables=len(self.bags))
        data = bytearray(layout.size)
        data[: layout.dense] = rm.RM_BATCH.pack(header or rm.RmBatch(self.samples, start, flags, bytes(20)))
        data[layout.dense : layout.offsets] = self.dense.astype("<f4").tobytes()
        packed = np.concatenate([*offsets, [start]]).astype("<u4").tobytes()
        data[layout.offsets : layout.offsets + len(packed)] = packed
        packed = np.concatenate(ids).astype("<u8" if wide else "<u4").tobytes()
        data[layout.ids : layout.ids + len(packed)] = packed
        if self.weights is not None:
            data[layout.weights :] = self.weights.astype("<f4").tobytes()
        return bytes(data)


@dataclass
class Shape:
    """A model to open, and its parameters."""

    graph: Graph
    flags: int = ALL
    depth: int = 4
    samples: int = 64
    lookups: int = 8
    poolings: list[int] = field(default_factory=list)

    @property
    def parameters(self) -> list[tuple[F32, F32]]:
        return parameters(self.graph)

    def header(self) -> rm.RmModel:
        graph = self.graph
        return rm.RmModel(
            version=1,
            flags=int(self.flags),
            interaction=int(graph.interaction),
            bottom=len(graph.bottom),
            top=len(graph.top),
            depth=self.depth,
            tables=len(graph.dims),
            budget=0,
            dense=graph.dense,
            samples=self.samples,
            lookups=self.lookups,
            reserved=bytes(40),
        )

    def layers(self) -> list[rm.RmLayer]:
        groups = [0] * len(self.graph.bottom) + [1] * len(self.graph.top)
        return [
            rm.RmLayer(layer.inputs, layer.outputs, int(layer.activation), group, 0, 0, 0)
            for layer, group in zip(self.graph.layers, groups, strict=True)
        ]

    def pack(self, handles: list[int]) -> bytes:
        """The data of an RM_OPEN."""
        poolings = self.poolings or [0] * len(handles)
        tables = [rm.RmTable(h, p, bytes(3)) for h, p in zip(handles, poolings, strict=True)]
        parts = [rm.RM_MODEL.pack(self.header()), *map(rm.RM_LAYER.pack, self.layers())]
        return b"".join(parts + [rm.RM_TABLE.pack(table) for table in tables])

    def sums(self, tables: list[Table], batch: Batch) -> F32:
        """The tables' vectors side by side."""
        found, start = [], 0
        for number, (table, bags) in enumerate(zip(tables, batch.bags, strict=True)):
            rows, some = table.rows, bags
            if batch.weights is not None:
                weights = batch.weights[start : start + len(bags.indices)]
                rows = rows[bags.indices] * weights[:, None]
                some = Bags(np.arange(len(bags.indices)), bags.offsets)
            start += len(bags.indices)
            sums = sums_in_order(rows, some)
            if self.poolings and self.poolings[number]:
                sums /= np.maximum(np.diff(bags.offsets), 1).astype(np.float32)[:, None]
            found.append(sums)
        return np.concatenate(found, 1)

    def answer(self, tables: list[Table], batch: Batch) -> F32:
        """What the session must return, bit for bit."""
        sums = self.sums(tables, batch)
        if self.flags & RmFlag.NO_MLP:
            return sums
        return reference(self.graph, self.parameters, batch.dense, sums)


def cat(dims: tuple[int, ...] = (8, 16), dense: int = 5, bottom: tuple[int, ...] = (12, 6)) -> Graph:
    """A small model that concatenates."""
    width = (bottom[-1] if bottom else dense) + sum(dims)
    layers = chain(dense, *bottom) if bottom else ()
    return Graph(dense=dense, bottom=layers, dims=dims, top=chain(width, 33, 2, last=Activation.SIGMOID))


def dot(tables: int = 3, dim: int = 8, dense: int = 5) -> Graph:
    """A small model of dot products."""
    pairs = (tables + 1) * tables // 2
    return Graph(
        dense=dense,
        bottom=chain(dense, 16, dim),
        dims=(dim,) * tables,
        interaction=Interaction.DOT,
        top=chain(dim + pairs, 20, 1, last=Activation.NONE),
    )


def batch_of(
    tables: list[Table], dense: int, lengths: NDArray[np.int64], seed: int = 0, *, weighted: bool = False
) -> Batch:
    """Random inputs. :param lengths: [tables, samples], of each bag"""
    rng = np.random.default_rng(seed)
    bags = [
        Bags(rng.integers(0, len(table.rows), int(row.sum())), np.concatenate([[0], np.cumsum(row)]))
        for table, row in zip(tables, lengths, strict=True)
    ]
    weights = rng.standard_normal(int(lengths.sum())).astype(np.float32) if weighted else None
    return Batch(rng.standard_normal((lengths.shape[1], dense)).astype(np.float32), bags, weights)


class RmHost(IoHost):
    """Commands of sessions, one by one or several in flight."""

    def __init__(self, drive: Drive, number: int = 0) -> None:
        super().__init__(drive, number)
        self.next_lba = 0
        self.handles: list[int] = []

    def table(self, rows: int, dim: int, seed: int = 0) -> Table:
        """Write a table and open it."""
        rng = np.random.default_rng(seed)
        values = (rng.standard_normal((rows, dim)) * 10.0 ** rng.integers(-2, 2, (rows, 1))).astype(np.float32)
        blocks = -(-values.nbytes // self.lba_bytes)
        data = values.tobytes().ljust(blocks * self.lba_bytes, b"\0")
        for at in range(0, blocks, 1024):
            part = data[at * self.lba_bytes : (at + 1024) * self.lba_bytes]
            assert self.put(self.next_lba + at, part) == 0
        header = TableHeader(1, 0, 1, rows, dim, 1, 1000 + self.next_lba)
        extent = TableExtent(0, self.next_lba, blocks, 0)
        self.poke(DATA_AT, TABLE_HEADER.pack(header) + TABLE_EXTENT.pack(extent))
        handle = self.ok(VendorAdmin.TABLE_OPEN, cdw10=TABLE_HEADER.size + TABLE_EXTENT.size)
        self.next_lba += blocks
        self.handles.append(handle)
        return Table(handle, values)

    def close_all(self) -> None:
        """Every session and table of the port."""
        for slot in self.drive.sessions.of_port(self.port.number):
            assert self.close_session(int(self.drive.sessions.records[slot]["id"])).status == 0
        for handle in self.handles:
            self.ok(VendorAdmin.TABLE_CLOSE, cdw11=handle)
        self.handles.clear()
        self.next_lba = 0

    def tables(self, graph: Graph, rows: int = 50) -> list[Table]:
        """One for each of a graph's."""
        return [self.table(rows + 7 * number, dim, number) for number, dim in enumerate(graph.dims)]

    def opening(self, shape: Shape, handles: list[int], data: bytes | None = None) -> Done:
        """RM_OPEN."""
        data = shape.pack(handles) if data is None else data
        self.poke(DATA_AT, data)
        return self.command(RmAdmin.RM_OPEN, cdw10=len(data))

    def open(self, shape: Shape, tables: list[Table], *, weights: bool = True) -> int:
        """Open a session and load its weights. :returns: its id"""
        done = self.opening(shape, [table.handle for table in tables])
        assert done.status == 0, hex(done.status)
        if weights:
            for number, (weight, bias) in enumerate(shape.parameters):
                data = np.concatenate([weight.ravel(), bias]).astype("<f4").tobytes()
                assert self.load(done.dw0, number, data).status == 0
        return done.dw0

    def load(self, session: int, layer: int, data: bytes, offset: int = 0) -> Done:
        """RM_WEIGHTS."""
        return self.io(Io.RM_WEIGHTS, data=data, cdw10=session, cdw11=layer, cdw12=len(data), cdw13=offset)

    def send(self, session: int, data: bytes, tag: int = 0) -> Done:
        """RM_SEND."""
        return self.io(Io.RM_SEND, data=data, cdw10=session, cdw11=tag, cdw12=len(data))

    def ask(self, session: int, count: int, tag: int = 0, at: int = OUT_AT) -> int:
        """RM_READ, left in flight. :returns: its command id"""
        pages = -(-count // PAGE)
        prp2 = at + PAGE if pages == 2 else 0
        if pages > 2:
            self.poke(LIST2_AT, np.arange(at + PAGE, at + pages * PAGE, PAGE, dtype="<u8").tobytes())
            prp2 = LIST2_AT
        words = {"cdw10": session, "cdw11": tag, "cdw12": count}
        return self.submit_io(self.sqe(Io.RM_READ, 1, prp1=at, prp2=prp2, **words))

    def receive(self, session: int, count: int, tag: int = 0, at: int = OUT_AT) -> Done:
        """RM_READ to its end."""
        cid = self.ask(session, count, tag, at)
        (done,) = self.wait_io(1)
        assert done.cid == cid
        return done

    def outputs(self, samples: int, out: int, at: int = OUT_AT) -> F32:
        """What the last RM_READ has brought."""
        return np.frombuffer(self.peek(at, 4 * samples * out), np.float32).reshape(samples, out)

    def infer(self, session: int, shape: Shape, batch: Batch, tag: int = 0, *, wide: bool = False) -> F32:
        """Send and read."""
        done = self.send(session, batch.pack(wide=wide), tag)
        assert done.status == 0, (hex(done.status), done.dw0)
        out = shape.graph.outputs
        done = self.receive(session, 4 * batch.samples * out, tag)
        assert (done.status, done.dw0) == (0, 0)
        return self.outputs(batch.samples, out)

    def close_session(self, session: int) -> Done:
        """RM_CLOSE."""
        return self.command(RmAdmin.RM_CLOSE, cdw11=session)

    def info(self, session: int) -> rm.RmInfo:
        """RM_INFO's record."""
        self.ok(RmAdmin.RM_INFO, cdw10=rm.RM_INFO_BYTES, cdw11=session)
        return rm.RM_INFO.unpack(self.peek(DATA_AT, rm.RM_INFO.size))

    def registers(self, session: int) -> rm.RmRegisters:
        """Its place in BAR0, by message."""
        at = rm.RM_REGISTERS_OFFSET + session % rm.MAX_SESSIONS * rm.RM_REGISTERS.size
        return rm.RM_REGISTERS.unpack(self.port.region_read(0, at, rm.RM_REGISTERS.size))


def same(left: F32, right: F32) -> bool:
    """Bit for bit."""
    return left.shape == right.shape and bool(np.array_equal(left.view(np.uint32), right.view(np.uint32)))
