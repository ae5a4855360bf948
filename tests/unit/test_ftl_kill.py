"""kill -9 at a hundred points of a mix of writes, flushes, trims, collection and checkpoints: nothing promised is lost.

The mix runs in a forked child, in compiled code, with checkpoints in a second thread; what it attempts and what it was
promised it notes in shared memory before and after each step. The parent kills it when its count of steps reaches a
seeded number, at whatever instruction that is. The next child recovers, compares every page, and goes on.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emucsd_firmware.ftl.gc import background
from emucsd_firmware.ftl.mapping import read_page
from emucsd_firmware.ftl.trim import deallocate
from emucsd_firmware.ftl.write import commit_write, flush, prepare_write
from emucsd_firmware.nand.jobs import close_job, open_job
from emucsd_wire.words import equal, get_i64, jit, load_i64, store_i64
from tests.unit.ftl_drive import FlashDrive, Root, memory_folder, root_at, stamp_page, tiny

PAGES = 256
STEPS, VERSION, CHECKED, FAILED = 0, 1, 2, 3  # words of the log; then four tables of PAGES words
HEAD = 8
WRITTEN, TRIMMED, PROMISED, DONE = (HEAD + n * PAGES for n in range(4))  # versions, by page
DEADLINE_S = 20.0


@jit
def random_word(seed: int) -> int:
    """xorshift64, kept positive."""
    word = np.uint64(seed)
    word ^= word << np.uint64(13)
    word ^= word >> np.uint64(7)
    word ^= word << np.uint64(17)
    return np.int64(word & np.uint64(0x7FFF_FFFF_FFFF_FFFF))  # type: ignore[return-value]


@jit
def one_write(root: Root, log: int, lpn: int, version: int, whole: int, fua: int) -> int:
    """Write a page that says its version; note what was attempted before, what was promised after."""
    store_i64(log, WRITTEN + lpn, version)
    open_job(root.nand, 0)
    image = prepare_write(root.ftl, root.nand, root.now, 0, lpn, whole)
    if image < 0:
        return image
    stamp_page(image, lpn, version, root.ftl.page_bytes)
    early = commit_write(root.ftl, root.nand, root.now, 0, lpn, fua)
    close_job(root.nand, 0, root.now)
    if early < -1:
        return early
    store_i64(log, DONE + lpn, version)
    if fua != 0 or root.ftl.write_cache == 0:
        store_i64(log, PROMISED + lpn, version)
    return 0


@jit
def one_trim(root: Root, log: int, lpn: int, count: int, version: int) -> int:
    """Deallocate pages; that is durable when it returns."""
    for page in range(lpn, lpn + count):
        store_i64(log, TRIMMED + page, version)
    status = deallocate(root.ftl, lpn, count)
    for page in range(lpn, lpn + count):
        store_i64(log, DONE + page, version)
        store_i64(log, PROMISED + page, version)
    return -status


@jit
def one_flush(root: Root, log: int) -> int:
    """Flush; what was done before it is promised after it."""
    open_job(root.nand, 1)
    status = flush(root.ftl, root.nand, root.now, 1)
    close_job(root.nand, 1, root.now)
    for page in range(PAGES):
        store_i64(log, PROMISED + page, load_i64(log, DONE + page))
    return -status


@jit
def mix(address: int, log: int, seed: int, steps: int) -> int:
    """The mix, for so many steps. :returns: 0 or a negative status"""
    root = root_at(address, 0)
    for _ in range(steps):
        seed = random_word(seed)
        kind, lpn = seed % 100, (seed >> 8) % PAGES
        version = load_i64(log, VERSION) + 1
        store_i64(log, VERSION, version)
        status = 0
        if kind < 84:
            status = one_write(root, log, lpn, version, kind & 1, 1 if kind < 4 else 0)
        elif kind < 90:
            status = one_trim(root, log, lpn, min(1 + (seed >> 20) % 12, PAGES - lpn), version)
        elif kind < 93:
            status = one_flush(root, log)
        else:
            background(root.ftl, root.nand, root.now)
        if status != 0:
            return status
        store_i64(log, STEPS, load_i64(log, STEPS) + 1)
    return 0


@jit
def compare(address: int, log: int, scratch: int) -> int:
    """Every page holds a version that it may hold; from now on it must stay at that one. :returns: a bad page, or -1"""
    root = root_at(address, 0)
    for lpn in range(PAGES):
        promised = load_i64(log, PROMISED + lpn)
        page = read_page(root.ftl, lpn)
        if page == 0:
            if promised > load_i64(log, TRIMMED + lpn):
                return lpn
            store_i64(log, WRITTEN + lpn, 0)
            store_i64(log, DONE + lpn, promised)
            continue
        version = get_i64(page, 1)
        stamp_page(scratch, lpn, version, root.ftl.page_bytes)
        if not equal(page, scratch, root.ftl.page_bytes):
            return lpn
        if version < promised or version > load_i64(log, WRITTEN + lpn):
            return lpn
        for table in (WRITTEN, DONE, PROMISED):
            store_i64(log, table + lpn, version)
    return -1


def child(folder: Path, log: int, seed: int, options: dict[str, Any]) -> None:
    """Recover, compare, say so, and go on with the mix until killed. Never returns."""
    code = 1
    try:
        drive = FlashDrive.open(folder, **options)
        drive.store.audit()
        scratch = np.zeros(4096, np.uint8)
        bad = int(compare(drive.address, log, scratch.ctypes.data))
        store_i64_python(log, FAILED, bad + 1)
        store_i64_python(log, CHECKED, 1)
        if bad < 0:
            threading.Thread(target=checkpoints, args=(drive,), daemon=True).start()
            code = -int(mix(drive.address, log, seed, 1 << 40))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code & 0xFF or 1)


@jit
def store_i64_python(base: int, index: int, value: int) -> None:
    store_i64(base, index, value)


def checkpoints(drive: FlashDrive) -> None:
    while True:
        drive.store.checkpoint()
        time.sleep(0.002)


class Log:
    """The shared words, as the parent sees them."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 8 * (HEAD + 4 * PAGES))
        self.words = np.frombuffer(self.memory, np.int64)
        self.address = int(self.words.ctypes.data)

    def wait(self, pid: int, index: int, value: int) -> None:
        """Until a word reaches a value. :raises AssertionError: the child ended, or takes too long"""
        deadline = time.monotonic() + DEADLINE_S
        while self.words[index] < value:
            ended, status = os.waitpid(pid, os.WNOHANG)
            assert ended == 0, f"the child ended by itself: {os.waitstatus_to_exitcode(status)}"
            assert time.monotonic() < deadline, f"word {index} is {self.words[index]}, waited for {value}"


