"""A drive with a host on either port, stepped by hand: batches in, batches out."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from emucsd_wire.nvme import PAGE, SQE, Io
from emucsd_wire.tunnel import (
    TUNNEL_SETUP,
    TUNNEL_STATUS,
    SetupFlag,
    StatusFlag,
    TunnelAdmin,
    TunnelSetup,
    TunnelStatus,
    frame_bytes,
)
from tests.protocol.io_host import IoHost, open_drive
from tests.unit.nvme_host import DATA_AT, IOVA, MIB

HOST, ISP = 0x0A4D0001, 0x0A4D0002
MTU = 9000
SLOT = MIB // 4  # data of one command
SETTLED = 3  # rounds after which nothing more happens by itself


def packet(length: int, mark: int = 0) -> bytes:
    """An IPv4 packet of ``length`` bytes; ``mark`` is its identification."""
    head = struct.pack(">BBHHHBBHII", 0x45, 0, length, mark & 0xFFFF, 0, 64, 253, 0, HOST, ISP)
    return head + bytes((mark + i) % 251 for i in range(length - 20))


def batch(*packets: bytes) -> bytes:
    """Packets as one batch."""
    return b"".join((struct.pack("<I", len(p)) + p).ljust(frame_bytes(len(p)), b"\0") for p in packets)


def frames(data: bytes) -> list[bytes]:
    """The packets of a batch."""
    found, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        found.append(data[at + 4 : at + 4 + length])
        at += frame_bytes(length)
    return found


class End(IoHost):
    """One end; ``place`` is which of three data areas a command uses, so that three can be out."""

    def setup(self, flags: int = SetupFlag.OPEN, mtu: int = MTU, version: int = 1) -> None:
        self.poke(DATA_AT, TUNNEL_SETUP.pack(TunnelSetup(version, flags, mtu, HOST, ISP, 24, bytes(47))))
        self.ok(TunnelAdmin.TUNNEL_SETUP)

    def status(self, flags: int = 0) -> TunnelStatus:
        self.ok(TunnelAdmin.TUNNEL_STATUS, cdw11=flags)
        return TUNNEL_STATUS.unpack(self.peek(DATA_AT, TUNNEL_STATUS.size))

    def join(self) -> TunnelStatus:
        return self.status(StatusFlag.JOIN)

    def send(self, data: bytes, ms: int = 1000, place: int = 0, count: int | None = None) -> int:
        """:returns: the command's id"""
        self.poke(self._at(place), data)
        return self._enter(Io.TUNNEL_SEND, len(data) if count is None else count, ms, place)

    def receive(self, count: int = SLOT, ms: int = 1000, place: int = 0) -> int:
        return self._enter(Io.TUNNEL_RECEIVE, count, ms, place)

    def settle(self) -> list[tuple[int, int, int]]:
        """What completes now: (command id, status, dw0)."""
        self.drive.step(SETTLED)
        return [(done.cid, done.status, done.dw0) for done in self.reap_io()]

    def got(self, count: int, place: int = 0) -> list[bytes]:
        """The packets of a receive of ``count`` bytes."""
        return frames(self.peek(self._at(place), count))

    def _at(self, place: int) -> int:
        return DATA_AT + place * SLOT

    def _enter(self, opcode: int, count: int, ms: int, place: int) -> int:
        at, pages = self._at(place), -(-count // PAGE)
        prp2 = 0
        if pages == 2:
            prp2 = at + PAGE
        elif pages > 2:
            prp2 = IOVA + (128 + place) * PAGE
            entries = b"".join((at + n * PAGE).to_bytes(8, "little") for n in range(1, min(pages, 512)))
            self.poke(prp2, entries)
        sqe = self.sqe(opcode, 0, prp1=at, prp2=prp2, cdw12=count, cdw13=ms)
        assert SQE.size == 64
        return self.submit_io(sqe)


@contextmanager
def two_ends(folder: Path, clock: str = "real", profile: str = "null", **settings: object) -> Iterator[tuple[End, End]]:
    """Host and ISP end on one drive, the tunnel open."""
    with open_drive(folder, profile, clock, **settings) as drive:
        ends = End(drive, 0), End(drive, 1)
        ends[0].setup()
        yield ends
