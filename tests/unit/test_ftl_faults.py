"""Flash that errs: bad blocks, failing programs and erases, bit errors, pages that a host declares uncorrectable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emucsd_firmware.errors import StoreGeometry
from emucsd_firmware.ftl.state import BAD
from emucsd_firmware.ftl.store import Store
from tests.unit.ftl_drive import FlashDrive, page, tiny

PAGES = 256
UNRECOVERED, WRITE_FAULT = 0x281, 0x280


def fill(drive: FlashDrive, tag: int = 0) -> None:
    for lpn in range(PAGES):
        assert drive.write(lpn, page(drive, tag + lpn + 1)) >= 0


def test_factory_bad(folder: Path) -> None:
    """Blocks that are bad from the factory are never used, and the drive knows them again."""
    settings = {"reliability.factory_bad_ppm": 60_000, "geometry.blocks": 40}
    drive = FlashDrive.create(folder / "drive", tiny(**settings))
    bad = np.flatnonzero(drive.store._tables.kinds == BAD)
    assert 2 < len(bad) < 30
    fill(drive)
    for _ in range(10):
        fill(drive)
    used = {drive.location(lpn) >> 3 for lpn in range(PAGES)}
    assert not used & set(bad.tolist())
    assert drive.snapshot()["retired_blocks"] == 0
    drive.close()
    drive = FlashDrive.open(folder / "drive")
    assert np.array_equal(np.flatnonzero(drive.store._tables.kinds == BAD), bad)
    drive.crash()


def test_too_many_factory_bad(folder: Path) -> None:
    """A drive whose good blocks can't hold its capacity is refused, and says by how much."""
    profile = tiny()
    worse = replace(profile, reliability=replace(profile.reliability, factory_bad_ppm=500_000))
    with pytest.raises(StoreGeometry, match=r"blocks are good, \d+ are needed"):
        Store.create(folder / "drive", worse)
    assert not (folder / "drive" / "super.json").exists()


def test_grown_bad(folder: Path) -> None:
    """A failed program or erase retires the block, loses nothing, takes from the spare, and is remembered."""
    settings = {
        "reliability.program_fail_ppm": 1500,
        "reliability.erase_fail_ppm": 30_000,
        "geometry.blocks": 40,
    }
    drive = FlashDrive.create(folder / "drive", tiny(**settings))
    spare = drive.snapshot()["spare_blocks"]
    for turn in range(12):
        fill(drive, turn)
    figures = drive.snapshot()
    assert figures["program_failures"] > 0
    assert figures["erase_failures"] > 0
    assert 0 < figures["retired_blocks"] == spare - figures["spare_blocks"]
    assert figures["refresh_moves"] > 0
    assert figures["spare_percent"] < 100
    assert all(drive.read(lpn) == page(drive, 11 + lpn + 1) for lpn in range(PAGES))
    drive.store.audit()
    drive.crash()
    drive = FlashDrive.open(folder / "drive")
    again = drive.snapshot()
    assert again["retired_blocks"] >= figures["retired_blocks"]
    assert all(drive.read(lpn) == page(drive, 11 + lpn + 1) for lpn in range(PAGES))
    drive.crash()


def test_worn_out(folder: Path) -> None:
    """When the spare blocks have run out the drive takes no more writes, says Write Fault, and still reads all."""
    settings = {"reliability.endurance": 6, "geometry.blocks": 16, "buffer.pages": 4}
    drive = FlashDrive.create(folder / "drive", tiny(**settings))
    kept: dict[int, int] = {}
    status, turn = 0, 0
    while status >= 0 and turn < 20_000:
        lpn = turn * 37 % PAGES
        status = drive.write(lpn, page(drive, turn + 1), fua=True)
        if status >= 0:
            kept[lpn] = turn + 1
        turn += 1
    assert -status == WRITE_FAULT
    assert drive.snapshot()["read_only"] == 1
    assert drive.snapshot()["spare_percent"] == 0
    assert all(drive.read(lpn) == page(drive, tag) for lpn, tag in kept.items())
    assert drive.trim(0) == 0
    drive.crash()
    drive = FlashDrive.open(folder / "drive")
    assert drive.write(1, page(drive, 1)) == -WRITE_FAULT, "a worn drive must stay read-only"
    assert all(drive.read(lpn) == page(drive, tag) for lpn, tag in kept.items() if lpn != 0)
    drive.crash()


