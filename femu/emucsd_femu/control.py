"""The control API: one JSON object a line over a Unix socket that only the drive's owner may use.

    {"do": "status"}        what the drive is: settings, ports and their clients
    {"do": "stats"}         counters of every part of it
    {"do": "checkpoint"}    write the map to the store now
    {"do": "stop"}          stop cleanly; answered before it happens

A request is answered by ``{"ok": true, ...}`` or ``{"ok": false, "error": {"kind": ..., "message": ...}}``, in order.
Kinds: ``RequestError`` (the request), the name of a FirmwareError (what the drive says), ``InternalError`` (our bug).
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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


class Stop(Request, tag="stop"):
    """Stop cleanly."""


Answer = Callable[[Any], Mapping[str, Any]]
_decoder = msgspec.json.Decoder(Status | Stats | Checkpoint | Stop)
_encoder = msgspec.json.Encoder()


def decode(line: bytes) -> Request:
    """One line as a request. :raises RequestError: it is none; says where it errs"""
    try:
        request: Request = _decoder.decode(line)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as problem:
        known = "status, stats, checkpoint, stop"
        raise RequestError(f'{problem}; send one object a line, {{"do": ...}} with one of {known}') from problem
    return request


def failure(problem: Exception) -> dict[str, Any]:
    """The answer that tells an error."""
    return {"ok": False, "error": {"kind": type(problem).__name__, "message": str(problem)}}


class ControlServer:
    """Serves the control socket on a loop.

    :param answers: what answers each kind of request; may raise FirmwareError or FemuError
    :raises OSError: the socket can't be made
    """

    def __init__(self, loop: Loop, path: Path, answers: Mapping[type[Request], Answer]) -> None:
        self.path = path
        self._loop = loop
        self._answers = answers
        self._clients: dict[int, _Client] = {}
        self._listener = listen(path)
        loop.add(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """Let every client go and remove the socket."""
        for fd in list(self._clients):
            self._drop(fd)
        self._loop.remove(self._listener.fileno())
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def answer(self, line: bytes) -> bytes:
        """The line that answers a line."""
        try:
            request = decode(line)
            content: Mapping[str, Any] = {"ok": True, **self._answers[type(request)](request)}
        except (FemuError, FirmwareError) as problem:
            content = failure(problem)
        except Exception as problem:
            log.exception("control request %r", line[:200])
            message = f"{type(problem).__name__}: {problem}; the drive's log says where"
            content = {"ok": False, "error": {"kind": "InternalError", "message": message}}
        return _encoder.encode(content) + b"\n"

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
        self._clients[fd] = _Client(connection, self.answer)
        self._loop.add(fd, lambda: self._pump(fd))

    def _pump(self, fd: int) -> None:
        client = self._clients[fd]
        if client.pump():
            self._loop.watch(fd, writing=client.blocked)
        else:
            self._drop(fd)

    def _drop(self, fd: int) -> None:
        self._loop.remove(fd)
        self._clients.pop(fd).close()


class _Client:
    """One connection: lines in, lines out, never blocking."""

    def __init__(self, connection: socket.socket, answer: Callable[[bytes], bytes]) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._answer = answer
        self._received = bytearray()
        self._unsent = bytearray()

    @property
    def blocked(self) -> bool:
        """Whether answers wait to be read; no further request is taken until they are."""
        return bool(self._unsent)

    def close(self) -> None:
        self._socket.close()

    def pump(self) -> bool:
        """:returns: whether the connection is still up"""
        try:
            if not self._flush():
                return True
            data = self._socket.recv(LINE_LIMIT)
            self._received += data
            self._answer_lines()
            if len(self._received) > LINE_LIMIT:
                problem = RequestError(f"a line of more than {LINE_LIMIT} bytes; requests are short")
                self._unsent += _encoder.encode(failure(problem)) + b"\n"
                data = b""
            self._flush()
            return bool(data)
        except BlockingIOError:
            return True
        except OSError as problem:
            log.info("control: %s", problem)
            return False

    def _answer_lines(self) -> None:
        *lines, rest = self._received.split(b"\n")
        self._received = rest
        for line in lines:
            if line.strip():
                self._unsent += self._answer(bytes(line))

    def _flush(self) -> bool:
        while self._unsent:
            try:
                sent = self._socket.send(self._unsent, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return False
            del self._unsent[:sent]
        return True
