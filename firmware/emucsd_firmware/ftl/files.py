"""The files of a store's folder: creation, lock, sizes, mappings.

``super.json`` (what the drive is), ``data.nand``, ``oob.nand``, ``blocks.nand`` (its flash), ``trim.ftl``, ``map.ftl``,
``checkpoint.ftl`` (what its firmware keeps). The large ones are sparse: their length is what the geometry addresses.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from emucsd_firmware.errors import StoreError, StoreLocked, StoreTruncated, StoreVersion
from emucsd_firmware.ftl import superblock
from emucsd_firmware.ftl.state import CHUNK, REGIONS, Header, Oob, TrimRecord
from emucsd_firmware.ftl.tables import TRIM_SLOTS, region_pages
from emucsd_firmware.profile import Profile

SUPER = "super.json"
FORMAT = 2  # 2: block headers of 64 bytes, sequence numbers that count by epochs
CHUNK_BYTES = 4 * CHUNK
_MAP_NORESERVE = 0x4000  # Linux; Python names it from 3.13 on

FLASH = ("data.nand", "oob.nand", "blocks.nand", "trim.ftl")
DERIVED = ("map.ftl", "checkpoint.ftl")  # can be made again from the flash


def sizes(profile: Profile) -> dict[str, int]:
    """Length of each file."""
    g = profile.geometry
    chunks = REGIONS * region_pages(profile) // CHUNK
    return {
        "data.nand": g.ppn_end * g.page_bytes,
        "oob.nand": g.ppn_end * Oob.dtype.itemsize,
        "blocks.nand": g.block_end * Header.dtype.itemsize,
        "trim.ftl": TRIM_SLOTS * TrimRecord.dtype.itemsize,
        "map.ftl": chunks * CHUNK_BYTES,
        "checkpoint.ftl": superblock.BLOB_OFFSET + 2 * chunks,
    }


def _holder(folder_fd: int) -> str:
    """' (process 123)' for the process that holds the lock, as far as the system tells."""
    inode = os.fstat(folder_fd).st_ino
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return ""
    found = [fields[4] for fields in map(str.split, lines) if len(fields) > 5 and fields[5].endswith(f":{inode}")]
    return f" (process {found[0]})" if found else ""


def _lock(folder: Path) -> int:
    """:raises StoreLocked: another process has the folder"""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = f"{folder}: open by another drive{_holder(fd)}; stop that one first, or give this one its own folder"
        os.close(fd)
        raise StoreLocked(text) from None
    return fd


class Files:
    """Open, locked files of one store, and their mappings. Made by ``create`` or ``open``."""

    def __init__(self, folder: Path, lock_fd: int) -> None:
        self.folder = folder
        self.description: dict[str, Any] = {}
        self.rebuilt: list[str] = []  # derived files that were missing, short or refused, and are empty now
        self._lock_fd = lock_fd
        self._fds: dict[str, int] = {}
        self._mappings: dict[str, mmap.mmap] = {}

    @classmethod
    def create(cls, folder: Path, profile: Profile, description: dict[str, Any]) -> Files:
        """:raises StoreError: there is a store already, or the file system can't hold files of this length"""
        folder.mkdir(parents=True, exist_ok=True)
        files = cls(folder, _lock(folder))
        try:
            if (folder / SUPER).exists():
                raise StoreError(f"{folder / SUPER}: there is a drive here already; open it, or choose another folder")
            for name, size in sizes(profile).items():
                files._make(name, size)
            files.description = {"emucsd store": FORMAT, **description, "profile": profile.to_dict()}
            files.write_description()
        except BaseException:
            files.close()
            raise
        return files

    @classmethod
    def open(cls, folder: Path) -> Files:
        """Lock the folder and read its description; ``open_files`` comes next.

        :raises StoreError: no store here, locked, of another version
        """
        if not (folder / SUPER).is_file():
            raise StoreError(f"{folder / SUPER}: no such file: no drive was made here; create one, or name its folder")
        files = cls(folder, _lock(folder))
        try:
            files.description = files._read_description()
        except BaseException:
            files.close()
            raise
        return files

    def open_files(self, profile: Profile) -> None:
        """Open every file; a derived one that is missing or short is begun anew.

        :raises StoreTruncated: one of the flash is shorter than the geometry says
        """
        for name, size in sizes(profile).items():
            path = self.folder / name
            have = path.stat().st_size if path.is_file() else 0
            if have >= size:
                self._fds[name] = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            elif name in DERIVED:
                self.rebuilt.append(name)
                self._make(name, size)
            else:
                raise StoreTruncated(
                    f"{path}: {have} bytes, must be {size}: the file was cut or copied in part; restore it whole "
                    "(cp --sparse=always), what it lacks is lost data"
                )

    def remake(self, name: str, profile: Profile) -> None:
        """Begin a derived file anew. Before it is mapped."""
        self.rebuilt.append(name)
        os.close(self._fds.pop(name))
        self._make(name, sizes(profile)[name])

    def _make(self, name: str, size: int) -> None:
        path = self.folder / name
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self._fds[name] = fd
        try:
            os.ftruncate(fd, size)
        except OSError as exc:
            raise StoreError(
                f"{path}: the file system refuses a sparse file of {size} bytes ({exc.strerror}); ask for less "
                "capacity, or lay the store on ext4, xfs or tmpfs"
            ) from exc

    def _read_description(self) -> dict[str, Any]:
        path = self.folder / SUPER
        try:
            found = json.loads(path.read_text())
            version = found["emucsd store"]
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise StoreError(f"{path}: not a drive's description ({exc}); restore the file from a copy") from exc
        if version != FORMAT:
            raise StoreVersion(
                f"{path}: store format {version!r}, this version of emucsd reads format {FORMAT} only; copy the data "
                "out with the version that made it, or make a new drive in another folder"
            )
        return dict(found)

    def write_description(self) -> None:
        """Write ``super.json`` in one step."""
        path = self.folder / SUPER
        draft = path.with_suffix(".draft")
        with draft.open("w") as file:
            file.write(json.dumps(self.description, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        os.fsync(self._lock_fd)  # the folder: names of all files

    def fd(self, name: str) -> int:
        """Descriptor of one of the files."""
        return self._fds[name]

    def address(self, name: str) -> int:
        """Address of a file's mapping; shared with the file, but for the map, whose changes are private."""
        if name not in self._mappings:
            flags = (mmap.MAP_PRIVATE if name == "map.ftl" else mmap.MAP_SHARED) | _MAP_NORESERVE
            size = os.fstat(self._fds[name]).st_size
            self._mappings[name] = mmap.mmap(self._fds[name], size, flags=flags)
        return int(np.frombuffer(self._mappings[name], np.uint8, count=1).ctypes.data)

    def forget_resident(self) -> None:
        """Give back the memory of shared mappings: their pages stay in the page cache, or on disk."""
        for name, mapping in self._mappings.items():
            if name != "map.ftl":
                mapping.madvise(mmap.MADV_DONTNEED)

    def free_bytes(self) -> int:
        """What the file system under the folder still takes."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def chunks_with_data(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """1 for each chunk of the map file that isn't a hole, else 0."""
        fd = self._fds["map.ftl"]
        size = os.fstat(fd).st_size
        exists = np.zeros(size // CHUNK_BYTES, np.uint8)
        at = 0
        while at < size:
            start = _seek(os.lseek, fd, at, os.SEEK_DATA, size)
            at = _seek(os.lseek, fd, start, os.SEEK_HOLE, size)
            exists[start // CHUNK_BYTES : -(-at // CHUNK_BYTES)] = 1
        return exists

    def sync(self, *names: str) -> None:
        """Bring files to the disk; what was stored through a mapping too."""
        for name in names:
            os.fdatasync(self._fds[name])

    def close(self) -> None:
        """Unmap, close, unlock. Nothing may use an address afterwards."""
        for mapping in self._mappings.values():
            mapping.close()
        for fd in self._fds.values():
            os.close(fd)
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
        self._mappings, self._fds, self._lock_fd = {}, {}, -1


def _seek(seek: Callable[[int, int, int], int], fd: int, at: int, how: int, end: int) -> int:
    """Position of the next data or hole; ``end`` when there is none."""
    if at >= end:
        return end
    try:
        return min(seek(fd, at, how), end)
    except OSError as exc:
        if exc.errno == errno.ENXIO:
            return end
        raise