def test_read_retry(folder: Path) -> None:
    """Bit errors beyond the ECC cost retries, which take time and are counted; the data is right."""
    settings = {
        "reliability.rber_base": 6e-3,
        "reliability.ecc_bits": 40,
        "nand.retry_ns": 30_000,
        "nand.max_retries": 8,
    }
    drive = FlashDrive.create(folder / "drive", tiny("femu", **settings))
    for lpn in range(32):
        drive.write(lpn, page(drive, lpn))
        drive.wait()
    begun = drive.now
    for lpn in range(32):
        assert drive.read(lpn) == page(drive, lpn)
        drive.wait()
    figures = drive.snapshot()
    assert figures["read_retries"] > 0
    assert figures["corrected_bits"] == pytest.approx(32 * 4096 * 8 * 6e-3, rel=0.01)
    assert figures["uncorrectable"] == 0
    assert drive.now - begun >= 32 * 40_000 + 30_000 * figures["read_retries"]
    drive.crash()


def test_uncorrectable(folder: Path) -> None:
    """A page that no retry recovers answers Unrecovered Read Error; a write makes it good."""
    settings = {"reliability.rber_base": 0.05, "reliability.ecc_bits": 4}
    drive = FlashDrive.create(folder / "drive", tiny(**settings))
    drive.write(0, page(drive, 1))
    assert drive.read_status(0) == -UNRECOVERED
    assert drive.snapshot()["uncorrectable"] == 1
    drive.crash()


def test_lost_page_stays_lost(folder: Path) -> None:
    """A page that garbage collection can't read is marked, never passed on as good."""
    settings = {"reliability.read_fail_ppm": 300_000}
    drive = FlashDrive.create(folder / "drive", tiny(**settings))
    fill(drive)
    for lpn in np.random.default_rng(1).integers(0, PAGES, 1000).tolist():
        drive.write(lpn, page(drive, 5))
    moved = [lpn for lpn in range(PAGES) if drive.bad_mask(lpn)]
    assert moved
    assert all(drive.bad_mask(lpn) == 0xFF for lpn in moved)
    assert int(drive.ftl["marked_pages"]) == len(moved)
    drive.write(moved[0], page(drive, 6))
    assert drive.bad_mask(moved[0]) == 0
    drive.crash()


def test_read_disturb(folder: Path) -> None:
    """A block that is read very often is moved before its bit errors become too many."""
    settings = {"reliability.rber_per_read": 1e-6, "reliability.ecc_bits": 8}
    drive = FlashDrive.create(folder / "drive", tiny(**settings))
    fill(drive)
    limit = int(drive.ftl["disturb_limit"])
    assert limit > 0
    before = drive.location(0)
    for _ in range(limit + 1):
        drive.read_status(0)
    assert drive.snapshot()["refreshes"] == 1
    drive.background(50)
    assert drive.location(0) != before
    assert drive.snapshot()["refresh_moves"] > 0
    assert drive.read(0) == page(drive, 1)
    drive.store.audit()
    drive.crash()


def test_write_uncorrectable(folder: Path) -> None:
    """Marked blocks stay marked through collection, flush, crash and stop, until they are written or trimmed."""
    drive = FlashDrive.create(folder / "drive", tiny(**{"buffer.pages": 4}))
    fill(drive)
    drive.write(7, bytes(1024), 1024, mark=True)  # blocks 2 and 3 of 512 bytes
    assert drive.bad_mask(7) == 0b1100
    drive.flush()
    for turn in range(1500):
        drive.write(8 + turn % 200, page(drive, turn))
    assert drive.bad_mask(7) == 0b1100
    drive.flush()
    drive.crash()
    drive = FlashDrive.open(folder / "drive")
    assert int(drive.ftl["marked_pages"]) >= 1
    assert drive.bad_mask(7) == 0b1100
    drive.write(7, bytes(512), 1024)
    assert drive.bad_mask(7) == 0b1000
    drive.close()
    drive = FlashDrive.open(folder / "drive")
    assert drive.bad_mask(7) == 0b1000
    drive.write(7, page(drive, 3))
    assert drive.bad_mask(7) == 0
    drive.crash()
