"""Durability "machine" against a computer that crashes: of what was not synced, any 4 KiB of any file may be lost.

The disk is simulated at its border: each file's durable content is what it held when it was last synced; at a crash
every 4 KiB that changed since then is kept or lost by chance. What the host was promised by a sync must be there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emucsd_firmware.ftl.files import FLASH, Files
from emucsd_firmware.ftl.state import Header, Oob, TrimRecord
from emucsd_wire.layout import State
from tests.unit.ftl_drive import FlashDrive, page, tiny

PAGES = 256
BLOCK = 4096
LOOKED_AT = {"trim.ftl": 16 * BLOCK}  # the journal's ring is long and sparse: this much of it is ever used here


class Disk:
    """What would be left of each file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.durable: dict[str, np.ndarray] = {}

    def content(self, name: str) -> np.ndarray:
        with (self.folder / name).open("rb") as file:
            data = np.frombuffer(file.read(LOOKED_AT.get(name, -1)), np.uint8)
        return np.resize(data, -(-len(data) // BLOCK) * BLOCK).reshape(-1, BLOCK).copy()

    def synced(self, *names: str) -> None:
        for name in names:
            self.durable[name] = self.content(name)

    def crash(self, rng: np.random.Generator, kept: float) -> None:
        """Leave of every file its durable content, and of what changed since a part."""
        for name, old in self.durable.items():
            new = self.content(name)
            lost = (new != old).any(axis=1) & (rng.random(len(new)) >= kept)
            with (self.folder / name).open("r+b") as file:
                for index in np.flatnonzero(lost).tolist():
                    file.seek(index * BLOCK)
                    file.write(old[index].tobytes())


@pytest.fixture
def disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(folder / "drive")
    sync = Files.sync

    def watched(files: Files, *names: str) -> None:
        sync(files, *names)
        disk.synced(*names)

    monkeypatch.setattr(Files, "sync", watched)
    return disk


@pytest.mark.parametrize("record", [Header, Oob, TrimRecord])
def test_no_record_is_torn(record: type[State]) -> None:
    """No record of the flash lies across two sectors of the disk, which it may write one without the other."""
    assert 512 % record.dtype.itemsize == 0


class Host:
    """Writes, trims and syncs, and knows what each page may hold after a crash."""

    def __init__(self, drive: FlashDrive, rng: np.random.Generator) -> None:
        self.drive = drive
        self.rng = rng
        self.kept: dict[int, list[int]] = {lpn: [0] for lpn in range(PAGES)}  # 0: zeros
        self.tag = 0

    def work(self, disk: Disk, steps: int) -> None:
        for _ in range(steps):
            kind, lpn = self.rng.random(), int(self.rng.integers(0, PAGES))
            barriers = int(self.drive.ftl["barriers"])
            if kind < 0.93:
                self.tag += 1
                assert self.drive.write(lpn, page(self.drive, self.tag)) >= 0
                self.kept[lpn].append(self.tag)
            elif kind < 0.97:
                assert self.drive.trim(lpn) == 0
                self.kept[lpn].append(0)
            elif kind < 0.98:
                self.drive.store.checkpoint()
            else:
                self.sync()
            if int(self.drive.ftl["barriers"]) != barriers:
                disk.synced(*FLASH)  # the collector's own

    def sync(self) -> None:
        self.drive.flush()
        self.drive.store.sync()
        for versions in self.kept.values():
            del versions[:-1]

    def check(self, drive: FlashDrive) -> None:
        """Every page holds its last synced version or a later one; what it holds now, it keeps."""
        self.drive = drive
        drive.store.audit()
        for lpn, versions in self.kept.items():
            found = drive.read(lpn)
            possible = [tag for tag in versions if found == (page(drive, tag) if tag else bytes(4096))]
            assert possible, f"page {lpn} is none of its versions {versions}"
            self.kept[lpn] = possible[-1:]


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("pages", [0, 4])
def test_crash(folder: Path, disk: Disk, kept: float, pages: int) -> None:
    """Whatever part of the unsynced writes reached the disk: what was synced is there, and what was found stays.

    Crashes follow each other with a sync between them or without one, and with deaths of the process alone.
    """
    profile = tiny(**{"geometry.blocks": 16, "buffer.pages": pages})
    drive = FlashDrive.create(folder / "drive", profile, durability="machine")
    disk.synced(*FLASH, "map.ftl", "checkpoint.ftl")
    rng = np.random.default_rng(int(10 * kept) + pages)
    host = Host(drive, rng)
    for _ in range(16):
        host.work(disk, int(rng.integers(50, 600) if rng.random() < 0.7 else rng.integers(0, 12)))
        host.drive.crash()
        if rng.random() < 0.7:
            disk.crash(rng, kept)
        host.check(FlashDrive.open(folder / "drive", durability="machine"))
        if rng.random() < 0.5:
            host.sync()
    host.drive.crash()


@pytest.mark.parametrize("clean", [True, False])
def test_opened_for_less_before(folder: Path, disk: Disk, clean: bool) -> None:
    """What is found when a drive is opened with "machine" is on the disk, though it was written with "process"."""
    drive = FlashDrive.create(folder / "drive", tiny(**{"geometry.blocks": 16}))
    disk.synced(*FLASH, "map.ftl", "checkpoint.ftl")
    host = Host(drive, np.random.default_rng(5))
    for lpn in range(PAGES):
        host.drive.write(lpn, page(host.drive, lpn + 1))
        host.kept[lpn] = [lpn + 1]
    host.drive.store.checkpoint()
    if clean:
        host.drive.close()
    else:
        host.drive.crash()
    host.check(FlashDrive.open(folder / "drive", durability="machine"))
    host.drive.crash()
    disk.crash(host.rng, 0.0)
    host.check(FlashDrive.open(folder / "drive", durability="machine"))
    host.drive.crash()
