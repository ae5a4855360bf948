"""What happens when a client cuts the file that it lent as memory: touching the lost pages raises SIGBUS.

Unguarded that ends the drive, for both ports. The guard puts fresh memory in place of the whole range, lets whoever
touched it go on, and reports the range, so that its client can be sent away. A SIGBUS anywhere else is not ours: the
handler that was there before gets it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
from collections.abc import Callable
from typing import Any

_SI_ADDR = 16  # offset in siginfo_t, Linux on 64-bit machines
_SA_SIGINFO = 4
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
MAP_FAILED = ctypes.c_void_p(-1).value

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class _Sigaction(ctypes.Structure):
    """struct sigaction of glibc, x86-64 and AArch64 alike."""

    _fields_ = (
        ("sa_sigaction", ctypes.c_void_p),
        ("sa_mask", ctypes.c_ulong * 16),
        ("sa_flags", ctypes.c_int),
        ("sa_restorer", ctypes.c_void_p),
    )


libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
libc.mmap.restype = ctypes.c_void_p
libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
libc.munmap.restype = ctypes.c_int
libc.sigaction.argtypes = (ctypes.c_int, ctypes.POINTER(_Sigaction), ctypes.POINTER(_Sigaction))
libc.sigaction.restype = ctypes.c_int


class MemoryGuard:
    """Guards ranges of this process's memory that clients' files lie behind. One a process."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # readable when a range was lost
        self.lost: set[int] = set()  # first addresses of ranges whose file was cut
        self._ranges: dict[int, int] = {}
        self._callback: Callable[..., Any] = _Handler(self._handle)
        action = _Sigaction()
        action.sa_sigaction = ctypes.cast(self._callback, ctypes.c_void_p)
        action.sa_flags = _SA_SIGINFO
        self._before = _Sigaction()
        libc.sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(self._before))

    def close(self) -> None:
        """Give SIGBUS back."""
        libc.sigaction(signal.SIGBUS, ctypes.byref(self._before), None)
        os.close(self.fd)

    def add(self, address: int, size: int) -> None:
        """Guard a mapping."""
        self._ranges[address] = size

    def remove(self, address: int) -> None:
        """The mapping is about to go, or was never guarded."""
        self._ranges.pop(address, None)
        self.lost.discard(address)

    def _handle(self, number: int, info: int, context: int) -> None:
        """Runs in the thread that touched the page, in between two of its instructions.

        That thread is in compiled code or in a plain copy, never inside the interpreter's own bookkeeping, so taking
        the interpreter here is safe.
        """
        at = ctypes.c_uint64.from_address(info + _SI_ADDR).value
        for address, size in list(self._ranges.items()):
            if address <= at < address + size and self._replace(address, size):
                self.lost.add(address)
                os.eventfd_write(self.fd, 1)
                return
        # not ours, or no memory: the access is repeated, and meets the old handler
        libc.sigaction(signal.SIGBUS, ctypes.byref(self._before), None)

    def _replace(self, address: int, size: int) -> bool:
        flags = _MAP_FIXED | mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        got = libc.mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        return bool(got == address)
