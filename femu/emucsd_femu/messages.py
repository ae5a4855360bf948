"""vfio-user messages on a stream socket: exact framing, and file descriptors that stay with their message.

A descriptor travels with the first byte of its message, so the header is received alone (``recvmsg`` of exactly its 16
bytes) and the payload after it; a reply leaves in one ``sendmsg``, because SPDK reads a payload with one ``read``.
The socket never blocks: a client that sends half a message, or does not read its replies, holds up nobody.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
from types import TracebackType

from emucsd_femu.errors import ConnectionLost, MessageError
from emucsd_wire.vfio_user import ERROR, HEADER, MAX_FDS, MAX_TRANSFER, NO_REPLY, REGION_ACCESS, TYPE_REPLY, Header

MAX_MESSAGE = HEADER.size + REGION_ACCESS.size + MAX_TRANSFER
_CLOEXEC, _TRUNCATED = int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_CTRUNC)  # IntFlag is slow to compute with
_ANCILLARY = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)


def close_fds(fds: list[int]) -> None:
    """Close and forget them."""
    while fds:
        with contextlib.suppress(OSError):
            os.close(fds.pop())


class Message:
    """A received message. It owns its descriptors: what nobody takes is closed when its ``with`` block ends."""

    def __init__(self, header: Header, payload: bytes, fds: list[int], *, too_many_fds: bool = False) -> None:
        self.header = header
        self.payload = payload
        self.fds = fds
        self.too_many_fds = too_many_fds

    def __enter__(self) -> Message:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        close_fds(self.fds)

    @property
    def wants_reply(self) -> bool:
        return not self.header.flags & NO_REPLY

    def take_fds(self) -> list[int]:
        """The descriptors, now the caller's."""
        fds, self.fds = self.fds, []
        return fds


class Channel:
    """One client's socket. ``receive`` and ``reply`` never block."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self._header = bytearray()
        self._payload = bytearray()
        self._fds: list[int] = []
        self._too_many_fds = False
        self._unsent = b""
        self._unsent_fds: tuple[int, ...] = ()

    def close(self) -> None:
        close_fds(self._fds)
        self.socket.close()

    @property
    def blocked(self) -> bool:
        """Whether a reply waits for the client to read: no message is taken until it has."""
        return bool(self._unsent)

    def receive(self) -> Message | None:
        """The next message, or None when the rest of it is not here yet.

        :raises ConnectionLost: the client closed
        :raises MessageError: a size that no message has; the stream can't be followed behind it
        """
        if len(self._header) < HEADER.size and not self._receive_header():
            return None
        header = HEADER.unpack(self._header)
        if not HEADER.size <= header.size <= MAX_MESSAGE:
            raise MessageError(errno.EINVAL, f"message size {header.size:#x}, the limits are 16 and {MAX_MESSAGE:#x}")
        missing = header.size - HEADER.size - len(self._payload)
        while missing:
            data = self._receive(missing)
            if data is None:
                return None
            self._payload += data
            missing -= len(data)
        message = Message(header, bytes(self._payload), self._fds, too_many_fds=self._too_many_fds)
        self._header.clear()
        self._payload.clear()
        self._fds, self._too_many_fds = [], False
        return message

    @property
    def refused(self) -> Header:
        """The header that ``receive`` raised MessageError about."""
        return HEADER.unpack(self._header)

    def _receive_header(self) -> bool:
        """Gather the header; True once it is whole."""
        while (missing := HEADER.size - len(self._header)) > 0:
            try:
                data, ancillary, flags, _ = self.socket.recvmsg(missing, _ANCILLARY, _CLOEXEC)
            except BlockingIOError:
                return False
            except OSError as problem:
                raise ConnectionLost(f"receive failed: {problem}") from problem
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    self._fds.extend(array.array("i", content[: len(content) - len(content) % 4]))
            if flags & _TRUNCATED or len(self._fds) > MAX_FDS:
                self._too_many_fds = True
                close_fds(self._fds)
            if not data:
                raise ConnectionLost("closed by the client", clean=not self._header)
            self._header += data
        return True

    def _receive(self, count: int) -> bytes | None:
        """Payload bytes. Descriptors that come with them belong to no message: a plain recv discards them."""
        try:
            data = self.socket.recv(count)
        except BlockingIOError:
            return None
        except OSError as problem:
            raise ConnectionLost(f"receive failed: {problem}") from problem
        if not data:
            raise ConnectionLost("closed by the client inside a message")
        return data

    def reply(self, request: Header, payload: bytes = b"", fds: tuple[int, ...] = (), error: int = 0) -> None:
        """Answer ``request``; what does not fit into the socket waits for ``flush``. An error is a header only.

        :raises ConnectionLost: the client is gone
        """
        flags = TYPE_REPLY | (ERROR if error else 0)
        size = HEADER.size + len(payload)
        header = Header(request.message_id, request.command, size, flags, error)
        self._unsent = HEADER.pack(header) + payload
        self._unsent_fds = fds
        self.flush()

    def flush(self) -> bool:
        """Send what waits. :returns: whether everything is sent. :raises ConnectionLost: the client is gone"""
        while self._unsent:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", self._unsent_fds))]
            try:
                sent = self.socket.sendmsg([self._unsent], rights if self._unsent_fds else [], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return False
            except OSError as problem:
                self._unsent = b""
                raise ConnectionLost(f"send failed: {problem}") from problem
            self._unsent, self._unsent_fds = self._unsent[sent:], ()
        return True
