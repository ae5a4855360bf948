"""The store's files: what opening refuses and says, what it rebuilds, and what a checkpoint covers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emucsd_firmware.errors import StoreError, StoreGeometry, StoreLocked, StoreTruncated, StoreVersion
from emucsd_firmware.ftl import store as store_module
from emucsd_firmware.ftl import superblock
from emucsd_firmware.ftl.checks import checksum, digest
from emucsd_firmware.ftl.files import FLASH, Files, sizes
from emucsd_firmware.ftl.state import TRIMS_FOLDED, TRIMS_WRITTEN, WANTED
from emucsd_firmware.ftl.store import Store
from emucsd_firmware.ftl.trim import JOURNAL_FULL
from tests.unit.ftl_drive import FlashDrive, page, tiny

PAGES = 256


@pytest.fixture
def filled(folder: Path) -> Path:
    """A drive with every page written, some overwritten and some trimmed, stopped in order."""
    drive = FlashDrive.create(folder / "drive", tiny())
    for lpn in range(PAGES):
        drive.write(lpn, page(drive, lpn + 1))
    for lpn in np.random.default_rng(1).integers(0, 128, 500).tolist():
        drive.write(lpn, page(drive, lpn + 1))
    drive.trim(200, 20)
    drive.close()
    return folder / "drive"


def check(drive: FlashDrive) -> None:
    """It holds what ``filled`` put there."""
    drive.store.audit()
    for lpn in range(PAGES):
        assert drive.read(lpn) == (bytes(4096) if 200 <= lpn < 220 else page(drive, lpn + 1)), lpn


# ---- what opening refuses ----


def test_not_there(folder: Path) -> None:
    """A folder without a drive is named, and what to do."""
    with pytest.raises(StoreError, match=r"super\.json: no such file: no drive was made here"):
        Store.open(folder)


def test_there_already(filled: Path) -> None:
    """Making a drive over another is refused and changes nothing."""
    with pytest.raises(StoreError, match="there is a drive here already"):
        Store.create(filled, tiny())
    drive = FlashDrive.open(filled)
    check(drive)
    drive.crash()


def test_locked(filled: Path) -> None:
    """A store that a process has open can't be opened again; the holder is named; afterwards it can."""
    drive = FlashDrive.open(filled)
    with pytest.raises(StoreLocked, match=rf"open by another drive \(process {os.getpid()}\)"):
        Store.open(filled)
    drive.crash()
    FlashDrive.open(filled).crash()


@pytest.mark.parametrize("name", FLASH)
def test_truncated(filled: Path, name: str) -> None:
    """A file of the flash that is too short is named with both sizes, and nothing is lost by trying."""
    path = filled / name
    size = path.stat().st_size
    copy = filled.parent / "whole"
    shutil.copy(path, copy)
    os.truncate(path, size - 1)
    with pytest.raises(StoreTruncated, match=rf"{name}: {size - 1} bytes, must be {size}"):
        Store.open(filled)
    path.unlink()
    with pytest.raises(StoreTruncated, match=rf"{name}: 0 bytes"):
        Store.open(filled)
    copy.rename(path)
    drive = FlashDrive.open(filled)
    check(drive)
    drive.crash()


@pytest.mark.parametrize("version", [1, 3])
def test_version(filled: Path, version: int) -> None:
    """A store of an older or newer format says which it is, which this version reads, and what to do."""
    path = filled / "super.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "emucsd store": version}))
    with pytest.raises(StoreVersion, match=f"store format {version}, .* reads format 2 only; copy the data out"):
        Store.open(filled)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"uuid": 1}', "null"])
def test_no_description(filled: Path, text: str) -> None:
    """A description that is none is refused with its path."""
    (filled / "super.json").write_text(text)
    with pytest.raises(StoreError, match=r"super\.json: not a drive's description"):
        Store.open(filled)


