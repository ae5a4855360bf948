"""A table stored in another order than that of its ids, and asked by its ids.

    learnt = by_frequency(training.lookups[0].bags, rows=len(weights), per_page=16)
    items = Placed.create(drive, "items", weights, learnt)
    sums = items.lookup([3, 1, 4], [0])        # the same bits as of the table in the order of its ids

The map lies on the host, 4 bytes a row, and every id goes through it before it is sent: one NumPy take. Bags keep the
order of their ids, so rows are added in the same order and sums are equal bit for bit. The map is kept beside the table
in the volume (``<name>.places``), so ``Placed.open`` finds both.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emucsd.drive import Drive
from emucsd.errors import InvalidArgument
from emucsd.lookup import IndexOutOfRange, RowUnreadable
from emucsd.placement.order import Map, Placement, PlacementError
from emucsd.table import Rows, Table
from emucsd.volume import Volume, check_name
from emucsd_wire.vendor import TableStats

_SUFFIX = ".places"
_CHUNK = 1 << 16  # rows gathered at a time
_KIND = "placement"


class Placed:
    """An open table with its placement. ``create`` or ``open`` it; close it, or use it in a ``with``."""

    def __init__(self, table: Table, placement: Placement) -> None:
        """:raises PlacementError: the map is of another number of rows"""
        if placement.rows != len(table):
            raise PlacementError(f"a map of {placement.rows} rows for table {table.name!r} of {len(table)}")
        self.table, self.placement = table, placement

    @classmethod
    def create(
        cls, drive: Drive, name: str, data: Rows, placement: Placement, *, nsid: int = 1, **options: Any
    ) -> Placed:
        """Store rows where the placement says, and the map beside them.

        :param data: FP32[rows, dim] in the order of ids; a ``np.memmap`` is read piece by piece
        :param options: as ``Table.create`` takes them
        :raises PlacementError: the map is of another number of rows, or no permutation
        :raises TableError: and the others of ``Table.create``
        """
        check_name(name + _SUFFIX)
        if placement.check().rows != len(data):
            raise PlacementError(
                f"a map of {placement.rows} rows, {len(data)} were given; learn it from this table's trace"
            )
        order = placement.order
        chunks = (data[order[at : at + _CHUNK]] for at in range(0, len(order), _CHUNK))
        table = Table.create(drive, name, (len(data), data.shape[1]), chunks, nsid=nsid, **options)
        try:
            _store(drive, nsid, name, placement)
            return cls(table, placement)
        except BaseException:
            table.close()
            Table.drop(drive, name, nsid=nsid)
            raise

    @classmethod
    def open(cls, drive: Drive, name: str, *, nsid: int = 1) -> Placed:
        """A stored table and its map.

        :raises NameUnknown: there is no such table, or it has no map
        :raises PlacementError: the map is damaged, or another table's
        """
        placement = _load(drive, nsid, name)
        table = Table.open(drive, name, nsid=nsid)
        try:
            return cls(table, placement)
        except BaseException:
            table.close()
            raise

    @staticmethod
    def drop(drive: Drive, name: str, *, nsid: int = 1) -> None:
        """Forget table and map. Close it first. :raises NameUnknown: the volume has no such table"""
        Table.drop(drive, name, nsid=nsid)
        namespace = drive.namespace(nsid)
        volume = Volume.open(namespace)
        if name + _SUFFIX in volume:
            extents = volume[name + _SUFFIX].extents
            volume.remove(name + _SUFFIX)
            for extent in extents:
                namespace.deallocate(*extent)

    def close(self) -> None:
        """Close the table on the drive. Harmless when repeated."""
        self.table.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- what it is

    @property
    def name(self) -> str:
        return self.table.name

    @property
    def drive(self) -> Drive:
        return self.table.drive

    @property
    def dim(self) -> int:
        return self.table.dim

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return f"<Placed {self.table!r} by {self.placement.method}>"

    @property
    def stats(self) -> TableStats:
        """See ``Table.stats``."""
        return self.table.stats

    # -- by ids

    def places(self, ids: ArrayLike) -> NDArray[np.int64]:
        """Where rows lie in the stored table, in the shape of ``ids``.

        :raises IndexOutOfRange: an id names no row
        :raises InvalidArgument: not whole numbers
        """
        wanted = np.asarray(ids)
        if wanted.size and wanted.dtype.kind not in "iu":
            raise InvalidArgument(f"indices are {wanted.dtype}; row ids are whole numbers")
        flat = wanted.reshape(-1)
        wrong = (flat < 0) | (flat >= len(self))
        if wrong.any():
            at = int(np.argmax(wrong))
            raise IndexOutOfRange(at, int(flat[at]), len(self))
        return self.placement.places[flat.astype(np.int64)].astype(np.int64).reshape(wanted.shape)

    def lookup(self, indices: ArrayLike, offsets: ArrayLike | None = None, *args: Any, **options: Any) -> Rows:
        """Sums of rows, one a bag: arguments and errors of ``Table.lookup``, bits of the table in the order of ids."""
        if (padding := options.get("padding_idx")) is not None:
            options["padding_idx"] = int(self.places([padding + len(self) if padding < 0 else padding])[0])
        try:
            return self.table.lookup(self.places(indices), offsets, *args, **options)
        except RowUnreadable as error:
            ids = np.asarray(indices).reshape(-1)
            raise RowUnreadable(error.position, int(ids[error.position])) from error

    def prefetch(self, indices: ArrayLike) -> None:
        """See ``Table.prefetch``."""
        self.table.prefetch(self.places(indices))

    def update(self, ids: ArrayLike, rows: Rows) -> None:
        """Replace rows, in any order: see ``Table.update``."""
        self.table.update(self.places(ids), rows)

    def swap(self, other: Placed) -> None:
        """Exchange all rows with another table of the same placement: see ``Table.swap``.

        :raises PlacementError: its map is another; no command exchanges rows and the host's maps in one step
        """
        if not np.array_equal(self.placement.places, other.placement.places):
            raise PlacementError(
                f"{self.name!r} and {other.name!r} have different maps; store one by the other's placement"
            )
        self.table.swap(other.table)

    def read_rows(self, first: int = 0, count: int | None = None) -> Rows:
        """Rows by ids from ``first`` on. The stored ones are read whole and in order where that is less work."""
        count = len(self) - first if count is None else count
        if first < 0 or count < 0 or first + count > len(self):
            raise InvalidArgument(f"rows {first} to {first + count - 1}; the table's are 0 to {len(self) - 1}")
        found = np.empty((count, self.dim), np.float32)
        for at, rows, wanted in self._runs(first, count):
            found[wanted - first] = self.table.read_rows(at, rows)
        return found

    def write_rows(self, first: int, rows: Rows) -> None:
        """Store other rows for the ids from ``first`` on, durably. Each run of places is a write of its own."""
        if first < 0 or first + len(rows) > len(self):
            raise InvalidArgument(f"rows {first} to {first + len(rows) - 1}; the table's are 0 to {len(self) - 1}")
        for at, _, wanted in self._runs(first, len(rows)):
            self.table.write_rows(at, np.ascontiguousarray(rows[wanted - first]))

    def _runs(self, first: int, count: int) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
        """(place, rows, their ids) of runs of neighbouring places that hold the ids from ``first`` on."""
        ids = np.arange(first, first + count)
        places = self.placement.places[ids].astype(np.int64)
        order = np.argsort(places)
        ids, places = ids[order], places[order]
        for part in np.split(np.arange(count), np.flatnonzero(np.diff(places) != 1) + 1):
            if len(part):
                yield int(places[part[0]]), len(part), ids[part]


def _store(drive: Drive, nsid: int, name: str, placement: Placement) -> None:
    namespace = drive.namespace(nsid)
    volume = Volume.open(namespace)
    data = placement.places.view(np.uint8)
    extents = volume.reserve(len(data))
    at = 0
    for slba, blocks in extents:
        piece = data[at : at + blocks * namespace.lba_bytes]
        padded = np.zeros(-(-len(piece) // namespace.lba_bytes) * namespace.lba_bytes, np.uint8)
        padded[: len(piece)] = piece
        namespace.write(slba, padded)
        at += len(piece)
        if at == len(data):
            break
    namespace.flush()
    about = {
        "kind": _KIND,
        "dtype": str(placement.places.dtype),
        "method": placement.method,
        "crc": zlib.crc32(data.tobytes()),
    }
    volume.publish(name + _SUFFIX, len(data), extents, about)


def _load(drive: Drive, nsid: int, name: str) -> Placement:
    namespace = drive.namespace(nsid)
    entry = Volume.open(namespace)[name + _SUFFIX]
    about = entry.attributes
    if about.get("kind") != _KIND or about.get("dtype") not in ("uint32", "uint64"):
        raise PlacementError(f"{entry.name!r} is {about.get('kind', 'unknown')}, no placement")
    parts = [namespace.read(slba, blocks).reshape(-1) for slba, blocks in entry.extents]
    data = np.concatenate(parts)[: entry.size]
    if zlib.crc32(data.tobytes()) != about.get("crc"):
        raise PlacementError(f"{entry.name!r} fails its CRC; store the table anew with Placed.create")
    places: Map = data.view(str(about["dtype"]))
    return Placement(places, str(about.get("method", ""))).check()
