"""The write buffer: early completion, back-pressure, merging, an honest Flush, and what a crash takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.ftl_drive import COMMANDS, FlashDrive, memory_folder, page, tiny

PROGRAM_NS, TRANSFER_NS, WRITE_NS = 200_000, 10_000, 1_000
TIMES = {
    "nand.program_ns": PROGRAM_NS,
    "nand.read_ns": 40_000,
    "nand.erase_ns": 1_000_000,
    "nand.transfer_ns_per_4k": TRANSFER_NS,
    "buffer.write_ns": WRITE_NS,
}


@pytest.fixture
def make() -> Iterator[Any]:
    """Make timed drives with a buffer of so many pages."""
    made: list[FlashDrive] = []
    with memory_folder() as folder:

        def build(pages: int, **more: Any) -> FlashDrive:
            profile = tiny(**{**TIMES, "buffer.pages": pages, **more})
            made.append(FlashDrive.create(folder / str(len(made)), profile))
            return made[-1]

        yield build
        for drive in made:
            drive.crash()


def test_early(make: Any) -> None:
    """A buffered write completes after the DRAM's time, not the flash's; without a buffer after the program."""
    drive = make(8)
    assert drive.write(0, page(drive, 1)) == WRITE_NS
    assert drive.write(1, page(drive, 1), job=1) == 2 * WRITE_NS  # one port to the DRAM: one page after the other
    through = make(0)
    assert through.write(0, page(through, 1)) == -1
    through.settle()
    assert through.ended[0] == PROGRAM_NS + TRANSFER_NS


def test_merge(make: Any) -> None:
    """Parts of a page written one after the other become one program."""
    drive = make(8)
    for part in range(8):
        drive.write(5, bytes([part + 1]) * 512, 512 * part)
    drive.flush()
    drive.settle()
    figures = drive.snapshot()
    assert (figures["host_pages"], figures["host_programs"], figures["buffer_merges"]) == (8, 1, 7)
    assert drive.read(5) == b"".join(bytes([part + 1]) * 512 for part in range(8))


def test_back_pressure(make: Any) -> None:
    """Once the buffer is full, writes complete at the rate at which programs end, in order."""
    drive = make(4)
    results = [drive.write(lpn, page(drive, lpn), job=lpn) for lpn in range(COMMANDS)]
    assert all(result >= 0 for result in results[:4])
    assert results[4:] == [-1] * (COMMANDS - 4), "more pages than the buffer holds were let in at once"
    assert drive.snapshot()["buffer_waits"] == COMMANDS - 4
    drive.settle()
    ends = [int(drive.ended[job]) for job in range(4, COMMANDS)]
    assert ends == sorted(ends)
    assert ends[0] >= PROGRAM_NS
    assert drive.ftl["occupied"] <= 4
    assert drive.ftl["waiting"] == 0


def test_throughput(make: Any) -> None:
    """A host that writes without end is slowed to what the dies can program."""
    drive = make(4, **{"geometry.blocks": 40, "capacity_bytes": 1 << 20})
    total = 256
    for lpn in range(total):
        if drive.write(lpn, page(drive, lpn)) < 0:
            drive.wait()
    ideal = total / 4 * PROGRAM_NS  # 4 dies
    assert 0.9 * ideal < drive.now < 1.4 * ideal


def test_flush_waits(make: Any) -> None:
    """Flush ends when every page that was written before it is programmed, and not earlier."""
    drive = make(8)
    for lpn in range(6):
        drive.write(lpn, page(drive, lpn))
    assert drive.flush(job=1) == -1
    begun = drive.now
    drive.settle()
    assert drive.ended[1] - begun >= PROGRAM_NS
    assert drive.ftl["dirty_count"] == 0
    assert drive.flush(job=1) == drive.now, "with nothing to flush it takes no time"


def test_flushes_in_flight(make: Any) -> None:
    """Several flushes at once each wait for what came before them."""
    drive = make(8)
    drive.write(0, page(drive, 1))
    drive.flush(job=1)
    drive.write(1, page(drive, 2))
    drive.flush(job=2)
    drive.settle()
    assert 0 < drive.ended[1] <= drive.ended[2]


def test_fua(make: Any) -> None:
    """A write with FUA completes when its own page is on flash, and survives a crash without a flush."""
    drive = make(8)
    drive.write(0, page(drive, 1))
    assert drive.write(1, page(drive, 2), job=1, fua=True) == -1
    drive.settle()
    assert drive.ended[1] >= PROGRAM_NS
    drive.crash()
    drive = FlashDrive.open(drive.store.folder)
    assert drive.read(0) == bytes(4096), "an unflushed page came back: the buffer is not volatile"
    assert drive.read(1) == page(drive, 2)
    drive.crash()


def test_crash_keeps_flushed(make: Any) -> None:
    """The flushed version survives although a newer one was in the buffer, and garbage collection went on."""
    drive = make(4, **dict.fromkeys(TIMES, 0))
    for lpn in range(256):
        drive.write(lpn, page(drive, 1))
    drive.flush()
    for turn in range(2000):  # other pages keep the collector busy
        drive.write(2 + turn % 250, page(drive, 2))
        if turn % 100 == 99:
            drive.write(0, page(drive, 3))
            drive.flush()
    drive.write(0, page(drive, 9))
    drive.settle()
    assert drive.location(0) == -2, "the newest version should still be in the buffer"
    drive.crash()
    drive = FlashDrive.open(drive.store.folder)
    assert drive.read(0) == page(drive, 3)
    assert drive.read(1) == page(drive, 1)
    drive.crash()


def test_read_from_buffer(make: Any) -> None:
    """A buffered page is read without flash time, also while its program runs; after that from flash."""
    drive = make(4)
    for lpn in range(4):
        drive.write(lpn, page(drive, lpn), job=lpn)
    assert drive.ftl["dirty_count"] == 2, "half of the pages should be on their way to flash"
    assert drive.location(0) == -2
    assert drive.read_status(0, job=7) == drive.now
    drive.settle()
    assert drive.location(0) >= 0
    assert drive.read_status(0, job=7) == -1
    assert drive.read(0) == page(drive, 0)


def test_idle_destage(make: Any) -> None:
    """A dirty page goes to flash after a while although nothing presses."""
    drive = make(8)
    drive.write(0, page(drive, 1))
    assert drive.background(9) == 0
    drive.run_until(drive.now + int(drive.ftl["destage_ns"]))
    assert drive.background(9) == 1
    drive.settle()
    assert drive.location(0) >= 0


def test_turned_off(make: Any) -> None:
    """Turning the cache off empties it; from then on every acknowledged write survives."""
    drive = make(8)
    drive.write(0, page(drive, 1))
    assert drive.set_write_cache(False) == 0
    drive.write(1, page(drive, 2))
    drive.settle()
    drive.crash()
    drive = FlashDrive.open(drive.store.folder)
    assert (drive.read(0), drive.read(1)) == (page(drive, 1), page(drive, 2))
    drive.crash()


def test_trim_buffered(make: Any) -> None:
    """A deallocated page is gone at once, from the buffer and from flash, and stays gone after a crash."""
    drive = make(8)
    drive.write(0, page(drive, 1))
    drive.flush()
    drive.settle()
    drive.write(0, page(drive, 2))
    assert drive.trim(0) == 0
    assert drive.read(0) == bytes(4096)
    drive.store.audit()
    drive.crash()
    drive = FlashDrive.open(drive.store.folder)
    assert drive.read(0) == bytes(4096)
    drive.crash()