def test_geometry(filled: Path) -> None:
    """Another geometry is refused, naming what differs; other times are welcome."""
    with pytest.raises(StoreGeometry, match=r"asked for blocks 20 \(it has 14\)"):
        Store.open(filled, tiny(**{"geometry.blocks": 20}))
    with pytest.raises(StoreGeometry, match="capacity_bytes"):
        Store.open(filled, replace(tiny(), capacity_bytes=1 << 19))
    drive = FlashDrive.open(filled, tiny(**{"nand.read_ns": 5}))
    assert drive.store.profile.nand.read_ns == 5
    check(drive)
    drive.crash()
    with Store.open(filled) as store:
        assert store.profile.nand.read_ns == 0, "without a profile it has the one that it was made with"


def test_damaged_header(filled: Path) -> None:
    """A block header that makes no sense is refused: guessing could destroy data."""
    with (filled / "blocks.nand").open("r+b") as file:
        file.write(b"\xff" * 8)
    with pytest.raises(StoreError, match=r"blocks\.nand: the header of block 0 makes no sense"):
        Store.open(filled)


def test_no_such_durability(folder: Path) -> None:
    """An unknown durability names the known ones."""
    with pytest.raises(StoreError, match="durability 'best': must be one of process, machine"):
        Store.create(folder / "drive", tiny(), durability="best")


