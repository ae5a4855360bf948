"""Open tables: the control thread's side of the lookup engine. The data plane is out of compiled code meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emucsd_firmware.lookup.requests import queue_swap
from emucsd_firmware.lookup.state import QUEUED, READING, SLICE, SLICE_BYTES, SWAP, LookupMemory
from emucsd_wire.nvme import Status
from emucsd_wire.vendor import (
    MAX_DIM,
    MAX_EXTENTS,
    MAX_ROW_BYTES,
    MAX_TABLES,
    TABLE_ENTRY,
    TABLE_LIST_BYTES,
    TABLE_STATS,
    TABLE_VERSION,
    Dtype,
    TableEntry,
    TableFlag,
    TableHeader,
    TableStats,
    content_bytes,
)

_COUNTERS = (
    *("requests", "bags", "vectors", "flash_reads", "flash_bytes", "buffered", "unwritten", "split", "failed"),
    *("version", "updated", "hits", "misses", "admitted", "evicted"),
)
_SHAPE = ("port", "nsid", "lba_shift", "kind", "dim", "rows", "stride")  # what two tables that are swapped share
_GENERATIONS = 1 << 25  # handles are generation * MAX_TABLES + slot, in 32 bits, as the host sees them


class Space(NamedTuple):
    """A namespace, as far as a table needs to know it."""

    first_lpn: int
    blocks: int
    lba_bytes: int


class TableRefused(Exception):
    """The host asked for what can't be: ``status`` is the answer."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


_DTYPES = tuple(int(kind) for kind in Dtype)


def _stride(header: TableHeader) -> int:
    """Bytes from one row to the next."""
    return header.row_bytes or content_bytes(header.dtype, header.dim)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


