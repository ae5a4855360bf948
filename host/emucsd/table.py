"""Tables of rows on a drive, and lookups in them: ``torch.nn.EmbeddingBag``, summed inside the drive.

    items = Table.create(drive, "items", weights)              # or: Table.open(drive, "items")
    sums = items.lookup([3, 1, 4, 1, 5], [0, 2])               # bags [3, 1] and [4, 1, 5]: FP32[2, dim]

A table is a name of the volume on a namespace: found again after a restart, gone with ``drop``. Or it is a plain file
of a file system on the drive (docs/linux.md): ``Table.create_file("/mnt/items", weights)``, then
``Table.from_file("/mnt/items")``. FP32 sums are added in index order, so they equal NumPy's and PyTorch's bit for bit.
docs/tables.md tells of row types, generated tables, updates and swaps, and who may use a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike

from emucsd.bags import BagArguments, bags_of
from emucsd.drive import Drive
from emucsd.errors import InvalidArgument, LookupRefused
from emucsd.lookup import OpenTable, Query, lookups_of, result_array
from emucsd.namespace import Namespace
from emucsd.rights import MODE, READ, WRITE, NoRight, Owner, check_right
from emucsd.rows import (
    NotATable,
    Rows,
    RowWriter,
    TableClosed,
    TableError,
    TableInfo,
    TableOpen,
    TableShapeError,
    checked_rows,
    new_info,
    read_bytes,
    shape_of,
    write_bytes,
)
from emucsd.rowtypes import Generated, generated, generated_rows
from emucsd.tablefile import Place, TableFile, create
from emucsd.tableopen import close_table, is_open, open_table, swap_tables, update_rows
from emucsd.volume import NameTaken, NameUnknown, Volume, VolumeMissing, check_name
from emucsd_wire.nvme import Status
from emucsd_wire.vendor import TABLE_STATS, Grain, TableStats, VendorAdmin

__all__ = [
    "NoRight",
    "NotATable",
    "Place",
    "Rows",
    "Table",
    "TableClosed",
    "TableError",
    "TableInfo",
    "TableOpen",
    "TableShapeError",
    "generated",
    "lookup_many",
]

_GRAINS = {"vector": Grain.VECTOR, "page": Grain.PAGE}


class Table:
    """An open table. Make one with ``create`` or ``open``; close it, or use it in a ``with``.

    ``len(table)`` is the number of rows; ``dim`` of elements in each; ``dtype``, of sums and of rows as they are given
    and read, is float32, whatever ``info.dtype`` they are stored as.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, drive: Drive, namespace: Namespace, info: TableInfo, file: TableFile | None = None) -> None:
        self.drive, self.namespace, self.info, self._file = drive, namespace, info, file
        handle = open_table(drive, namespace, info)
        self._open: OpenTable | None = OpenTable(namespace.nsid, handle, info.rows, info.dim)
        self._version = self.stats.version

    # -- life

    @classmethod
    def create(
        cls,
        drive: Drive,
        name: str,
        data: Rows | tuple[int, int] | Generated,
        chunks: Iterable[Rows] | None = None,
        *,
        dtype: str = "float32",
        row_bytes: int | None = None,
        nsid: int = 1,
        extent_bytes: int | None = None,
        mode: int = MODE,
        owner: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Table:
        """Store a new table and open it. Its name appears once every row is on flash.

        :param data: FP32[rows, dim]; or that shape, with rows from ``chunks``; or ``generated(seed, rows, dim)``: rows
            that are made from the seed whenever they are needed, and take no room in the drive's store
        :param chunks: FP32[any, dim] arrays, in order, as many rows as ``data`` says; None: rows of zeros
        :param dtype: that rows are stored as: float32, float16, int8, int4 (``rowtypes`` has the formulas)
        :param row_bytes: from one row to the next; 0: packed; None: packed where float32, else so that no row crosses a
            flash page
        :param nsid: of the namespace whose volume takes it; a blank namespace gets a volume
        :param extent_bytes: longest extent, in units of ``volume.UNIT``: fragments the table on purpose
        :param mode, owner: who may use it: permission bits as a file's, and the user, else the caller
        :param progress: called with the bytes written so far
        :raises TableShapeError: another shape or dtype; checked before anything is written, of ``chunks`` as they come
        :raises NameTaken: the volume has that name
        :raises VolumeFull: no room, with the sizes
        :raises NoRight: ``owner`` is somebody else
        """
        check_name(name)
        info = new_info(name, data, dtype, row_bytes, Owner.new(name, mode, owner))
        namespace = drive.namespace(nsid)
        volume = Volume.open(namespace, create=True)
        if name in volume:
            raise NameTaken(f"{name!r} is in use; drop it first or choose another name")
        info = info._replace(extents=volume.reserve(info.size, extent_bytes))
        if isinstance(data, np.ndarray) or chunks is not None:
            writer = RowWriter(drive, namespace, info, progress or (lambda _: None))
            writer.write_all([data] if isinstance(data, np.ndarray) else chunks or ())
            writer.finish()
        else:
            for extent in info.extents:
                namespace.deallocate(*extent)
        namespace.flush()
        volume.publish(name, info.size, info.extents, info.attributes)
        return cls(drive, namespace, info)

    @classmethod
    def open(cls, drive: Drive, name: str, *, nsid: int = 1) -> Table:
        """Open a stored table.

        :raises NameUnknown: the volume has no such name
        :raises VolumeMissing: the namespace has no volume
        :raises NotATable: the name is something else's
        :raises NoRight: its owner and mode do not let this user read it
        """
        namespace = drive.namespace(nsid)
        info = TableInfo.of(Volume.open(namespace)[name])
        check_right(name, info.owner, READ)
        return cls(drive, namespace, info)

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
        return [TableInfo.of(entry) for entry in entries if entry.attributes.get("kind") == "table"]

    @staticmethod
    def drop(drive: Drive, name: str, *, nsid: int = 1) -> None:
        """Forget a table and deallocate its blocks.

        :raises NameUnknown: the volume has no such name
        :raises TableOpen: somebody has it open through this port: it must be closed first
        :raises NoRight: its owner and mode do not let this user change it
        """
        namespace = drive.namespace(nsid)
        try:
            volume = Volume.open(namespace)
        except VolumeMissing as error:
            raise NameUnknown(f"there is no table {name!r}: {error}") from error
        info = TableInfo.of(volume[name])
        check_right(name, info.owner, WRITE)
        if is_open(drive, nsid, name):
            raise TableOpen(f"table {name!r} is open on the drive; close() it wherever it is open, then drop it")
        volume.remove(name)
        for extent in info.extents:
            namespace.deallocate(*extent)

    def close(self) -> None:
        """Close it on the drive. Harmless when repeated."""
        handle, self._open = self._open, None
        if handle is not None:
            close_table(self.drive, handle.handle)
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

    # -- what it is

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def dim(self) -> int:
        """Elements of a row."""
        return self.info.dim

    def __len__(self) -> int:
        return self.info.rows

    def __repr__(self) -> str:
        made = "" if self.info.seed is None else f", generated from {self.info.seed}"
        what = f"{len(self)} rows of {self.dim} {self.info.dtype}{made}"
        return f"<Table {self.name!r}: {what} in {len(self.info.extents)} extents>"

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
        mode: Literal["sum", "mean"] = "sum",
        per_sample_weights: ArrayLike | None = None,
        padding_idx: int | None = None,
    ) -> Rows:
        """Sums of rows, one a bag, as ``torch.nn.functional.embedding_bag`` takes its arguments.

        :param indices: row ids, one row of whole numbers; or [bags, n], without ``offsets``
        :param offsets: where each bag starts in ``indices``; a bag ends where the next starts
        :param out: FP32[bags, dim] for the sums; from ``drive.alloc`` nothing is copied
        :param grain: what leaves the flash's page register: each vector's own bytes, or its whole page
        :param include_last_offset: ``offsets`` ends with ``len(indices)``, so there is one bag less than offsets
        :param mode: ``mean``: each sum divided by the number of its bag's ids
        :param per_sample_weights: a number for each index, that its row is multiplied by; with ``sum`` only
        :param padding_idx: an id that stands for nothing: no sum has it, no mean counts it
        :returns: ``out``, or a new array in the drive's memory; an empty bag is zeros
        :raises IndexOutOfRange: an id names no row; ``position`` and ``value`` are those of the first
        :raises RowUnreadable: the flash has lost a row that is needed
        :raises TableChanging: updates and swaps came so quickly that not all sums could be had of one version
        :raises InvalidArgument: not whole numbers, or offsets that fall or pass the indices
        """
        if mode not in ("sum", "mean") or (mode == "mean" and per_sample_weights is not None):
            raise InvalidArgument(f"mode {mode!r}: 'sum', or 'mean' without per_sample_weights")
        arguments = bags_of(
            indices,
            offsets,
            include_last_offset=include_last_offset,
            per_sample_weights=per_sample_weights,
            padding_idx=padding_idx,
            rows=len(self),
        )
        query = self._query(arguments, out, mean=mode == "mean")
        _run(self.drive, [self], [query], grain)
        if out is None or query.out is out:
            return query.out
        out[...] = query.out
        return out

    def _query(self, arguments: BagArguments, out: Rows | None, *, mean: bool = False) -> Query:
        table = self._handle()
        bags = len(arguments.offsets) - 1
        if out is not None and (out.shape != (bags, self.dim) or out.dtype != self.dtype):
            raise InvalidArgument(f"out is {out.dtype}{list(out.shape)}; the sums are float32{[bags, self.dim]}")
        direct = out is not None and self.drive.holds(out)
        sums = out if out is not None and direct else result_array(self.drive, bags, self.dim)
        return Query(table, arguments.ids, arguments.offsets, sums, arguments.weights, mean)

    def prefetch(self, indices: ArrayLike) -> None:
        """Have these rows read into the drive's cache of hot rows; returns at once, while they are on their way.

        :raises IndexOutOfRange: an id names no row
        :raises InvalidArgument: the drive has no such cache (``lookup.cache_rows``)
        """
        ids = bags_of(np.asarray(indices).reshape(1, -1), None).ids
        lookups_of(self.drive).prefetch(self._handle(), ids)

    # -- rows

    def read_rows(self, first: int = 0, count: int | None = None) -> Rows:
        """Rows as FP32, read as blocks; a generated table's are made here.

        :raises InvalidArgument: rows that the table does not have
        """
        self._follow()
        count = len(self) - first if count is None else count
        start, size = self._span(first, count)
        if self.info.seed is not None:
            return generated_rows(self.info.seed, np.arange(first, first + count), self.dim)
        if self._file is not None:
            return self.info.loaded(self._file.read(start, size))
        return self.info.loaded(read_bytes(self.namespace, self.info, start, size))

    def write_rows(self, first: int, rows: Rows) -> None:
        """Store other rows from row ``first`` on, as blocks, durably. A lookup at the same time sees old or new rows,
        page by page; ``update`` shows it all of them or none.

        :raises TableShapeError: not FP32[any, dim]
        :raises InvalidArgument: rows that the table does not have, or a generated table
        :raises NoRight: its owner and mode do not let this user change it
        """
        rows = self._changing(rows)
        start, _ = self._span(first, len(rows))
        data = self.info.stored(rows)
        if self._file is not None:
            self._file.write(start, data)
            return
        write_bytes(self.drive, self.namespace, self.info, start, data)
        self.namespace.flush()

    def update(self, ids: ArrayLike, rows: Rows) -> None:
        """Replace rows, in any order, durably. Of an id that is given twice the last row stays.

        No lookup command sees some of these rows old and some new, as long as they fit one command (1 MiB with 8 bytes
        an id; more go as several changes). For more than that: ``swap``.

        :raises IndexOutOfRange: an id names no row; nothing was changed
        :raises TableShapeError: not FP32[ids, dim]
        :raises InvalidArgument: a generated table or a file, which is the file system's to change
        :raises NoRight: its owner and mode do not let this user change it
        """
        if self._file is not None:
            raise InvalidArgument(f"{self.name!r} is a file: its file system would not know; use write_rows")
        rows = self._changing(rows)
        numbers = bags_of(np.asarray(ids).reshape(1, -1), None).ids
        if len(numbers) != len(rows):
            raise TableShapeError(f"{len(rows)} rows for {len(numbers)} ids; give one each")
        update_rows(self.drive, self._handle(), self.info, numbers, rows)
        self.namespace.flush()

    def swap(self, other: Table) -> None:
        """Two tables of one shape and row type change their rows, at once for every lookup, and durably.

        Lookups that are under way see this table as it was; those after it as ``other`` was. After a restart, or a
        kill at any instant, it has happened or it has not. Names, owners and modes stay.

        :raises TableShapeError: other rows, dim, row type or stride
        :raises InvalidArgument: on different drives or namespaces, or a file
        :raises NoRight: owner and mode of one of them do not let this user change it
        """
        alike = ("rows", "dim", "dtype", "row_bytes")
        mine, its = ([getattr(table.info, name) for name in alike] for table in (self, other))
        if mine != its:
            raise TableShapeError(f"{alike} of {self.name!r} are {mine}, of {other.name!r} {its}: no swap")
        if self._file or other._file or self.drive is not other.drive or self.namespace.nsid != other.namespace.nsid:
            raise InvalidArgument("only tables of one volume can change places: one drive, one namespace, no files")
        if self.name == other.name:
            raise InvalidArgument(f"{self.name!r} with itself: give another table")
        for table in (self, other):
            check_right(table.name, table.info.owner, WRITE)
        volume = Volume.open(self.namespace)
        names = self.name, other.name
        changed = volume.exchange(*names, keep=Owner._fields)  # first: who sees the new version finds the new entry
        try:
            swap_tables(self.drive, self._handle().handle, other._handle().handle)
        except BaseException:
            volume.exchange(*names, keep=Owner._fields)
            raise
        self.info, other.info = (TableInfo.of(entry) for entry in changed)

    def _changing(self, rows: Rows) -> Rows:
        """Rows that may be stored here. :raises NoRight: not by this user"""
        check_right(self.name, self.info.owner, WRITE)
        if self.info.seed is not None:
            raise InvalidArgument(f"{self.name!r} is generated from seed {self.info.seed}: its rows stay as they are")
        self._follow()
        return checked_rows(rows, self.dim)

    def _follow(self) -> None:
        """Take up where the table lies now, if another program has swapped it."""
        if self._file is None and (version := self.stats.version) != self._version:
            self.info = TableInfo.of(Volume.open(self.namespace)[self.name])
            self._version = version

    def _span(self, first: int, count: int) -> tuple[int, int]:
        if first < 0 or count < 0 or first + count > len(self):
            raise InvalidArgument(f"rows {first} to {first + count - 1}; the table's are 0 to {len(self) - 1}")
        return first * self.info.row_bytes, count * self.info.row_bytes


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
    queries = [t._query(bags_of(ids, offsets), None) for t, (ids, offsets) in zip(tables, bags, strict=True)]
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
