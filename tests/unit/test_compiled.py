"""Compilation units: called by symbol, also by code that comes from the cache."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from emucsd_wire.words import get_i64, jit, put_i64

CALLEE = """
from emucsd_wire.compiled import jit_unit
from emucsd_wire.layout import I64, State

class Pair(State):
    left: I64
    right: I64

@jit_unit
def total(pair: Pair) -> int:
    return pair.left + pair.right

@jit_unit
def scaled(pair: Pair, factor: int) -> int:
    return total(pair) * factor
"""

CALLERS = """
import numpy as np
import callee
from callee import Pair, scaled
from emucsd_wire.compiled import jit
from emucsd_wire.words import pointer

pair_at = pointer(Pair)

@jit
def by_name(address: int) -> int:
    return scaled(pair_at(address, 0), 3)

@jit
def by_module(address: int) -> int:
    return callee.scaled(pair_at(address, 0), 4)

@jit
def through(address: int) -> int:
    return by_module(address)

pair = np.zeros(1, Pair.dtype)
pair[0] = (2, 5)
print({which}(pair.ctypes.data), scaled(pair[0], 2))
"""


def run(folder: Path, which: str) -> str:
    (folder / "callee.py").write_text(CALLEE)
    program = folder / "callers.py"
    if not program.exists():
        program.write_text(CALLERS.replace("{which}", "locals()[__import__('sys').argv[1]]"))
    packages = Path(__file__).parents[2] / "firmware"
    done = subprocess.run(
        [sys.executable, program, which],
        env={"PYTHONPATH": f"{packages}:{folder}", "NUMBA_CACHE_DIR": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stderr}"
    return done.stdout.strip()


def test_cached_callers_find_their_units(tmp_path: Path) -> None:
    """A caller gives the same answer just compiled and from the cache, however it names its unit."""
    for which, answer in (("by_name", "21 14"), ("by_module", "28 14"), ("through", "28 14")):
        assert [run(tmp_path, which) for _ in range(2)] == [answer, answer], which


@jit
def _pairs_and_one(target: int, stride: int, count: int, source: int, length: int) -> None:
    row = 0
    while row + 2 <= count:
        put_i64(target + row * stride, 0, 1)
        put_i64(target + row * stride + stride, 0, 1)
        row += 2
    if row < count:
        at, total = target + row * stride, 0
        for index in range(length):
            total += get_i64(source, index)
        put_i64(at, 0, total)


@jit
def _just_one(target: int, stride: int, count: int, source: int, length: int) -> None:
    if count == 1:
        _pairs_and_one(target, stride, count, source, length)


def test_no_store_is_dropped() -> None:
    """A store to ``base + offset`` is done also where a caller lets LLVM see that the offset is 0."""
    target, source = np.zeros(1, np.int64), np.arange(9)
    _just_one(target.ctypes.data, 8, 1, source.ctypes.data, 9)
    assert target[0] == 36
