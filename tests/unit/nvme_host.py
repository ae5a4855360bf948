"""A host for the control plane's tests: an admin queue in a few pages of memory, one command at a time.

The drive around the controllers is small here (``SmallDrive``); queues, guest memory, profile and nvram.json are the
real ones. The only way in is ``Port``, as for every transport.
"""

from __future__ import annotations

import ctypes
import mmap
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emucsd_firmware.nvme.hardware import Health
from emucsd_firmware.nvme.queues import PortState, QueueSet
from emucsd_firmware.port import BAR0, Port
from emucsd_firmware.profile import Profile, load
from emucsd_firmware.subsystem import Subsystem
from emucsd_wire.nvme import CQE, DNR, PAGE, SQE, Admin, Register, Sqe, Status
from emucsd_wire.registers import Cc, Csts

MIB = 1 << 20
IOVA = 0x10_0000  # where the host's memory lies on the bus
MEMORY = 4 * MIB
SQ_AT, CQ_AT, DATA_AT, LIST_AT = IOVA, IOVA + PAGE, IOVA + MIB, IOVA + 2 * PAGE
ENTRIES = 32
IDENTITY = uuid.UUID("01234567-89ab-4def-8123-456789abcdef")
ENABLE = Cc.of(en=1, iosqes=6, iocqes=4)


class SmallPlane:
    """No thread: pausing it only counts."""

    def __init__(self) -> None:
        self.depth = 0
        self.kicks = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def kick(self) -> None:
        self.kicks += 1


@dataclass
class SmallDrive:
    """The border below the controllers, in memory: it notes what was asked of it."""

    profile: Profile
    plane: SmallPlane = field(default_factory=SmallPlane)
    clock: str = "real"
    wear: Health = field(default_factory=lambda: Health(available_spare=100, percentage_used=3, temperature=310))
    calls: list[tuple[str, object]] = field(default_factory=list)
    formatted: list[tuple[int, int]] = field(default_factory=list)
    refused: int = 0
    broken: Exception | None = None

    def health(self) -> Health:
        return self.wear

    def flush(self) -> None:
        self._note("flush", None)

    def format(self, first_lpn: int, count: int) -> None:
        assert self.plane.depth, "shared state is changed only while the data plane is paused"
        if self.broken is not None:
            raise self.broken
        self.formatted.append((first_lpn, count))

    def refuse_io(self, status: int) -> None:
        assert self.plane.depth
        self.refused = int(status)

    def set_write_cache(self, enabled: bool) -> None:
        self._note("write_cache", enabled)

    def set_delays(self, enabled: bool) -> None:
        self._note("delays", enabled)

    def clock_now(self) -> int:
        return 0

    def set_gc_delay(self, enabled: bool) -> None:
        self._note("gc_delay", enabled)

    def set_log(self, enabled: bool) -> None:
        self._note("log", enabled)

    def reset_statistics(self) -> None:
        self._note("reset_statistics", None)

    def _note(self, name: str, value: object) -> None:
        if self.broken is not None:
            raise self.broken
        self.calls.append((name, value))


class Wall:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.ns = 1_000_000_000

    def __call__(self) -> int:
        return self.ns


class Done(NamedTuple):
    """A completion, with its status taken apart."""

    cid: int
    status: int  # SCT << 8 | SC
    dnr: bool
    dw0: int
    sqhd: int


class GuestMemory:
    """Anonymous memory, with the address that a port is given."""

    def __init__(self, size: int) -> None:
        self.bytes = np.frombuffer(mmap.mmap(-1, size), np.uint8)
        self.address = int(self.bytes.ctypes.data)


