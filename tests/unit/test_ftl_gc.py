"""Garbage collection and wear: a full drive goes on working, work is bounded, and every knob does something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emucsd_firmware.ftl.state import STREAMS
from emucsd_firmware.ftl.tables import stripes
from tests.unit.ftl_drive import FlashDrive, page, tiny

PAGES = 256


def overwrite(drive: FlashDrive, count: int, *, pages: int = PAGES, first: int = 0, seed: int = 1) -> None:
    """Random overwrites of ``pages`` pages."""
    data = page(drive, seed)
    for lpn in np.random.default_rng(seed).integers(first, first + pages, count).tolist():
        status = drive.write(lpn, data)
        assert status >= 0, f"write: status {-status:#x}"


def fill(drive: FlashDrive) -> None:
    for lpn in range(PAGES):
        drive.write(lpn, page(drive, lpn + 1))


def amplification(folder: Path, **settings: Any) -> float:
    """Write amplification of random overwrites in a full drive, once it is steady."""
    drive = FlashDrive.create(folder, tiny(**settings))
    fill(drive)
    overwrite(drive, 2000)
    before = drive.snapshot()
    overwrite(drive, 4000, seed=2)
    after = drive.snapshot()
    drive.store.audit()
    drive.crash()
    written = int(after["host_pages"]) - int(before["host_pages"])
    return (int(after["flash_programs"]) - int(before["flash_programs"])) / written


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("streams", range(1, STREAMS + 1))
def test_full_drive(folder: Path, streams: int, planes: int) -> None:
    """Every logical page written, then overwritten at random for long: with the fewest spare blocks it goes on."""
    pages = 384
    shape = {"geometry.planes": planes, "geometry.blocks": 16 // planes, "capacity_bytes": pages * 4096}
    drive = FlashDrive.create(folder / "drive", tiny(**shape, **{"ftl.streams": streams}))
    assert int(drive.ftl["spare_blocks"]) == 4 * 2, "4 blocks of each die beyond the data, 2 of them to work with"
    overwrite(drive, 8000, pages=pages)
    for lpn in range(pages):
        drive.write(lpn, page(drive, lpn + 7))
    assert all(drive.read(lpn) == page(drive, lpn + 7) for lpn in range(pages))
    drive.store.audit()
    drive.crash()


def test_capacity(folder: Path) -> None:
    """Beyond its capacity the drive says Capacity Exceeded, loses nothing, and takes the page once another is gone."""
    drive = FlashDrive.create(folder / "drive", tiny())
    limit = int(drive.ftl["mapped_limit"])
    assert PAGES <= limit < PAGES + 32
    for lpn in range(limit):
        assert drive.write(lpn, page(drive, lpn + 1)) >= 0
    assert drive.write(limit, page(drive, 1)) == -0x81
    assert drive.write(3, page(drive, 9)) >= 0
    assert drive.trim(0) == 0
    assert drive.write(limit, page(drive, 1)) >= 0
    assert drive.read(3) == page(drive, 9)
    drive.crash()


def test_bounded(folder: Path) -> None:
    """No single write moves more pages than a block has."""
    drive = FlashDrive.create(folder / "drive", tiny())
    fill(drive)
    worst = 0
    for lpn in np.random.default_rng(3).integers(0, PAGES, 3000).tolist():
        before = int(drive.ftl["gc_moves"])
        drive.write(lpn, page(drive, 1))
        worst = max(worst, int(drive.ftl["gc_moves"]) - before)
    assert 0 < worst <= 8
    drive.crash()


def test_background(folder: Path) -> None:
    """Idle slices bring a die from below gc_low to gc_high, and then there is nothing more to do."""
    settings = {"geometry.blocks": 40, "ftl.gc_low": 0.2, "ftl.gc_high": 0.35, "ftl.over_provision": 0.5}
    drive = FlashDrive.create(folder / "drive", tiny(**settings))
    fill(drive)
    low, high = int(drive.ftl["gc_low"]), int(drive.ftl["gc_high"])
    while int(drive.ftl["collecting_dies"]) == 0:
        overwrite(drive, 8)
    assert drive.background(10_000) > 0
    assert drive.background() == 0
    assert all(free >= high > low for free in drive.store._tables.die_table["free"])
    drive.store.audit()
    drive.crash()


def test_background_waits_for_flash(folder: Path) -> None:
    """A die whose last slice is still in the flash is left alone until that has ended."""
    settings = {"geometry.blocks": 40, "ftl.gc_low": 0.2, "ftl.gc_high": 0.35, "ftl.over_provision": 0.5}
    drive = FlashDrive.create(folder / "drive", tiny("femu", **settings))
    lpn = 0
    while int(drive.ftl["collecting_dies"]) < 2:
        drive.write(lpn % PAGES, page(drive, 1))
        drive.settle()
        lpn += 1
    assert drive.background(100) <= 4, "more than one slice a die was started at once"
    drive.settle()
    assert drive.background() == 1
    drive.crash()


def test_hot_and_cold(folder: Path) -> None:
    """With hot and cold streams apart a skewed load costs fewer copies than with all in one."""
    cost = {}
    for streams in (1, 3):
        drive = FlashDrive.create(folder / str(streams), tiny(**{"ftl.streams": streams, "geometry.blocks": 16}))
        fill(drive)
        rng = np.random.default_rng(5)
        data = page(drive, 1)
        for turn in range(12_000):
            hot = rng.random() < 0.95
            drive.write(int(rng.integers(0, 24)) if hot else int(rng.integers(24, PAGES)), data)
            if turn == 4000:
                before = drive.snapshot()["gc_moves"]
        cost[streams] = drive.snapshot()["gc_moves"] - before
        drive.crash()
    assert cost[3] < 0.85 * cost[1], cost


@pytest.mark.parametrize(
    ("knob", "low", "high"),
    [
        ("geometry.blocks", 13, 20),  # what over_provision decides
        ("ftl.gc_low", 0.05, 0.28),
        ("ftl.gc_high", 0.15, 0.29),
        ("ftl.streams", 1, 2),
    ],
)
def test_knobs(folder: Path, knob: str, low: float, high: float) -> None:
    """Each setting changes the write amplification of one and the same load."""
    base = {"geometry.blocks": 20, "ftl.gc_low": 0.1, "ftl.gc_high": 0.29, "ftl.over_provision": 0.3}
    if knob == "ftl.gc_high":
        base["ftl.gc_low"] = 0.1
    assert amplification(folder / "low", **{**base, knob: low}) != amplification(
        folder / "high", **{**base, knob: high}
    )


def test_over_provision() -> None:
    """More kept back means more blocks for the same capacity."""
    from emucsd_firmware import profile

    little = profile.load("null", **{"capacity_bytes": 1 << 30, "ftl.over_provision": 0.1})
    much = profile.load("null", **{"capacity_bytes": 1 << 30, "ftl.over_provision": 0.4})
    assert much.geometry.blocks > little.geometry.blocks


def test_wear_gap(folder: Path) -> None:
    """Data that never changes is moved off young blocks once wear spreads further than the gap; not before."""
    spread = {}
    for gap in (4, 1 << 20):
        drive = FlashDrive.create(folder / str(gap), tiny(**{"ftl.wear_gap": gap}))
        fill(drive)
        overwrite(drive, 16_000, pages=40)  # the other pages lie still
        figures = drive.snapshot()
        spread[gap] = figures["wear"]["max"] - figures["wear"]["min"]
        assert (figures["wear_moves"] > 0) == (gap == 4)
        assert all(drive.read(lpn) == page(drive, lpn + 1) for lpn in range(40, PAGES))
        drive.crash()
    assert spread[4] < 40 < spread[1 << 20], spread


def test_striping(folder: Path) -> None:
    """Pages go over channels first, then dies, then planes."""
    drive = FlashDrive.create(folder / "drive", tiny(**{"geometry.planes": 2, "geometry.blocks": 8}))
    for lpn in range(8):
        drive.write(lpn, page(drive, 1))
    g = drive.store.profile.geometry
    where = [(g.die(ppn) // g.dies, g.die(ppn) % g.dies, g.block(ppn) % 2) for ppn in map(drive.location, range(8))]
    assert where == [(ch, way, plane) for plane in (0, 1) for way in (0, 1) for ch in (0, 1)]
    assert stripes(2, 2, 2).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]
    drive.crash()


def test_trim_frees(folder: Path) -> None:
    """Deallocated pages are not copied: overwriting half a drive whose other half was trimmed costs less."""
    moves = {}
    for trimmed in (False, True):
        drive = FlashDrive.create(folder / str(trimmed), tiny())
        fill(drive)
        if trimmed:
            drive.trim(128, 128)
        overwrite(drive, 4000, pages=128)
        moves[trimmed] = drive.snapshot()["gc_moves"]
        drive.crash()
    assert moves[True] < 0.5 * moves[False], moves


def test_figures(folder: Path) -> None:
    """The counters add up: programs are the host's and the collector's, pages are conserved."""
    drive = FlashDrive.create(folder / "drive", tiny())
    fill(drive)
    overwrite(drive, 3000)
    figures = drive.snapshot()
    assert figures["host_pages"] == figures["host_programs"] == PAGES + 3000
    assert figures["flash_programs"] == figures["host_programs"] + figures["gc_moves"] + figures["wear_moves"]
    assert figures["write_amplification"] == pytest.approx(figures["flash_programs"] / figures["host_pages"])
    assert figures["mapped"] == figures["capacity_pages"] == PAGES
    assert sum(figures["blocks"].values()) == 4 * 14
    assert figures["flash_erases"] == pytest.approx(figures["wear"]["mean"] * 4 * 14)
    nand = drive.nand.snapshot()
    assert sum(die["programs"] for die in nand["dies"]) == figures["flash_programs"]
    assert sum(die["erases"] for die in nand["dies"]) == figures["flash_erases"]
    drive.close()
    drive = FlashDrive.open(folder / "drive")
    again = drive.snapshot()
    same = ("host_pages", "gc_moves", "flash_erases", "wear", "mapped", "trims")
    assert {key: again[key] for key in same} == {key: figures[key] for key in same}
    drive.crash()
