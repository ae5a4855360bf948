"""What ``serve`` needs: its record, buffers in the drive's memory, and a queue pair of its own."""

from __future__ import annotations

import ctypes
import select
from typing import Any

import numpy as np

from emucsd.direct import Direct
from emucsd.drive import Drive
from emucsd.mount import serve
from emucsd.mount.errors import errno_of_status
from emucsd.mount.serve import DATA, SPACES, Pending, Server, Space
from emucsd.mount.session import MOST
from emucsd.namespace import Namespace
from emucsd_wire.nvme import PAGE

_NEED_QUIET = frozenset({serve.READ, serve.WRITE, serve.FSYNC, serve.FALLOCATE})
_STATUSES = 1 << 11


class Loop:
    """The compiled loop of one mount.

    :param attachment: the drive's, with a queue to spare: the last one is taken
    """

    def __init__(self, drive: Drive, attachment: Direct) -> None:
        self.queue = attachment.queues.pop()  # nobody else is to be given it
        self._fast = not drive.clock.virtual  # else every request must go where grants of time are asked for
        slots = self.queue.entries - 1
        self._buffers = drive.alloc((slots, DATA + MOST + PAGE))
        self._spaces = np.zeros(SPACES, Space.dtype)
        self._pending = np.zeros(slots, Pending.dtype)
        self._errnos = np.array([0, *map(errno_of_status, range(1, _STATUSES))], np.int64)
        self._template = np.zeros(8, np.int64)
        self._polled = np.zeros(2, [("fd", "<i4"), ("events", "<i2"), ("revents", "<i2")])
        self._record = np.zeros(1, Server.dtype)
        self.address = int(self._record.ctypes.data)
        server = self.server
        server["ring"], server["most"] = self.queue.ring_address, min(MOST, drive.max_transfer)
        server["buffers"], server["buffer_bytes"] = self._buffers.ctypes.data, self._buffers.shape[1]
        for name in ("spaces", "pending", "errnos", "template", "polled"):
            server[name] = getattr(self, f"_{name}").ctypes.data

    @property
    def server(self) -> Any:
        """The loop's record."""
        return self._record[0]

    @property
    def counters(self) -> dict[str, int]:
        """What it has served so far."""
        return {name: int(self.server[name]) for name in ("reads", "writes", "flushes", "failed")}

    def attach(self, fd: int) -> None:
        """Serve this /dev/fuse."""
        self.server["fd"] = fd
        self._polled["fd"] = fd, self.queue.link.vfio.fileno()
        self._polled["events"] = select.POLLIN, select.POLLRDHUP

    def follow(self, spaces: dict[int, Namespace], *, writable: bool) -> None:
        """Serve the files of these namespaces."""
        self._spaces["live"] = 0
        for nsid, space in spaces.items():
            if nsid < SPACES:
                shift = space.lba_bytes.bit_length() - 1
                self._spaces[nsid] = (int(self._fast), space.size, shift, int(writable))

    def run(self, slice_ms: int) -> int:
        """Serve until Python is needed; see ``serve.serve``."""
        return int(serve.serve(self.address, slice_ms))

    @property
    def request(self) -> tuple[int, int]:
        """After SLOW: address and length of the request that is Python's, once it can't overtake any that is out."""
        address, length = int(self.server["buffer"]), int(self.server["length"])
        opcode = ctypes.c_uint32.from_address(address + 4).value
        if opcode in _NEED_QUIET:
            while serve.drain(self.address, 100_000_000) != 0:
                self.queue.link.vfio.check()
        return address, length

    def lose(self, error: int) -> None:
        """The drive has gone: answer everything that is out, and leave the rest to Python."""
        self._spaces["live"] = 0
        self._polled["fd"][1] = -1
        serve.fail_all(self.address, error)
