"""A small NVMe host on a vfio-user peer: queues in shared memory, doorbells by page or by message.

Only what protocol tests need of a driver; ``emucsd`` is the real one.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable

from emucsd_wire.nvme import CQE, SQE, Admin, Cqe, Io, Register, Sqe
from tests.protocol.vfio_peer import STEPS, Peer

ENTRIES = 256
DATA = 0x10000  # offset of the data area in the host's memory


def entry(opcode: int, cid: int, **fields: int) -> Sqe:
    """A submission entry with these fields set."""
    return Sqe(opcode, 0, cid, *([0] * 12))._replace(**fields)


class Queues:
    """One submission and one completion queue of equal length, in the host's memory.

    :param ring: stores a doorbell: (index of the dword, value)
    """

    def __init__(
        self,
        memory: mmap.mmap,
        sq: int,
        cq: int,
        qid: int,
        ring: Callable[[int, int], None],
        step: Callable[[], object],
    ) -> None:
        self._memory, self._sq, self._cq, self._qid = memory, sq, cq, qid
        self._ring, self._step = ring, step
        self._tail = self._head = 0
        self._phase = 1
        self._cid = 0
        memory[cq : cq + 16 * ENTRIES] = bytes(16 * ENTRIES)

    def submit(self, opcode: int, **fields: int) -> int:
        """Enter a command and ring. :returns: its command id"""
        self._cid += 1
        at = self._sq + SQE.size * self._tail
        self._memory[at : at + SQE.size] = SQE.pack(entry(opcode, self._cid, **fields))
        self._tail = (self._tail + 1) % ENTRIES
        self._ring(2 * self._qid, self._tail)
        return self._cid

    def poll(self) -> Cqe | None:
        """The next completion, if it is there."""
        at = self._cq + CQE.size * self._head
        cqe = CQE.unpack(self._memory[at : at + CQE.size])
        if cqe.status & 1 != self._phase:
            return None
        self._head = (self._head + 1) % ENTRIES
        self._phase ^= self._head == 0
        self._ring(2 * self._qid + 1, self._head)
        return cqe

    def wait(self) -> Cqe:
        """The next completion, stepping the drive."""
        for _ in range(STEPS):
            if (cqe := self.poll()) is not None:
                return cqe
            self._step()
        raise AssertionError("no completion")

    def run(self, opcode: int, **fields: int) -> int:
        """One command to its end. :returns: its status, SCT << 8 | SC"""
        cid = self.submit(opcode, **fields)
        cqe = self.wait()
        assert cqe.cid == cid
        return cqe.status >> 1 & 0x7FF


def enable(
    peer: Peer,
    text: bytes,
    base: int,
    fd: int,
    memory: mmap.mmap,
    step: Callable[[], object],
    page: mmap.mmap | None = None,
) -> Host:
    """Negotiate with this VERSION text, map the memory at ``base``, enable the controller."""
    assert peer.negotiate(text).errno == 0
    assert peer.map(base, len(memory), fd) == 0
    for register, value, size in (
        (Register.ASQ, base, 8),
        (Register.ACQ, base + 0x4000, 8),
        (Register.AQA, 0xFF00FF, 4),
    ):
        assert peer.write(0, register, value.to_bytes(size, "little")) == 0
    assert peer.write(0, Register.CC, struct.pack("<I", 0x00460001)) == 0
    for _ in range(STEPS):
        if peer.read(0, Register.CSTS, 4) == b"\1\0\0\0":
            return Host(peer, memory, base, step, None)
    raise AssertionError("the controller never becomes ready")


class Host:
    """A driver on an enabled controller whose admin queues lie at ``base`` and ``base + 0x4000``."""

    def __init__(
        self, peer: Peer, memory: mmap.mmap, base: int, step: Callable[[], object], page: mmap.mmap | None
    ) -> None:
        self.peer, self.memory, self.base, self.page = peer, memory, base, page
        self._step = step
        self.admin = Queues(memory, 0, 0x4000, 0, self.ring, step)
        self.io: Queues | None = None

    def ring(self, index: int, value: int) -> None:
        """A doorbell: a store to the mapped page, else a posted message."""
        if self.page is not None:
            self.page[4 * index : 4 * index + 4] = struct.pack("<I", value)
        else:
            self.peer.post(0, 0x1000 + 4 * index, struct.pack("<I", value))

    def identify(self, cns: int, nsid: int = 0) -> bytes:
        """An identify page."""
        assert self.admin.run(Admin.IDENTIFY, nsid=nsid, prp1=self.base + DATA, cdw10=cns) == 0
        return self.memory[DATA : DATA + 4096]

    def create_io(self, *, vector: int | None = None) -> Queues:
        """I/O queue pair 1. ``vector`` None: no interrupts, as SPDK makes them."""
        assert self.admin.run(Admin.SET_FEATURES, cdw10=7, cdw11=0) == 0
        interrupts = 0 if vector is None else 2 | vector << 16
        size = (ENTRIES - 1) << 16 | 1
        assert self.admin.run(Admin.CREATE_CQ, prp1=self.base + 0xA000, cdw10=size, cdw11=interrupts | 1) == 0
        assert self.admin.run(Admin.CREATE_SQ, prp1=self.base + 0x6000, cdw10=size, cdw11=1 << 16 | 1) == 0
        self.io = Queues(self.memory, 0x6000, 0xA000, 1, self.ring, self._step)
        return self.io

    def write(self, lba: int, data: bytes) -> int:
        """Blocks of 4096 or 512 bytes whose data fit two pages. :returns: the status"""
        self.memory[DATA : DATA + len(data)] = data
        return self._move(Io.WRITE, lba, len(data))

    def read(self, lba: int, size: int) -> bytes:
        """What lies there."""
        self.memory[DATA : DATA + size] = bytes(size)
        assert self._move(Io.READ, lba, size) == 0
        return self.memory[DATA : DATA + size]

    def _move(self, opcode: int, lba: int, size: int) -> int:
        assert self.io is not None, "create_io first"
        second = self.base + DATA + 4096 if size > 4096 else 0
        fields = {"prp1": self.base + DATA, "prp2": second, "cdw10": lba, "cdw12": size // self.block - 1}
        return self.io.run(opcode, nsid=1, **fields)

    @property
    def block(self) -> int:
        """Bytes of a logical block of namespace 1."""
        saved = self.memory[DATA : DATA + 8192]
        page = self.identify(0, nsid=1)
        self.memory[DATA : DATA + 8192] = saved
        (shift,) = struct.unpack_from("<B", page, 128 + 4 * (page[26] & 0xF) + 2)
        return 1 << int(shift)
