"""The drive's end of a connection, played by the test: a vfio-user server that answers just enough, by script.

It maps what the client offers, so a test reads submission entries and posts completions in the client's own memory.
"""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emucsd_wire import vfio_user as wire
from emucsd_wire.nvme import CQE, PAGE, SQE, Register, Sqe
from emucsd_wire.vfio_user import Command

WORDS = 0xF00  # ClockWords in the doorbell page


class Scripted(NamedTuple):
    """What a request is answered with."""

    payload: bytes = b""
    fds: tuple[int, ...] = ()
    error: int = 0


Script = Callable[[bytes], Scripted | None]


class Peer:
    """Listens at ``path``; ``script`` replaces its own answers, command by command (None: no answer at all)."""

    def __init__(self, path: Path, *, mapped: bool = True) -> None:
        self.mapped = mapped
        self.script: dict[Command, Script] = {}
        self.requests: list[tuple[int, bytes]] = []
        self.posted: list[tuple[int, bytes]] = []  # (offset, data) of REGION_WRITEs that want no reply
        self.arrived = threading.Condition()
        self.registers = bytearray(0x2000)
        self._page_fd = os.memfd_create("doorbells")
        os.ftruncate(self._page_fd, PAGE)
        self._page = mmap.mmap(self._page_fd, PAGE)
        self.doorbells = np.frombuffer(self._page, "<u4")
        self.words = np.frombuffer(self._page, "<i8", offset=WORDS)
        self._maps: list[tuple[int, mmap.mmap]] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self.client: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    # -- the wire ----------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # the client hung up, or the test did
            self.client, _ = self._listener.accept()
            while (message := self._receive()) is not None:
                self._answer(*message)

    def _receive(self) -> tuple[wire.Header, bytes, list[int]] | None:
        assert self.client is not None
        head, fds, _, _ = socket.recv_fds(self.client, wire.HEADER.size, 16, socket.MSG_WAITALL)
        if not head:
            return None
        header = wire.HEADER.unpack(head)
        left = header.size - wire.HEADER.size
        return header, self.client.recv(left, socket.MSG_WAITALL) if left else b"", fds

    def _answer(self, header: wire.Header, payload: bytes, fds: list[int]) -> None:
        command = Command(header.command)
        with self.arrived:
            self.requests.append((command, payload))
            if header.flags & wire.NO_REPLY:
                self.posted.append((wire.REGION_ACCESS.unpack(payload).offset, payload[wire.REGION_ACCESS.size :]))
            self.arrived.notify_all()
        script = self.script.get(command)
        answer = script(payload) if script else self._default(command, payload, fds)
        for fd in fds:
            os.close(fd)
        if answer is not None and not header.flags & wire.NO_REPLY:
            self.send(header.message_id, command, answer)

    def send(self, message_id: int, command: int, answer: Scripted) -> None:
        """One reply, descriptors on its first byte."""
        assert self.client is not None
        flags = wire.TYPE_REPLY | (wire.ERROR if answer.error else 0)
        size = wire.HEADER.size + len(answer.payload)
        data = wire.HEADER.pack(wire.Header(message_id, command, size, flags, answer.error)) + answer.payload
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", answer.fds))] if answer.fds else []
        self.client.sendmsg([data], rights)

    def _default(self, command: Command, payload: bytes, fds: list[int]) -> Scripted:
        if command == Command.VERSION:
            return Scripted(wire.VERSION.pack(wire.Version(0, 0)) + b'{"capabilities":{}}\0')
        if command == Command.DEVICE_GET_REGION_INFO:
            return self._region_info(wire.REGION_INFO.unpack(payload).region)
        if command == Command.DMA_MAP:
            request = wire.DMA_MAP.unpack(payload)
            self._maps.append((request.address, mmap.mmap(fds[0], request.size, offset=request.offset)))
            return Scripted()
        if command in (Command.REGION_READ, Command.REGION_WRITE):
            return self._access(wire.REGION_ACCESS.unpack(payload), payload[wire.REGION_ACCESS.size :])
        return Scripted(payload)

    def _region_info(self, region: int) -> Scripted:
        size = wire.REGION_INFO.size
        if region != wire.Region.BAR0 or not self.mapped:
            return Scripted(wire.REGION_INFO.pack(wire.RegionInfo(size, 3, region, 0, 0x2000, 0)))
        flags = wire.RegionFlag.READ | wire.RegionFlag.WRITE | wire.RegionFlag.MMAP | wire.RegionFlag.CAPS
        total = size + wire.SPARSE_MMAP.size
        info = wire.RegionInfo(total, flags, region, size, 0x2000, 0)
        # the file holds the page alone: its offset 0 is the region's 0x1000
        info = info._replace(offset=(1 << 64) - Register.DOORBELLS)
        sparse = wire.SparseMmap(wire.CAP_SPARSE_MMAP, 1, 0, 1, 0, Register.DOORBELLS, PAGE)
        return Scripted(wire.REGION_INFO.pack(info) + wire.SPARSE_MMAP.pack(sparse), (self._page_fd,))

    def _access(self, access: wire.RegionAccess, data: bytes) -> Scripted:
        inside = access.offset - Register.DOORBELLS
        target: Any = memoryview(self._page) if inside >= 0 else memoryview(self.registers)
        at = max(inside, 0) if inside >= 0 else access.offset
        if data:
            target[at : at + len(data)] = data
            return Scripted(wire.REGION_ACCESS.pack(access))
        return Scripted(wire.REGION_ACCESS.pack(access) + bytes(target[at : at + access.length]))

    def await_posted(self, count: int) -> list[tuple[int, bytes]]:
        """The posted writes so far, once there are ``count``."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.posted) >= count, timeout=10), f"{self.posted} after 10 s"
            return list(self.posted)

    # -- the drive ---------------------------------------------------------------------------------------------------

    def memory(self, iova: int, count: int) -> NDArray[np.uint8]:
        """The client's memory as the drive sees it."""
        for base, mapping in self._maps:
            if base <= iova and iova + count <= base + len(mapping):
                return np.frombuffer(mapping, np.uint8)[iova - base : iova - base + count]
        raise AssertionError(f"{iova:#x}+{count:#x} was never mapped")

    def entry(self, sq: int, index: int) -> Sqe:
        """A submission entry."""
        return SQE.unpack(self.memory(sq + SQE.size * index, SQE.size).tobytes())

    def post(self, cq: int, index: int, cid: int, *, phase: int = 1, status: int = 0, result: int = 0) -> None:
        """A completion entry: body first, then the half with the phase in one store."""
        halves = self.memory(cq + CQE.size * index, CQE.size).view("<u8")
        halves[0] = result
        halves[1] = cid << 32 | (status << 1 | phase) << 48

    def close(self) -> None:
        """Hang up. Harmless when repeated."""
        if self._page_fd < 0:
            return
        with contextlib.suppress(OSError):  # whoever hangs up second finds nobody there
            self._listener.shutdown(socket.SHUT_RDWR)
        if self.client is not None:
            with contextlib.suppress(OSError):
                self.client.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        for end in (self._listener, *([self.client] if self.client else [])):
            end.close()
        os.close(self._page_fd)
        self._page_fd = -1
