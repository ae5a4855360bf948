"""RecSSD's host side: tables laid out as its firmware wants them, the hottest rows in host DRAM, sums by its commands.

A lookup goes to the drive as requests of at most 128 bags: a write with pairs (bag, row) in order of rows, and with
it the read that the drive holds until the sums are there. Rows of a *static partition* (the ids that a profiled part
of the trace asks for most, 2000 in the published runs) are added by the host meanwhile. The sums of a bag are those of
the same rows in another order: equal to PyTorch's within FP32 rounding, and the same on every run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emucsd.baselines.costs import load_costs
from emucsd.baselines.host import HostMlp, side_by_side
from emucsd.completion import Completion
from emucsd.drive import Drive
from emucsd.errors import InvalidArgument
from emucsd.namespace import Namespace
from emucsd.passthrough import entry
from emucsd.rm.model import Model
from emucsd.rm.weights import Weights
from emucsd.table import Table
from emucsd.traces import Batch, Recorded
from emucsd_wire.nvme import Io
from emucsd_wire.recssd import (
    FIRST_BLOCK,
    MARK,
    MAX_PAIRS,
    MAX_REQUESTS,
    MAX_SECTORS,
    SECTOR,
    SLS_CONFIG,
    SLS_PAIR,
    STRIDE,
    TABLE_ALIGN,
    TABLE_IDS,
    SlsConfig,
)

Ids = NDArray[np.int64]
Rows = NDArray[np.float32]

Spend = Callable[[str, float], None]  # a kind of ``base.KINDS``, and ns

HOST_ROWS = 2000  # of each table, as published
MOST_BAGS = 128  # of a request, as the published host splits
_READ_DEPTH = 32


class Place(NamedTuple):
    """One table on the drive."""

    rows: int
    dim: int
    start: int  # block of 4 KiB, a multiple of 1000
    first: int = 0  # rows from there to its row 0, for one that begins elsewhere


class Hot(NamedTuple):
    """Rows of a table that the host holds: ids, rising, and their rows."""

    ids: Ids
    rows: Rows


class _Request(NamedTuple):
    """Bags ``first`` to ``first + bags`` of a table, or a piece of a long one."""

    table: int
    first: int
    bags: int
    pairs: NDArray[np.uint32]  # [n, 2]: bag within the request, row


class _Slot:
    """Memory of one request in flight."""

    def __init__(self, drive: Drive) -> None:
        self._drive = drive
        self._config, self._sums = drive.alloc(SECTOR), drive.alloc(SECTOR)
        self.request: _Request | None = None
        self.tokens: tuple[int, int] = (-1, -1)

    def config(self, data: bytes, pairs: NDArray[np.uint32]) -> NDArray[np.uint8]:
        """The write's data, in whole sectors."""
        size = len(data) + pairs.nbytes
        self._config = self._grown(self._config, size)
        self._config[: len(data)] = np.frombuffer(data, np.uint8)
        self._config[len(data) : size] = pairs.reshape(-1).view(np.uint8)
        return self._config[: _sectors(size) * SECTOR]

    def sums(self, size: int) -> NDArray[np.uint8]:
        self._sums = self._grown(self._sums, size)
        return self._sums[: _sectors(size) * SECTOR]

    def taken(self, bags: int, dim: int) -> Rows:
        """What the read brought."""
        found: Rows = self._sums[: 4 * bags * dim].view(np.float32).reshape(bags, dim)
        return found

    def _grown(self, array: NDArray[Any], size: int) -> NDArray[Any]:
        return array if array.nbytes >= size else self._drive.alloc(_sectors(size) * SECTOR)


