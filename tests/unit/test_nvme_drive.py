"""The control plane on a real drive: what an admin command says, the data plane does."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucsd_firmware.drive import Drive
from emucsd_firmware.profile import load
from emucsd_wire.features import Feature
from emucsd_wire.identify import IDENTIFY_NAMESPACE, Cns, IdentifyNamespace
from emucsd_wire.logs import ERROR_ENTRY, SANITIZE_LOG, SMART_LOG, LogId, SanitizeStatus
from emucsd_wire.nvme import CQE, PAGE, SQE, Admin, Io, Register, Status
from tests.unit.nvme_host import DATA_AT, ENABLE, MIB, Host

ENTRIES = 16
IO_SQ, IO_CQ = DATA_AT + MIB, DATA_AT + MIB + PAGE
SECOND = 1_000_000_000
PROFILE = load("null", **{"capacity_bytes": 32 * MIB, "nand.erase_ns": SECOND, "buffer.pages": 16})


class IoHost(Host):
    """A host with one I/O queue pair."""

    def __init__(self, drive: Drive, number: int) -> None:
        super().__init__(drive.ports[number])
        self.drive = drive

    def connect(self) -> IoHost:
        self.enable()
        self.poke(IO_SQ, bytes(2 * PAGE))
        self.ok(Admin.CREATE_CQ, cdw10=ENTRIES - 1 << 16 | 1, cdw11=1, prp1=IO_CQ)
        self.ok(Admin.CREATE_SQ, cdw10=ENTRIES - 1 << 16 | 1, cdw11=1 << 16 | 1, prp1=IO_SQ)
        self.io_tail = self.io_head = 0
        self.io_phase = 1
        return self

    def io(self, opcode: int, nsid: int = 1, slba: int = 0, blocks: int = 1) -> int:
        """Run one I/O command with the data at DATA_AT. :returns: its status"""
        sqe = self.sqe(opcode, nsid, cdw10=slba, cdw12=blocks - 1)
        self.poke(IO_SQ + SQE.size * self.io_tail, SQE.pack(sqe))
        self.io_tail = (self.io_tail + 1) % ENTRIES
        self.write(Register.DOORBELLS + 8, self.io_tail)
        for _ in range(1000):
            self.drive.step()
            cqe = CQE.unpack(self.peek(IO_CQ + CQE.size * self.io_head, CQE.size))
            if cqe.status & 1 == self.io_phase:
                break
        assert (cqe.cid, cqe.sqid) == (sqe.cid, 1)
        self.io_head = (self.io_head + 1) % ENTRIES
        self.io_phase ^= self.io_head == 0
        self.write(Register.DOORBELLS + 12, self.io_head)
        return cqe.status >> 1 & 0x7FF

    def store(self, data: bytes, **where: int) -> int:
        self.poke(DATA_AT, data)
        return self.io(Io.WRITE, **where)

    def fetch(self, count: int, **where: int) -> bytes:
        self.poke(DATA_AT, b"\xee" * count)
        assert self.io(Io.READ, **where) == 0
        return self.peek(DATA_AT, count)


@pytest.fixture
def drive(folder: Path) -> Iterator[Drive]:
    with Drive.open(folder / "store", PROFILE, clock="virtual") as drive:
        yield drive


@pytest.fixture
def near(drive: Drive) -> IoHost:
    return IoHost(drive, 0).connect()


@pytest.fixture
def inside(drive: Drive) -> IoHost:
    return IoHost(drive, 1).connect()


def test_format_forgets(near: IoHost, inside: IoHost) -> None:
    """After a format both ports read zeros, in blocks of the new size."""
    assert near.store(b"A" * 512, slba=9) == 0
    assert inside.fetch(512, slba=9) == b"A" * 512
    near.ok(Admin.FORMAT_NVM, 1, cdw10=1)
    assert near.fetch(4096, slba=1) == bytes(4096)
    assert inside.store(b"B" * 4096, slba=32 * MIB // 4096 - 1) == 0
    assert near.io(Io.READ, slba=32 * MIB // 4096) == Status.LBA_OUT_OF_RANGE
    assert near.fetch(4096, slba=32 * MIB // 4096 - 1) == b"B" * 4096


def test_private_data(near: IoHost, inside: IoHost) -> None:
    """A namespace attached to port 1 alone is Invalid Namespace for every I/O command of port 0."""
    near.ok(Admin.NAMESPACE_MANAGEMENT, 1, cdw10=1)
    inside.poke(DATA_AT, IDENTIFY_NAMESPACE.pack(IdentifyNamespace(nsze=64, ncap=64)))
    assert inside.ok(Admin.NAMESPACE_MANAGEMENT, cdw10=0) == 1
    inside.poke(DATA_AT, struct.pack("<2H", 1, 2).ljust(4096, b"\0"))
    inside.ok(Admin.NAMESPACE_ATTACHMENT, 1, cdw10=0)
    assert inside.store(b"S" * 512, slba=3) == 0
    for opcode in (Io.READ, Io.WRITE, Io.COMPARE, Io.FLUSH, Io.WRITE_ZEROES, Io.DATASET_MANAGEMENT, Io.VERIFY, Io.COPY):
        assert near.io(opcode, slba=3) == Status.INVALID_NAMESPACE
    assert inside.fetch(512, slba=3) == b"S" * 512


def test_a_new_namespace_reads_zeros(near: IoHost) -> None:
    """What a deleted namespace held is not found in the next one at its place."""
    near.store(b"A" * 512)
    near.ok(Admin.NAMESPACE_MANAGEMENT, 1, cdw10=1)
    assert near.io(Io.READ) == Status.INVALID_NAMESPACE
    near.poke(DATA_AT, IDENTIFY_NAMESPACE.pack(IdentifyNamespace(nsze=64, ncap=64)))
    near.ok(Admin.NAMESPACE_MANAGEMENT, cdw10=0)
    near.poke(DATA_AT, struct.pack("<2H", 1, 1).ljust(4096, b"\0"))
    near.ok(Admin.NAMESPACE_ATTACHMENT, 1, cdw10=0)
    assert near.fetch(512) == bytes(512)
    assert IDENTIFY_NAMESPACE.unpack(near.identify(Cns.NAMESPACE, 1)).nsze == 64


def test_sanitize(folder: Path) -> None:
    """Data is gone from both ports, and I/O is refused until the operation's end."""
    with Drive.open(folder / "store", PROFILE) as drive:
        wall = [SECOND]
        drive.subsystem.now = lambda: wall[0]
        near, inside = IoHost(drive, 0).connect(), IoHost(drive, 1).connect()
        near.store(b"A" * 512)
        near.ok(Admin.SANITIZE, cdw10=2)
        for host in (near, inside):
            assert host.io(Io.READ) == Status.SANITIZE_IN_PROGRESS
            assert host.io(Io.WRITE) == Status.SANITIZE_IN_PROGRESS
        wall[0] += 10_000 * SECOND
        assert inside.fetch(512) == bytes(512)
        assert SANITIZE_LOG.unpack(near.log(LogId.SANITIZE, 512)).sstat & 7 == SanitizeStatus.COMPLETED


