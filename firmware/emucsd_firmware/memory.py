"""Guest memory: the address table that a transport fills, and the copies that commands make through it.

A region is a range of I/O virtual addresses (guest physical, or whatever the client chose) backed by memory of this
process. Nothing is cached across commands, so a region is gone once ``AddressTable.unmap`` has returned: its caller
holds the data plane out of compiled code (``plane.paused()``) while it does.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from emucsd_firmware.errors import MemoryMapError
from emucsd_wire.layout import I64, State
from emucsd_wire.words import copy, equal, fill, jit, jit_inline, pointer

MAX_REGIONS = 65536  # what QEMU's vfio-user client may ask for (max_dma_maps)
MAX_SEGMENTS = 1024


class Region(State):
    """``size`` bytes at I/O virtual address ``iova`` lie at ``address`` in this process."""

    iova: I64
    size: I64
    address: I64
    writable: I64


class Memory(State):
    """Regions sorted by iova; ``recent`` is the one that answered last."""

    regions: I64
    count: I64
    recent: I64


class Segment(State):
    """A run of bytes of this process that a command transfers."""

    address: I64
    length: I64


class Transfer(State):
    """A command's data as a list of segments, with a cursor for copying it piece by piece."""

    segments: I64
    count: I64
    total: I64
    index: I64
    offset: I64


region_at = pointer(Region)
segment_at = pointer(Segment)


@jit
def _search(memory: Memory, iova: int) -> int:
    """Index of the last region that starts at or below ``iova``, or -1."""
    low, high = 0, memory.count
    while low < high:
        middle = (low + high) >> 1
        if region_at(memory.regions, middle).iova <= iova:
            low = middle + 1
        else:
            high = middle
    return low - 1


@jit
def resolve(memory: Memory, iova: int, length: int, writing: int) -> int:
    """Address of ``length`` bytes at ``iova`` in one region, or 0: unmapped, read-only, or across a border."""
    index = memory.recent
    if index < memory.count:
        region = region_at(memory.regions, index)
        inside = iova - region.iova
        if inside >= 0 and inside <= region.size - length and (region.writable != 0 or writing == 0):
            return region.address + inside
    index = _search(memory, iova)
    if index < 0:
        return 0
    region = region_at(memory.regions, index)
    inside = iova - region.iova
    if inside > region.size - length or (writing != 0 and region.writable == 0):
        return 0
    memory.recent = index
    return region.address + inside


@jit
def start(transfer: Transfer) -> None:
    """Empty the segment list."""
    transfer.count = 0
    transfer.total = 0
    transfer.index = 0
    transfer.offset = 0


@jit
def append(transfer: Transfer, memory: Memory, iova: int, length: int, writing: int) -> int:
    """Add ``length`` bytes at ``iova``, split at region borders. 0, or 1 where unmapped, or 2 for too many segments."""
    while length > 0:
        piece = length
        address = resolve(memory, iova, piece, writing)
        if address == 0:
            index = _search(memory, iova)
            if index < 0:
                return 1
            region = region_at(memory.regions, index)
            piece = region.iova + region.size - iova
            if piece <= 0 or piece >= length or (writing != 0 and region.writable == 0):
                return 1
            address = region.address + iova - region.iova
        if transfer.count > 0:
            last = segment_at(transfer.segments, transfer.count - 1)
            if last.address + last.length == address:
                last.length += piece
                transfer.total += piece
                iova += piece
                length -= piece
                continue
        if transfer.count == MAX_SEGMENTS:
            return 2
        segment = segment_at(transfer.segments, transfer.count)
        segment.address = address
        segment.length = piece
        transfer.count += 1
        transfer.total += piece
        iova += piece
        length -= piece
    return 0


@jit_inline
def _take(transfer: Transfer, wanted: int) -> int:
    """How many of ``wanted`` bytes lie contiguous at the cursor."""
    segment = segment_at(transfer.segments, transfer.index)
    return min(wanted, segment.length - transfer.offset)


@jit_inline
def _here(transfer: Transfer) -> int:
    return segment_at(transfer.segments, transfer.index).address + transfer.offset


@jit_inline
def _step(transfer: Transfer, count: int) -> None:
    transfer.offset += count
    if transfer.offset == segment_at(transfer.segments, transfer.index).length:
        transfer.index += 1
        transfer.offset = 0


@jit
def scatter(transfer: Transfer, source: int, count: int) -> None:
    """Copy ``count`` bytes at ``source`` to the guest and move on; ``source`` 0 stands for zeros."""
    while count > 0:
        piece = _take(transfer, count)
        if source == 0:
            fill(_here(transfer), 0, piece)
        else:
            copy(_here(transfer), source, piece)
            source += piece
        _step(transfer, piece)
        count -= piece