def _sectors(size: int) -> int:
    return -(-size // SECTOR)


class RecSsdTables:
    """Tables of one drive, looked up as RecSSD does. One thread at a time.

    :param drive: takes RecSSD's commands by its profile (``recssd.enabled``) or, with ``enable``, by its control API
    :param shapes: (rows, dim) of each table, at most 32
    :param nsid: namespace that holds them; what lies there is overwritten by ``load``
    :param stride: blocks of 4 KiB from a table to the next, a multiple of 1000; None: RecSSD's own 2,500,000 where
        the namespace has room for that, else the least that holds the largest table
    :param spend: is told the host's work: its kind and ns; None: it takes no time
    :raises InvalidArgument: more tables, wider rows or more bytes than RecSSD or the namespace takes
    """

    def __init__(
        self,
        drive: Drive,
        shapes: Sequence[tuple[int, int]],
        *,
        nsid: int = 1,
        stride: int | None = None,
        spend: Spend | None = None,
        enable: bool = True,
    ) -> None:
        space = drive.namespace(nsid)
        self._prepare(drive, space, _places(shapes, space.size // SECTOR, stride), spend, enable=enable)

    @classmethod
    def over(cls, tables: Sequence[Table], *, spend: Spend | None = None, enable: bool = True) -> Self:
        """The same over tables that lie on the drive already: each in one extent, with rows that divide 4 KiB.

        RecSSD's tables start at multiples of 1000 blocks; ids are counted from there.

        :raises InvalidArgument: they do not lie so
        """
        self = cls.__new__(cls)
        places = [_place_of(table) for table in tables]
        if not 1 <= len(places) <= TABLE_IDS:
            raise InvalidArgument(f"{len(places)} tables; RecSSD's row cache tells 1 to {TABLE_IDS} apart")
        self._prepare(tables[0].drive, tables[0].namespace, places, spend, enable=enable)
        return self

    def _prepare(
        self, drive: Drive, space: Namespace, places: list[Place], spend: Spend | None, *, enable: bool
    ) -> None:
        self.drive, self.namespace, self.places = drive, space, places
        self._spend, self.costs = spend, load_costs()
        self._most = min(MAX_SECTORS * SECTOR, drive.max_transfer) // SECTOR * SECTOR  # bytes of a command, either way
        self._pairs = min(MAX_PAIRS, (self._most - SLS_CONFIG.size) // SLS_PAIR.size)
        self.hot = [Hot(np.empty(0, np.int64), np.empty((0, place.dim), np.float32)) for place in self.places]
        if enable:
            drive.control.recssd(enabled=True)
        # one less than the drive takes: a request all from its caches is free there a moment after its answer
        self._slots = [_Slot(drive) for _ in range(MAX_REQUESTS - 1)]
        self._turn = 0

    # -- setup

    def load(self, table: int, rows: ArrayLike, first: int = 0) -> None:
        """Write rows of a table, from row ``first`` on; their first and last block must be theirs alone, or the end.

        :raises InvalidArgument: rows of another width, or past the table's end
        """
        place, data = self.places[table], np.ascontiguousarray(rows, np.float32)
        if data.ndim != 2 or data.shape[1] != place.dim or first < 0 or first + len(data) > place.rows:
            raise InvalidArgument(
                f"rows {first} on of shape {list(data.shape)}; table {table} has {place.rows} of {place.dim}"
            )
        at = 4 * place.dim * first
        if at % SECTOR or (4 * place.dim * len(data) % SECTOR and first + len(data) != place.rows):
            raise InvalidArgument(f"rows {first} to {first + len(data)}: begin and end at blocks of {SECTOR} bytes")
        flat = data.reshape(-1).view(np.uint8)
        padded = np.concatenate([flat, np.zeros(-len(flat) % SECTOR, np.uint8)]) if len(flat) % SECTOR else flat
        at += 4 * place.dim * place.first
        self.namespace.write((place.start * SECTOR + at) // self.namespace.lba_bytes, padded)

    def keep(self, sparse: Iterable[Sequence[tuple[ArrayLike, ArrayLike]]], most: int = HOST_ROWS) -> None:
        """Make the static partition: the ``most`` most frequent ids of each table in these batches, the lower first.

        :param sparse: batches, each (indices, offsets) of every table
        """
        counts: list[dict[int, int]] = [{} for _ in self.places]
        for batch in sparse:
            for found, (indices, _) in zip(counts, batch, strict=True):
                ids, times = np.unique(np.asarray(indices, np.int64), return_counts=True)
                for row, number in zip(ids.tolist(), times.tolist(), strict=True):
                    found[row] = found.get(row, 0) + number
        for table, found in enumerate(counts):
            ranked = sorted(found, key=lambda row: (-found[row], row))[:most]
            self.keep_rows(table, np.array(sorted(ranked), np.int64))

    def keep_rows(self, table: int, ids: ArrayLike) -> None:
        """Hold these rows of a table in host DRAM, and no others; they are read from the drive now."""
        kept, place = np.unique(np.asarray(ids, np.int64)), self.places[table]
        self._check(table, kept)
        self.hot[table] = Hot(kept, self._read(place, kept) if len(kept) else np.empty((0, place.dim), np.float32))

    def _read(self, place: Place, ids: Ids) -> Rows:
        """Rows, by ordinary reads of the blocks that they lie in."""
        width, lba = 4 * place.dim, self.namespace.lba_bytes
        at = place.start * SECTOR + (place.first + ids) * width
        blocks = int(((at + width - 1) // lba - at // lba).max()) + 1
        rows = np.empty((len(ids), place.dim), np.float32)
        starts = np.minimum(at // lba, self.namespace.blocks - blocks)
        for first in range(0, len(ids), 512):
            some = slice(first, first + 512)
            with self.drive.borrow((len(ids[some]), blocks * lba)) as staged:
                self.namespace.submit(Io.READ, starts[some], staged, blocks=blocks, depth=_READ_DEPTH).check()
                inside = (at - starts * lba)[some]
                for row, begin in enumerate(inside.tolist()):
                    rows[first + row] = staged[row, begin : begin + width].view(np.float32)
        return rows

    # -- lookups

    def lookup(self, sparse: Sequence[tuple[ArrayLike, ArrayLike]]) -> list[Rows]:
        """One batch: FP32[bags, dim] of each table.

        :param sparse: (indices, offsets) of each table, as ``torch.nn.EmbeddingBag`` takes them
        :raises InvalidArgument: ids that name no row, offsets that fall
        :raises NvmeError: the drive refused: it does not take RecSSD's commands, is busy, or has lost a row
        """
        if len(sparse) != len(self.places):
            raise InvalidArgument(f"ids for {len(sparse)} tables; there are {len(self.places)}")
        batch = [self._bags(table, *given) for table, given in enumerate(sparse)]
        out = [
            np.zeros((len(bounds) - 1, p.dim), np.float32) for (_, bounds), p in zip(batch, self.places, strict=True)
        ]
        free, busy = list(self._slots), list[_Slot]()
        try:
            for request in self._requests(batch):
                if not free:
                    free.append(self._collect(busy.pop(0), out))
                slot = free.pop()
                self._send(slot, request)
                busy.append(slot)
            held = [self._host_part(table, ids, bounds) for table, (ids, bounds) in enumerate(batch)]
            while busy:
                self._collect(busy.pop(0), out)
        except BaseException:
            self._drain(busy)
            raise
        for sums, own in zip(out, held, strict=True):
            if own is not None:
                sums += own
                self._think("rows", self.costs.add(sums.size))
        return out

    def _bags(self, table: int, indices: ArrayLike, offsets: ArrayLike) -> tuple[Ids, Ids]:
        ids, starts = np.asarray(indices, np.int64).reshape(-1), np.asarray(offsets, np.int64).reshape(-1)
        starts = np.append(starts, len(ids))
        if starts[0] != 0 or (np.diff(starts) < 0).any() or starts[-1] != len(ids):
            raise InvalidArgument(f"table {table}: offsets must rise from 0 to at most {len(ids)} ids")
        self._check(table, ids)
        return ids, starts

    def _check(self, table: int, ids: Ids) -> None:
        rows = self.places[table].rows
        wrong = np.flatnonzero((ids < 0) | (ids >= rows))
        if len(wrong):
            raise InvalidArgument(
                f"table {table}: indices[{wrong[0]}] = {ids[wrong[0]]}; the table's rows are 0 to {rows - 1}"
            )

    def _requests(self, batch: Sequence[tuple[Ids, Ids]]) -> Iterator[_Request]:
        """Pairs for the drive, cut to what a request takes. A bag of more pairs comes in several."""
        for table, (ids, bounds) in enumerate(batch):
            most = max(min(MOST_BAGS, self._most // (4 * self.places[table].dim)), 1)
            cold = ~_within(self.hot[table].ids, ids)
            bags = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
            if len(self.hot[table].ids):
                self._think("rows", len(ids) * self.costs.row_latency / self.costs.threads)  # is it one of them?
            for first in range(0, len(bounds) - 1, most):
                here = slice(int(bounds[first]), int(bounds[min(first + most, len(bounds) - 1)]))
                rows, owners = ids[here][cold[here]], bags[here][cold[here]] - first
                for at in range(0, len(rows), self._pairs):
                    some = slice(at, at + self._pairs)
                    order = np.argsort(rows[some], kind="stable")
                    ids_there = rows[some][order] + self.places[table].first
                    pairs = np.stack([owners[some][order], ids_there], 1).astype("<u4")
                    self._think(
                        "calls", self.costs.add(round(len(pairs) * math.log2(len(pairs) + 1)))
                    )  # a sort's comparisons
                    yield _Request(table, first, min(most, len(bounds) - 1 - first), pairs)

    def _send(self, slot: _Slot, request: _Request) -> None:
        """Write and read, posted together."""
        place, queue = self.places[request.table], self.drive.queue
        header = SLS_CONFIG.pack(SlsConfig(4, place.dim, request.bags, len(request.pairs), request.table))
        config = slot.config(header, request.pairs)
        sums = slot.sums(4 * request.bags * place.dim)
        self._think("calls", 2 * self.costs.nvme_driver)
        slba = place.start + self._turn
        self._turn = (self._turn + 1) % TABLE_ALIGN
        slot.request = request
        write = queue.submit_one(self._command(Io.WRITE, slba, config.nbytes), config, ring=False)
        slot.tokens = (write, queue.submit_one(self._command(Io.READ, slba, sums.nbytes), sums))

    def _command(self, opcode: Io, slba: int, size: int) -> Any:
        words = {"cdw10": slba & 0xFFFF_FFFF, "cdw11": slba >> 32, "cdw12": (size // SECTOR - 1) | MARK}
        return entry(opcode, self.namespace.nsid, **words)

    def _collect(self, slot: _Slot, out: Sequence[Rows]) -> _Slot:
        """Wait for a request and add its sums to the result."""
        request = slot.request
        assert request is not None
        answers = self._answers(slot)
        for name, answer in zip(("write", "read"), answers, strict=True):
            answer.check(f"RecSSD {name}, table {request.table}, {len(request.pairs)} pairs")
        sums = slot.taken(request.bags, self.places[request.table].dim)
        out[request.table][request.first : request.first + request.bags] += sums
        return slot

    def _answers(self, slot: _Slot) -> list[Completion]:
        slot.request = None
        return [self.drive.queue.wait(token) for token in slot.tokens]

    def _drain(self, busy: Sequence[_Slot]) -> None:
        """After an error: no slot's memory is used again before the drive has let go of it."""
        for slot in busy:
            if slot.request is not None:
                for token in slot.tokens:
                    self.drive.queue.abandon(token)
        self._slots = [_Slot(self.drive) for _ in range(MAX_REQUESTS - 1)]

    def _host_part(self, table: int, ids: Ids, bounds: Ids) -> Rows | None:
        """Sums of the rows that the host holds, None where it holds none of them."""
        hot, place = self.hot[table], self.places[table]
        mine = _within(hot.ids, ids)
        if not mine.any():
            return None
        sums = np.zeros((len(bounds) - 1, place.dim), np.float32)
        bags = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))[mine]
        np.add.at(sums, bags, hot.rows[np.searchsorted(hot.ids, ids[mine])])
        self._think("rows", self.costs.gather(len(bags), 4 * place.dim))
        return sums

    def _think(self, kind: str, ns: float) -> None:
        if self._spend is not None and ns > 0:
            self._spend(kind, ns)


class RecSsd(HostMlp):
    """RecSSD as a baseline: rows are summed by the drive's processor, the hottest ones and the layers by the host.

    The model's tables stay where they lie. Its sums are in the order of rows, so they equal NumPy's within rounding.
    """

    name, about = "RecSSD", "summed by the drive's processor, page reads; hot rows in host DRAM"
    ordered = False

    def prepare(self, drive: Drive, model: Model, weights: Weights, before: Recorded) -> None:
        super().prepare(drive, model, weights, before)
        self.device = RecSsdTables.over(self.tables, spend=self.spend)
        self.device.keep([[some.bags.pair for some in before.lookups]])

    def sls(self, batch: Batch) -> Rows:
        self.spend("framework", self.costs.operator)
        return side_by_side(self.device.lookup([bags.pair for bags in batch.bags]))

    def close(self) -> None:
        self.drive.control.recssd(enabled=False)
        super().close()


def _within(kept: Ids, ids: Ids) -> NDArray[np.bool_]:
    if not len(kept):
        return np.zeros(len(ids), np.bool_)
    found: NDArray[np.bool_] = kept[np.minimum(np.searchsorted(kept, ids), len(kept) - 1)] == ids
    return found


def _places(shapes: Sequence[tuple[int, int]], blocks: int, stride: int | None) -> list[Place]:
    """Where tables lie. :raises InvalidArgument: they can't"""
    if not 1 <= len(shapes) <= TABLE_IDS:
        raise InvalidArgument(f"{len(shapes)} tables; RecSSD's row cache tells 1 to {TABLE_IDS} apart")
    if any(rows < 1 or not 1 <= dim <= MAX_SECTORS * SECTOR // 4 for rows, dim in shapes):
        raise InvalidArgument(f"shapes {list(shapes)}: each table has rows, of elements that fit in 1 MiB")
    need = [_sectors(4 * rows * dim) for rows, dim in shapes]
    least = -(-max(need) // TABLE_ALIGN) * TABLE_ALIGN
    if stride is None:
        fits = least <= STRIDE and FIRST_BLOCK + STRIDE * (len(shapes) - 1) + need[-1] <= blocks
        stride = STRIDE if fits else least
    if stride % TABLE_ALIGN or stride < least:
        raise InvalidArgument(f"stride {stride}: a multiple of {TABLE_ALIGN}, {least} or more for these tables")
    if FIRST_BLOCK + stride * (len(shapes) - 1) + need[-1] > blocks:
        raise InvalidArgument(
            f"{len(shapes)} tables of stride {stride} end past block {blocks} of 4 KiB; take a larger namespace"
        )
    return [Place(rows, dim, FIRST_BLOCK + stride * number) for number, (rows, dim) in enumerate(shapes)]


def _place_of(table: Table) -> Place:
    """:raises InvalidArgument: RecSSD can't find its rows"""
    info, width = table.info, 4 * table.dim
    if len(info.extents) != 1 or SECTOR % width or info.row_bytes != width or info.seed is not None:
        raise InvalidArgument(
            f"{table.name!r}: {len(info.extents)} extents, rows of {info.row_bytes} bytes; RecSSD takes stored, packed "
            f"FP32 rows that divide {SECTOR} bytes, in one extent"
        )
    at = info.extents[0].slba * table.namespace.lba_bytes
    start = at // SECTOR // TABLE_ALIGN * TABLE_ALIGN
    if at % width:
        raise InvalidArgument(f"{table.name!r} begins at byte {at}, between two rows of {width} bytes")
    return Place(len(table), table.dim, start, (at - start * SECTOR) // width)