class Tables:
    """Opens and closes the tables of one drive.

    :raises TableRefused: from every method that takes a host's word: the reason and the status that answers it
    """

    def __init__(self, memory: LookupMemory) -> None:
        self.memory = memory
        self.records = memory.tables
        self.page_bytes = memory.page_bytes
        self._past: dict[tuple[int, int], tuple[int, int]] = {}  # ``rows`` of tables whose slots were used again

    def open(self, port: int, header: TableHeader, extents: NDArray[Any], space: Space) -> int:
        """:param extents: columns of TableExtent
        :returns: the handle; a table that is open already, with the very same description, has one handle for all
        """
        self._check(header, extents, space)
        bounds = self._bounds(header, extents, space)
        slot = self._same(port, header, bounds)
        if slot < 0:
            slot = self._fill(port, header, bounds, space)
        self.records[slot]["opens"] += 1
        return int(self.records[slot]["handle"])

    def _check(self, header: TableHeader, extents: NDArray[Any], space: Space) -> None:
        if header.version == 1:
            plain = not (header.seed or header.row_bytes or header.flags or header.dtype)
        else:
            plain = header.version == TABLE_VERSION and header.flags <= TableFlag.GENERATED
        if not plain:
            reason = f"table version {header.version}, flags {header.flags:#x}; this drive knows up to {TABLE_VERSION}"
            raise TableRefused(Status.INVALID_FIELD, reason)
        if header.dtype not in _DTYPES or not 1 <= header.dim <= MAX_DIM or header.rows == 0:
            reason = f"{header.rows} rows of {header.dim} of dtype {header.dtype}; rows are 1 to {MAX_DIM} of {_DTYPES}"
            raise TableRefused(Status.LOOKUP_TABLE_SHAPE, reason)
        if header.flags & TableFlag.GENERATED and header.dtype != Dtype.FP32:
            raise TableRefused(Status.LOOKUP_TABLE_SHAPE, f"dtype {header.dtype}; generated rows are FP32 (0)")
        content = content_bytes(header.dtype, header.dim)
        if header.row_bytes and not content <= header.row_bytes <= MAX_ROW_BYTES:
            reason = f"rows {header.row_bytes} bytes apart; they take {content}, and {MAX_ROW_BYTES} is the most"
            raise TableRefused(Status.LOOKUP_TABLE_SHAPE, reason)
        if not 1 <= header.extents <= MAX_EXTENTS or len(extents) != header.extents:
            reason = f"{header.extents} extents announced, {len(extents)} given; a table has 1 to {MAX_EXTENTS}"
            raise TableRefused(Status.LOOKUP_TABLE_SHAPE, reason)
        ends = extents["slba"].astype(object) + extents["blocks"]  # Python integers: no sum of a host's can wrap
        if not extents["blocks"].all() or max(ends) > space.blocks:
            reason = f"extents reach LBA {max(ends)} or are empty; the namespace has {space.blocks}"
            raise TableRefused(Status.LBA_OUT_OF_RANGE, reason)

    def _bounds(self, header: TableHeader, extents: NDArray[Any], space: Space) -> list[tuple[int, int]]:
        """(first table byte, base) of each extent, and the table's end."""
        bounds, first = [], 0
        for extent in extents.tolist():
            first_byte, slba, blocks, _ = extent
            if first_byte != first:
                reason = f"an extent starts at table byte {first_byte}, the one before ends at {first}"
                raise TableRefused(Status.LOOKUP_TABLE_SHAPE, reason)
            bounds.append((first, space.first_lpn * self.page_bytes + slba * space.lba_bytes - first))
            first += blocks * space.lba_bytes
        stride = _stride(header)
        if (header.rows - 1) * stride + content_bytes(header.dtype, header.dim) > first:
            reason = f"{header.rows} rows {stride} bytes apart; the extents hold {first} bytes"
            raise TableRefused(Status.LOOKUP_TABLE_SHAPE, reason)
        return [*bounds, (first, 0)]

    def _same(self, port: int, header: TableHeader, bounds: list[tuple[int, int]]) -> int:
        """The slot of the same table on the same port, or -1. Another of its name is refused."""
        name = _signed(header.name_hash)
        for slot in self._open():
            table = self.records[slot]
            if (table["port"], table["nsid"], table["name_hash"]) != (port, header.nsid, name):
                continue
            place, _ = self._after_swaps(slot)
            shape = tuple(int(table[name]) for name in ("rows", "dim", "kind", "stride"))
            made = tuple(int(self.records[place][name]) for name in ("generated", "seed"))
            count = int(self.records[place]["extent_count"]) + 1
            wanted = (header.rows, header.dim, header.dtype, _stride(header))
            seed = (int(header.flags & TableFlag.GENERATED), _signed(header.seed))
            known = self.memory.extents[place][:count].tolist()
            if shape != wanted or made != seed or known != bounds:
                raise TableRefused(Status.LOOKUP_TABLE_EXISTS, f"table {slot} has this name and another shape or place")
            return slot
        return -1

    def _after_swaps(self, slot: int) -> tuple[int, int]:
        """The slot whose place this table will have once all that is queued is done, and how many swaps that takes."""
        requests, number, swaps = self.memory.requests, self.memory.head, 0
        while number >= 0:
            request = requests[number]
            if request["kind"] == SWAP and slot in (request["table"], request["other"]):
                slot, swaps = int(request["table"] + request["other"]) - slot, swaps + 1
            number = int(request["next"])
        return slot, swaps

    def _fill(self, port: int, header: TableHeader, bounds: list[tuple[int, int]], space: Space) -> int:
        unused = np.flatnonzero((self.records["handle"] == 0) & (self.records["active"] == 0))
        if not len(unused):
            raise TableRefused(Status.LOOKUP_TABLES_FULL, f"{MAX_TABLES} tables are open; close one")
        slot = int(unused[0])
        self.memory.extents[slot][: len(bounds)] = bounds
        table = self.records[slot]
        generation = int(table["generation"]) % _GENERATIONS + 1
        content = content_bytes(header.dtype, header.dim)
        settings = self.memory.settings
        values = {
            "handle": generation * MAX_TABLES + slot,
            "generation": generation,
            "port": port,
            "nsid": header.nsid,
            "name_hash": _signed(header.name_hash),
            "rows": header.rows,
            "dim": header.dim,
            "kind": header.dtype,
            "row_bytes": content,
            "stride": _stride(header),
            "sum_bytes": 4 * header.dim,
            "generated": header.flags & TableFlag.GENERATED,
            "seed": _signed(header.seed),
            "extents": self.memory.extents[slot].ctypes.data,
            "extent_count": len(bounds) - 1,
            "lba_shift": space.lba_bytes.bit_length() - 1,
            "whole": self._whole(bounds, _stride(header)),
            "slice": min(SLICE, max(8, SLICE_BYTES // content)),
            "add_cycles": -(-header.dim // settings.sum_lanes) * settings.sum_cycles,
        }
        self._past = self.rows(slot)
        self.records[slot] = np.zeros((), self.records.dtype)
        for name, value in values.items():
            table[name] = value
        return slot

    def _whole(self, bounds: list[tuple[int, int]], stride: int) -> int:
        """1 when every row lies in one page of one extent."""
        aligned = all((base + first) % stride == 0 and first % stride == 0 for first, base in bounds[:-1])
        return int(self.page_bytes % stride == 0 and aligned)

    def _open(self) -> Iterator[int]:
        yield from np.flatnonzero(self.records["handle"]).tolist()

    def _slot(self, port: int, handle: int) -> int:
        for slot in self._open():
            if (self.records[slot]["handle"], self.records[slot]["port"]) == (handle, port):
                return slot
        raise TableRefused(Status.LOOKUP_NO_TABLE, f"port {port} has no open table {handle:#x}")

    def close(self, port: int, handle: int) -> None:
        """Take back one open; the last one closes the table."""
        slot = self._slot(port, handle)
        table = self.records[slot]
        if table["opens"] == 1 and table["active"]:
            raise TableRefused(Status.LOOKUP_BUSY, f"{table['active']} lookups of table {handle:#x} are unread")
        table["opens"] -= 1
        if not table["opens"]:
            table["handle"] = 0

    def swap(self, port: int, first: int, second: int, now: int) -> None:
        """Two tables, by their handles, exchange places once every lookup that was sent has been worked on."""
        slots = [self._slot(port, handle) for handle in (first, second)]
        one, two = (tuple(int(self.records[slot][name]) for name in _SHAPE) for slot in slots)
        if slots[0] == slots[1] or one != two:
            shapes = " and ".join(str(dict(zip(_SHAPE, shape, strict=True))) for shape in (one, two))
            raise TableRefused(Status.LOOKUP_TABLE_SHAPE, f"only two tables of one shape change places; {shapes}")
        status = queue_swap(self.memory.address, now, port, *slots)
        if status:
            raise TableRefused(Status(status), "every request is in use; read an answer first")

    def close_port(self, port: int) -> None:
        """A controller reset: the port's tables are closed. Its requests must have been dropped (``reset_port``)."""
        for slot in self._open():
            if self.records[slot]["port"] == port:
                self.records[slot]["handle"] = 0

    def close_namespace(self, nsid: int, port: int | None = None) -> None:
        """A namespace is gone, formatted or detached (from ``port``, or from both): its tables close, and what still
        reads them fails with Invalid Namespace."""
        for slot in self._open():
            table = self.records[slot]
            if table["nsid"] == nsid and port in (None, int(table["port"])):
                table["handle"] = 0
                requests = self.memory.requests
                unread = (requests["table"] == slot) & np.isin(requests["state"], (QUEUED, READING))
                requests["status"][unread & (requests["status"] == 0)] = int(Status.INVALID_NAMESPACE)

    def list(self, port: int) -> bytes:
        """TABLE_LIST's data: the port's open tables."""
        entries = b""
        for slot in self._open():
            table = self.records[slot]
            if table["port"] == port:
                entries += TABLE_ENTRY.pack(_entry(table))
        return entries.ljust(TABLE_LIST_BYTES, b"\0")

    def stats(self, port: int, handle: int) -> bytes:
        """TABLE_STATS' data."""
        slot = self._slot(port, handle)
        counters = {name: int(self.records[slot][name]) for name in _COUNTERS}
        counters["version"] += self._after_swaps(slot)[1]  # for its host they have happened
        return TABLE_STATS.pack(TableStats(**counters, reserved=bytes(8)))

    def snapshot(self) -> dict[str, Any]:
        """Plain values: tables that are open, and what the hot cache has done for all of them."""
        hot = self.memory.hot
        cache = {name: int(hot[name]) for name in ("rows", "hits", "misses", "admitted", "evicted")}
        return {"tables": int(np.count_nonzero(self.records["handle"])), "cache": cache}

    def rows(self, only: int | None = None) -> dict[tuple[int, int], tuple[int, int]]:
        """Rows that were read, and that were stored, since the drive's start, by (port, namespace).

        Rows that sessions had summed are among them, and those of tables that have been closed.

        :param only: of what is past and this slot
        """
        found = dict(self._past)
        for table in self.records if only is None else self.records[only : only + 1]:
            if table["generation"]:
                at = int(table["port"]), int(table["nsid"])
                read, stored = found.get(at, (0, 0))
                found[at] = read + int(table["vectors"]), stored + int(table["updated"])
        return found

    def count(self, port: int) -> int:
        """Open tables of a port."""
        return sum(int(self.records[slot]["port"]) == port for slot in self._open())


def _entry(table: Any) -> TableEntry:
    return TableEntry(
        handle=int(table["handle"]),
        nsid=int(table["nsid"]),
        rows=int(table["rows"]),
        dim=int(table["dim"]),
        dtype=int(table["kind"]),
        port=int(table["port"]),
        extents=int(table["extent_count"]),
        opens=int(table["opens"]),
        name_hash=int(table["name_hash"]) % (1 << 64),
        version=int(table["version"]),
        row_bytes=int(table["stride"]),
        flags=int(table["generated"]),
        reserved=bytes(8),
    )