@jit
def gather(transfer: Transfer, target: int, count: int) -> None:
    """Copy the guest's next ``count`` bytes to ``target``."""
    while count > 0:
        piece = _take(transfer, count)
        copy(target, _here(transfer), piece)
        _step(transfer, piece)
        target += piece
        count -= piece


@jit
def matches(transfer: Transfer, source: int, count: int) -> bool:
    """Whether the guest's next ``count`` bytes equal those at ``source``."""
    while count > 0:
        piece = _take(transfer, count)
        if not equal(_here(transfer), source, piece):
            return False
        _step(transfer, piece)
        source += piece
        count -= piece
    return True


class AddressTable:
    """The Python side of a Memory record: maps, unmaps, and the control plane's own reads and writes."""

    def __init__(self) -> None:
        # untouched pages of a zeroed array cost nothing: the table is sized for the most that a client may ask
        self._regions = np.zeros(MAX_REGIONS, Region.dtype)
        self._record: Any = None

    def attach(self, record: Any) -> None:
        """Fill the Memory record (a view into a drive's state) that compiled code reads."""
        self._record = record
        record["regions"] = self._regions.ctypes.data
        record["count"] = 0
        record["recent"] = 0

    def __len__(self) -> int:
        return int(self._record["count"])

    def _find(self, iova: int) -> int:
        count = len(self)
        return int(np.searchsorted(self._regions["iova"][:count], iova, side="right")) - 1

    def map(self, iova: int, size: int, address: int, writable: bool) -> None:
        """Add a region. :raises MemoryMapError: empty, overlapping another, beyond 2**63, or the table is full."""
        count = len(self)
        if size <= 0 or iova < 0 or iova + size > 1 << 63:
            raise MemoryMapError(f"range {iova:#x}+{size:#x} is empty or passes 2**63; map ranges inside it")
        if count == MAX_REGIONS:
            raise MemoryMapError(f"{count} ranges are mapped, the most there can be; unmap some or map larger ones")
        at = self._find(iova) + 1
        for index in (at - 1, at):
            if 0 <= index < count:
                other = self._regions[index]
                low, high = int(other["iova"]), int(other["iova"] + other["size"])
                if iova < high and low < iova + size:
                    raise MemoryMapError(f"range {iova:#x}+{size:#x} overlaps {low:#x}-{high:#x}; unmap that first")
        self._regions[at + 1 : count + 1] = self._regions[at:count].copy()
        self._regions[at] = (iova, size, address, int(writable))
        self._record["count"] = count + 1

    def unmap(self, iova: int, size: int) -> tuple[int, int]:
        """Remove the region that was mapped exactly so. :returns: its (address, size).

        :raises MemoryMapError: no region starts there with that size
        """
        count, at = len(self), self._find(iova)
        if at < 0 or int(self._regions[at]["iova"]) != iova or int(self._regions[at]["size"]) != size:
            raise MemoryMapError(f"no range {iova:#x}+{size:#x} is mapped; unmap ranges as they were mapped")
        address = int(self._regions[at]["address"])
        self._regions[at : count - 1] = self._regions[at + 1 : count].copy()
        self._record["count"] = count - 1
        self._record["recent"] = 0
        return address, size

    def clear(self) -> list[tuple[int, int, int]]:
        """Remove everything. :returns: (iova, address, size) of each region"""
        gone = [(int(r["iova"]), int(r["address"]), int(r["size"])) for r in self._regions[: len(self)]]
        self._record["count"] = 0
        self._record["recent"] = 0
        return gone

    def address(self, iova: int, size: int, *, writing: bool = False) -> int:
        """Where ``size`` bytes at ``iova`` lie. :raises MemoryMapError: not all of them in one (writable) region"""
        at = self._find(iova)
        if at >= 0:
            region = self._regions[at]
            inside = iova - int(region["iova"])
            if inside + size <= int(region["size"]) and (region["writable"] or not writing):
                return int(region["address"]) + inside
        raise MemoryMapError(f"{iova:#x}+{size:#x} is not mapped{' for writing' if writing else ''}")

    def read(self, iova: int, size: int) -> bytes:
        """:raises MemoryMapError: the range is not mapped"""
        return ctypes.string_at(self.address(iova, size), size)

    def write(self, iova: int, data: bytes) -> None:
        """:raises MemoryMapError: the range is not mapped for writing"""
        ctypes.memmove(self.address(iova, len(data), writing=True), data, len(data))
