"""A batch as columns, and what came of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emucsd.errors import InvalidArgument, error_for, status_name
from emucsd_wire.nvme import SQE, Sqe

Ints = NDArray[np.int64]


class Columns:
    """Commands of one batch. Each column has one value for all commands, or one for each.

    :param templates: submission entries (``Sqe``, or array of ``SQE.dtype``): what the other columns do not patch
    :param opcodes: u8 into the opcode
    :param lbas: into cdw10 and cdw11
    :param blocks: number of logical blocks (1-based here), into cdw12 15:0
    :param addresses: of data, in the drive's memory (``array.ctypes.data``); needs ``sizes``
    :param sizes: bytes of data; PRPs are built from address and size, in compiled code
    :param arrivals: ns after the start before which a command is not submitted, ascending: open-loop load
    :param data: arrays to keep alive, whatever the addresses point into
    :param latencies: record each command's latency; ``submitted`` its submission time; ``results`` its dwords 0 and 1
    :raises InvalidArgument: columns of different lengths, or out of range
    """

    def __init__(
        self,
        templates: Sqe | NDArray[Any],
        *,
        opcodes: ArrayLike | None = None,
        lbas: ArrayLike | None = None,
        blocks: ArrayLike | None = None,
        addresses: ArrayLike | None = None,
        sizes: ArrayLike | None = None,
        arrivals: ArrayLike | None = None,
        data: tuple[Any, ...] = (),
        latencies: bool = True,
        submitted: bool = False,
        results: bool = False,
    ) -> None:
        if isinstance(templates, Sqe):
            templates = np.frombuffer(SQE.pack(templates), SQE.dtype)
        self._columns: dict[str, NDArray[Any]] = {"template": np.ascontiguousarray(np.atleast_1d(templates))}
        for name, values, dtype in (
            ("opcode", opcodes, np.uint8),
            ("lba", lbas, np.int64),
            ("block", _less_one(blocks), np.uint16),
            ("buffer", addresses, np.int64),
            ("size", sizes, np.int64),
        ):
            if values is not None:
                self._columns[name] = _column(name, values, dtype)
        if (addresses is None) != (sizes is None):
            raise InvalidArgument("addresses and sizes of data go together")
        self.arrivals: Ints | None = None if arrivals is None else _column("arrival", arrivals, np.int64)
        lengths = {name: len(column) for name, column in self._columns.items() if len(column) != 1}
        if self.arrivals is not None:
            lengths["arrival"] = len(self.arrivals)
        if len(set(lengths.values())) > 1:
            raise InvalidArgument(f"columns of different lengths {lengths}; give one value, or one for each command")
        self.count = next(iter(lengths.values()), 1)
        self.data = data
        self.wants = {"latencies": latencies, "submitted": submitted, "results": results}

    def describe(self, index: int) -> str:
        """Command ``index`` in words, for an error."""
        template = self._columns["template"]
        entry = template[index if len(template) > 1 else 0]
        opcode = self._at("opcode", index, int(entry["opcode"]))
        lba = self._at("lba", index, int(entry["cdw10"]) | int(entry["cdw11"]) << 32)
        blocks = self._at("block", index, int(entry["cdw12"]) & 0xFFFF) + 1
        return f"opcode {opcode:#04x} nsid {int(entry['nsid'])} lba {lba} blocks {blocks}"

    def _at(self, name: str, index: int, otherwise: int) -> int:
        column = self._columns.get(name)
        return otherwise if column is None else int(column[index if len(column) > 1 else 0])

    def commands(self, first: int, end: int) -> tuple[NDArray[Any], Ints, Ints]:
        """Commands ``first`` to ``end - 1``: entries (``SQE.dtype``, PRPs unset), addresses and sizes of data."""
        columns = {name: c if len(c) == 1 else c[first:end] for name, c in self._columns.items()}
        entries = np.zeros(end - first, SQE.dtype)
        entries[:] = columns["template"].reshape(-1).view(SQE.dtype)
        if "opcode" in columns:
            entries["opcode"] = columns["opcode"]
        if "lba" in columns:
            entries["cdw10"], entries["cdw11"] = columns["lba"] & 0xFFFF_FFFF, columns["lba"] >> 32
        if "block" in columns:
            entries["cdw12"] = (entries["cdw12"] & 0xFFFF_0000) | columns["block"]
        data = [np.zeros(end - first, np.int64) for _ in range(2)]
        for column, name in zip(data, ("buffer", "size"), strict=True):
            if name in columns:
                column[:] = columns[name]
        return entries, data[0], data[1]

    def record(self, outcome: Outcome) -> NDArray[Any]:
        """The Batch record for compiled code; it points into these columns and the outcome's."""
        from emucsd.ring import Batch  # only the direct client has compiled code, and what it takes to load it

        batch = np.zeros((), Batch.dtype)
        batch["count"] = self.count
        for name, column in self._columns.items():
            plural = "addresses" if name == "address" else f"{name}s"
            batch[plural] = column.ctypes.data
            batch[f"{name}_stride"] = 0 if len(column) == 1 else column.itemsize
        if self.arrivals is not None:
            batch["arrivals"] = self.arrivals.ctypes.data
        batch["statuses"] = outcome.statuses.ctypes.data
        for name in ("latencies", "submitted", "results"):
            wanted = getattr(outcome, name)
            batch[name] = 0 if wanted is None else wanted.ctypes.data
        return batch


