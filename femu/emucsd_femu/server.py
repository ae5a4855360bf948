"""The control thread's loop: listening sockets, one session a port, and whatever else has a file descriptor.

``run_once`` is one step: tests drive it by hand, a drive process calls it for ever. Nothing in it blocks but the wait
for the next event, and nothing that a client sends leaves it as an exception.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import selectors
import socket
import stat
from collections.abc import Callable
from errno import EBUSY
from pathlib import Path
from types import TracebackType
from typing import Any

from emucsd_femu.errors import ConnectionLost, MessageError
from emucsd_femu.memory_guard import MemoryGuard
from emucsd_femu.messages import Channel
from emucsd_femu.pci import ConfigSpace
from emucsd_femu.port import DevicePort
from emucsd_femu.session import Doorbells, Session
from emucsd_wire.paths import check_socket

log = logging.getLogger(__name__)

# a client that could cut the doorbell page would end whoever watches it
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_WAITING_LIMIT = 8  # clients of a busy port that may be waiting for their refusal


def listen(path: Path) -> socket.socket:
    """A listening Unix socket that only its owner may use; whatever socket a dead process left there is replaced.

    :raises OSError: the folder can't be written, or something that is no socket lies there
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(f"{path} exists and is no socket; remove it or choose another runtime folder")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listener.fileno(), 0o600)  # the socket file inherits it: there is no moment when others may connect
        listener.bind(str(check_socket(path)))
        listener.listen(16)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


