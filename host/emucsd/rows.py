"""Rows of a table: their shape, and how they get to where they are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from emucsd.drive import Drive
from emucsd.errors import EmucsdError
from emucsd.namespace import Namespace
from emucsd.rights import Owner
from emucsd.rowtypes import DTYPES, Generated, decode, dtype_of, encode, stride_of
from emucsd.volume import Entry, Extent
from emucsd_wire.vendor import MAX_DIM, Dtype, content_bytes

Rows = NDArray[np.float32]

PIECE = 4 << 20  # bytes moved at a time


class TableError(EmucsdError):
    """A table cannot be made, opened or used as asked."""


class TableShapeError(TableError, ValueError):
    """Rows of another shape or dtype than FP32[rows, dim]. Nothing was written."""


class NotATable(TableError):
    """The volume has the name, but it is no table of this library's."""


class TableClosed(TableError):
    """The table was closed or dropped, or a controller reset closed it."""


class TableOpen(TableError):
    """The table is open, and what is asked for would take its rows away."""


class TableInfo(NamedTuple):
    """A table as the volume tells it.

    :ivar dtype: of the rows as they are stored: a key of ``rowtypes.DTYPES``
    :ivar stride: bytes from one row to the next; 0: packed
    :ivar seed: the rows are generated from it, and none is stored
    :ivar owner: who may use it; None: everybody
    """

    name: str
    rows: int
    dim: int
    extents: tuple[Extent, ...]
    dtype: str = "float32"
    stride: int = 0
    seed: int | None = None
    owner: Owner | None = None

    @property
    def kind(self) -> Dtype:
        return dtype_of(self.dtype)

    @property
    def content_bytes(self) -> int:
        """Of a row, without what is between it and the next."""
        return content_bytes(self.kind, self.dim)

    @property
    def row_bytes(self) -> int:
        """From one row to the next."""
        return self.stride or self.content_bytes

    @property
    def size(self) -> int:
        """Bytes of all rows."""
        return self.rows * self.row_bytes

    @property
    def attributes(self) -> dict[str, Any]:
        """What the volume keeps of it beside its extents."""
        told: dict[str, Any] = {"kind": "table", "dtype": self.dtype, "shape": [self.rows, self.dim]}
        if self.stride:
            told["row_bytes"] = self.stride
        if self.seed is not None:
            told["seed"] = self.seed
        return told if self.owner is None else {**told, **self.owner._asdict()}

    @classmethod
    def of(cls, entry: Entry) -> Self:
        """:raises NotATable: something else of this name, or a dtype that this library does not know"""
        about = entry.attributes
        if about.get("kind") != "table" or about.get("dtype") not in DTYPES:
            what = f"{about.get('kind', 'unknown')} of {about.get('dtype', 'no dtype')}"
            raise NotATable(f"{entry.name!r} is {what}, no table that this library knows")
        rows, dim = about["shape"]
        stride, seed = int(about.get("row_bytes", 0)), about.get("seed")
        return cls(entry.name, rows, dim, entry.extents, about["dtype"], stride, seed, Owner.of(about))

    def stored(self, rows: Rows) -> NDArray[np.uint8]:
        """FP32[any, dim] as bytes of the table: content, and zeros up to the next row."""
        content = encode(rows, self.kind)
        if self.row_bytes == self.content_bytes:
            return content.reshape(-1)
        image = np.zeros((len(rows), self.row_bytes), np.uint8)
        image[:, : self.content_bytes] = content
        return image.reshape(-1)

    def loaded(self, data: NDArray[np.uint8]) -> Rows:
        """``stored``, backwards."""
        return decode(data.reshape(-1, self.row_bytes)[:, : self.content_bytes], self.kind, self.dim)


