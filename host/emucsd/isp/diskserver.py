"""A port's namespaces as NBD exports on a Unix socket: how several processes read a drive whose port one of them holds.

    with Drive.open("disk0", queues=4) as drive, DiskServer(drive, folder / "disk") as server:
        subprocess.run([...], env={**os.environ, "EMUCSD_DISK": server.uri()})

A port of the direct client serves one process. On port 1 that is the agent of a ``local`` engine, and its jobs read by
this; on port 0 it is whoever opened the drive, and its children do. Each connection has a thread, and so a queue of
the drive's as long as there are any. In a machine none of this runs: the kernel's /dev/nvme0n1 is there. What crosses
is what the port may see: a namespace that is attached to port 1 alone is no export of a server on port 0. Standard
library alone: the agent has nothing else.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from emucsd.isp import nbd
from emucsd.isp.errors import IspUnavailable
from emucsd.isp.protocol import Ended

CONNECTIONS = 32
FLAGS = (
    nbd.HAS_FLAGS | nbd.SEND_FLUSH | nbd.SEND_FUA | nbd.SEND_TRIM | nbd.SEND_WRITE_ZEROES | nbd.CAN_MULTI_CONN
)  # one drive behind all connections, and its flush covers what any of them wrote


class _Refused(Exception):
    """A request that fails with this errno; the connection goes on."""

    def __init__(self, errno: int) -> None:
        super().__init__(os.strerror(errno))
        self.errno = errno


class DiskServer:
    """Serves until closed.

    :param drive: a drive's port, as ``emucsd.Drive``
    :param path: of the socket, which only this user can connect to
    :param log: is given a line when a client's connection, or a request, fails
    :raises IspUnavailable: the socket can't be made
    """

    def __init__(self, drive: Any, path: Path, log: Callable[[str], None] | None = None) -> None:
        self.drive, self.path, self._log = drive, path, log or _silent
        self._room = threading.Semaphore(CONNECTIONS)
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._listener.bind(os.fspath(path))
            path.chmod(0o600)  # before anybody can connect: nothing listens yet
            self._listener.listen(16)
        except OSError as problem:
            self._listener.close()
            told = f"{path}: {problem.strerror or problem}; give a folder that is there, with a shorter name"
            raise IspUnavailable(told) from problem
        threading.Thread(target=self._serve, name="disk", daemon=True).start()

    def uri(self) -> str:
        """What a process finds in $EMUCSD_DISK: the first namespace; ``Disk.open(nsid=N)`` opens others."""
        return f"nbd+unix:///?socket={self.path}"

    def close(self) -> None:
        """No more connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if not self._room.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._client, args=(connection,), name="disk client", daemon=True).start()

    def _client(self, connection: socket.socket) -> None:
        try:
            with connection:
                space = self._negotiate(connection)
                if space is not None:
                    Export(space, connection, self._log).serve()
        except (Ended, OSError):
            pass
        except Exception as problem:  # ours, or the drive is gone: this connection ends, others go on
            self._log(f"disk: {type(problem).__name__}: {problem}")
        finally:
            self._room.release()

    # -- the handshake -----------------------------------------------------------------------------------------------

    def _negotiate(self, connection: socket.socket) -> Any | None:
        """Until an export is chosen. :returns: its namespace, None when the client leaves"""
        connection.sendall(nbd.INIT + nbd.OPTION_MAGIC + struct.pack(">H", nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES))
        flags = int.from_bytes(exactly(connection, 4), "big")
        while True:
            magic, option, size = nbd.OPTION.unpack(exactly(connection, nbd.OPTION.size))
            if magic != nbd.OPTION_MAGIC or size > nbd.MOST_OPTION_BYTES:
                return None
            data = bytes(exactly(connection, size))
            if option == nbd.OPT_EXPORT_NAME:
                space = self._find(data)
                if space is not None:
                    connection.sendall(nbd.EXPORT_REPLY.pack(space.size, FLAGS))
                    connection.sendall(b"" if flags & nbd.NO_ZEROES else bytes(124))
                return space
            if option == nbd.OPT_ABORT:
                _reply(connection, option, nbd.REP_ACK)
                return None
            if option == nbd.OPT_LIST:
                for space in self.drive.namespaces:
                    name = str(space.nsid).encode()
                    _reply(connection, option, nbd.REP_SERVER, struct.pack(">I", len(name)) + name)
                _reply(connection, option, nbd.REP_ACK)
            elif option in (nbd.OPT_INFO, nbd.OPT_GO):
                space = self._describe(connection, option, data)
                if space is not None and option == nbd.OPT_GO:
                    return space
            else:
                _reply(connection, option, nbd.REP_ERR_UNSUP, b"no such option here")

    def _describe(self, connection: socket.socket, option: int, data: bytes) -> Any | None:
        length = int.from_bytes(data[:4], "big")
        if len(data) < 6 or length > len(data) - 6:
            _reply(connection, option, nbd.REP_ERR_INVALID, b"a name that is longer than the option")
            return None
        space = self._find(data[4 : 4 + length])
        if space is None:
            _reply(connection, option, nbd.REP_ERR_UNKNOWN, b"this port has no such namespace")
            return None
        _reply(connection, option, nbd.REP_INFO, nbd.INFO_EXPORT_REPLY.pack(nbd.INFO_EXPORT, space.size, FLAGS))
        sizes = (space.lba_bytes, max(space.lba_bytes, 4096), nbd.MOST_BYTES)
        _reply(connection, option, nbd.REP_INFO, nbd.INFO_BLOCK_REPLY.pack(nbd.INFO_BLOCK_SIZE, *sizes))
        _reply(connection, option, nbd.REP_ACK)
        return space

    def _find(self, name: bytes) -> Any | None:
        spaces = self.drive.namespaces
        if not name:
            return spaces[0] if spaces else None
        return next((space for space in spaces if str(space.nsid).encode() == name), None)


