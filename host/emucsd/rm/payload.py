"""A batch as the data of RM_SEND commands: cut into parts that fit, written straight into the drive's memory.

A few NumPy operations a table, none a sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emucsd.rm.errors import IndexOutOfRangeOfTable, SampleTooLarge
from emucsd.rm.inputs import Floats, Ids, Sparse
from emucsd.rm.shape import Shape
from emucsd_wire.rm import MAX_SAMPLES, RM_BATCH, RmBatchFlag, batch_layout

_PADDING = 16  # the ids begin at a multiple of 8, and so do their weights
_NARROW = 1 << 32


class Limits(NamedTuple):
    """Of one command.

    :ivar size: bytes of its data
    :ivar samples: that a batch of the session may have
    """

    size: int
    samples: int


class Part(NamedTuple):
    """Samples ``first`` to ``last - 1`` of a batch."""

    first: int
    last: int

    @property
    def samples(self) -> int:
        """How many."""
        return self.last - self.first


class Filled(NamedTuple):
    """What lies in the payload: its bytes, ids, and RmBatchFlags."""

    size: int
    lookups: int
    flags: int


class Writer:
    """Writes batches of one model. Ids take 4 bytes unless a table has more rows than those can name."""

    def __init__(self, model: Shape, limits: Limits, dense: int | None = None) -> None:
        """:param dense: features a sample; None: the model's"""
        self.dense, self.tables, self.limits = model.dense if dense is None else dense, len(model.tables), limits
        self.rows = [table.rows for table in model.tables]
        self.wide = max(self.rows) > _NARROW
        self._id_bytes = 8 if self.wide else 4
        self._staged = np.empty(0, np.int64)

    def most_samples(self, lookups: int) -> int:
        """Samples that fit a command where each has ``lookups`` ids; at least 1."""
        a_sample = 4 * self.dense + 4 * self.tables + self._id_bytes * lookups
        room = self.limits.size - RM_BATCH.size - 4 - _PADDING
        return max(1, min(room // max(a_sample, 1), MAX_SAMPLES, self.limits.samples))

    def parts(self, sparse: Sparse) -> list[Part]:
        """Of about equal size, as few as can be. :raises SampleTooLarge: one sample does not fit a command"""
        if not sparse.samples:
            return []
        ids = sparse.bounds.sum(axis=0)
        each = self._id_bytes + (4 if sparse.weights is not None else 0)
        ends = np.arange(sparse.samples + 1) * (4 * self.dense + 4 * self.tables) + (ids - ids[0]) * each
        room = self.limits.size - RM_BATCH.size - 4 - _PADDING
        if ends[-1] <= room and sparse.samples <= self.limits.samples:
            return [Part(0, sparse.samples)]
        return list(self._cut(ends, room, sparse))

    def _cut(self, ends: NDArray[np.int64], room: int, sparse: Sparse) -> Iterator[Part]:
        count = max(-(-int(ends[-1]) // room), -(-sparse.samples // self.limits.samples))
        share = -(-int(ends[-1]) // count)
        first = 0
        while first < sparse.samples:
            start = int(ends[first])
            last = int(np.searchsorted(ends, start + share, "left"))
            if last > sparse.samples or ends[last] - start > room:
                last = int(np.searchsorted(ends, start + room, "right")) - 1
            last = min(last, first + self.limits.samples)
            if last == first:
                ids = int((sparse.bounds[:, first + 1] - sparse.bounds[:, first]).sum())
                size = int(ends[first + 1]) - start
                raise SampleTooLarge(
                    f"sample {first} with {ids} ids takes {size} bytes; a command carries {room}: look bags of that "
                    "length up with Table.lookup, which carries their sums on"
                )
            yield Part(first, last)
            first = last

    def write(self, payload: NDArray[np.uint8], dense: Floats | None, sparse: Sparse, part: Part) -> Filled:
        """Everything but the RmBatch, which says what is returned.

        :raises IndexOutOfRangeOfTable: ids that 4 bytes can't carry name no row for sure
        """
        first, last = part
        counts = sparse.bounds[:, last] - sparse.bounds[:, first]
        lookups = int(counts.sum())
        flags = (RmBatchFlag.WIDE_IDS if self.wide else 0) | (RmBatchFlag.WEIGHTED if sparse.weights else 0)
        at = batch_layout(part.samples, lookups, flags, dense=self.dense, tables=self.tables)
        if dense is not None and self.dense:
            features = payload[at.dense : at.offsets].view(np.float32)[: part.samples * self.dense]
            features.reshape(part.samples, self.dense)[:] = dense[first:last]
        bags = self.tables * part.samples
        payload[at.ids - 8 : at.ids] = 0  # the padding lies there, if there is any
        offsets = payload[at.offsets : at.offsets + 4 * (bags + 1)].view(np.uint32)
        starts = np.cumsum(counts) - counts - sparse.bounds[:, first]
        np.add(
            sparse.bounds[:, first:last],
            starts[:, None],
            out=offsets[:bags].reshape(self.tables, part.samples),
            casting="unsafe",
        )
        offsets[bags] = lookups
        ids_end = at.ids + self._id_bytes * lookups
        self._write_ids(payload[at.ids : ids_end], sparse, part)
        if sparse.weights is not None:
            payload[ids_end : at.weights] = 0
            factors = payload[at.weights : at.size].view(np.float32)
            for row, lo, hi, there in self._slices(sparse, part):
                factors[there : there + hi - lo] = sparse.weights[row][lo:hi]
        return Filled(at.size, lookups, int(flags))

    def _write_ids(self, room: NDArray[np.uint8], sparse: Sparse, part: Part) -> None:
        ids = room.view(np.int64 if self.wide else np.uint32)
        if sparse.ids is None:
            assert sparse.cube is not None
            cube = sparse.cube[part.first : part.last]
            if not self.wide and _too_wide(cube):
                self._refuse(sparse, part)
            ids.reshape(self.tables, part.samples, -1)[:] = cube.transpose(1, 0, 2)
            return
        rows = [sparse.ids[number][low:high] for number, low, high, _ in self._slices(sparse, part)]
        if self.wide or max(row.itemsize for row in rows) <= 4:
            np.concatenate(rows, out=ids, casting="unsafe")
            return
        if len(self._staged) < len(ids):
            self._staged = np.empty(len(ids), np.int64)
        staged = self._staged[: len(ids)]
        np.concatenate(rows, out=staged, casting="unsafe")  # in one piece, so that one look at all of them will do
        if _too_wide(staged):
            self._refuse(sparse, part)
        ids[:] = staged

    def _slices(self, sparse: Sparse, part: Part) -> Iterator[tuple[int, int, int, int]]:
        """(table, first id there, last id there, place among the part's ids)."""
        lows, highs = sparse.bounds[:, part.first].tolist(), sparse.bounds[:, part.last].tolist()
        at = 0
        for number, (low, high) in enumerate(zip(lows, highs, strict=True)):
            yield number, low, high, at
            at += high - low

    def _refuse(self, sparse: Sparse, part: Part) -> None:
        """Name the first id that names no row."""
        for number, rows in enumerate(self.rows):
            low, high = (int(sparse.bounds[number, place]) for place in part)
            ids = sparse.table(number)[low:high]
            wrong = np.flatnonzero((ids < 0) | (ids >= rows))
            if len(wrong):
                place = int(wrong[0])
                raise IndexOutOfRangeOfTable(number, low + place, int(ids[place]), rows)


def _too_wide(ids: Ids) -> bool:
    """Whether an id has bits that 4 bytes would lose; of narrower ids the drive itself sees that they name no row."""
    return ids.itemsize > 4 and bool(int(np.bitwise_or.reduce(ids, axis=None)) >> 32)


def place_of(sparse: Sparse, part: Part, position: int) -> tuple[int, int, int]:
    """(table, position among its indices, value) of the id at ``position`` of a part's ids."""
    counts = sparse.bounds[:, part.last] - sparse.bounds[:, part.first]
    ends = np.cumsum(counts)
    number = min(int(np.searchsorted(ends, position, "right")), len(counts) - 1)
    at = position - int(ends[number] - counts[number]) + int(sparse.bounds[number, part.first])
    return number, at, int(sparse.table(number)[at])
