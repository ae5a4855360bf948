"""Rows of a table: their shape, and how they get to where they are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emucsd.drive import Drive
from emucsd.errors import EmucsdError
from emucsd.namespace import Namespace
from emucsd.volume import Extent
from emucsd_wire.vendor import MAX_DIM

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


class TableInfo(NamedTuple):
    """A table as the volume tells it."""

    name: str
    rows: int
    dim: int
    extents: tuple[Extent, ...]

    @property
    def row_bytes(self) -> int:
        return 4 * self.dim

    @property
    def size(self) -> int:
        """Bytes of all rows."""
        return self.rows * self.row_bytes


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
        data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
        self.rows += len(rows)
        while len(data):
            take = min(len(data), len(self.staged) - self.filled)
            self.staged[self.filled : self.filled + take] = data[:take]
            self.filled += take
            data = data[take:]
            if self.filled == len(self.staged):
                self._flush()

    def finish(self, *, whole: bool) -> None:
        """:raises TableShapeError: fewer rows came than were announced"""
        if whole and self.rows != self.info.rows:
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


def shape_of(data: Any) -> tuple[int, int]:
    if isinstance(data, np.ndarray):
        checked_rows(data, None)
        shape = (int(data.shape[0]), int(data.shape[1]))
    elif isinstance(data, tuple) and len(data) == 2 and all(isinstance(n, int | np.integer) for n in data):
        shape = (int(data[0]), int(data[1]))
    else:
        raise TableShapeError(f"{type(data).__name__} is no table: give a float32 array [rows, dim], or (rows, dim)")
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
