"""A vfio-user client that can also misbehave, and a port that records what the transport asked of it.

Client and server live in one process and take turns: send, step the server, read. No threads, no sleeps.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from emucsd_femu.server import Server
from emucsd_femu.session import Doorbells
from emucsd_firmware.errors import MemoryMapError, PortError
from emucsd_wire.vfio_user import (
    DMA_MAP,
    DMA_UNMAP,
    ERROR,
    HEADER,
    IRQ_SET,
    NO_REPLY,
    REGION_ACCESS,
    TYPE_REPLY,
    VERSION,
    Command,
    DmaMap,
    DmaUnmap,
    Header,
    IrqSet,
    RegionAccess,
    Version,
)

QEMU_JSON = (
    b'{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16, "max_dma_maps": 65535, "max_data_xfer_size": 1048576, '
    b'"migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, "write_multiple": true}}\0'
)
OWN_JSON = b'{"capabilities":{"emucsd":1,"max_msg_fds":16,"pgsizes":4096,"max_data_xfer_size":65536}}\0'
STEPS = 1000  # more than any exchange needs; a reply that has not come by then never will


class RecordingPort:
    """A DevicePort of plain memory that notes every call; what it holds is what a drive would hold."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.doorbell_fd = os.memfd_create("doorbells", os.MFD_CLOEXEC)
        os.ftruncate(self.doorbell_fd, 8192)  # doorbells, then the sessions' registers
        self.admin_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.registers = bytearray(0x4000)
        self.maps: dict[int, tuple[int, int, bool]] = {}
        self.vectors: dict[int, int] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.trapped = False
        self.broken = False

    def close(self) -> None:
        os.close(self.doorbell_fd)
        os.close(self.admin_fd)

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        self.calls.append(("read", region, offset, count))
        if self.broken:
            raise RuntimeError("a bug of our own")
        if count > 8:
            raise PortError(f"{count} bytes at {offset:#x}; registers are read 1 to 8 bytes at a time")
        return bytes(self.registers[offset : offset + count])

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        self.calls.append(("write", region, offset, data))
        self.registers[offset : offset + len(data)] = data

    def map(self, iova: int, size: int, address: int, writable: bool) -> None:
        self.calls.append(("map", iova, size, writable))
        if iova == 0xDEAD000:
            raise MemoryMapError("the table refuses this one")
        self.maps[iova] = (size, address, writable)

    def unmap(self, iova: int, size: int) -> None:
        self.calls.append(("unmap", iova, size))
        assert self.maps.pop(iova)[0] == size

    def set_vector(self, vector: int, eventfd: int | None) -> None:
        self.calls.append(("vector", vector, eventfd is not None))
        self.vectors.pop(vector, None)
        if eventfd is not None:
            self.vectors[vector] = eventfd

    def reset(self) -> None:
        self.calls.append(("reset",))
        self.registers[:] = bytes(len(self.registers))

    def service(self) -> bool:
        os.eventfd_read(self.admin_fd)
        self.calls.append(("service",))
        return True


class Answer(NamedTuple):
    """A reply: header, payload and the descriptors that came on the header's first byte."""

    header: Header
    payload: bytes
    fds: tuple[int, ...]

    @property
    def errno(self) -> int:
        return self.header.error if self.header.flags & ERROR else 0


class Closed(Exception):
    """The server ended the connection."""


class Steppable(Protocol):
    """What takes turns with a client: a server, or a whole drive."""

    def run_once(self, timeout: float | None = None) -> bool: ...