class RowWriter:
    """Writes a new table's bytes, in order, over its extents."""

    def __init__(self, drive: Drive, namespace: Namespace, info: TableInfo, progress: Callable[[int], None]) -> None:
        self.namespace, self.info, self.progress = namespace, info, progress
        self.lbas = self._lbas()
        self.staged = drive.alloc(min(PIECE, -(-info.size // namespace.lba_bytes) * namespace.lba_bytes))
        self.filled = self.done = 0
        self.rows = 0

    def _lbas(self) -> Iterator[tuple[int, int]]:
        """Runs of (lba, blocks) that follow each other in the table."""
        yield from self.info.extents

    def write_all(self, chunks: Iterable[Rows]) -> None:
        for chunk in chunks:
            rows = checked_rows(chunk, self.info.dim)
            if self.rows + len(rows) > self.info.rows:
                raise TableShapeError(f"chunks bring more than the {self.info.rows} rows that were announced")
            self.write(rows)

    def write(self, rows: Rows) -> None:
        """Take up rows, a few MiB at a time: they may take other room as they are stored."""
        step = max(PIECE // max(self.info.row_bytes, 4 * self.info.dim), 1)
        for first in range(0, len(rows), step):
            self._take(self.info.stored(rows[first : first + step]))
        self.rows += len(rows)

    def _take(self, data: NDArray[np.uint8]) -> None:
        while len(data):
            take = min(len(data), len(self.staged) - self.filled)
            self.staged[self.filled : self.filled + take] = data[:take]
            self.filled += take
            data = data[take:]
            if self.filled == len(self.staged):
                self._flush()

    def finish(self) -> None:
        """:raises TableShapeError: fewer rows came than were announced"""
        if self.rows != self.info.rows:
            raise TableShapeError(f"{self.rows} rows came, {self.info.rows} were announced")
        self._flush()

    _run = (0, 0)

    def _flush(self) -> None:
        """Write what is staged, padded to a whole block: only the last flush is not one already."""
        lba_bytes = self.namespace.lba_bytes
        size = -(-self.filled // lba_bytes) * lba_bytes
        self.staged[self.filled : size] = 0
        at = 0
        while at < size:
            if self._run[1] == 0:
                self._run = next(self.lbas)
            lba, blocks = self._run
            take = min(blocks, (size - at) // lba_bytes)
            self.namespace.write(lba, self.staged[at : at + take * lba_bytes])
            self._run = (lba + take, blocks - take)
            at += take * lba_bytes
        self.done += self.filled
        self.filled = 0
        self.progress(self.done)


def _runs(namespace: Namespace, info: TableInfo, start: int, size: int) -> Iterator[tuple[int, int, int, int]]:
    """(offset in the data, LBA, bytes to skip in it, bytes) of runs that cover table bytes from ``start`` on."""
    lba_bytes = namespace.lba_bytes
    extent_start = 0
    for slba, blocks in info.extents:
        extent_end = extent_start + blocks * lba_bytes
        at, end = max(start, extent_start), min(start + size, extent_end)
        while at < end:
            inside = at - extent_start
            piece = min(end - at, PIECE)
            yield at - start, slba + inside // lba_bytes, inside % lba_bytes, piece
            at += piece
        extent_start = extent_end


def read_bytes(namespace: Namespace, info: TableInfo, start: int, size: int) -> NDArray[np.uint8]:
    """Bytes of a table, read as blocks."""
    data = np.empty(size, np.uint8)
    for at, lba, skip, piece in _runs(namespace, info, start, size):
        blocks = -(-(skip + piece) // namespace.lba_bytes)
        data[at : at + piece] = namespace.read(lba, blocks)[skip : skip + piece]
    return data


def write_bytes(drive: Drive, namespace: Namespace, info: TableInfo, start: int, data: NDArray[np.uint8]) -> None:
    """Overwrite bytes of a table, as blocks; what is beside them in their blocks stays."""
    for at, lba, skip, piece in _runs(namespace, info, start, len(data)):
        blocks = -(-(skip + piece) // namespace.lba_bytes)
        room = blocks * namespace.lba_bytes
        with drive.borrow(room) as staged:
            if room != piece:
                namespace.read(lba, blocks, out=staged)
            staged[skip : skip + piece] = data[at : at + piece]
            namespace.write(lba, staged)


def new_info(name: str, data: Any, dtype: str, row_bytes: int | None, owner: Owner) -> TableInfo:
    """A table that is to be, without its place. :raises TableShapeError: not as ``Table.create`` takes them"""
    rows, dim = shape_of(data)
    kind = dtype_of(dtype)
    info = TableInfo(name, rows, dim, (), dtype, row_bytes or 0, owner=owner)
    if row_bytes is None and (stride := stride_of(kind, dim)) != info.content_bytes:
        info = info._replace(stride=stride)
    if info.row_bytes < info.content_bytes:
        raise TableShapeError(f"row_bytes {row_bytes}: a row of {dim} {dtype} takes {info.content_bytes}")
    if not isinstance(data, Generated):
        return info
    if dtype != "float32":
        raise TableShapeError(f"dtype {dtype!r}: generated rows are float32")
    return info._replace(seed=data.seed)


def shape_of(data: Any) -> tuple[int, int]:
    if isinstance(data, Generated):
        return shape_of((data.rows, data.dim))
    if isinstance(data, np.ndarray):
        checked_rows(data, None)
        shape = (int(data.shape[0]), int(data.shape[1]))
    elif isinstance(data, tuple) and len(data) == 2 and all(isinstance(n, int | np.integer) for n in data):
        shape = (int(data[0]), int(data[1]))
    else:
        raise TableShapeError(
            f"{type(data).__name__} is no table: give float32[rows, dim], (rows, dim), or generated(seed, …)"
        )
    if shape[0] < 1 or not 1 <= shape[1] <= MAX_DIM:
        raise TableShapeError(f"{shape[0]} rows of {shape[1]}; a table has at least 1 row of 1 to {MAX_DIM} elements")
    return shape


def checked_rows(rows: Any, dim: int | None) -> Rows:
    """:raises TableShapeError: not FP32[any, dim]"""
    wanted = f"float32[rows, {'dim' if dim is None else dim}]"
    if not isinstance(rows, np.ndarray) or rows.dtype != np.float32 or rows.ndim != 2:
        what = f"{rows.dtype}{list(rows.shape)}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise TableShapeError(f"{what} given; rows are {wanted}. Convert with .astype(np.float32)")
    if dim is not None and rows.shape[1] != dim:
        raise TableShapeError(f"float32{list(rows.shape)} given; rows are {wanted}")
    return np.ascontiguousarray(rows)
