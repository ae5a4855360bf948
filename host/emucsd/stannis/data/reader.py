"""Bytes of a shard: of a file, or of a namespace through the drive's own port."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Protocol

from emucsd.isp.disk import Disk
from emucsd.isp.errors import IspError, IspLost, IspUnreachable
from emucsd.stannis.data.errors import DriveGone, ShardDamaged, ShardMissing
from emucsd.stannis.data.location import Location


class Reader(Protocol):
    """A shard's bytes, at any offset.

    :ivar name: for texts
    :ivar size: bytes
    :ivar unit: bytes that a read costs at least: reads within one are one
    """

    name: str
    size: int
    unit: int

    def read(self, offset: int, count: int) -> bytes:
        """Up to ``count`` bytes; fewer only at the end.

        :raises ShardMissing, ShardDamaged: gone, or unreadable
        :raises DriveGone: the drive does not answer
        """

    def close(self) -> None:
        """Let it go."""


class FileReader:
    """A file, opened for each group of reads: a set may have more shards than a process may have open files.

    :raises ShardMissing: there is none, or this user may not read it
    """

    unit = 4096

    def __init__(self, path: str, name: str) -> None:
        self._path, self.name = path, name
        self.size = self._look()

    def _look(self) -> int:
        try:
            if not Path(self._path).is_file():
                raise ShardMissing(f"{self.name}: no such file")
            with open(self._path, "rb"):
                return os.stat(self._path).st_size
        except OSError as problem:
            why = problem.strerror
        raise ShardMissing(f"{self.name}: {why}")

    def read(self, offset: int, count: int) -> bytes:
        try:
            with open(self._path, "rb", buffering=0) as file:
                return os.pread(file.fileno(), count, offset)
        except FileNotFoundError:
            why = ""
        except OSError as problem:
            why = problem.strerror or "input/output error"
        if why:
            raise ShardDamaged(f"{self.name}, offset {offset}: {why}")
        raise ShardMissing(f"{self.name}: the file is gone since it was opened; put it back")

    def close(self) -> None:
        """Nothing is held."""


class DiskReader:
    """A namespace of the node's drive. A connection that was lost is made anew once: agents restart.

    :raises ShardMissing: no drive is in reach from here, or it has no such namespace for this port
    """

    def __init__(self, location: Location) -> None:
        self.name, self._location = location.text, location
        self._lock = threading.Lock()
        self._closed = False
        try:
            self._disk = self._open()
        except IspError as problem:
            why = str(problem)
        else:
            self.size, self.unit = self._disk.size, self._disk.block_bytes
            return
        raise ShardMissing(
            f"{location.text}: {why}. It is read on a node whose ${location.variable} names a drive's disk: in a job "
            "of an ISP engine, or under `emucsd train`"
        )

    def _open(self) -> Disk:
        where = os.environ.get(self._location.variable, "")
        if not where:
            raise IspUnreachable(f"${self._location.variable} is not set")
        return Disk.open(where, nsid=self._location.nsid)

    def read(self, offset: int, count: int) -> bytes:
        count = max(min(count, self.size - offset), 0)
        with self._lock:
            for again in (True, False):
                try:
                    if self._closed:
                        raise IspLost("it was closed")
                    return self._disk.read(offset, count) if count else b""
                except (IspLost, IspUnreachable) as problem:
                    gone = str(problem)
                except IspError as problem:
                    unreadable = str(problem)
                    break
                if not again or not self._reopened():
                    raise DriveGone(f"{self.name}: {gone}")
        raise ShardDamaged(f"{self.name}: {unreadable}")

    def _reopened(self) -> bool:
        self._disk.close()
        try:
            self._disk = self._open()
        except IspError:
            return False
        return not self._closed and self._disk.size == self.size

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._disk.close()


def readers(location: Location, *, private: bool = False) -> list[Reader]:
    """Of a location's shards, in order. :raises ShardMissing: one is not there"""
    if location.kind == "namespace":
        return [DiskReader(location)]
    paths = location.files()
    if not paths:
        raise ShardMissing(f"{location.text}: no file is named so")
    location.check_shards(paths)
    return [FileReader(path, location.text if private else path) for path in paths]
