"""Tables of FP32 rows on a drive, and lookups in them: ``torch.nn.EmbeddingBag(mode="sum")``, summed inside the drive.

    items = Table.create(drive, "items", weights)              # or: Table.open(drive, "items")
    sums = items.lookup([3, 1, 4, 1, 5], [0, 2])               # bags [3, 1] and [4, 1, 5]: FP32[2, dim]

A table is a name of the volume on a namespace: found again after a restart, gone with ``drop``. Or it is a plain file
of a file system on the drive (docs/linux.md): ``Table.create_file("/mnt/items", weights)``, then
``Table.from_file("/mnt/items")``. Rows lie packed, row after row, whatever their width; FP32 sums are added in index
order, so they equal NumPy's and PyTorch's bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emucsd.drive import Drive
from emucsd.errors import InvalidArgument, LookupRefused
from emucsd.lookup import OpenTable, Query, lookups_of, result_array
from emucsd.namespace import Namespace
from emucsd.rows import (
    PIECE,
    NotATable,
    Rows,
    RowWriter,
    TableClosed,
    TableError,
    TableInfo,
    TableShapeError,
    checked_rows,
    shape_of,
)
from emucsd.tablefile import Place, TableFile, create
from emucsd.volume import Entry, NameTaken, NameUnknown, Volume, VolumeMissing, check_name
from emucsd_wire.nvme import Status
from emucsd_wire.vendor import (
    TABLE_EXTENT,
    TABLE_HEADER,
    TABLE_STATS,
    TABLE_VERSION,
    Dtype,
    Grain,
    TableHeader,
    TableStats,
    VendorAdmin,
    name_hash,
)

__all__ = [
    "NotATable",
    "Place",
    "Rows",
    "Table",
    "TableClosed",
    "TableError",
    "TableInfo",
    "TableShapeError",
    "lookup_many",
]

_GRAINS = {"vector": Grain.VECTOR, "page": Grain.PAGE}


class Table:
    """An open table. Make one with ``create`` or ``open``; close it, or use it in a ``with``.

    ``len(table)`` is the number of rows; ``dim`` of FP32 elements in each; ``dtype`` is float32.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, drive: Drive, namespace: Namespace, info: TableInfo, file: TableFile | None = None) -> None:
        self.drive, self.namespace, self.info, self._file = drive, namespace, info, file
        self._open: OpenTable | None = OpenTable(namespace.nsid, self._open_on_drive(), info.rows, info.dim)

    # -- life

    @classmethod
    def create(
        cls,
        drive: Drive,
        name: str,
        data: Rows | tuple[int, int],
        chunks: Iterable[Rows] | None = None,
        *,
        nsid: int = 1,
        extent_bytes: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Table:
        """Store a new table and open it. Its name appears once every row is on flash.

        :param data: FP32[rows, dim]; or that shape, with rows from ``chunks``
        :param chunks: FP32[any, dim] arrays, in order, as many rows as ``data`` says; None: rows of zeros
        :param nsid: of the namespace whose volume takes it; a blank namespace gets a volume
        :param extent_bytes: longest extent, in units of ``volume.UNIT``: fragments the table on purpose
        :param progress: called with the bytes written so far
        :raises TableShapeError: another shape or dtype; checked before anything is written, of ``chunks`` as they come
        :raises NameTaken: the volume has that name
        :raises VolumeFull: no room, with the sizes
        """
        check_name(name)
        shape = shape_of(data)
        namespace = drive.namespace(nsid)
        volume = Volume.open(namespace, create=True)
        if name in volume:
            raise NameTaken(f"{name!r} is in use; drop it first or choose another name")
        info = TableInfo(name, *shape, volume.reserve(4 * math.prod(shape), extent_bytes))
        writer = RowWriter(drive, namespace, info, progress or (lambda _: None))
        if isinstance(data, np.ndarray):
            writer.write(data)
        elif chunks is None:
            for extent in info.extents:
                namespace.deallocate(*extent)
        else:
            writer.write_all(chunks)
        writer.finish(whole=isinstance(data, np.ndarray) or chunks is not None)
        namespace.flush()
        volume.publish(name, info.size, info.extents, {"kind": "table", "dtype": "float32", "shape": list(shape)})
        return cls(drive, namespace, info)

    @classmethod
    def open(cls, drive: Drive, name: str, *, nsid: int = 1) -> Table:
        """Open a stored table.

        :raises NameUnknown: the volume has no such name
        :raises VolumeMissing: the namespace has no volume
        :raises NotATable: the name is something else's
        """
        namespace = drive.namespace(nsid)
        return cls(drive, namespace, _info(Volume.open(namespace)[name]))

    @classmethod
    def create_file(
        cls,
        path: str | Path,
        data: Rows | tuple[int, int],
        chunks: Iterable[Rows] | None = None,
        *,
        drive: Drive | None = None,
        place: Place | None = None,
        verify: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> Table:
        """Write rows to a new file of a file system on a drive, and open it as a table.

        :param data, chunks, progress: as ``create`` takes them
        :param drive, place, verify: as ``from_file`` takes them
        :raises FileRefused: not where a drive can read it by itself; nothing is left behind
        :raises InvalidArgument: something of that name is there
        """

        def opened(draft: Path) -> TableFile:
            return TableFile(draft, shape_of(data)[1], drive=drive, place=place, verify=verify)

        return cls._of_file(create(Path(path), data, chunks, progress, place, opened))

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        dim: int | None = None,
        *,
        drive: Drive | None = None,
        place: Place | None = None,
        verify: bool = True,
        renew: bool = False,
    ) -> Table:
        """Open a file of FP32 rows, packed, as a table. ``tablefile`` says what may happen to the file meanwhile.

        :param dim: elements of a row; None: as ``create_file`` recorded it
        :param drive: that the file lies on; None: Linux is asked, and the drive is closed with the table
        :param place: where on the drive its file system's device begins; None: Linux is asked
        :param verify: look at the file's extents before and after each lookup
        :param renew: its places on disk may have changed: take and record it as it is now
        :raises FileRefused: the drive can't read it by itself; the class says why
        :raises FileChanged: it was moved on disk since it was recorded
        :raises TableShapeError: no whole number of rows
        """
        return cls._of_file(TableFile(Path(path), dim, drive=drive, place=place, verify=verify, renew=renew))

    @classmethod
    def _of_file(cls, file: TableFile) -> Table:
        try:
            table = cls(file.drive, file.namespace, file.info, file)
            file.check(sync=False)  # nothing moved while the drive was told
        except BaseException:
            file.close()
            raise
        return table

    @staticmethod
    def list(drive: Drive, *, nsid: int = 1) -> list[TableInfo]:
        """The stored tables, by name; none where there is no volume."""
        try:
            entries = Volume.open(drive.namespace(nsid)).list()
        except VolumeMissing:
            return []
        return [_info(entry) for entry in entries if entry.attributes.get("kind") == "table"]

    @staticmethod
    def drop(drive: Drive, name: str, *, nsid: int = 1) -> None:
        """Forget a table and deallocate its blocks. Close it first. :raises NameUnknown: the volume has no such name"""
        namespace = drive.namespace(nsid)
        try:
            volume = Volume.open(namespace)
        except VolumeMissing as error:
            raise NameUnknown(f"there is no table {name!r}: {error}") from error
        info = _info(volume[name])
        volume.remove(name)
        for extent in info.extents:
            namespace.deallocate(*extent)

    def close(self) -> None:
        """Close it on the drive. Harmless when repeated."""
        handle, self._open = self._open, None
        if handle is not None:
            self.drive.passthrough("admin", VendorAdmin.TABLE_CLOSE, cdw11=handle.handle, check=False)
        if self._file is not None:
            self._file.close()

    def verify(self, *, sync: bool = True) -> None:
        """Look whether a file's bytes are still where the drive reads them. Other tables stay where they are.

        :param sync: have what programs wrote to it written out first
        :raises FileChanged: they are not
        """
        if self._file is not None:
            self._file.check(sync=sync)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_on_drive(self) -> int:
        info, lba_bytes = self.info, self.namespace.lba_bytes
        extents = np.zeros(len(info.extents), TABLE_EXTENT.dtype)
        extents["slba"], extents["blocks"] = zip(*info.extents, strict=True)
        extents["first_byte"][1:] = np.cumsum(extents["blocks"][:-1].astype(np.int64)) * lba_bytes
        header = TableHeader(
            TABLE_VERSION,
            Dtype.FP32,
            self.namespace.nsid,
            info.rows,
            info.dim,
            len(extents),
            name_hash(info.name),
            bytes(32),
        )
        data = TABLE_HEADER.pack(header) + extents.tobytes()
        answer = self.drive.passthrough(
            "admin", VendorAdmin.TABLE_OPEN, self.namespace.nsid, data=data, cdw10=len(data)
        )
        return answer.dw0

    # -- what it is

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def dim(self) -> int:
        """FP32 elements of a row."""
        return self.info.dim

    def __len__(self) -> int:
        return self.info.rows

    def __repr__(self) -> str:
        return f"<Table {self.name!r}: {len(self)} rows of {self.dim} FP32 in {len(self.info.extents)} extents>"

    @property
    def stats(self) -> TableStats:
        """The drive's counters of this table since it was opened there. :raises TableClosed: it is not open"""
        table = self._handle()
        size = TABLE_STATS.size
        answer = self.drive.passthrough("admin", VendorAdmin.TABLE_STATS, length=size, cdw10=size, cdw11=table.handle)
        return TABLE_STATS.unpack(answer.data.tobytes())

    def _handle(self) -> OpenTable:
        if self._open is None:
            raise TableClosed(f"table {self.name!r} is closed; Table.open(drive, {self.name!r}) opens it again")
        return self._open

    # -- lookups

    def lookup(
        self,
        indices: ArrayLike,
        offsets: ArrayLike | None = None,
        out: Rows | None = None,
        grain: Literal["vector", "page"] = "vector",
        *,
        include_last_offset: bool = False,
    ) -> Rows:
        """Sums of rows, one a bag, as ``torch.nn.functional.embedding_bag(..., mode="sum")`` takes its arguments.

        :param indices: row ids, one row of whole numbers; or [bags, n], without ``offsets``
        :param offsets: where each bag starts in ``indices``; a bag ends where the next starts
        :param out: FP32[bags, dim] for the sums; from ``drive.alloc`` nothing is copied
        :param grain: what leaves the flash's page register: each vector's own bytes, or its whole page
        :param include_last_offset: ``offsets`` ends with ``len(indices)``, so there is one bag less than offsets
        :returns: ``out``, or a new array in the drive's memory; an empty bag is zeros
        :raises IndexOutOfRange: an id names no row; ``position`` and ``value`` are those of the first
        :raises RowUnreadable: the flash has lost a row that is needed
        :raises InvalidArgument: not whole numbers, or offsets that fall or pass the indices
        """
        query = self._query(indices, offsets, out, include_last_offset=include_last_offset)
        _run(self.drive, [self], [query], grain)
        if out is None or query.out is out:
            return query.out
        out[...] = query.out
        return out

    def _query(
        self, indices: ArrayLike, offsets: ArrayLike | None, out: Rows | None, *, include_last_offset: bool
    ) -> Query:
        table = self._handle()
        ids, bounds = _bags(indices, offsets, include_last_offset)
        bags = len(bounds) - 1
        if out is not None and (out.shape != (bags, self.dim) or out.dtype != self.dtype):
            raise InvalidArgument(f"out is {out.dtype}{list(out.shape)}; the sums are float32{[bags, self.dim]}")
        direct = out is not None and self.drive.holds(out)
        sums = out if out is not None and direct else result_array(self.drive, bags, self.dim)
        return Query(table, ids, bounds, sums)

    # -- rows

    def read_rows(self, first: int = 0, count: int | None = None) -> Rows:
        """Rows as they are stored, read as blocks. :raises InvalidArgument: rows that the table does not have"""
        count = len(self) - first if count is None else count
        start, size = self._span(first, count)
        if self._file is not None:
            return self._file.read(start, size).view(np.float32).reshape(count, self.dim)
        data = np.empty(size, np.uint8)
        for at, lba, skip, piece in self._runs(start, size):
            blocks = -(-(skip + piece) // self.namespace.lba_bytes)
            data[at : at + piece] = self.namespace.read(lba, blocks)[skip : skip + piece]
        return data.view(np.float32).reshape(count, self.dim)

    def write_rows(self, first: int, rows: Rows) -> None:
        """Store other rows from row ``first`` on, durably. A lookup at the same time sees old or new rows.

        :raises TableShapeError: not FP32[any, dim]
        :raises InvalidArgument: rows that the table does not have
        """
        rows = checked_rows(rows, self.dim)
        start, size = self._span(first, len(rows))
        data = rows.reshape(-1).view(np.uint8)
        if self._file is not None:
            self._file.write(start, data)
            return
        for at, lba, skip, piece in self._runs(start, size):
            blocks = -(-(skip + piece) // self.namespace.lba_bytes)
            room = blocks * self.namespace.lba_bytes
            with self.drive.borrow(room) as staged:
                if room != piece:
                    self.namespace.read(lba, blocks, out=staged)
                staged[skip : skip + piece] = data[at : at + piece]
                self.namespace.write(lba, staged)
        self.namespace.flush()

    def _span(self, first: int, count: int) -> tuple[int, int]:
        if first < 0 or count < 0 or first + count > len(self):
            raise InvalidArgument(f"rows {first} to {first + count - 1}; the table's are 0 to {len(self) - 1}")
        return first * self.info.row_bytes, count * self.info.row_bytes

    def _runs(self, start: int, size: int) -> Iterator[tuple[int, int, int, int]]:
        """(offset in the data, LBA, bytes to skip in it, bytes) of runs that cover table bytes from ``start`` on."""
        lba_bytes = self.namespace.lba_bytes
        extent_start = 0
        for slba, blocks in self.info.extents:
            extent_end = extent_start + blocks * lba_bytes
            at, end = max(start, extent_start), min(start + size, extent_end)
            while at < end:
                inside = at - extent_start
                piece = min(end - at, PIECE)
                yield at - start, slba + inside // lba_bytes, inside % lba_bytes, piece
                at += piece
            extent_start = extent_end


def lookup_many(
    tables: Sequence[Table], bags: Sequence[tuple[ArrayLike, ArrayLike]], grain: Literal["vector", "page"] = "vector"
) -> list[Rows]:
    """One lookup in each of many tables of one drive, all in flight together: what a recommendation model asks for.

    :param bags: (indices, offsets) for each table, as ``Table.lookup`` takes them
    :returns: the sums, FP32[bags, dim] for each table
    :raises IndexOutOfRange: and the others of ``Table.lookup``
    """
    if len(tables) != len(bags) or len({id(table.drive) for table in tables}) > 1:
        raise InvalidArgument(f"{len(tables)} tables, {len(bags)} sets of bags; give one each, of tables on one drive")
    queries = [
        t._query(ids, offsets, None, include_last_offset=False) for t, (ids, offsets) in zip(tables, bags, strict=True)
    ]
    if tables:
        _run(tables[0].drive, tables, queries, grain)
    return [query.out for query in queries]


def _run(drive: Drive, tables: Sequence[Table], queries: Sequence[Query], grain: str) -> None:
    if grain not in _GRAINS:
        raise InvalidArgument(f"grain {grain!r}: 'vector' or 'page'")
    watched = [table for table in tables if table._file is not None and table._file.verify]
    for table in watched:
        table.verify()
    try:
        lookups_of(drive).run(queries, _GRAINS[grain])
        for table in watched:
            table.verify(sync=False)
    except LookupRefused as error:
        if error.status != Status.LOOKUP_NO_TABLE:
            raise
        names = ", ".join(repr(table.name) for table in tables)
        raise TableClosed(
            f"the drive no longer has {names} open (was it reset?); Table.open opens a table again"
        ) from error


def _bags(
    indices: ArrayLike, offsets: ArrayLike | None, include_last_offset: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids in one row, and bags + 1 offsets. :raises InvalidArgument: see ``Table.lookup``"""
    ids = np.asarray(indices)
    if ids.size and ids.dtype.kind not in "iu":
        raise InvalidArgument(f"indices are {ids.dtype}; row ids are whole numbers")
    if ids.dtype == np.uint64 and ids.size and int(ids.max()) >> 63:
        raise InvalidArgument("indices of 2**63 and more name no row of any table")
    if offsets is None:
        if ids.ndim != 2:
            raise InvalidArgument(f"indices of shape {list(ids.shape)} without offsets; give [bags, n], or offsets")
        bounds = np.arange(ids.shape[0] + 1, dtype=np.int64) * ids.shape[1]
    else:
        starts = np.asarray(offsets)
        if ids.ndim != 1 or starts.ndim != 1 or (starts.size and starts.dtype.kind not in "iu"):
            raise InvalidArgument("with offsets, indices and offsets are each one row of whole numbers")
        bounds = starts.astype(np.int64)
        if not include_last_offset:
            bounds = np.append(bounds, ids.size)
        _check_bounds(bounds, ids.size)
    return np.ascontiguousarray(ids.reshape(-1), np.int64), bounds


def _check_bounds(bounds: NDArray[np.int64], size: int) -> None:
    """Offsets must rise from 0 to the number of ids: requests are cut along them, before the drive sees any."""
    if not len(bounds):
        raise InvalidArgument("offsets are empty; with include_last_offset there is at least the last one")
    wrong = np.flatnonzero(np.diff(bounds) < 0)
    if bounds[0] != 0 or bounds[-1] != size or len(wrong):
        at = 0 if bounds[0] != 0 else int(wrong[0]) + 1 if len(wrong) else len(bounds) - 1
        raise InvalidArgument(
            f"offsets[{at}] = {int(bounds[at])}: offsets rise from 0 and end at {size} ids at the most"
        )


def _info(entry: Entry) -> TableInfo:
    """:raises NotATable: something else of this name, or a dtype that this library does not know"""
    about = entry.attributes
    if about.get("kind") != "table" or about.get("dtype") != "float32":
        raise NotATable(
            f"{entry.name!r} is {about.get('kind', 'unknown')} of {about.get('dtype', 'no dtype')}, no table"
        )
    rows, dim = about["shape"]
    return TableInfo(entry.name, rows, dim, entry.extents)
