"""A client's memory: what DMA_MAP brought, mapped into this process and given to a port.

Ranges without a descriptor (ROM, QEMU's own view of a mapped BAR page) are remembered, so that their unmapping
matches, and never used. The file must be long enough for the range: a shorter one would map and then raise SIGBUS in
whoever touches it; a file that is cut later is the memory guard's business.
"""

from __future__ import annotations

import bisect
import ctypes
import errno
import mmap
import os
from typing import NamedTuple

from emucsd_femu.errors import MessageError
from emucsd_femu.memory_guard import MAP_FAILED, MemoryGuard, libc
from emucsd_femu.port import DevicePort
from emucsd_firmware.errors import MemoryMapError
from emucsd_wire.vfio_user import MAX_MAPS, DmaFlag, DmaMap, DmaUnmap, UnmapFlag

_MAP_NORESERVE = 0x4000
_KNOWN_FLAGS = int(DmaFlag.READ | DmaFlag.WRITE | DmaFlag.MMAP)
_LIMIT = 1 << 63  # the data plane's addresses are signed


class Range(NamedTuple):
    """A mapped range; ``address`` 0 stands for one that came without memory."""

    iova: int
    size: int
    address: int


def _map_file(fd: int, offset: int, size: int, *, writable: bool) -> int:
    """Map a client's file. :raises MessageError: it is too short, not to be mapped, or memory is short"""
    length = os.fstat(fd).st_size
    if offset + size > length:
        raise MessageError(errno.EINVAL, f"file of {length:#x} bytes is shorter than {offset:#x}+{size:#x}")
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    address = libc.mmap(None, size, protection, mmap.MAP_SHARED | _MAP_NORESERVE, fd, offset)
    if address in (None, MAP_FAILED):
        problem = ctypes.get_errno()
        raise MessageError(problem or errno.EIO, f"mmap of {offset:#x}+{size:#x}: {os.strerror(problem)}")
    return int(address)


class DmaTable:
    """All ranges of one client, on one port."""

    def __init__(self, port: DevicePort, guard: MemoryGuard | None = None) -> None:
        self._port = port
        self._guard = guard
        self._ranges: list[Range] = []  # sorted, never overlapping

    def __len__(self) -> int:
        return len(self._ranges)

    @property
    def mapped_bytes(self) -> int:
        return sum(r.size for r in self._ranges if r.address)

    @property
    def lost(self) -> bool:
        """Whether the client cut a file that it had lent."""
        return self._guard is not None and any(r.address in self._guard.lost for r in self._ranges)

    def map(self, request: DmaMap, fds: list[int]) -> None:
        """DMA_MAP. The descriptor stays the caller's. :raises MessageError: nothing was mapped"""
        if len(fds) > 1:
            raise MessageError(errno.EINVAL, f"{len(fds)} descriptors for one range, the most is 1")
        if request.flags & ~_KNOWN_FLAGS:
            raise MessageError(errno.EINVAL, f"flags {request.flags:#x}, {_KNOWN_FLAGS:#x} are known")
        if request.size == 0 or request.address + request.size > _LIMIT or request.offset + request.size > _LIMIT:
            raise MessageError(errno.EINVAL, f"range {request.address:#x}+{request.size:#x} is empty or passes 2**63")
        if len(self._ranges) >= MAX_MAPS:
            raise MessageError(errno.ENOSPC, f"{MAX_MAPS} ranges are mapped, the most there can be")
        if self._overlapping(request.address, request.size):
            raise MessageError(errno.EEXIST, f"range {request.address:#x}+{request.size:#x} overlaps a mapped one")
        address = 0
        if fds and request.flags & DmaFlag.READ:
            writable = bool(request.flags & DmaFlag.WRITE)
            address = _map_file(fds[0], request.offset, request.size, writable=writable)
            if self._guard is not None:
                self._guard.add(address, request.size)
            try:
                self._port.map(request.address, request.size, address, writable)
            except MemoryMapError as problem:
                self._release(address, request.size)
                raise MessageError(errno.EINVAL, str(problem)) from problem
        bisect.insort(self._ranges, Range(request.address, request.size, address))

    def unmap(self, request: DmaUnmap) -> None:
        """DMA_UNMAP: one range as it was mapped, several whole ones, or all. Returns once nothing uses them.

        :raises MessageError: nothing was unmapped
        """
        if request.flags & UnmapFlag.ALL:
            if request.flags != UnmapFlag.ALL or request.address or request.size:
                raise MessageError(errno.EINVAL, "unmapping all needs address 0, size 0 and no other flag")
            self.clear()
            return
        if request.flags:
            raise MessageError(errno.EINVAL, f"flags {request.flags:#x}: no dirty pages are logged")
        touched = self._overlapping(request.address, request.size)
        if not touched:
            raise MessageError(errno.ENOENT, f"nothing is mapped in {request.address:#x}+{request.size:#x}")
        end = request.address + request.size
        if any(r.iova < request.address or r.iova + r.size > end for r in touched):
            raise MessageError(errno.EINVAL, f"{request.address:#x}+{request.size:#x} cuts a mapped range in two")
        for gone in touched:
            self._drop(gone)

    def clear(self) -> None:
        """Drop every range: the client asked for it, or is gone."""
        for gone in reversed(self._ranges[:]):
            self._drop(gone)

    def _overlapping(self, iova: int, size: int) -> list[Range]:
        first = bisect.bisect_right(self._ranges, iova, key=lambda r: r.iova + r.size)
        last = bisect.bisect_left(self._ranges, iova + size, key=lambda r: r.iova)
        return self._ranges[first:last]

    def _drop(self, gone: Range) -> None:
        del self._ranges[bisect.bisect_left(self._ranges, gone)]
        if gone.address:
            self._port.unmap(gone.iova, gone.size)
            self._release(gone.address, gone.size)

    def _release(self, address: int, size: int) -> None:
        if self._guard is not None:
            self._guard.remove(address)
        libc.munmap(address, size)