def _less_one(blocks: ArrayLike | None) -> NDArray[Any] | None:
    if blocks is None:
        return None
    counts = np.atleast_1d(np.asarray(blocks))
    if counts.size and (counts.min() < 1 or counts.max() > 1 << 16):
        raise InvalidArgument(f"blocks {counts.min()} to {counts.max()}: a command has 1 to 65536")
    return counts - 1


def _column(name: str, values: ArrayLike, dtype: type[np.generic]) -> NDArray[Any]:
    column = np.atleast_1d(np.asarray(values))
    if column.ndim != 1 or column.dtype.kind not in "iu":
        raise InvalidArgument(f"{name}s of shape {column.shape}, {column.dtype}: use one row of whole numbers")
    return np.ascontiguousarray(column, dtype=dtype)


class Outcome:
    """What came of a batch, one element a command.

    :ivar statuses: u16, SCT << 8 | SC; 0 is success
    :ivar latencies: int64 ns from submission to seeing the completion (virtual ns under a virtual clock), or None
    :ivar submitted: int64 ns on the drive's clock, or None
    :ivar results: int64, completion dword 0 and, above it, dword 1, or None
    :ivar failed: commands whose status is not 0
    :ivar elapsed_ns: wall time of the whole batch
    """

    def __init__(self, columns: Columns) -> None:
        count = columns.count
        self._columns = columns
        self.statuses = np.zeros(count, np.uint16)
        self.latencies: Ints | None = np.zeros(count, np.int64) if columns.wants["latencies"] else None
        self.submitted: Ints | None = np.zeros(count, np.int64) if columns.wants["submitted"] else None
        self.results: Ints | None = np.zeros(count, np.int64) if columns.wants["results"] else None
        self.failed = 0
        self.elapsed_ns = 0

    def __len__(self) -> int:
        return len(self.statuses)

    def __repr__(self) -> str:
        worst = f", first {status_name(int(self.statuses[self.first_failed]))}" if self.failed else ""
        return f"<Outcome of {len(self)} commands, {self.failed} failed{worst}, {self.elapsed_ns / 1e6:.3f} ms>"

    @property
    def first_failed(self) -> int:
        """Index of the first command that failed; -1 when none did."""
        return int(np.flatnonzero(self.statuses)[0]) if self.failed else -1

    @property
    def iops(self) -> float:
        """Commands per wall second."""
        return len(self) * 1e9 / self.elapsed_ns if self.elapsed_ns else 0.0

    def latency_us(self, *quantiles: float) -> tuple[float, ...]:
        """Quantiles (0 to 1) of latency in microseconds. :raises InvalidArgument: latencies were not recorded"""
        if self.latencies is None or not len(self):
            raise InvalidArgument("no latencies: submit at least one command with latencies=True")
        return tuple((np.quantile(self.latencies, quantiles) / 1000).tolist())

    def check(self) -> Outcome:
        """:raises NvmeError: of the first command that failed; ``index`` says which"""
        if self.failed:
            index = self.first_failed
            dw0 = int(self.results[index]) & 0xFFFF_FFFF if self.results is not None else 0
            raise error_for(self._columns.describe(index), int(self.statuses[index]), dw0, index)
        return self

    def finish(self, failed: int, elapsed_ns: int) -> None:
        """Take over the counters of the finished batch."""
        self.failed, self.elapsed_ns = failed, elapsed_ns