@pytest.fixture
def folder() -> Iterator[Path]:
    with memory_folder() as path:
        yield path


def warm(folder: Path, log: Log, settings: dict[str, Any]) -> None:
    """Make the drive, and compile all that a child will run."""
    drive = FlashDrive.create(folder / "drive", tiny(**{"geometry.blocks": 16, **settings}))
    mix(drive.address, log.address, 1, 0)
    compare(drive.address, log.address, np.zeros(4096, np.uint8).ctypes.data)
    store_i64_python(log.address, CHECKED, 0)
    drive.store.checkpoint()
    drive.store.audit()
    drive.crash()
    FlashDrive.open(folder / "drive").crash()


@pytest.mark.parametrize(
    ("points", "settings", "options"),
    [
        pytest.param(45, {}, {}, id="through"),
        pytest.param(45, {"buffer.pages": 8, "ftl.streams": 3}, {}, id="buffered"),
        pytest.param(10, {"buffer.pages": 8}, {"durability": "machine"}, id="machine"),
    ],
)
def test_kill(folder: Path, points: int, settings: dict[str, Any], options: dict[str, Any]) -> None:
    """After kill -9 every page holds its last promised version, or a later one that was being written."""
    log = Log()
    warm(folder, log, settings)
    rng = np.random.default_rng(points)
    for point in range(points):
        log.words[CHECKED] = 0
        pid = os.fork()
        if pid == 0:
            child(folder / "drive", log.address, int(rng.integers(1, 1 << 60)) + point, options)
        log.wait(pid, CHECKED, 1)
        assert log.words[FAILED] == 0, f"point {point}: page {log.words[FAILED] - 1} is none of its versions"
        log.wait(pid, STEPS, int(log.words[STEPS]) + int(rng.integers(1, 1500)))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with FlashDrive.open(folder / "drive", **options).store as store:
        store.audit()