def test_counters_and_errors(near: IoHost) -> None:
    """SMART and the error log tell what the data plane did."""
    near.store(b"A" * 512)
    near.fetch(1024, blocks=2)
    assert near.io(Io.READ, slba=1 << 30) == Status.LBA_OUT_OF_RANGE
    smart = SMART_LOG.unpack(near.log(LogId.SMART, 512))
    assert (smart.host_reads, smart.host_writes, smart.data_units_read, smart.data_units_written) == (1, 1, 1, 1)
    assert smart.available_spare > 0
    entry = ERROR_ENTRY.unpack(near.log(LogId.ERROR, 64))
    assert (entry.sqid, entry.nsid, entry.lba) == (1, 1, 1 << 30)
    assert entry.status >> 1 & 0x7FF == Status.LBA_OUT_OF_RANGE


def test_write_cache_off(near: IoHost) -> None:
    """Turning the write cache off keeps what it held."""
    near.store(b"A" * 512)
    assert near.set_feature(Feature.VOLATILE_WRITE_CACHE, 0).status == 0
    assert near.fetch(512) == b"A" * 512
    near.store(b"B" * 512, slba=1)
    assert near.set_feature(Feature.VOLATILE_WRITE_CACHE, 1).status == 0
    assert near.fetch(1024, blocks=2) == b"A" * 512 + b"B" * 512


def test_resets_under_load(drive: Drive, near: IoHost) -> None:
    """Commands in flight at a reset end in silence; the next life of the queues starts clean."""
    for _ in range(3):
        for number in range(4):
            near.poke(IO_SQ + SQE.size * number, SQE.pack(near.sqe(Io.WRITE, 1, cdw10=number)))
        near.write(Register.DOORBELLS + 8, 4)
        drive.step()
        near.write(Register.CC, ENABLE.replace(en=0))
        drive.step(10)
        near.connect()
        assert near.store(b"R" * 512, slba=100) == 0
        assert near.fetch(512, slba=100) == b"R" * 512


def test_shutdown_and_power(folder: Path) -> None:
    """After a shutdown and a power cycle data, namespaces, counters and saved features are as they were."""
    with Drive.open(folder / "store", PROFILE) as drive:
        near = IoHost(drive, 0).connect()
        near.store(b"A" * 512, slba=7)
        near.set_feature(Feature.ARBITRATION, 3, save=True)
        near.write(Register.CC, ENABLE.replace(shn=1))
        assert near.csts.shst == 2
    with Drive.open(folder / "store", PROFILE) as drive:
        near = IoHost(drive, 0).connect()
        assert near.fetch(512, slba=7) == b"A" * 512
        assert near.get_feature(Feature.ARBITRATION) == 3
        smart = SMART_LOG.unpack(near.log(LogId.SMART, 512))
        assert (smart.power_cycles, smart.unsafe_shutdowns, smart.host_writes) == (2, 0, 1)
