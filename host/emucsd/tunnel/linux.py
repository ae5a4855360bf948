"""A tunnel port through Linux's nvme driver: io_uring passthrough for frames, ioctl for setup and status."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Sequence
from pathlib import Path

from emucsd.errors import DriveNotFound, EmucsdError
from emucsd.linux import ioctl, nodes
from emucsd.linux.ioctl import PASSTHRU_COMMAND64, address_of, command
from emucsd.linux.uring import ENTRY, NVME_URING_CMD_IO, OP_URING_CMD, Entry, Ring
from emucsd.tunnel.port import BUFFER_BYTES, BUFFERS, CLOSED, SEND_MS, Done, check
from emucsd_wire.nvme import PAGE, Io
from emucsd_wire.tunnel import TUNNEL_SETUP, TUNNEL_STATUS, StatusFlag, TunnelAdmin, TunnelSetup, TunnelStatus

_DRIVER_MS = 30_000  # beyond the command's own time: only then Linux aborts it
_ADMIN_MS = 10_000
# Less than elsewhere: whenever namespaces come or go Linux stops the others until their commands have ended
_RECEIVE_MS = 1000
_U32 = struct.Struct("<I")
_LENGTH_AT, _CDW12_AT = (ENTRY.size + PASSTHRU_COMMAND64.offset(name) for name in ("length", "cdw12"))
_lost: list[mmap.mmap] = []  # memory of commands that never ended: the drive may still write there


class LinuxPort:
    """The port behind ``node`` (``/dev/nvme0``, ``/dev/nvme0n1`` or ``/dev/ng0n1``).

    :raises DriveNotFound: no such controller, or it has no namespace that commands could go through
    :raises NotPermitted: vendor commands take CAP_SYS_ADMIN
    """

    def __init__(self, node: Path, number: int) -> None:
        self.name, self.number = f"{node} (port {number})", number
        controller = nodes.controller_of(node)
        spaces = nodes.namespaces(controller)
        if not spaces:
            raise DriveNotFound(f"{node}: Linux has no namespace of it, through which the tunnel's commands have to go")
        self._nsid = spaces[0].nsid
        self._mapping = mmap.mmap(-1, BUFFERS * BUFFER_BYTES + PAGE)
        view = memoryview(self._mapping)
        self._address = address_of(self._mapping)
        self.buffers: Sequence[memoryview] = [view[n * BUFFER_BYTES :][:BUFFER_BYTES] for n in range(BUFFERS)]
        self._data = view[BUFFERS * BUFFER_BYTES :]
        self._entries: dict[int, memoryview] = {}
        self._fds: list[int] = []
        self._ring: Ring | None = None
        try:
            self._fds.append(nodes.open_node(Path("/dev") / controller))
            self._fds.append(nodes.open_node(spaces[0].character))
            self._ring = Ring(2 * BUFFERS)
        except BaseException:
            self.close()
            raise

    def filenos(self) -> list[int]:
        """Of the ring's eventfd."""
        return [self._busy.fileno()]

    @property
    def _busy(self) -> Ring:
        if self._ring is None:
            raise DriveNotFound(f"{self.name} is closed")
        return self._ring

    def send(self, buffer: int, count: int) -> None:
        """TUNNEL_SEND."""
        self._enter(Io.TUNNEL_SEND, buffer, count, SEND_MS)

    def receive(self, buffer: int) -> None:
        """TUNNEL_RECEIVE."""
        self._enter(Io.TUNNEL_RECEIVE, buffer, BUFFER_BYTES, _RECEIVE_MS)

    def _enter(self, opcode: int, buffer: int, count: int, milliseconds: int) -> None:
        address = self._address + buffer * BUFFER_BYTES
        key = opcode << 32 | buffer
        entry = self._entries.get(key)
        if entry is None:  # once a buffer: packing takes long when the processor is emulated
            patience = milliseconds + _DRIVER_MS
            asked = command(opcode, self._nsid, address, count, patience, cdw12=count, cdw13=milliseconds)
            head = Entry(OP_URING_CMD, 0, 0, self._fds[1], NVME_URING_CMD_IO, 0, 0, 0, 0, buffer, 0, 0, 0)
            entry = self._entries[key] = memoryview(bytearray(ENTRY.pack(head) + PASSTHRU_COMMAND64.pack(asked)))
        _U32.pack_into(entry, _LENGTH_AT, count)
        _U32.pack_into(entry, _CDW12_AT, count)
        self._busy.add(entry)

    def flush(self) -> None:
        """Submit."""
        self._busy.submit()

    def completions(self) -> list[Done]:
        """What has ended."""
        return [
            Done(token, status & 0x7FF if status >= 0 else status, result & 0xFFFF_FFFF, result >> 32 & 0xFFFF_FFFF)
            for token, status, result in self._busy.completions()
        ]

    def set_up(self, setup: TunnelSetup) -> None:
        """TUNNEL_SETUP."""
        self._data[: TUNNEL_SETUP.size] = TUNNEL_SETUP.pack(setup)
        self._run(TunnelAdmin.TUNNEL_SETUP, TUNNEL_SETUP.size)

    def status(self, *, join: bool = False) -> TunnelStatus:
        """TUNNEL_STATUS."""
        self._run(TunnelAdmin.TUNNEL_STATUS, TUNNEL_STATUS.size, StatusFlag.JOIN if join else 0)
        return TUNNEL_STATUS.unpack(self._data)

    def _run(self, opcode: TunnelAdmin, count: int, cdw11: int = 0) -> None:
        address = self._address + BUFFERS * BUFFER_BYTES
        answer = ioctl.admin(self._fds[0], opcode, 0, address, count, _ADMIN_MS, cdw11=cdw11)
        check(answer.status, f"{self.name}: {opcode.name}")

    def close(self) -> None:
        """Leave; commands that wait are ended, else their memory is kept until they end by themselves."""
        ring, self._ring = self._ring, None
        if ring is not None:
            with contextlib.suppress(EmucsdError, OSError):
                if self.number == 0:
                    self.set_up(CLOSED)
                else:
                    self.status(join=True)
        if ring is not None and not ring.close(timeout=0.2):
            _lost.append(self._mapping)
        for fd in self._fds:
            os.close(fd)
        self._fds = []