class Export:
    """A connection that has chosen its namespace: requests in turn."""

    def __init__(self, space: Any, connection: socket.socket, log: Callable[[str], None]) -> None:
        self._space, self._connection, self._log = space, connection, log
        self._does: dict[int, Callable[[int, int, int], None]] = {
            nbd.CMD_WRITE: self._write,
            nbd.CMD_FLUSH: lambda flags, offset, size: self._space.flush(),
            nbd.CMD_TRIM: lambda flags, offset, size: self._trim(offset, size),
            nbd.CMD_WRITE_ZEROES: lambda flags, offset, size: self._zero(offset, size),
        }

    def serve(self) -> None:
        """Until the client is done. :raises Ended, OSError: it is gone"""
        while True:
            header = exactly(self._connection, nbd.REQUEST.size)
            magic, flags, command, cookie, offset, size = nbd.REQUEST.unpack(header)
            if magic != nbd.REQUEST_MAGIC or command == nbd.CMD_DISC:
                return
            if size > nbd.MOST_BYTES and command in (nbd.CMD_READ, nbd.CMD_WRITE):
                return  # its data would have to be read to be refused: the protocol lets the server hang up
            if command == nbd.CMD_READ:
                self._read(cookie, offset, size)
            else:
                self._answer(cookie, self._try(command, flags, offset, size))

    def _answer(self, cookie: int, error: int) -> None:
        self._connection.sendall(nbd.REPLY.pack(nbd.REPLY_MAGIC, error, cookie))

    def _try(self, command: int, flags: int, offset: int, size: int) -> int:
        """:returns: the errno that the client is told"""
        from emucsd.errors import CapacityExceeded, InvalidArgument, NvmeError, WriteProtected

        try:
            if command not in self._does:
                raise _Refused(nbd.EINVAL)
            self._does[command](flags, offset, size)
        except _Refused as problem:
            return problem.errno
        except CapacityExceeded:
            return nbd.ENOSPC
        except WriteProtected:
            return nbd.EPERM
        except InvalidArgument:
            return nbd.EINVAL
        except NvmeError as problem:
            self._log(f"disk: {problem}")
            return nbd.EIO
        return 0

    def _blocks(self, offset: int, size: int) -> tuple[int, int]:
        """(LBA, blocks). :raises _Refused: unaligned, or beyond the end"""
        unit = self._space.lba_bytes
        if offset % unit or size % unit or not size:
            raise _Refused(nbd.EINVAL)
        if offset + size > self._space.size:
            raise _Refused(nbd.ENOSPC)
        return offset // unit, size // unit

    def _read(self, cookie: int, offset: int, size: int) -> None:
        from emucsd.errors import NvmeError

        try:
            data = self._space.read(*self._blocks(offset, size))
        except (_Refused, NvmeError) as problem:
            self._answer(cookie, problem.errno if isinstance(problem, _Refused) else nbd.EIO)
            return
        self._connection.sendall(nbd.REPLY.pack(nbd.REPLY_MAGIC, 0, cookie))
        self._connection.sendall(memoryview(data))

    def _write(self, flags: int, offset: int, size: int) -> None:
        data = exactly(self._connection, size)  # taken off the line before anything is refused
        lba, _ = self._blocks(offset, size)
        self._space.write(lba, data, fua=bool(flags & nbd.CMD_FLAG_FUA))

    def _trim(self, offset: int, size: int) -> None:
        self._space.deallocate(*self._blocks(offset, size))

    def _zero(self, offset: int, size: int) -> None:
        self._space.write_zeroes(*self._blocks(offset, size))


def _silent(line: str) -> None:
    pass


def exactly(connection: socket.socket, count: int) -> memoryview:
    """``count`` bytes. :raises Ended: the client has left"""
    data = memoryview(bytearray(count))
    at = 0
    while at < count:
        got = connection.recv_into(data[at:])
        if not got:
            raise Ended(within=at > 0)
        at += got
    return data


def _reply(connection: socket.socket, option: int, kind: int, data: bytes = b"") -> None:
    connection.sendall(nbd.OPTION_REPLY.pack(nbd.OPTION_REPLY_MAGIC, option, kind, len(data)) + data)
