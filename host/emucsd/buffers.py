"""Memory that host and drive share: one sealed memfd, handed out as NumPy arrays that need no copy.

The I/O virtual address of a byte is its address in this process, so a command's PRP entries are plain addresses and an
array's place in the drive's view is ``array.ctypes.data``. A file that cannot shrink (F_SEAL_SHRINK) cannot make the
drive fault. Ranges come back when the last array that looks at them is gone; the mapping itself lives as long as any.
"""

from __future__ import annotations

import bisect
import collections
import fcntl
import math
import mmap
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from emucsd.errors import BufferExhausted, InvalidArgument
from emucsd_wire.nvme import PAGE

DEFAULT_BYTES = 1 << 30  # sparse: only what is touched takes memory


class Range:
    """A range of the shared memory. NumPy arrays made from it keep it; when the last is gone it is free again."""

    def __init__(self, memory: SharedMemory, offset: int, size: int) -> None:
        self.address, self.size = memory.address + offset, size
        self.__array_interface__ = {"data": (self.address, False), "shape": (size,), "typestr": "|u1", "version": 3}
        self._mapping = memory.mapping  # outlives the drive's handle for as long as an array can touch it
        # runs wherever the collector does, under any lock: it only leaves a note
        self._finalizer = weakref.finalize(self, memory.returned.append, (offset, size))
        self._finalizer.atexit = False
        self.kept = False  # a command that timed out may still use it

    def free(self) -> None:
        """Give the range back now, whoever still looks at it (except to a command whose outcome is unknown)."""
        if not self.kept:
            self._finalizer()

    def array(self, shape: int | tuple[int, ...], dtype: DTypeLike = np.uint8) -> NDArray[Any]:
        """The start of the range as an array."""
        kind = np.dtype(dtype)
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        return np.asarray(self)[: math.prod(shape) * kind.itemsize].view(kind).reshape(shape)


def owner_of(array: NDArray[Any]) -> Range | None:
    """The range of shared memory that an array looks at, if any."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, Range) else None


class SharedMemory:
    """The memfd, its mapping here, and the list of its free ranges.

    :param size: bytes, rounded up to pages. Sparse, so ask for more than you need at once.
    """

    def __init__(self, size: int = DEFAULT_BYTES) -> None:
        if size <= 0:
            raise InvalidArgument(f"{size} bytes of shared memory; at least one page ({PAGE}) is needed")
        self.size = -(-size // PAGE) * PAGE
        self.fd = os.memfd_create("emucsd-buffers", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, self.size)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self.mapping = mmap.mmap(self.fd, self.size)
        self.address = int(np.frombuffer(self.mapping, np.uint8).ctypes.data)
        self.returned: collections.deque[tuple[int, int]] = collections.deque()
        self._lock = threading.Lock()
        self._free: list[tuple[int, int]] = [(0, self.size)]  # (offset, size), by offset, never touching

    def close(self) -> None:
        """Close the descriptor. Arrays that are still held stay valid; the drive no longer reaches them."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __contains__(self, address: int) -> bool:
        return self.address <= address < self.address + self.size

    @property
    def free_bytes(self) -> int:
        """Bytes that no range holds, not necessarily in one piece."""
        with self._lock:
            self._collect()
            return sum(size for _, size in self._free)

    def range(self, size: int, align: int = PAGE) -> Range:
        """A range of at least ``size`` bytes whose address is a multiple of ``align``.

        :raises BufferExhausted: no free piece is large enough
        :raises InvalidArgument: ``align`` is no power of two
        """
        if align <= 0 or align & (align - 1):
            raise InvalidArgument(f"alignment {align}: use a power of two, as NVMe pages are ({PAGE})")
        size = max(-(-size // 64) * 64, 64)  # whole cache lines: no two ranges share one
        with self._lock:
            self._collect()
            for place, (offset, room) in enumerate(self._free):
                start = -(-(self.address + offset) // align) * align - self.address
                if start + size <= offset + room:
                    left = [(offset, start - offset), (start + size, offset + room - start - size)]
                    self._free[place : place + 1] = [piece for piece in left if piece[1]]
                    return Range(self, start, size)
            largest = max((room for _, room in self._free), default=0)
        raise BufferExhausted(
            f"{size} bytes of shared memory are not free in one piece (largest {largest} of {self.size}); "
            "let go of arrays, or open the drive with a larger memory="
        )

    def array(self, shape: int | tuple[int, ...], dtype: DTypeLike = np.uint8, align: int = PAGE) -> NDArray[Any]:
        """An uninitialised array in shared memory; its memory is free again once no array looks at it.

        :raises BufferExhausted: no free piece is large enough
        """
        kind = np.dtype(dtype)
        if kind.hasobject:
            raise InvalidArgument(f"dtype {kind}: Python objects cannot lie in memory shared with a drive")
        return self.range(math.prod(np.atleast_1d(shape).tolist()) * kind.itemsize, align).array(shape, kind)

    @contextmanager
    def borrow(self, shape: int | tuple[int, ...], dtype: DTypeLike = np.uint8) -> Iterator[NDArray[Any]]:
        """``array`` for the time of a ``with``. Do not use the array, or views of it, afterwards."""
        array = self.array(shape, dtype)
        try:
            yield array
        finally:
            if (owner := owner_of(array)) is not None:
                owner.free()

    def holds(self, array: NDArray[Any]) -> bool:
        """Whether a drive can reach this array as it is: in shared memory, contiguous, and on a dword."""
        address = array.ctypes.data
        inside = address in self and address + array.nbytes <= self.address + self.size
        return inside and array.flags.c_contiguous and address % 4 == 0

    def _collect(self) -> None:
        """Take back the ranges whose arrays are gone."""
        while self.returned:
            offset, size = self.returned.popleft()
            place = bisect.bisect(self._free, (offset, 0))
            if place < len(self._free) and self._free[place][0] == offset + size:
                size += self._free.pop(place)[1]
            if place and sum(self._free[place - 1]) == offset:
                place -= 1
                offset, before = self._free.pop(place)
                size += before
            self._free.insert(place, (offset, size))
