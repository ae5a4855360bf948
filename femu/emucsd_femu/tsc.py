"""How fast a guest's time stamp counter runs, told to its kernel instead of left to a trial.

Under TCG a guest's RDTSC is this machine's own counter. Linux finds its rate at boot against an emulated timer; on a
busy machine the trial can be off by a factor, and the guest's clock runs that much too fast from then on.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import time
from collections.abc import Callable

_RDTSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret
_SECONDS = 0.05
_TRIES = 16


def words(architecture: str, accelerator: str) -> str:
    """Kernel parameters for a guest, empty where not needed; the kernel refines the rate by one per cent at most."""
    if architecture != "x86_64" or accelerator != "tcg" or platform.machine() != "x86_64":
        return ""
    try:
        return f"tsc_early_khz={khz()}"
    except OSError:  # no executable pages for us: let the guest try
        return ""


@functools.cache
def khz() -> int:
    """The counter's rate. :raises OSError: this process may not run code of its own making"""
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(_RDTSC)
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        counter = ctypes.CFUNCTYPE(ctypes.c_uint64)(address)
        first = _pair(counter)
        time.sleep(_SECONDS)
        last = _pair(counter)
        del counter
    return round((last[1] - first[1]) * 1_000_000 / (last[0] - first[0]))


def _pair(counter: Callable[[], int]) -> tuple[int, int]:
    """Wall clock (ns) and counter at one moment: of several tries the one that was interrupted least."""
    best = (1 << 62, 0, 0)
    for _ in range(_TRIES):
        before, ticks, after = time.monotonic_ns(), counter(), time.monotonic_ns()
        best = min(best, (after - before, (before + after) // 2, ticks))
    return best[1], best[2]
