"""What the tunnel's watch looks for: the content of the drive's private namespaces.

The control plane reads their pages the way a read does, while the data plane runs on, and keeps fingerprints, never
content (``tunnel.watch``). What also lies in a namespace that the host may read is not private any more and is left
out; how much of that there is, is told.

A page may be moved, or written anew, while it is read: then its map entry has changed afterwards, and it is read again.
"""

from __future__ import annotations

import mmap
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from emucsd_firmware.ftl.mapping import read_page
from emucsd_firmware.ftl.state import CHUNK_BITS
from emucsd_firmware.nvme.namespaces import HOST_CONTROLLER, Namespace
from emucsd_firmware.state import drive_at
from emucsd_firmware.tunnel.state import WATCHED, Watch, watch_at
from emucsd_firmware.tunnel.watch import SAMPLE_BITS, WORKING, disregard, gear, learn, looked_for, windows
from emucsd_wire.words import fence, get_i64, get_u16, jit, load_u32

if TYPE_CHECKING:
    from emucsd_firmware.drive import Drive

MOST_PLACES = 1 << 24  # of the table: 128 MiB
LEAST_PLACES = 1 << 12
SLICE_PAGES = 1 << 14  # between two looks at whether the drive is being closed
LEARN, DISREGARD, COUNT = 0, 1, 2  # what becomes of a page's fingerprints
_TRIES = 8


@jit
def survey(address: int, lpn: int, end: int) -> int:
    """How many of the logical pages [lpn, end) hold anything."""
    drive = drive_at(address, 0)
    pages = 0
    while lpn < end:
        if get_u16(drive.ftl.chunk_pages, lpn >> CHUNK_BITS) == 0:
            lpn = ((lpn >> CHUNK_BITS) + 1) << CHUNK_BITS
            continue
        if load_u32(drive.ftl.map, lpn) != 0:
            pages += 1
        lpn += 1
    return pages


@jit
def go_through(address: int, watch_address: int, lpn: int, end: int, use: int, marks: int) -> int:
    """Take the fingerprints of logical pages [lpn, end).

    :param marks: address of int64[page_bytes, 2]
    :returns: how many of them are looked for (COUNT), else 0
    """
    drive, watch = drive_at(address, 0), watch_at(watch_address, 0)
    ftl = drive.ftl
    found, tries = 0, 0
    while lpn < end:
        if get_u16(ftl.chunk_pages, lpn >> CHUNK_BITS) == 0:
            lpn = ((lpn >> CHUNK_BITS) + 1) << CHUNK_BITS
            continue
        entry = load_u32(ftl.map, lpn)
        page = read_page(ftl, lpn)
        count = windows(watch, page, ftl.page_bytes, marks) if page != 0 else 0
        fence()
        if load_u32(ftl.map, lpn) != entry:
            tries += 1
            if tries < _TRIES:
                continue
            count = 0  # it is being written all the time: what was read may be anything
        for index in range(count):
            rolled, digest = get_i64(marks, 2 * index), get_i64(marks, 2 * index + 1)
            if use == LEARN:
                learn(watch, rolled, digest)
            elif use == DISREGARD:
                disregard(watch, rolled, digest)
            else:
                found += looked_for(watch, rolled, digest)
        lpn += 1
        tries = 0
    return found


