"""The control API: one JSON object a line over a Unix socket that only the drive's owner may use.

    {"do": "status"}        what the drive is: settings, ports and their clients
    {"do": "stats"}         counters of every part of it
    {"do": "checkpoint"}    write the map to the store now
    {"do": "tunnel", ...}   lose, reorder and double frames of the tunnel on purpose, so many per million
    {"do": "tunnel_watch"}  look in the tunnel for what private namespaces hold: "on", "refresh", "check"
    {"do": "recssd", ...}   take RecSSD's commands or not; its statistics, from zero again with "clear": true
    {"do": "stop"}          stop cleanly; answered before it happens

What takes long (a checkpoint) runs in a thread of its own, one at a time: ports and other clients are served meanwhile.
A request is answered by ``{"ok": true, ...}`` or ``{"ok": false, "error": {"kind": ..., "message": ...}}``, in order.
Kinds: ``RequestError`` (the request), the name of a FirmwareError (what the drive says), ``InternalError`` (our bug).
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Union

import msgspec

from emucsd_femu.errors import FemuError, RequestError
from emucsd_femu.server import Loop, listen
from emucsd_firmware.errors import FirmwareError

log = logging.getLogger(__name__)

LINE_LIMIT = 65536
CLIENT_LIMIT = 32


class Request(msgspec.Struct, tag_field="do", forbid_unknown_fields=True):
    """Base of the requests; what is not declared is refused."""


class Status(Request, tag="status"):
    """What the drive is."""


class Stats(Request, tag="stats"):
    """What it has done."""


class Checkpoint(Request, tag="checkpoint"):
    """Write the map to the store."""


class Tunnel(Request, tag="tunnel"):
    """Faults of the tunnel, in frames per million, drawn from a seed; 0 ends them."""

    loss: int = 0
    reorder: int = 0
    duplicate: int = 0
    seed: int = 1


class TunnelWatch(Request, tag="tunnel_watch"):
    """The tunnel's watch on or off, null as it is; answers with its figures.

    Turning it on, and ``refresh``, learn what is private now. ``check`` counts what of it lies where the host may read.
    """

    on: bool | None = None
    refresh: bool = False
    check: bool = False


class RecSsd(Request, tag="recssd"):
    """RecSSD's commands on or off, null as they are; answers with statistics, which ``clear`` starts anew."""

    enabled: bool | None = None
    clear: bool = False


class Stop(Request, tag="stop"):
    """Stop cleanly."""


class Later(NamedTuple):
    """An answer that takes long: what to call in another thread."""

    work: Callable[[], Mapping[str, Any]]


Answer = Callable[[Any], Mapping[str, Any] | Later]
_encoder = msgspec.json.Encoder()


class Requests:
    """The requests that a socket takes."""

    def __init__(self, kinds: Iterable[type[Request]]) -> None:
        chosen = tuple(kinds) or (Request,)
        self._known = ", ".join(str(kind.__struct_config__.tag) for kind in chosen)
        self._decoder: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Union[chosen])  # noqa: UP007

    def decode(self, line: bytes) -> Request:
        """One line as a request. :raises RequestError: it is none; says where it errs"""
        try:
            return self._decoder.decode(line)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as problem:
            known = self._known
            raise RequestError(f'{problem}; send one object a line, {{"do": ...}} with one of {known}') from problem


def failure(problem: Exception) -> dict[str, Any]:
    """The answer that tells an error."""
    return {"ok": False, "error": {"kind": type(problem).__name__, "message": str(problem)}}


def result(line: bytes, work: Callable[[], Mapping[str, Any] | Later]) -> bytes | Later:
    """The line that answers ``line``, by what ``work`` returns or raises."""
    try:
        content = work()
        if isinstance(content, Later):
            return content
        content = {"ok": True, **content}
    except (FemuError, FirmwareError) as problem:
        content = failure(problem)
    except Exception as problem:
        log.exception("control request %r", line[:200])
        message = f"{type(problem).__name__}: {problem}; the drive's log says where"
        content = {"ok": False, "error": {"kind": "InternalError", "message": message}}
    return _encoder.encode(content) + b"\n"