class Host:
    """Drives one port: registers, an admin queue, and ``data`` as the buffer of every command."""

    def __init__(self, port: Port) -> None:
        self.port = port
        self.memory = GuestMemory(MEMORY)
        port.map(IOVA, MEMORY, self.memory.address, writable=True)
        self.start()

    def start(self) -> None:
        """The queue's own counters, as after a reset."""
        self.tail = self.head = 0
        self.phase = 1
        self.cid = 0

    # registers

    def read(self, register: int, count: int = 4) -> int:
        return int.from_bytes(self.port.region_read(BAR0, register, count), "little")

    def write(self, register: int, value: int, count: int = 4) -> None:
        self.port.region_write(BAR0, register, int(value).to_bytes(count, "little"))

    @property
    def csts(self) -> Csts:
        return Csts(self.read(Register.CSTS))

    def enable(self, entries: int = ENTRIES, cc: Cc = ENABLE) -> Host:
        self.start()
        self.poke(SQ_AT, bytes(2 * PAGE))
        self.write(Register.AQA, (entries - 1) << 16 | entries - 1)
        self.write(Register.ASQ, SQ_AT, 8)
        self.write(Register.ACQ, CQ_AT, 8)
        self.write(Register.CC, cc)
        self.entries = entries
        return self

    def disable(self) -> None:
        self.write(Register.CC, ENABLE.replace(en=0))

    # memory

    def poke(self, iova: int, data: bytes) -> None:
        self.memory.bytes[iova - IOVA : iova - IOVA + len(data)] = np.frombuffer(data, np.uint8)

    def peek(self, iova: int, count: int) -> bytes:
        return ctypes.string_at(self.memory.address + iova - IOVA, count)

    # commands

    def submit(self, sqe: Sqe) -> int:
        """Put an entry into the queue and ring. :returns: its command id"""
        self.poke(SQ_AT + SQE.size * self.tail, SQE.pack(sqe))
        self.tail = (self.tail + 1) % self.entries
        self.write(Register.DOORBELLS, self.tail)
        return sqe.cid

    def sqe(self, opcode: int, nsid: int = 0, prp1: int = DATA_AT, prp2: int = 0, flags: int = 0, **words: int) -> Sqe:
        """An entry with the next command id; ``words``: cdw2 … cdw15."""
        self.cid = (self.cid + 1) & 0xFFFF
        blank = Sqe(opcode, flags, self.cid, nsid, 0, 0, 0, prp1, prp2, 0, 0, 0, 0, 0, 0)
        return blank._replace(**words)

    def reap(self) -> list[Done]:
        """Take every completion that is there, and tell the drive."""
        found = []
        while True:
            cqe = CQE.unpack(self.peek(CQ_AT + CQE.size * self.head, CQE.size))
            if cqe.status & 1 != self.phase:
                break
            status = cqe.status >> 1
            found.append(Done(cqe.cid, status & 0x7FF, bool(status & DNR), cqe.dw0, cqe.sqhd))
            self.head = (self.head + 1) % self.entries
            self.phase ^= self.head == 0
        if found:
            self.write(Register.DOORBELLS + 4, self.head)
        return found

    def command(self, opcode: int, nsid: int = 0, **fields: int) -> Done:
        """Run one admin command to its completion."""
        cid = self.submit(self.sqe(opcode, nsid, **fields))
        self.port.service()
        done = self.reap()
        assert [d.cid for d in done] == [cid], f"completions {done} for command {cid}"
        return done[0]

    def ok(self, opcode: int, nsid: int = 0, **fields: int) -> int:
        """As ``command``, which must succeed. :returns: DW0"""
        done = self.command(opcode, nsid, **fields)
        assert done.status == 0, f"{Admin(opcode).name}: {Status(done.status).name}"
        return done.dw0

    def refused(self, opcode: int, nsid: int = 0, **fields: int) -> Status:
        """As ``command``, which must fail. :returns: its status"""
        done = self.command(opcode, nsid, **fields)
        assert done.status != 0
        return Status(done.status)

    # commands that everyone needs

    def identify(self, cns: int, nsid: int = 0, *, cntid: int = 0, csi: int = 0) -> bytes:
        self.ok(Admin.IDENTIFY, nsid, cdw10=cns | cntid << 16, cdw11=csi << 24)
        return self.peek(DATA_AT, 4096)

    def log(self, lid: int, count: int, *, offset: int = 0, nsid: int = 0, rae: bool = False) -> bytes:
        words = count // 4 - 1
        self.poke(DATA_AT, bytes(PAGE))
        cdw10 = lid | rae << 15 | (words & 0xFFFF) << 16
        self.ok(Admin.GET_LOG_PAGE, nsid, cdw10=cdw10, cdw11=words >> 16, cdw12=offset)
        return self.peek(DATA_AT, count)

    def set_feature(self, fid: int, value: int, *, nsid: int = 0, save: bool = False) -> Done:
        return self.command(Admin.SET_FEATURES, nsid, cdw10=fid | save << 31, cdw11=value)

    def get_feature(self, fid: int, *, cdw11: int = 0, nsid: int = 0, select: int = 0) -> int:
        return self.ok(Admin.GET_FEATURES, nsid, cdw10=fid | select << 8, cdw11=cdw11)

    def listen(self) -> int:
        """Leave an Asynchronous Event Request with the drive. :returns: its command id"""
        cid = self.submit(self.sqe(Admin.ASYNC_EVENT_REQUEST))
        self.port.service()
        return cid

    def event(self) -> Done:
        """The one event that has come."""
        self.port.service()
        (done,) = self.reap()
        return done


class Bench:
    """A subsystem of two ports over a small drive, in a folder that survives it."""

    def __init__(self, folder: Path, profile: Profile | None = None, identity: uuid.UUID | None = IDENTITY) -> None:
        self.folder = folder
        self.wall = Wall()
        self.drive = SmallDrive(profile or load("null", capacity_bytes=64 * MIB))
        self.subsystem = Subsystem(folder, self.drive, now=self.wall, identity=identity)
        self.records = np.zeros(2, PortState.dtype)
        self.queues = [QueueSet(self.records[n], n, bypass=bool(n), mode=0) for n in range(2)]
        self.ports = [Port(n, self.drive, self.subsystem, self.queues[n]) for n in range(2)]
        self.hosts = [Host(port) for port in self.ports]

    def close(self) -> None:
        for port, queues in zip(self.ports, self.queues, strict=True):
            port.close()
            queues.close()
