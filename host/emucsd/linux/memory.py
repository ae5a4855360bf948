"""Memory for commands that Linux's driver carries: any of this process's will do, page-aligned goes without a copy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from emucsd.errors import BufferExhausted, InvalidArgument
from emucsd_wire.nvme import PAGE


class ProcessMemory:
    """This process's own memory. The kernel holds the pages of a command for as long as it is out."""

    def array(self, shape: int | tuple[int, ...], dtype: DTypeLike = np.uint8, align: int = PAGE) -> NDArray[Any]:
        """An uninitialised array.

        :raises BufferExhausted: this process gets no more memory
        :raises InvalidArgument: ``align`` is no power of two, or elements are Python objects
        """
        kind = np.dtype(dtype)
        if kind.hasobject:
            raise InvalidArgument(f"dtype {kind}: Python objects cannot lie in memory that a drive writes")
        if align <= 0 or align & (align - 1):
            raise InvalidArgument(f"alignment {align}: use a power of two, as NVMe pages are ({PAGE})")
        size = math.prod(np.atleast_1d(shape).tolist()) * kind.itemsize
        try:
            room = np.empty(size + align, np.uint8)
        except MemoryError as error:
            raise BufferExhausted(f"{size} bytes of memory are not to be had; ask for less at a time") from error
        start = -room.ctypes.data % align
        return room[start : start + size].view(kind).reshape(shape)

    @contextmanager
    def borrow(self, shape: int | tuple[int, ...], dtype: DTypeLike = np.uint8) -> Iterator[NDArray[Any]]:
        """``array`` for the time of a ``with``."""
        yield self.array(shape, dtype)

    def holds(self, array: NDArray[Any]) -> bool:
        """Whether the drive reaches this array as it is: contiguous, and on a dword."""
        return array.flags.c_contiguous and array.ctypes.data % 4 == 0
