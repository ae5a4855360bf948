"""A lookup engine on flash in memory: the real engine, FTL map and NAND model, and an event loop around them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emucsd_firmware.ftl.state import Ftl, Oob, ftl_at
from emucsd_firmware.ftl.tables import stripes
from emucsd_firmware.lookup import queue, requests
from emucsd_firmware.lookup.state import NEVER, READY, REQUESTS, Lookup, LookupMemory, lookup_at, request_at
from emucsd_firmware.lookup.tables import Space, Tables
from emucsd_firmware.nand.jobs import job_finish, pop_done
from emucsd_firmware.nand.model import NandModel
from emucsd_firmware.nand.state import nand_at
from emucsd_firmware.nand.timing import advance, next_event
from emucsd_firmware.profile import load
from emucsd_wire.vendor import (
    LOOKUP_HEADER,
    MAX_RESULT,
    TABLE_EXTENT,
    LookupFlag,
    LookupHeader,
    TableHeader,
    ids_offset,
    weights_offset,
)
from emucsd_wire.words import copy, jit

Rows = NDArray[np.float32]


@jit
def _send(lookup: int, now: int, port: int, tag: int, data: int, count: int) -> int:
    engine = lookup_at(lookup, 0)
    target = requests.payload(engine, port, tag, count)
    if target < 0:
        return -target
    copy(target, data, count)
    return requests.send(engine, now, port, tag, count)


@jit
def _run(lookup: int, ftl: int, nand: int, until: int) -> int:
    engine, flash = lookup_at(lookup, 0), nand_at(nand, 0)
    now = 0
    while True:
        when = min(engine.wake, next_event(flash))
        if when > until or when == NEVER:
            return now
        now = max(now, when)
        if next_event(flash) <= engine.wake:
            advance(flash, when)
            while True:
                job = pop_done(flash)
                if job < 0:
                    break
                requests.job_done(engine, job, job_finish(flash, job))
        else:
            requests.pump(engine, ftl_at(ftl, 0), flash, now)


@jit
def _read(lookup: int, port: int, tag: int, count: int, waiter: int) -> int:
    return requests.read(lookup_at(lookup, 0), port, tag, count, waiter)


@jit
def _pop_done(lookup: int) -> int:
    return requests.pop_done(lookup_at(lookup, 0))


@jit
def _release(lookup: int, number: int) -> None:
    requests.release(lookup_at(lookup, 0), number)


@jit
def _drop(lookup: int, port: int, tag: int) -> int:
    return requests.drop(lookup_at(lookup, 0), port, tag)


@jit
def _reset_port(lookup: int, port: int) -> None:
    requests.reset_port(lookup_at(lookup, 0), port)


@jit
def _take(lookup: int) -> int:
    return queue.take(lookup_at(lookup, 0))


@jit
def _enqueue(lookup: int, now: int, number: int) -> int:
    engine = lookup_at(lookup, 0)
    status = queue.check(engine, request_at(engine.requests, number))
    if status == 0:
        queue.enqueue(engine, now, number)
    return status


@jit
def _pop_settled(lookup: int) -> int:
    return queue.pop_settled(lookup_at(lookup, 0))


@jit
def _give(lookup: int, number: int) -> None:
    queue.give(lookup_at(lookup, 0), number)


@jit
def _abandon(lookup: int, number: int) -> None:
    queue.abandon(lookup_at(lookup, 0), number)


class Answer(NamedTuple):
    """What LOOKUP_READ gave."""

    status: int
    position: int
    ready: int
    sums: Rows


class Rig:
    """``pages`` logical pages; ``map`` is theirs (ppn + 1, or 0), and ``media`` the flash."""

    def __init__(self, pages: int = 256, blocks: int = 16, **settings: Any) -> None:
        self.profile = load("rmssd", **{"geometry.blocks": blocks, "geometry.pages": 16, **_SMALL, **settings})
        geometry = self.profile.geometry
        self.nand = NandModel(self.profile, REQUESTS)
        self.memory = LookupMemory(self.profile.lookup, geometry.page_bytes, geometry.die_count, 0)
        self.tables = Tables(self.memory)
        self.lookup = np.zeros(1, Lookup.dtype)
        self.memory.fill(self.lookup[0])
        self.page_bytes = geometry.page_bytes
        self.map = np.zeros(pages, np.uint32)
        self.media = np.zeros((geometry.ppn_end, geometry.page_bytes), np.uint8)
        self.oob = np.zeros(geometry.ppn_end, Oob.dtype)
        self.buffer = np.zeros((4, geometry.page_bytes), np.uint8)
        self.reads = np.zeros(geometry.block_end, np.uint32)
        self.ftl = np.zeros(1, Ftl.dtype)
        for name in ("map", "media", "oob", "reads"):
            self.ftl[name] = getattr(self, name).ctypes.data
        self.ftl["images"] = self.buffer.ctypes.data
        self.ftl["page_shift"], self.ftl["page_bytes"] = geometry.page_shift, geometry.page_bytes
        self.ftl["page_bits"] = geometry.page_bits
        self.ftl["plane_bits"] = (geometry.planes - 1).bit_length()
        self.ftl["die_shift"] = geometry.page_bits + geometry.block_bits
        self.ftl["planes"], self.ftl["plane_blocks"] = geometry.die_count * geometry.planes, geometry.blocks
        self.stripes = stripes(geometry.channels, geometry.dies, geometry.planes)
        self.ftl["stripes"] = self.stripes.ctypes.data
        self._nand = self.nand.record.__array_interface__["data"][0]

    def place(self, pages: NDArray[Any] | list[int], seed: int = 0) -> None:
        """Map these logical pages to flash pages anywhere."""
        geometry = self.profile.geometry
        usable = [
            geometry.ppn(die, block, page)
            for die in range(geometry.die_count)
            for block in range(geometry.blocks_per_die)
            for page in range(geometry.pages)
        ]
        self.map[pages] = np.random.default_rng(seed).permutation(usable)[: len(pages)] + 1

    def logical(self) -> NDArray[np.uint8]:
        """All logical pages' content."""
        return np.where(self.map[:, None] > 0, self.media[np.maximum(self.map, 1) - 1], 0).astype(np.uint8)

    def open(
        self,
        rows: int,
        dim: int,
        spans: list[tuple[int, int]],
        *,
        lba_bytes: int = 512,
        name: int = 1,
        port: int = 0,
        dtype: int = 0,
        row_bytes: int = 0,
        seed: int | None = None,
    ) -> int:
        """Open a table over (slba, blocks); with a ``seed`` a generated one."""
        extents = np.zeros(len(spans), TABLE_EXTENT.dtype)
        extents["slba"], extents["blocks"] = zip(*spans, strict=True)
        extents["first_byte"][1:] = np.cumsum(extents["blocks"][:-1].astype(np.int64)) * lba_bytes
        header = TableHeader(2, dtype, 1, rows, dim, len(spans), name, seed or 0, row_bytes, seed is not None)
        space = Space(0, len(self.map) * self.page_bytes // lba_bytes, lba_bytes)
        return self.tables.open(port, header, extents, space)

    def send(self, data: NDArray[np.uint8], *, tag: int = 0, port: int = 0, now: int = 0) -> int:
        """LOOKUP_SEND. :returns: the status; ``position`` is dw0"""
        data = np.ascontiguousarray(data)
        return int(_send(self.lookup.ctypes.data, now, port, tag, data.ctypes.data, len(data)))

    @property
    def position(self) -> int:
        return int(self.lookup["position"][0])

    def run(self, until: int = NEVER - 1) -> int:
        """Run everything that is due. :returns: the time of the last event"""
        return int(_run(self.lookup.ctypes.data, self.ftl.ctypes.data, self._nand, until))

    def request(self, count: int, *, tag: int = 0, port: int = 0, waiter: int = 0) -> int:
        """LOOKUP_READ's first half: the request's number, or a negative status."""
        return int(_read(self.lookup.ctypes.data, port, tag, count, waiter))

    def pop_done(self) -> int:
        return int(_pop_done(self.lookup.ctypes.data))

    def release(self, number: int) -> None:
        _release(self.lookup.ctypes.data, number)

    def drop(self, tag: int = 0, port: int = 0) -> int:
        return int(_drop(self.lookup.ctypes.data, port, tag))

    def reset_port(self, port: int = 0) -> None:
        _reset_port(self.lookup.ctypes.data, port)

    def own(self, values: dict[str, int]) -> int:
        """Take a request and fill it. :returns: its number, -1: none is free"""
        number = int(_take(self.lookup.ctypes.data))
        if number >= 0:
            for name, value in values.items():
                self.memory.requests[number][name] = value
        return number

    def enqueue(self, number: int, now: int = 0) -> int:
        """Check a request and queue it. :returns: the status"""
        return int(_enqueue(self.lookup.ctypes.data, now, number))

    def pop_settled(self) -> int:
        return int(_pop_settled(self.lookup.ctypes.data))

    def give(self, number: int) -> None:
        _give(self.lookup.ctypes.data, number)

    def abandon(self, number: int) -> None:
        _abandon(self.lookup.ctypes.data, number)

    def take(self, bags: int, dim: int, *, tag: int = 0) -> Answer:
        """LOOKUP_READ of a request that is ready."""
        number = self.request(bags * dim * 4, tag=tag)
        assert number >= 0, f"{-number:#x}"
        record = self.memory.requests[number]
        assert record["state"] == READY
        sums = self.memory.results[number * MAX_RESULT :][: bags * dim * 4].view(np.float32).reshape(bags, dim).copy()
        answer = Answer(int(record["status"]), int(record["position"]), int(record["ready"]), sums)
        self.release(number)
        return answer

    def answer(self, data: NDArray[np.uint8], bags: int, dim: int, *, now: int = 0) -> Answer:
        """One lookup from beginning to end."""
        assert self.send(data, now=now) == 0
        self.run()
        return self.take(bags, dim)


_SMALL = {"geometry.channels": 2, "geometry.dies": 2, "capacity_bytes": 1 << 20}


def payload(
    handle: int,
    indices: NDArray[np.int64],
    offsets: NDArray[np.int64],
    dim: int,
    *,
    grain: int = 0,
    width: int = 4,
    carry: Rows | None = None,
    weights: Rows | None = None,
    flags: int = 0,
) -> NDArray[np.uint8]:
    """The data of a LOOKUP_SEND."""
    bags = len(offsets) - 1
    flags |= 0 if carry is None else LookupFlag.CARRY
    flags |= 0 if weights is None else LookupFlag.WEIGHTED
    header = LOOKUP_HEADER.pack(LookupHeader(handle, grain, width, flags, bags, len(indices), bytes(16)))
    start = ids_offset(bags, dim, carry is not None)
    head = header + (b"" if carry is None else carry.tobytes()) + offsets.astype("<u4").tobytes()
    ids = indices.astype(f"<u{width}").tobytes()
    data = head.ljust(start, b"\0") + ids
    if weights is not None:
        data = data.ljust(weights_offset(start, len(indices), width), b"\0") + weights.tobytes()
    return np.frombuffer(data, np.uint8)
