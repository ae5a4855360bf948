"""A host of one I/O queue pair on a whole drive, stepped round by round in the test's own thread."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from emucsd_firmware.drive import Drive
from emucsd_firmware.profile import load
from emucsd_wire.identify import IDENTIFY_NAMESPACE, IdentifyNamespace
from emucsd_wire.nvme import CQE, DNR, PAGE, SQE, Admin, Io, Register, Sqe
from tests.unit.nvme_host import DATA_AT, IOVA, LIST_AT, MIB, Done, Host

IO_SQ_AT, IO_CQ_AT = IOVA + 16 * PAGE, IOVA + 24 * PAGE
RANGES_AT = IOVA + 64 * PAGE
ROUNDS = 100_000  # more than any command here needs


class IoHost(Host):
    """``io`` runs one command to its end; ``submit_io`` and ``reap_io`` keep several in flight."""

    def __init__(self, drive: Drive, number: int = 0, *, io_entries: int = 64) -> None:
        self.drive = drive
        self.lba_bytes = 512
        super().__init__(drive.ports[number])
        self.enable()
        self.create_queues(io_entries)

    def create_queues(self, entries: int) -> None:
        """I/O queue pair 1, polled."""
        self.io_entries = entries
        self.io_tail = self.io_head = self.io_tail_rung = 0
        self.io_phase = 1
        self.poke(IO_SQ_AT, bytes(8 * PAGE))
        self.poke(IO_CQ_AT, bytes(4 * PAGE))
        self.ok(Admin.CREATE_CQ, prp1=IO_CQ_AT, cdw10=(entries - 1) << 16 | 1, cdw11=1)
        self.ok(Admin.CREATE_SQ, prp1=IO_SQ_AT, cdw10=(entries - 1) << 16 | 1, cdw11=1 << 16 | 1)

    def submit_io(self, sqe: Sqe, *, ring: bool = True) -> int:
        """Put an entry into the queue. :returns: its command id"""
        self.poke(IO_SQ_AT + SQE.size * self.io_tail, SQE.pack(sqe))
        self.io_tail = (self.io_tail + 1) % self.io_entries
        if ring:
            self.ring_io()
        return sqe.cid

    def ring_io(self) -> None:
        self.write(Register.DOORBELLS + 8, self.io_tail)

    def reap_io(self) -> list[Done]:
        """Every completion that is there."""
        found = []
        while True:
            cqe = CQE.unpack(self.peek(IO_CQ_AT + CQE.size * self.io_head, CQE.size))
            if cqe.status & 1 != self.io_phase:
                break
            status = cqe.status >> 1
            found.append(Done(cqe.cid, status & 0x7FF, bool(status & DNR), cqe.dw0, cqe.sqhd))
            self.io_head = (self.io_head + 1) % self.io_entries
            self.io_phase ^= self.io_head == 0
        if found:
            self.write(Register.DOORBELLS + 12, self.io_head)
        return found

    def wait_io(self, count: int) -> list[Done]:
        """Step the drive until ``count`` commands have completed."""
        done: list[Done] = []
        for _ in range(ROUNDS):
            self.drive.step()
            done += self.reap_io()
            if len(done) >= count:
                return done
        raise AssertionError(f"{len(done)} of {count} commands completed in {ROUNDS} rounds")

    def prps(self, count: int, at: int = DATA_AT) -> tuple[int, int]:
        """PRP1 and PRP2 for ``count`` bytes at ``at`` (page-aligned); the list lies at LIST_AT."""
        pages = -(-count // PAGE)
        if pages <= 2:
            return at, at + PAGE if pages == 2 else 0
        self.poke(LIST_AT, np.arange(at + PAGE, at + pages * PAGE, PAGE, dtype="<u8").tobytes())
        return at, LIST_AT

    def io(self, opcode: int, nsid: int = 1, lba: int = 0, blocks: int = 1, data: bytes = b"", **words: int) -> Done:
        """Run one command; ``data`` goes to the buffer first."""
        if data:
            self.poke(DATA_AT, data)
        prp1, prp2 = self.prps(min(len(data) or blocks * self.lba_bytes, MIB))
        fields = {"cdw10": lba & 0xFFFF_FFFF, "cdw11": lba >> 32, "cdw12": (blocks - 1) & 0xFFFF} | words
        fields = {"prp1": prp1, "prp2": prp2} | fields
        cid = self.submit_io(self.sqe(opcode, nsid, **fields))
        (done,) = self.wait_io(1)
        assert done.cid == cid
        return done

    def make_namespace(self, size: int, *controllers: int) -> int:
        """A namespace of ``size`` bytes for some controllers; the capacity must be free. :returns: its id"""
        blocks = size // self.lba_bytes
        self.poke(DATA_AT, IDENTIFY_NAMESPACE.pack(IdentifyNamespace(nsze=blocks, ncap=blocks, nmic=1)))
        nsid = self.ok(Admin.NAMESPACE_MANAGEMENT, cdw10=0)
        self.poke(DATA_AT, struct.pack(f"<{len(controllers) + 1}H", len(controllers), *controllers).ljust(PAGE, b"\0"))
        self.ok(Admin.NAMESPACE_ATTACHMENT, nsid, cdw10=0)
        return nsid

    # the NVM command set, in short

    def put(self, lba: int, data: bytes, **words: int) -> int:
        """Write. :returns: the status"""
        return self.io(Io.WRITE, lba=lba, blocks=len(data) // self.lba_bytes, data=data, **words).status

    def get(self, lba: int, blocks: int) -> bytes:
        """Read, which must succeed."""
        self.poke(DATA_AT, b"\xa5" * (blocks * self.lba_bytes))
        done = self.io(Io.READ, lba=lba, blocks=blocks)
        assert done.status == 0, hex(done.status)
        return self.peek(DATA_AT, blocks * self.lba_bytes)


@contextmanager
def open_drive(folder: Path, profile: str = "null", clock: str = "virtual", **overrides: object) -> Iterator[Drive]:
    """A small drive without a thread."""
    settings = {"capacity_bytes": 16 * MIB, **overrides}
    drive = Drive.open(folder, load(profile, **settings), clock=clock)
    try:
        yield drive
    finally:
        drive.close()