class ControlServer:
    """Serves the control socket on a loop.

    :param answers: what answers each kind of request; may raise FirmwareError or FemuError
    :param worker: the thread that does what takes long; its own where none is given
    :raises OSError: the socket can't be made
    """

    def __init__(
        self,
        loop: Loop,
        path: Path,
        answers: Mapping[type[Request], Answer],
        worker: ThreadPoolExecutor | None = None,
    ) -> None:
        self.path = path
        self._loop = loop
        self._answers = answers
        self._clients: dict[int, _Client] = {}
        self._requests = Requests(answers)
        self._worker = worker or ThreadPoolExecutor(1, "emucsd-control")
        self._finished: deque[tuple[_Client, bytes]] = deque()
        self._finished_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._listener = listen(path)
        loop.add(self._listener.fileno(), self._accept)
        loop.add(self._finished_fd, self._collect)

    def close(self) -> None:
        """Let every client go and remove the socket; work that runs is waited for."""
        self._worker.shutdown(cancel_futures=True)
        if self._finished:
            self._collect()
        for fd, client in list(self._clients.items()):
            if not client.waiting:
                self._loop.remove(fd)
            self._clients.pop(fd).close()
        for fd in (self._listener.fileno(), self._finished_fd):
            self._loop.remove(fd)
        self._listener.close()
        os.close(self._finished_fd)
        self.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as problem:
            log.warning("control: accept: %s", problem)
            return
        if len(self._clients) >= CLIENT_LIMIT:
            connection.close()
            return
        fd = connection.fileno()
        self._clients[fd] = _Client(connection)
        self._loop.add(fd, partial(self._pump, fd))

    def _pump(self, fd: int) -> None:
        client = self._clients[fd]
        up = client.receive()
        while up and not client.blocked and (line := client.next_line()) is not None:
            reply = result(line, partial(self._answer, line))
            if isinstance(reply, Later):
                self._loop.remove(fd)
                client.waiting = True
                self._worker.submit(self._work, client, line, reply)
                return
            up = client.send(reply)
        if up:
            self._loop.watch(fd, writing=client.blocked)
        else:
            self._loop.remove(fd)
            self._clients.pop(fd).close()

    def _answer(self, line: bytes) -> Mapping[str, Any] | Later:
        request = self._requests.decode(line)
        return self._answers[type(request)](request)

    def _work(self, client: _Client, line: bytes, later: Later) -> None:
        """In the other thread."""
        reply = result(line, later.work)
        assert isinstance(reply, bytes)
        self._finished.append((client, reply))
        os.eventfd_write(self._finished_fd, 1)

    def _collect(self) -> None:
        os.eventfd_read(self._finished_fd)
        while self._finished:
            client, reply = self._finished.popleft()
            client.waiting = False
            fd = client.fd
            self._loop.add(fd, partial(self._pump, fd))
            client.send(reply)
            self._pump(fd)


class _Client:
    """One connection: lines in, lines out, never blocking."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.fd = connection.fileno()
        self.waiting = False  # for a thread's answer: nothing is read until it is there
        self._socket = connection
        self._received = bytearray()
        self._unsent = bytearray()
        self._ended = False

    @property
    def blocked(self) -> bool:
        """Whether answers wait to be read; no further request is taken until they are."""
        return bool(self._unsent)

    def close(self) -> None:
        self._socket.close()

    def receive(self) -> bool:
        """Send what waits, then take what has come. :returns: whether the connection is still of use"""
        if not self.send(b""):
            return False
        if self.blocked:
            return True
        try:
            data = self._socket.recv(LINE_LIMIT)
        except BlockingIOError:
            return True
        except OSError as problem:
            log.info("control: %s", problem)
            return False
        self._ended = not data
        self._received += data
        if len(self._received) > LINE_LIMIT and b"\n" not in self._received:
            refusal = RequestError(f"a line of more than {LINE_LIMIT} bytes; requests are short")
            self.send(_encoder.encode(failure(refusal)) + b"\n")
            return False
        return not self._ended or b"\n" in self._received

    def next_line(self) -> bytes | None:
        """The next request that has come whole."""
        while (end := self._received.find(b"\n")) >= 0:
            line = bytes(self._received[:end])
            del self._received[: end + 1]
            if line.strip():
                return line
        return None

    def send(self, data: bytes) -> bool:
        """Send it, as far as it goes now. :returns: whether there is anybody"""
        self._unsent += data
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent, socket.MSG_NOSIGNAL)]
        except BlockingIOError:
            pass
        except OSError as problem:
            log.info("control: %s", problem)
            return False
        return True
