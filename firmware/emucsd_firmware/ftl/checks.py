"""Check words over records and pages: against tearing and stale remains, no guard against intent.

Unsigned arithmetic lives in here alone: signed overflow is undefined in compiled code, and LLVM does make use of that.
"""

from __future__ import annotations

import numpy as np

from emucsd_wire.words import get_i64, jit, jit_inline

_K1, _K2, _K3 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S1, _S2, _LOW = np.uint64(29), np.uint64(32), np.uint64(0xFFFF_FFFF)


@jit_inline
def digest(a: int, b: int, c: int, d: int, e: int) -> int:
    """32 bits over five words; never 0, which is what a hole in a file holds."""
    mixed = (np.uint64(a) + np.uint64(b) * _K1) * _K2
    mixed = (mixed ^ (mixed >> _S1) ^ np.uint64(c)) * _K3
    mixed = (mixed ^ (mixed >> _S2) ^ np.uint64(d)) * _K1
    mixed = (mixed ^ (mixed >> _S1) ^ np.uint64(e)) * _K2
    low: int = np.int64((mixed ^ (mixed >> _S2)) & _LOW)  # type: ignore[assignment]
    return max(low, 1)


@jit
def checksum(address: int, count: int) -> int:
    """32 bits over ``count`` bytes (a multiple of 32), never 0: four multiplicative lanes."""
    a, b, c, d = _K1, _K2, _K3, np.uint64(count)
    for index in range(0, count >> 3, 4):
        a = (a ^ np.uint64(get_i64(address, index))) * _K1
        b = (b ^ np.uint64(get_i64(address, index + 1))) * _K2
        c = (c ^ np.uint64(get_i64(address, index + 2))) * _K3
        d = (d ^ np.uint64(get_i64(address, index + 3))) * _K1
        a ^= (a >> _S2) ^ d
    mixed = ((a ^ (b >> _S1)) * _K2) ^ ((c ^ (d >> _S1)) * _K3)
    low: int = np.int64((mixed ^ (mixed >> _S2)) & _LOW)  # type: ignore[assignment]
    return max(low, 1)