def test_too_large_for_file_system(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that refuses the file's length is named, and no half of a drive is left."""
    limit = 1 << 20
    real = os.ftruncate

    def refuse(fd: int, size: int) -> None:
        if size > limit:
            raise OSError(27, "File too large")
        real(fd, size)

    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(StoreError, match="refuses a sparse file of"):
        Store.create(folder / "drive", tiny())
    monkeypatch.undo()
    Store.create(folder / "drive", tiny()).close()


# ---- what opening rebuilds ----


def lose_map(folder: Path) -> None:
    (folder / "map.ftl").unlink()


def cut_map(folder: Path) -> None:
    os.truncate(folder / "map.ftl", 100)


def lose_checkpoint(folder: Path) -> None:
    (folder / "checkpoint.ftl").unlink()


def spoil_checkpoint(folder: Path) -> None:
    with (folder / "checkpoint.ftl").open("r+b") as file:
        for copy in range(2):
            file.seek(copy * superblock.COPY_BYTES + 16)
            file.write(b"spoilt")


@pytest.mark.parametrize("damage", [lose_map, cut_map, lose_checkpoint, spoil_checkpoint])
def test_rescan(filled: Path, damage: Callable[[Path], None]) -> None:
    """Without a map or a superblock the map is rebuilt from the flash alone, and stays right from then on."""
    damage(filled)
    drive = FlashDrive.open(filled)
    assert drive.store.recovered.rescanned
    check(drive)
    drive.write(0, page(drive, 1))
    drive.crash()
    drive = FlashDrive.open(filled)
    check(drive)
    drive.store.checkpoint()
    drive.crash()
    drive = FlashDrive.open(filled)
    assert not drive.store.recovered.rescanned
    assert drive.store.recovered.replayed_pages == 0
    check(drive)
    drive.crash()


def test_older_superblock(filled: Path) -> None:
    """When the newest superblock copy is torn, the one before it and the flash give the same drive."""
    drive = FlashDrive.open(filled)
    drive.write(0, page(drive, 1))
    drive.store.checkpoint()
    drive.crash()
    with (filled / "checkpoint.ftl").open("r+b") as file:
        newest = superblock.read(file.fileno())
        assert newest is not None
        file.seek((newest.generation & 1) * superblock.COPY_BYTES + 40)
        file.write(b"torn")
    drive = FlashDrive.open(filled)
    assert not drive.store.recovered.rescanned
    check(drive)
    drive.crash()


def test_spoilt_counts(filled: Path) -> None:
    """A clean stop whose counts are not whole is treated as a crash, and the counts are made again."""
    with (filled / "checkpoint.ftl").open("r+b") as file:
        file.seek(superblock.BLOB_OFFSET)
        file.write(b"spoilt")
    drive = FlashDrive.open(filled)
    assert not drive.store.recovered.clean
    check(drive)
    drive.crash()


# ---- checkpoints, sync, the disk ----


def test_checkpoint_covers(filled: Path) -> None:
    """Recovery plays back what came after the last checkpoint, and no more."""
    drive = FlashDrive.open(filled)
    for lpn in range(100):
        drive.write(lpn, page(drive, lpn + 1))
    assert drive.store.checkpoint() > 0
    assert drive.store.checkpoint() == 0
    for lpn in range(10):
        drive.write(lpn, page(drive, lpn + 1))
    drive.trim(200, 1)  # is trimmed already: nothing to note
    drive.crash()
    drive = FlashDrive.open(filled)
    assert 10 <= drive.store.recovered.replayed_pages < 40, "ten writes and what was collected meanwhile"
    assert drive.store.recovered.replayed_trims == 0
    check(drive)
    drive.crash()


def test_checkpoint_due(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint is due after so many pages; writing one ends that."""
    monkeypatch.setattr(store_module, "PAGES_BETWEEN", 50)
    drive = FlashDrive.create(folder / "drive", tiny())
    for lpn in range(50):
        drive.write(lpn, page(drive, 1))
    assert not drive.store.checkpoint_due()
    drive.write(50, page(drive, 1))
    assert drive.store.checkpoint_due()
    drive.store.checkpoint()
    assert not drive.store.checkpoint_due()
    drive.crash()


def test_failed_checkpoint(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that the disk does not take changes nothing that recovery needs; the next one covers all."""
    drive = FlashDrive.open(filled)
    for lpn in range(128):
        drive.write(lpn, page(drive, lpn + 1))

    def refuse(fd: int, data: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(StoreError, match=r"could not be written \(No space left on device\)"):
        drive.store.checkpoint()
    monkeypatch.undo()
    assert drive.store.checkpoint() > 0
    drive.crash()
    drive = FlashDrive.open(filled)
    check(drive)
    drive.crash()


def test_journal(folder: Path) -> None:
    """The trim journal asks for a checkpoint in time, refuses when it is full, and goes on after one."""
    drive = FlashDrive.create(folder / "drive", tiny())
    drive.ftl["trim_slots"] = 16
    words = drive.store._tables.words
    for turn in range(16):
        drive.write(3, page(drive, turn))
        assert drive.trim(3) == 0
        assert drive.store.checkpoint_due() == (turn >= 4)
    drive.write(3, page(drive, 99))
    assert drive.trim(3) == JOURNAL_FULL
    assert drive.read(3) == page(drive, 99), "a refused deallocation must do nothing"
    drive.store.checkpoint()
    assert words[TRIMS_FOLDED] == words[TRIMS_WRITTEN] == 16
    assert words[WANTED] == 0
    assert drive.trim(3) == 0
    drive.crash()


def test_trims_over_stops(folder: Path) -> None:
    """Trims are kept through any order of crashes, stops and checkpoints, also where the journal begins anew."""
    drive = FlashDrive.create(folder / "drive", tiny())
    for lpn in range(PAGES):
        drive.write(lpn, page(drive, lpn + 1))
    for turn in range(12):
        assert drive.trim(turn * 10, 3) == 0
        if turn % 3 == 0:
            drive.store.checkpoint()
        drive.close() if turn % 2 else drive.crash()
        drive = FlashDrive.open(folder / "drive", rescan=turn % 5 == 4)
        gone = {10 * t + i for t in range(turn + 1) for i in range(3)}
        for lpn in range(PAGES):
            assert drive.read(lpn) == (bytes(4096) if lpn in gone else page(drive, lpn + 1)), (turn, lpn)
    drive.crash()


def test_trim_range(folder: Path) -> None:
    """Deallocation beyond the drive is refused; of nothing mapped it is free; of a namespace it is quick."""
    drive = FlashDrive.create(folder / "drive", tiny())
    end = int(drive.ftl["lpn_end"])
    assert drive.trim(end - 1, 2) == 0x80
    assert drive.trim(-1, 1) == 0x80
    assert drive.trim(0, end) == 0
    assert drive.store._tables.words[TRIMS_WRITTEN] == 0
    drive.write(end - 1, page(drive, 1))
    assert drive.trim(0, end) == 0
    assert drive.snapshot()["mapped"] == 0
    drive.crash()


def test_disk_full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the disk nearly full the drive refuses writes rather than die of them, and takes them again later."""
    drive = FlashDrive.create(folder / "drive", tiny())
    drive.write(0, page(drive, 1))
    monkeypatch.setattr(Files, "free_bytes", lambda self: 1 << 20)
    assert not drive.store.guard()
    assert drive.write(1, page(drive, 1)) == -0x280
    assert drive.read(0) == page(drive, 1)
    monkeypatch.undo()
    assert drive.store.guard()
    assert drive.write(1, page(drive, 1)) >= 0
    drive.crash()


def test_memory_given_back(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint gives mapped memory back, and nothing changes but that."""
    monkeypatch.setattr(store_module, "RESIDENT_BYTES", 0)
    drive = FlashDrive.open(filled)
    drive.write(0, page(drive, 1))
    drive.store.checkpoint()
    check(drive)
    drive.crash()


def test_machine(folder: Path) -> None:
    """Durability "machine": emptied blocks wait for a barrier, pages carry a check, and a torn page is found."""
    drive = FlashDrive.create(folder / "drive", tiny(**{"geometry.blocks": 16}), durability="machine")
    for lpn in range(PAGES):
        drive.write(lpn, page(drive, lpn + 1))
    drive.store.sync()
    barriers = drive.snapshot()["barriers"]
    for lpn in np.random.default_rng(1).integers(0, PAGES, 2000).tolist():
        drive.write(lpn, page(drive, lpn + 1))
    assert drive.snapshot()["barriers"] > barriers, "the collector never waited for the disk"
    drive.store.audit()
    drive.store.checkpoint()
    drive.write(3, page(drive, 50))
    drive.store.sync()
    drive.write(3, page(drive, 51))
    torn = drive.location(3)
    drive.crash()
    with (folder / "drive" / "data.nand").open("r+b") as file:
        file.seek(4096 * torn + 2048)
        file.write(b"torn")
    drive = FlashDrive.open(folder / "drive", durability="machine")
    assert drive.store.recovered.torn_pages == 1
    assert drive.read(3) == page(drive, 50), "the version that was synced must be the one that is back"
    assert all(drive.read(lpn) == page(drive, lpn + 1) for lpn in range(PAGES) if lpn != 3)
    drive.crash()


def test_sizes() -> None:
    """The files' lengths follow from the geometry: bit fields for data and records, 32 namespaces for the map."""
    found = sizes(tiny())
    assert found["data.nand"] == ((3 << 4 | 13) * 8 + 8) * 4096
    assert found["oob.nand"] == found["data.nand"] // 4096 * 32
    assert found["map.ftl"] == 32 * 4096 * 4
    assert sizes(tiny())["checkpoint.ftl"] == superblock.BLOB_OFFSET + 32 * 2


def test_checks() -> None:
    """Check words are 32 bits, never 0, and notice any word that changes."""
    words = np.arange(512, dtype=np.int64)
    whole = checksum(words.ctypes.data, 4096)
    seen = {whole}
    for index in range(0, 512, 7):
        words[index] ^= 1 << (index % 63)
        seen.add(checksum(words.ctypes.data, 4096))
        words[index] ^= 1 << (index % 63)
    assert checksum(words.ctypes.data, 4096) == whole
    assert len(seen) == 1 + len(range(0, 512, 7))
    assert all(0 < word < 1 << 32 for word in seen)
    assert 0 < digest(0, 0, 0, 0, 0) < 1 << 32
    assert len({digest(*(int(i == n) for i in range(5))) for n in range(5)}) == 5