class Loop:
    """Descriptors and what to do when they are ready."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def close(self) -> None:
        self._selector.close()

    def add(self, fd: int, ready: Callable[[], None], *, writing: bool = False) -> None:
        self._selector.register(fd, selectors.EVENT_WRITE if writing else selectors.EVENT_READ, ready)

    def watch(self, fd: int, *, writing: bool) -> None:
        """Wait for room to write instead of something to read, or the other way round."""
        key = self._selector.get_key(fd)
        wanted = selectors.EVENT_WRITE if writing else selectors.EVENT_READ
        if key.events != wanted:
            self._selector.modify(fd, wanted, key.data)

    def remove(self, fd: int) -> None:
        self._selector.unregister(fd)

    def run_once(self, timeout: float | None = None) -> bool:
        """Wait up to ``timeout`` s (None: for ever) and handle what is ready. :returns: whether anything was"""
        ready = self._selector.select(timeout)
        known = self._selector.get_map()
        for key, _ in ready:
            if known.get(key.fd) is not None and known[key.fd].data is key.data:  # an earlier one may have removed it
                key.data()
        return bool(ready)


class Refusal:
    """A second client of a busy port: its first message is answered with EBUSY, then it is let go."""

    def __init__(self, connection: socket.socket) -> None:
        self.channel = Channel(connection)

    def pump(self) -> bool:
        """:returns: whether to wait on"""
        with contextlib.suppress(ConnectionLost, MessageError):
            message = self.channel.receive()
            if message is None:
                return True
            with message:
                self.channel.reply(message.header, error=EBUSY)
        return False


class Endpoint:
    """One port's socket: SPDK's chain of transport, endpoint, controller begins here."""

    def __init__(
        self, loop: Loop, port: DevicePort, path: Path, doorbells: Doorbells, guard: MemoryGuard | None = None
    ) -> None:
        self.path = path
        self.session: Session | None = None
        self.connections = 0
        self.turned_away = 0
        self._loop = loop
        self._port = port
        self._doorbells = doorbells
        self._guard = guard
        self._config = ConfigSpace()
        self._waiting: dict[int, Refusal] = {}
        with contextlib.suppress(OSError):  # sealed already, or no memfd
            fcntl.fcntl(port.doorbell_fd, fcntl.F_ADD_SEALS, _SEALS)
        self._listener = listen(path)
        loop.add(self._listener.fileno(), self._accept)
        loop.add(port.admin_fd, self._service)

    def close(self) -> None:
        """Let the client go, and the socket."""
        self._drop()
        for fd in list(self._waiting):
            self._forget(fd)
        self._loop.remove(self._port.admin_fd)
        self._loop.remove(self._listener.fileno())
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def status(self) -> dict[str, Any]:
        """For the control API."""
        client = self.session.status() if self.session else None
        return {
            "socket": str(self.path),
            "client": client,
            "connections": self.connections,
            "turned_away": self.turned_away,
        }

    def check_memory(self) -> None:
        """Send the client away if it cut the memory that it had lent."""
        if self.session is not None and self.session.memory_lost:
            log.error("port %d: the client cut a file that it had lent as memory; closing", self._port.number)
            self._drop()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as problem:  # gone already, or no descriptors left: neither is the drive's end
            log.warning("port %d: accept: %s", self._port.number, problem)
            return
        if self.session is not None:
            self._pump()  # it may have closed a moment ago: the order of events in one wake-up says nothing
        if self.session is not None:
            self._turn_away(connection)
            return
        self.connections += 1
        session = Session(Channel(connection), self._port, self._config, self._doorbells, self._guard)
        self.session = session
        self._loop.add(connection.fileno(), self._pump)

    def _pump(self) -> None:
        session = self.session
        if session is None:
            return
        try:
            up = session.pump()
        except Exception:
            # our own bug: this client loses its connection, the drive and the other port go on
            log.exception("port %d: internal error; closing the connection", self._port.number)
            up = False
        if up:
            self._loop.watch(session.channel.socket.fileno(), writing=session.channel.blocked)
        else:
            self._drop()

    def _service(self) -> None:
        try:
            self._port.service()
        except Exception:
            log.exception("port %d: internal error in an admin command; closing the connection", self._port.number)
            self._drop()

    def _drop(self) -> None:
        session, self.session = self.session, None
        if session is not None:
            self._loop.remove(session.channel.socket.fileno())
            session.close()

    def _turn_away(self, connection: socket.socket) -> None:
        self.turned_away += 1
        if len(self._waiting) >= _WAITING_LIMIT:
            connection.close()
            return
        fd = connection.fileno()
        self._waiting[fd] = Refusal(connection)
        self._loop.add(fd, lambda: self._answer_waiting(fd))

    def _answer_waiting(self, fd: int) -> None:
        if not self._waiting[fd].pump():
            self._forget(fd)

    def _forget(self, fd: int) -> None:
        self._loop.remove(fd)
        self._waiting.pop(fd).channel.close()


class Server:
    """The endpoints of one drive, on one loop.

    :param sockets: where each port listens
    :param loop: one that others use too; its owner closes it
    :param guard: protects against clients that cut their memory; its owner closes it
    :raises OSError: a socket can't be made
    """

    def __init__(
        self,
        ports: list[DevicePort],
        sockets: list[Path],
        doorbells: Doorbells = Doorbells.AUTO,
        loop: Loop | None = None,
        guard: MemoryGuard | None = None,
    ) -> None:
        self._own_loop = loop is None
        self.loop = loop or Loop()
        self.endpoints: list[Endpoint] = []
        self._guard = guard
        try:
            for port, path in zip(ports, sockets, strict=True):
                self.endpoints.append(Endpoint(self.loop, port, path, doorbells, guard))
            if guard is not None:
                self.loop.add(guard.fd, self._memory_lost)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run_once(self, timeout: float | None = None) -> bool:
        """One step of the loop. :returns: whether anything was ready"""
        return self.loop.run_once(timeout)

    def _memory_lost(self) -> None:
        if self._guard is not None:
            os.eventfd_read(self._guard.fd)
            for endpoint in self.endpoints:
                endpoint.check_memory()

    def close(self) -> None:
        """Let every client go and remove the sockets."""
        while self.endpoints:
            self.endpoints.pop().close()
        if self._guard is not None:
            self.loop.remove(self._guard.fd)
            self._guard = None
        if self._own_loop:
            self.loop.close()
