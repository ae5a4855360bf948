"""Tables over several drives: one table's rows dealt to all (``ShardedTable``), or whole tables (``ShardedTables``).

*Row-wise*: row r lies on drive r mod n as its row r div n, so no map is needed and popular rows spread by themselves. A
bag is summed on each drive over the rows that lie there, and the partial sums are added in the drives' order: the same
bits every time, but other roundings than one drive's, since the ids' order is cut up. A large table, or one that takes
most of the lookups, then uses every drive's dies.

*Table-wise*: each table lies whole on one drive, so its sums are one drive's, to the bit. Tables are spread by load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emucsd.bags import bags_of
from emucsd.errors import EmucsdError, InvalidArgument
from emucsd.lookup import IndexOutOfRange, RowUnreadable
from emucsd.rows import checked_rows, shape_of
from emucsd.sharding.fleet import Fleet, spread
from emucsd.table import Rows, Table, lookup_many

Pair = tuple[ArrayLike, ArrayLike]


class ShardedTable:
    """One table, its rows dealt to all drives of a fleet. ``create`` or ``open`` it; close it, or use a ``with``."""

    def __init__(self, fleet: Fleet, name: str, shards: Sequence[Table]) -> None:
        self.fleet, self.name, self.shards = fleet, name, list(shards)
        self.dim = shards[0].dim
        self._rows = sum(len(shard) for shard in shards)
        self._held = {number: (shard.name,) for number, shard in enumerate(shards)}

    @classmethod
    def create(cls, fleet: Fleet, name: str, data: Rows | tuple[int, int], **options: Any) -> ShardedTable:
        """Store rows over all drives, each drive's part as its table ``<name>.<drive>of<drives>``.

        :param data: FP32[rows, dim]; or that shape: rows of zeros
        :param options: as ``Table.create`` takes them
        :raises InvalidArgument: fewer rows than drives
        :raises ShardLost: a drive is gone
        """
        rows, dim = shape_of(data)
        count = len(fleet)
        if rows < count:
            raise InvalidArgument(f"{rows} rows over {count} drives; each needs one")

        def made(number: int) -> Callable[[], Table]:
            part: Any = data[number::count] if isinstance(data, np.ndarray) else (len(range(number, rows, count)), dim)
            part = np.ascontiguousarray(part) if isinstance(data, np.ndarray) else part
            return lambda: Table.create(fleet.drives[number], _part(name, number, count), part, **options)

        return cls._of(fleet, name, made)

    @classmethod
    def open(cls, fleet: Fleet, name: str, *, nsid: int = 1) -> ShardedTable:
        """Find it on drives in the order in which it was created. :raises NameUnknown: a part is missing"""

        def opened(number: int) -> Callable[[], Table]:
            return lambda: Table.open(fleet.drives[number], _part(name, number, len(fleet)), nsid=nsid)

        return cls._of(fleet, name, opened)

    @classmethod
    def _of(cls, fleet: Fleet, name: str, call: Callable[[int], Callable[[], Table]]) -> ShardedTable:
        held = {number: (_part(name, number, len(fleet)),) for number in range(len(fleet))}
        shards = fleet.each({number: call(number) for number in range(len(fleet))}, held)
        return cls(fleet, name, list(shards.values()))

    @staticmethod
    def drop(fleet: Fleet, name: str, *, nsid: int = 1) -> None:
        """Forget all parts. Close it first."""
        count = len(fleet)
        fleet.each({n: partial(Table.drop, fleet.drives[n], _part(name, n, count), nsid=nsid) for n in range(count)})

    def __len__(self) -> int:
        return self._rows

    def __repr__(self) -> str:
        return f"<ShardedTable {self.name!r}: {len(self)} rows of {self.dim} over {len(self.fleet)} drives>"

    def lookup(
        self,
        indices: ArrayLike,
        offsets: ArrayLike | None = None,
        grain: Literal["vector", "page"] = "vector",
        *,
        include_last_offset: bool = False,
        mode: Literal["sum", "mean"] = "sum",
        per_sample_weights: ArrayLike | None = None,
        padding_idx: int | None = None,
    ) -> Rows:
        """Sums of rows, one a bag: arguments of ``Table.lookup``; partial sums are added in the drives' order.

        :raises IndexOutOfRange: an id names no row; nothing was sent
        :raises RowUnreadable: a drive's flash has lost a row that is needed
        :raises ShardLost: a drive is gone
        """
        if mode not in ("sum", "mean") or (mode == "mean" and per_sample_weights is not None):
            raise InvalidArgument(f"mode {mode!r}: 'sum', or 'mean' without per_sample_weights")
        ids, bounds, weights = bags_of(
            indices,
            offsets,
            include_last_offset=include_last_offset,
            per_sample_weights=per_sample_weights,
            padding_idx=padding_idx,
            rows=len(self),
        )
        self._check(ids)
        count = len(self.fleet)
        owner = ids % count
        calls: dict[int, Callable[[], Rows]] = {}
        for number, shard in enumerate(self.shards):
            mine = owner == number
            starts = np.concatenate([[0], np.cumsum(mine)])[bounds]
            extra: dict[str, Any] = {"grain": grain}
            if weights is not None:
                extra["per_sample_weights"] = weights[mine]
            calls[number] = self._call(shard, ids[mine] // count, starts, np.flatnonzero(mine), extra)
        parts = self.fleet.each(calls, self._held)
        sums = parts[0].copy()
        for number in range(1, count):
            sums += parts[number]
        if mode == "mean":
            sums /= np.maximum(np.diff(bounds), 1).astype(np.float32)[:, None]
        return sums

    def _call(
        self, shard: Table, ids: NDArray[np.int64], starts: NDArray[np.int64], places: NDArray[np.int64], options: Any
    ) -> Callable[[], Rows]:
        count, number = len(self.fleet), self.shards.index(shard)

        def call() -> Rows:
            try:
                return shard.lookup(ids, starts, include_last_offset=True, **options)
            except RowUnreadable as error:
                raise RowUnreadable(int(places[error.position]), error.value * count + number) from error

        return call

    def _check(self, ids: NDArray[np.int64]) -> None:
        wrong = np.flatnonzero((ids < 0) | (ids >= len(self)))
        if len(wrong):
            raise IndexOutOfRange(int(wrong[0]), int(ids[wrong[0]]), len(self))

    def read_rows(self, first: int = 0, count: int | None = None) -> Rows:
        """Rows as they are stored."""
        count = self._span(first, count)
        found = np.empty((count, self.dim), np.float32)
        parts = self.fleet.each({n: self._reading(n, first, count) for n in range(len(self.fleet))}, self._held)
        for number, rows in parts.items():
            found[(number - first) % len(self.fleet) :: len(self.fleet)] = rows
        return found

    def _reading(self, number: int, first: int, count: int) -> Callable[[], Rows]:
        start, rows = _local(number, first, count, len(self.fleet))
        return lambda: self.shards[number].read_rows(start, rows) if rows else np.empty((0, self.dim), np.float32)

    def write_rows(self, first: int, rows: Rows) -> None:
        """Store other rows from row ``first`` on, durably, each drive's part by itself."""
        self._span(first, len(rows))
        checked_rows(rows, self.dim)
        count = len(self.fleet)
        calls: dict[int, Callable[[], None]] = {}
        for number, shard in enumerate(self.shards):
            start, part = _local(number, first, len(rows), count)[0], rows[(number - first) % count :: count]
            if len(part):
                calls[number] = partial(shard.write_rows, start, np.ascontiguousarray(part))
        self.fleet.each(calls, self._held)

    def _span(self, first: int, count: int | None) -> int:
        count = len(self) - first if count is None else count
        if first < 0 or count < 0 or first + count > len(self):
            raise InvalidArgument(f"rows {first} to {first + count - 1}; the table's are 0 to {len(self) - 1}")
        return count

    def close(self) -> None:
        """Close all parts that can be reached. Harmless when repeated."""
        _close(self.shards)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ShardedTables:
    """Tables that each lie whole on one drive of a fleet.

    :ivar tables: in the order in which they were given
    :ivar places: the drive's number of each
    """

    def __init__(self, fleet: Fleet, tables: Sequence[Table]) -> None:
        """:raises InvalidArgument: a table that is on no drive of the fleet"""
        self.fleet, self.tables = fleet, list(tables)
        numbers = {id(drive): number for number, drive in enumerate(fleet.drives)}
        strangers = [table.name for table in tables if id(table.drive) not in numbers]
        if strangers or not tables:
            raise InvalidArgument(f"tables {strangers} lie on no drive of this fleet; open them on its drives")
        self.places = [numbers[id(table.drive)] for table in tables]
        self.on = {n: [t for t, place in enumerate(self.places) if place == n] for n in sorted(set(self.places))}
        self._held = {number: [self.tables[t].name for t in mine] for number, mine in self.on.items()}

    @classmethod
    def create(
        cls,
        fleet: Fleet,
        tables: Mapping[str, Rows | tuple[int, int]],
        loads: Sequence[float] | None = None,
        **options: Any,
    ) -> ShardedTables:
        """Store tables, spread by load.

        :param tables: names and rows, as ``Table.create`` takes them
        :param loads: lookups a sample of each; None: all the same
        :param options: as ``Table.create`` takes them
        """
        places = spread([1.0] * len(tables) if loads is None else loads, len(fleet))
        if len(places) != len(tables):
            raise InvalidArgument(f"{len(places)} loads for {len(tables)} tables; give one each")
        items = list(tables.items())

        def made(number: int) -> Callable[[], dict[int, Table]]:
            def call() -> dict[int, Table]:
                mine = [t for t, place in enumerate(places) if place == number]
                return {t: Table.create(fleet.drives[number], items[t][0], items[t][1], **options) for t in mine}

            return call

        found: dict[int, Table] = {}
        for part in fleet.each({number: made(number) for number in range(len(fleet))}).values():
            found |= part
        return cls(fleet, [found[t] for t in range(len(items))])

    def lookup(self, bags: Sequence[Pair], **options: Any) -> list[Rows]:
        """One lookup in each table, all drives at once: ``lookup_many`` over the fleet, sums to the bit.

        :param bags: (indices, offsets) for each table
        :raises ShardLost: a drive is gone
        """
        return self.lookup_batches([bags], **options)[0]

    def lookup_batches(self, batches: Sequence[Sequence[Pair]], **options: Any) -> list[list[Rows]]:
        """Several such lookups, all in flight together; the sums of each batch, table by table."""
        if any(len(bags) != len(self.tables) for bags in batches):
            raise InvalidArgument(f"bags for {[len(bags) for bags in batches]} tables; there are {len(self.tables)}")

        def call(mine: list[int]) -> Callable[[], list[Rows]]:
            tables = [self.tables[t] for _ in batches for t in mine]
            asked = [bags[t] for bags in batches for t in mine]
            return lambda: lookup_many(tables, asked, **options)

        parts = self.fleet.each({number: call(mine) for number, mine in self.on.items()}, self._held)
        found: list[list[Rows]] = []
        for batch in range(len(batches)):
            sums: dict[int, Rows] = {}
            for number, mine in self.on.items():
                sums |= dict(zip(mine, parts[number][batch * len(mine) :], strict=False))
            found.append([sums[t] for t in range(len(self.tables))])
        return found

    def close(self) -> None:
        """Close all tables that can be reached. Harmless when repeated."""
        _close(self.tables)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _part(name: str, number: int, count: int) -> str:
    return f"{name}.{number}of{count}"


def _local(number: int, first: int, count: int, drives: int) -> tuple[int, int]:
    """The first row on drive ``number`` of rows ``first`` to ``first + count - 1``, and how many there are."""
    start = -(-(first - number) // drives)
    end = -(-(first + count - number) // drives)
    return start, end - start


def _close(tables: Sequence[Table]) -> None:
    for table in tables:
        try:
            table.close()
        except EmucsdError:  # a drive that is gone has closed it
            continue
