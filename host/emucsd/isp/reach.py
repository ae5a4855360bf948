"""Ways to an agent: its address, a tunnel's proxy, an SSH jump; and where those of running drives are noted down."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from emucsd.isp.errors import IspUnreachable
from emucsd.isp.protocol import PORT, Stream
from emucsd_wire import paths

CONNECT_SECONDS = 10.0
NOTE = "isp.json"  # in a drive's runtime folder: how to reach its local engine
_LINE_LIMIT = 256

Dial = Callable[[], Stream]


def direct(address: str, port: int = PORT, seconds: float = CONNECT_SECONDS) -> Stream:
    """TCP, where this process is on the tunnel's network. :raises IspUnreachable: nobody answers"""
    try:
        link = socket.create_connection((address, port), seconds)
    except OSError as problem:
        raise IspUnreachable(
            f"no agent answers at {address}:{port} ({problem.strerror or problem}); is the ISP engine up, and this "
            "process on the tunnel's network? From outside of it give the tunnel's proxy"
        ) from problem
    _keep_alive(link)
    return link


def _keep_alive(link: socket.socket) -> None:
    """A peer that vanished without a word is noticed within a minute."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 20), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 6)):
        link.setsockopt(socket.IPPROTO_TCP, option, value)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def through_proxy(proxy: Path, address: str, port: int = PORT, seconds: float = CONNECT_SECONDS) -> Stream:
    """Through the Unix socket of a tunnel's host end: ``CONNECT address:port``, then the bytes.

    :raises IspUnreachable: no proxy, or it reaches nobody
    """
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        link.settimeout(seconds)
        link.connect(os.fspath(proxy))
        link.sendall(f"CONNECT {address}:{port}\n".encode())
        answer = bytearray()
        while not answer.endswith(b"\n") and len(answer) < _LINE_LIMIT and (one := link.recv(1)):
            answer += one
        if not answer.startswith(b"OK"):
            said = answer.decode(errors="replace").strip() or "it hung up"
            raise IspUnreachable(f"{address}:{port} through {proxy}: {said}; is the ISP engine up?")
    except OSError as problem:
        link.close()
        raise IspUnreachable(f"{proxy}: {problem.strerror or problem}; is the tunnel's host end running?") from problem
    except BaseException:
        link.close()
        raise
    return link


def local_socket(path: Path, seconds: float = CONNECT_SECONDS) -> Stream:
    """An agent's own Unix socket, on this machine. :raises IspUnreachable: nobody listens"""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        link.settimeout(seconds)
        link.connect(os.fspath(path))
    except OSError as problem:
        link.close()
        raise IspUnreachable(f"{path}: {problem.strerror or problem}; is the ISP engine up?") from problem
    return link


class Note(NamedTuple):
    """How an engine is reached, as it is written down beside its drive; the file is its owner's alone.

    :ivar proxy: Unix socket of the tunnel's host end, "" where the network itself is at hand
    :ivar socket: Unix socket of an agent that joins no tunnel, "" for all others
    """

    address: str
    port: int = PORT
    token: str = ""
    proxy: str = ""
    socket: str = ""

    def write(self, folder: Path) -> None:
        """Leave it in a drive's runtime folder, whole or not at all."""
        draft = folder / f"{NOTE}.new"
        draft.unlink(missing_ok=True)
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, "w") as file:
            file.write(json.dumps(self._asdict()) + "\n")
        draft.replace(folder / NOTE)

    @classmethod
    def read(cls, folder: Path) -> Note:
        """:raises OSError, ValueError: there is none"""
        found: dict[str, Any] = json.loads((folder / NOTE).read_text())
        try:
            return cls(**found)
        except TypeError as problem:
            raise ValueError(f"{folder / NOTE}: {problem}") from problem


def folder_of(name: str | Path) -> Path:
    """A drive's or testbed's runtime folder, by its name or as it is."""
    folder = Path(name)
    if not isinstance(name, Path) and "/" not in name and not folder.is_dir():
        folder = paths.runtime_folder(name)
    return folder


def noted(name: str | Path) -> Note:
    """The note of a running drive's engine. :raises IspUnreachable: it has none"""
    folder = folder_of(name)
    with contextlib.suppress(OSError, ValueError):
        return Note.read(folder)
    raise IspUnreachable(
        f"{name}: no ISP engine is noted in {folder}; start the drive with one: Drive.start(..., isp='local'), or a "
        "testbed whose drive has [drive.isp]"
    )
