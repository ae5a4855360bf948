"""A way into the tunnel's network for programs outside of its namespace: a Unix socket, one line, then bytes.

``CONNECT 10.77.0.2:22`` and a newline; the answer is ``OK`` or ``ERROR reason`` and a newline, then the connection is
the other side's. Only this user may connect.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import threading
from pathlib import Path

log = logging.getLogger(__name__)

_LINE = re.compile(rb"CONNECT ([0-9.]+|[0-9A-Za-z.-]+):(\d{1,5})\r?\n")
_LONGEST = 300
_SECONDS = 20.0
_CHUNK = 1 << 18


class Proxy:
    """Serves a socket in threads: one to accept, two a connection."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        os.fchmod(self._listener.fileno(), 0o600)
        self._listener.bind(os.fspath(path))
        self._listener.listen(64)
        threading.Thread(target=self._accept, name="emucsd-proxy", daemon=True).start()

    def close(self) -> None:
        """No more connections; those that are open stay."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), name="emucsd-proxy", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                client.settimeout(_SECONDS)
                line = _read_line(client)
                match = _LINE.fullmatch(line)
                if match is None:
                    raise OSError("send CONNECT address:port and a newline")
                target = socket.create_connection((match[1].decode(), int(match[2])), _SECONDS)
            except (OSError, OverflowError) as problem:
                with contextlib.suppress(OSError):
                    client.sendall(f"ERROR {problem}\n".encode())
                    client.shutdown(socket.SHUT_WR)
                    client.settimeout(1.0)
                    client.recv(_CHUNK)  # what is left unread would take the answer away
                return
            with target:
                target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for end in (client, target):
                    end.settimeout(None)
                client.sendall(b"OK\n")
                back = threading.Thread(target=_carry, args=(target, client), name="emucsd-proxy", daemon=True)
                back.start()
                _carry(client, target)
                back.join()


def _read_line(client: socket.socket) -> bytes:
    """Byte by byte: what follows the line belongs to the connection."""
    line = b""
    while not line.endswith(b"\n"):
        byte = client.recv(1)
        if not byte or len(line) > _LONGEST:
            raise OSError("no line came")
        line += byte
    return line


def _carry(source: socket.socket, target: socket.socket) -> None:
    """Everything that comes, then the end of it."""
    buffer = memoryview(bytearray(_CHUNK))
    try:
        while count := source.recv_into(buffer):
            target.sendall(buffer[:count])
    except OSError as problem:
        log.debug("proxy: %s", problem)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def connect(path: Path, address: str, port: int, timeout: float = _SECONDS) -> socket.socket:
    """Through a proxy's socket, from any namespace. :raises OSError: the proxy or the other side refuses"""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.settimeout(timeout)
        link.connect(os.fspath(path))
        link.sendall(f"CONNECT {address}:{port}\n".encode())
        answer = _read_line(link)
        if answer != b"OK\n":
            raise ConnectionRefusedError(f"{address}:{port} through {path}: {answer.decode(errors='replace').strip()}")
        link.settimeout(None)
    except BaseException:
        link.close()
        raise
    return link
