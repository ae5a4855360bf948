"""The drive's flash, from a job on the ISP engine: the same few calls on both engines.

    from emucsd.isp.disk import Disk

    with Disk.open() as disk:
        header = disk.read(0, 4096)

In the drive's own machine this is ``/dev/nvme0n1``, opened with O_DIRECT; on the ``local`` engine it is the agent's NBD
socket. ``$EMUCSD_DISK`` says which. Either way the bytes come over the drive's port 1: past PCIe link and front end.
Only the standard library is used; NumPy users give ``readinto`` an array.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import socket
import struct
import time
from abc import ABC, abstractmethod
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from emucsd.errors import DriveNotFound, EmucsdError
from emucsd.isp import nbd
from emucsd.isp.errors import IspError, IspLost, IspUnreachable

VARIABLE = "EMUCSD_DISK"
_PIECE = 8 << 20
_BLKSSZGET = 0x1268
_BLKDISCARD = 0x1277
_NODE_SECONDS = 3.0  # for a namespace's device to appear after a rescan
_LOOK_SECONDS = 0.02


class Disk(ABC):
    """One namespace of the drive, as bytes.

    :ivar size: bytes
    :ivar block_bytes: writes begin and end at multiples of this
    """

    size: int
    block_bytes: int

    @classmethod
    def open(cls, where: str | None = None, *, nsid: int | None = None) -> Disk:
        """Open the job's disk.

        :param where: a block device or an ``nbd+unix`` URI; default: ``$EMUCSD_DISK``
        :param nsid: another namespace than the first
        :raises IspUnreachable: this is no job of an ISP engine, or the disk can't be opened
        """
        where = where or os.environ.get(VARIABLE, "")
        if not where:
            raise IspUnreachable(f"{VARIABLE} is not set: only jobs of an ISP engine have a disk; or name one")
        if where.startswith("/"):
            return DeviceDisk(where if nsid is None else _other(where, nsid))
        parts = urlsplit(where)
        sockets = parse_qs(parts.query).get("socket", [])
        if parts.scheme != "nbd+unix" or len(sockets) != 1:
            raise IspUnreachable(f"{where!r}: give a block device, or nbd+unix:///EXPORT?socket=PATH")
        return NbdDisk(sockets[0], unquote(parts.path.lstrip("/")) if nsid is None else str(nsid))

    # -- what users call ---------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``, any alignment. :raises IspError: beyond its end, or the drive refused"""
        data = bytearray(size)
        self.readinto(offset, data)
        return bytes(data)

    def readinto(self, offset: int, buffer: Any) -> None:
        """Fill a writable buffer (an array, say) from ``offset``."""
        into = memoryview(buffer).cast("B")
        self._check(offset, len(into))
        at = 0
        while at < len(into):
            begin = (offset + at) // self.block_bytes * self.block_bytes
            skip = offset + at - begin
            count = min(_PIECE, -(-(len(into) - at + skip) // self.block_bytes) * self.block_bytes)
            piece = self._read(begin, count)[skip : skip + len(into) - at]
            into[at : at + len(piece)] = piece
            at += len(piece)

    def write(self, offset: int, data: Any) -> None:
        """Write whole blocks. :raises IspError: unaligned, beyond its end, or the drive refused"""
        row = memoryview(data).cast("B")
        self._check(offset, len(row))
        if offset % self.block_bytes or len(row) % self.block_bytes:
            raise IspError(
                f"offset {offset}, {len(row)} bytes: writes begin and end at multiples of {self.block_bytes}; read the "
                "block, change it, write it whole"
            )
        for at in range(0, len(row), _PIECE):
            self._write(offset + at, row[at : at + _PIECE])

    @abstractmethod
    def flush(self) -> None:
        """What was written before survives as the drive's ``durability`` says."""

    @abstractmethod
    def trim(self, offset: int, size: int) -> None:
        """Deallocate whole blocks; they read as zeros."""

    @abstractmethod
    def close(self) -> None:
        """Let it go."""

    @abstractmethod
    def _read(self, offset: int, size: int) -> memoryview: ...

    @abstractmethod
    def _write(self, offset: int, data: memoryview) -> None: ...

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or offset + size > self.size:
            raise IspError(f"offset {offset}, {size} bytes: the disk has {self.size}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class DeviceDisk(Disk):
    """A block device, past the page cache: what the other port has written is seen at once."""

    def __init__(self, path: str) -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as problem:
            raise IspUnreachable(
                f"{path}: {problem.strerror}; is the drive attached, and does this run as root?"
            ) from problem
        self.size = os.lseek(self._fd, 0, os.SEEK_END)
        self.block_bytes = struct.unpack("i", fcntl.ioctl(self._fd, _BLKSSZGET, bytes(4)))[0]
        self._page = mmap.mmap(-1, _PIECE)  # aligned, as O_DIRECT wants it

    def _read(self, offset: int, size: int) -> memoryview:
        view = memoryview(self._page)[:size]
        done = _tried("read", offset, lambda: os.preadv(self._fd, [view], offset))
        if done != size:
            raise IspError(f"offset {offset}: {done} of {size} bytes could be read")
        return view

    def _write(self, offset: int, data: memoryview) -> None:
        self._page[: len(data)] = data
        view = memoryview(self._page)[: len(data)]
        done = _tried("write", offset, lambda: os.pwritev(self._fd, [view], offset))
        if done != len(data):
            raise IspError(f"offset {offset}: {done} of {len(data)} bytes could be written")

    def flush(self) -> None:
        _tried("flush", 0, lambda: os.fsync(self._fd))

    def trim(self, offset: int, size: int) -> None:
        self._check(offset, size)
        _tried("trim", offset, lambda: fcntl.ioctl(self._fd, _BLKDISCARD, struct.pack("QQ", offset, size)))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _other(where: str, nsid: int) -> str:
    """The block device of another namespace of the same drive. :raises IspUnreachable: there is none"""
    try:
        return _device(where, nsid)
    except IspUnreachable:
        raise
    except EmucsdError as problem:
        raise IspUnreachable(f"namespace {nsid} beside {where}: {problem}") from problem


def _device(where: str, nsid: int) -> str:
    """Linux numbers devices its own way: the one of the namespace ``nsid`` is found in /sys, after a rescan if need be.

    :raises EmucsdError: no such controller, no right to look, no such namespace
    """
    from emucsd.linux import ioctl, nodes

    try:
        name = nodes.controller_of(where)
    except DriveNotFound:  # that namespace was deleted or detached since; its name still says which drive it was of
        name = nodes.controller(re.sub(r"n\d+(p\d+)?$", "", os.path.basename(where))).name
    looked = False
    deadline = time.monotonic() + _NODE_SECONDS
    while True:
        found = {space.nsid: space.block for space in nodes.namespaces(name) if space.block is not None}
        if nsid in found and found[nsid].exists():
            return str(found[nsid])
        if time.monotonic() > deadline:
            known = ", ".join(map(str, found)) or "none"
            raise IspUnreachable(f"namespace {nsid}: Linux has no block device for it on {name}; it has: {known}")
        if not looked:
            fd = nodes.open_node(nodes.controller(name).node)  # it may be new: the driver looks in its own time
            try:
                ioctl.rescan(fd)
            finally:
                os.close(fd)
            looked = True
        time.sleep(_LOOK_SECONDS)


def _tried(what: str, offset: int, call: Any) -> Any:
    try:
        return call()
    except OSError as problem:
        raise IspError(f"{what} at offset {offset}: {problem.strerror}; the kernel's log may say more") from problem


class NbdDisk(Disk):
    """An export of an NBD server on a Unix socket: one request at a time."""

    def __init__(self, path: str, export: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._cookie = 0
        try:
            self._socket.connect(path)
            self._negotiate(path, export)
        except OSError as problem:
            self._socket.close()
            raise IspUnreachable(f"{path}: {problem.strerror}; has the ISP engine ended?") from problem
        except BaseException:
            self._socket.close()
            raise

    def _negotiate(self, path: str, export: str) -> None:
        hello = self._exactly(18)
        if hello[:16] != nbd.INIT + nbd.OPTION_MAGIC or not hello[17] & nbd.FIXED_NEWSTYLE:
            raise IspUnreachable(f"{path}: no NBD server answers there")
        self._socket.sendall(struct.pack(">I", nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES))
        name = export.encode()
        data = struct.pack(">I", len(name)) + name + struct.pack(">HH", 1, nbd.INFO_BLOCK_SIZE)
        self._socket.sendall(nbd.OPTION.pack(nbd.OPTION_MAGIC, nbd.OPT_GO, len(data)) + data)
        self.size, self.block_bytes = 0, 1
        while True:
            magic, _, kind, size = nbd.OPTION_REPLY.unpack(self._exactly(nbd.OPTION_REPLY.size))
            if magic != nbd.OPTION_REPLY_MAGIC or size > nbd.MOST_OPTION_BYTES:
                raise IspLost(f"{path}: an option was answered with magic {magic:#x} and {size} bytes")
            body = self._exactly(size)
            if kind == nbd.REP_ACK:
                return
            if kind != nbd.REP_INFO:
                raise IspUnreachable(f"{path}: export {export!r}: {bytes(body).decode(errors='replace') or hex(kind)}")
            about = int.from_bytes(body[:2], "big")
            if about == nbd.INFO_EXPORT:
                self.size = nbd.INFO_EXPORT_REPLY.unpack(body)[1]
            elif about == nbd.INFO_BLOCK_SIZE:
                self.block_bytes = nbd.INFO_BLOCK_REPLY.unpack(body)[1]

    def _exactly(self, count: int) -> memoryview:
        data = memoryview(bytearray(count))
        at = 0
        while at < count:
            got = self._socket.recv_into(data[at:])
            if not got:
                raise IspLost("the disk's server closed the connection: the ISP engine has ended, or its log says why")
            at += got
        return data

    def _call(
        self, command: int, offset: int, size: int, data: memoryview | bytes = b"", answer: int = 0
    ) -> memoryview:
        self._cookie += 1
        request = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, command, self._cookie, offset, size)
        try:
            self._socket.sendall(request)
            if len(data):
                self._socket.sendall(data)
            magic, error, cookie = nbd.REPLY.unpack(self._exactly(nbd.REPLY.size))
            if (magic, cookie) != (nbd.REPLY_MAGIC, self._cookie):
                raise IspLost(f"the disk's server answered with magic {magic:#x}, cookie {cookie}")
            if error:
                name = {nbd.CMD_READ: "read", nbd.CMD_WRITE: "write", nbd.CMD_FLUSH: "flush"}.get(command, "trim")
                raise IspError(f"{name} at offset {offset}: {os.strerror(error)}; the ISP engine's log says why")
            return self._exactly(answer)
        except OSError as problem:
            raise IspLost(f"the disk's server is gone: {problem.strerror}") from problem

    def _read(self, offset: int, size: int) -> memoryview:
        return self._call(nbd.CMD_READ, offset, size, answer=size)

    def _write(self, offset: int, data: memoryview) -> None:
        self._call(nbd.CMD_WRITE, offset, len(data), data)

    def flush(self) -> None:
        self._call(nbd.CMD_FLUSH, 0, 0)

    def trim(self, offset: int, size: int) -> None:
        self._check(offset, size)
        for at in range(0, size, nbd.MOST_BYTES):
            self._call(nbd.CMD_TRIM, offset + at, min(nbd.MOST_BYTES, size - at))

    def close(self) -> None:
        self._socket.close()