class PrivateWatch:
    """The watch of one drive. Its methods may be called in any thread, and take turns.

    :param drive: whose relay watches
    """

    def __init__(self, drive: Drive) -> None:
        self._drive = drive
        self._gear = np.array(gear(), np.int64)
        self._windows = np.zeros((2, WORKING // 8), np.int64)  # the relay's, and that of who learns
        self._table: Any = None
        self._about: dict[str, Any] = {}
        self._turn = threading.Lock()
        self._closing = False

    def turn(self, on: bool) -> dict[str, Any]:
        """Learn what is private now and look for it from now on, or look for nothing. :returns: ``snapshot``"""
        with self._turn:
            if on:
                self._learn()
            else:
                self._install(np.zeros(1, Watch.dtype), None, {})
            return self.snapshot()

    def check(self) -> dict[str, Any]:
        """``snapshot``, and ``copies``: fingerprints that are looked for, found where the host may read."""
        with self._turn:
            copies = 0
            if self._table is not None:
                record = self._record.copy()
                record["window"] = self._windows[1].ctypes.data
                copies = sum(self._pages(space, record, COUNT) for space in self._spaces(private=False))
            return {**self.snapshot(), "copies": copies}

    def close(self) -> None:
        """The drive is being closed: end what is under way."""
        self._closing = True
        with self._turn:
            pass

    def snapshot(self) -> dict[str, Any]:
        """Plain values; counters of both ways are since the drive's start."""
        tunnel, record = self._drive.state[0]["tunnel"], self._record[0]
        figures = {
            "on": bool(record["table"]),
            **self._about,
            "fingerprints": int(record["taken"]) - int(record["common"]) - int(record["public"]),
            **{name: int(record[name]) for name in ("common", "public", "plain", "left_out")},
        }
        for name in ("to_isp", "to_host"):
            figures[name] = {counter: int(tunnel[name][counter]) for counter in WATCHED}
        return figures

    @property
    def _record(self) -> Any:
        return self._drive.state["tunnel"]["watch"]

    def _spaces(self, *, private: bool) -> list[Namespace]:
        spaces = self._drive.subsystem.namespaces.all()
        return [space for space in spaces if space.known_to(HOST_CONTROLLER) != private]

    def _learn(self) -> None:
        begun = time.monotonic()
        private = self._spaces(private=True)
        pages = sum(self._survey(space) for space in private)
        record, table = self._make(pages * self._drive.profile.geometry.page_bytes)
        for space in private:
            self._pages(space, record, LEARN)
        plain = int(record["plain"][0])  # of what is private
        for space in self._spaces(private=False):
            self._pages(space, record, DISREGARD)
        record["plain"] = plain
        about = {
            "namespaces": [space.nsid for space in private],
            "bytes": pages * self._drive.profile.geometry.page_bytes,
            "sample_every": (1 << 64) // -int(record["clear"][0]),
            "memory_bytes": len(table),
            "learned_in_s": round(time.monotonic() - begun, 3),
        }
        self._install(record, table, about)

    def _make(self, size: int) -> tuple[Any, Any]:
        """An empty table for ``size`` bytes of content, half full at most."""
        expected, clear = size >> SAMPLE_BITS, SAMPLE_BITS
        while 2 * expected > MOST_PLACES:
            expected, clear = expected // 2, clear + 1
        places = max(LEAST_PLACES, 1 << (2 * expected).bit_length())
        table = np.frombuffer(mmap.mmap(-1, 8 * min(places, MOST_PLACES)), np.uint8)
        record = np.zeros(1, Watch.dtype)
        places = len(table) // 8
        record["table"], record["mask"], record["clear"] = table.ctypes.data, places - 1, -(1 << 64 - clear)
        record["gear"], record["room"] = self._gear.ctypes.data, places * 7 // 8
        record["window"] = self._windows[1].ctypes.data
        return record, table

    def _install(self, record: Any, table: Any, about: dict[str, Any]) -> None:
        record["window"] = self._windows[0].ctypes.data
        with self._drive.plane.paused():
            self._record[:] = record
        self._table, self._about = table, about

    def _range(self, space: Namespace) -> tuple[int, int]:
        namespaces = self._drive.subsystem.namespaces
        first = namespaces.first_lpn(space)
        return first, first + namespaces.pages(space)

    def _survey(self, space: Namespace) -> int:
        return survey(self._drive.address, *self._range(space))

    def _pages(self, space: Namespace, record: Any, use: int) -> int:
        marks = np.zeros((self._drive.profile.geometry.page_bytes, 2), np.int64)
        lpn, end = self._range(space)
        found = 0
        while lpn < end and not self._closing:
            following = min(lpn + SLICE_PAGES, end)
            found += go_through(self._drive.address, record.ctypes.data, lpn, following, use, marks.ctypes.data)
            lpn = following
        return found