class Peer:
    """One end of a connection, driven by hand."""

    def __init__(self, server: Steppable, path: Path) -> None:
        self.server = server
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(path))
        self.socket.setblocking(False)
        self._id = 0

    def close(self) -> None:
        self.socket.close()

    def send_raw(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([data], rights)

    def send(
        self, command: int, payload: bytes = b"", fds: tuple[int, ...] = (), *, flags: int = 0, size: int | None = None
    ) -> int:
        """One message in one sendmsg. :returns: its id"""
        self._id = (self._id + 1) & 0xFFFF
        whole = HEADER.size + len(payload) if size is None else size
        self.send_raw(HEADER.pack(Header(self._id, command, whole, flags, 0)) + payload, fds)
        return self._id

    def _exactly(self, count: int) -> tuple[bytes, tuple[int, ...]]:
        data, fds = b"", array.array("i")
        for _ in range(STEPS):
            try:
                piece, ancillary, _, _ = self.socket.recvmsg(count - len(data), 256)
            except BlockingIOError:
                self.server.run_once(0)
                continue
            except ConnectionResetError:
                raise Closed from None
            for _, _, content in ancillary:
                fds.frombytes(content)
            if not piece:
                raise Closed
            data += piece
            if len(data) == count:
                return data, tuple(fds)
        raise AssertionError(f"no reply after {STEPS} steps of the server")

    def receive(self) -> Answer:
        """The next reply, its payload in one read as SPDK reads it. :raises Closed: there is none"""
        data, fds = self._exactly(HEADER.size)
        header = HEADER.unpack(data)
        payload = b""
        if header.size > HEADER.size:
            payload = self.socket.recv(header.size - HEADER.size)
            assert len(payload) == header.size - HEADER.size, "the payload came in pieces"
        return Answer(header, payload, fds)

    def call(self, command: int, payload: bytes = b"", fds: tuple[int, ...] = (), *, size: int | None = None) -> Answer:
        """Send, step, receive; checks that the reply belongs to the request."""
        number = self.send(command, payload, fds, size=size)
        answer = self.receive()
        assert (answer.header.message_id, answer.header.command) == (number, command)
        assert answer.header.flags & 0xF == TYPE_REPLY
        return answer

    def settle(self) -> None:
        """Let the server handle all that has arrived."""
        for _ in range(STEPS):
            if not self.server.run_once(0):
                return
        raise AssertionError("the server never becomes idle")

    # the usual messages

    def negotiate(self, text: bytes = OWN_JSON) -> Answer:
        return self.call(Command.VERSION, VERSION.pack(Version(0, 0)) + text)

    def map(self, iova: int, size: int, fd: int | None, *, offset: int = 0, flags: int = 3) -> int:
        """DMA_MAP. :returns: the errno"""
        payload = DMA_MAP.pack(DmaMap(DMA_MAP.size, flags, offset, iova, size))
        return self.call(Command.DMA_MAP, payload, () if fd is None else (fd,)).errno

    def unmap(self, iova: int, size: int, flags: int = 0, fds: tuple[int, ...] = ()) -> int:
        """DMA_UNMAP. :returns: the errno"""
        payload = DMA_UNMAP.pack(DmaUnmap(DMA_UNMAP.size, flags, iova, size))
        return self.call(Command.DMA_UNMAP, payload, fds).errno

    def read(self, region: int, offset: int, length: int) -> bytes:
        answer = self.call(Command.REGION_READ, REGION_ACCESS.pack(RegionAccess(offset, region, length)))
        assert answer.errno == 0
        assert REGION_ACCESS.unpack(answer.payload) == (offset, region, length)
        return answer.payload[REGION_ACCESS.size :]

    def write(self, region: int, offset: int, data: bytes) -> int:
        """REGION_WRITE. :returns: the errno"""
        answer = self.call(Command.REGION_WRITE, REGION_ACCESS.pack(RegionAccess(offset, region, len(data))) + data)
        assert answer.errno or len(answer.payload) == REGION_ACCESS.size
        return answer.errno

    def post(self, region: int, offset: int, data: bytes) -> None:
        """A posted write: no reply comes."""
        payload = REGION_ACCESS.pack(RegionAccess(offset, region, len(data))) + data
        self.send(Command.REGION_WRITE, payload, flags=NO_REPLY)

    def set_irqs(
        self, flags: int, irq: int, start: int, vectors: int, fds: tuple[int, ...] = (), data: bytes = b""
    ) -> int:
        """DEVICE_SET_IRQS. :returns: the errno"""
        payload = IRQ_SET.pack(IrqSet(IRQ_SET.size + len(data), flags, irq, start, vectors)) + data
        return self.call(Command.DEVICE_SET_IRQS, payload, fds).errno


class Stand:
    """A server with one recording port, and the clients of a test."""

    def __init__(self, folder: Path, doorbells: Doorbells = Doorbells.AUTO, port: RecordingPort | None = None) -> None:
        self.port = port or RecordingPort()
        self.path = folder / "port0" / "cntrl"
        self.server = Server([self.port], [self.path], doorbells)
        self.peers: list[Peer] = []

    def connect(self, text: bytes | None = OWN_JSON) -> Peer:
        """A new client; negotiated unless ``text`` is None."""
        peer = Peer(self.server, self.path)
        self.peers.append(peer)
        if text is not None:
            assert peer.negotiate(text).errno == 0
        return peer

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        self.server.close()
        self.port.close()


@contextmanager
def memfd(size: int) -> Iterator[int]:
    """An anonymous file of ``size`` bytes."""
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
        yield fd
    finally:
        os.close(fd)


def open_fds() -> int:
    """Descriptors that this process has open. Fewer than before is no leak: an earlier test's garbage may have gone."""
    return len(os.listdir("/proc/self/fd"))
