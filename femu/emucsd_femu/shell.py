"""A machine by SSH, as its testbed needs it: does it answer, as whom, and one command at a time.

Users' own way in, with files and terminals, is the client library's (``emucsd.ssh``).
"""

from __future__ import annotations

import base64
import contextlib
import io
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol

import paramiko

from emucsd_femu.errors import ShellError

_GREETING = b"SSH-2.0"


class Answer(NamedTuple):
    """What a command did."""

    status: int
    out: str


class Door(NamedTuple):
    """Where a machine's sshd is, and how it and its user are known."""

    address: str
    port: int
    key: str  # the user's private key, OpenSSH's text
    host_key: str  # the machine's public key, ssh-ed25519 ...


class Way(Protocol):
    """Something that makes connections from where a machine can be reached."""

    def channel(self, address: str, port: int, seconds: float) -> socket.socket | paramiko.Channel:
        """A TCP connection from there. :raises ShellError: it can't be"""


class Proxy:
    """The Unix socket of a tunnel's host end: one line each way, then the connection."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def channel(self, address: str, port: int, seconds: float) -> socket.socket:
        """See ``Way``."""
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            link.settimeout(seconds)
            link.connect(str(self._path))
            link.sendall(f"CONNECT {address}:{port}\n".encode())
            answer = b""
            while not answer.endswith(b"\n") and (one := link.recv(1)):
                answer += one
            if not answer.startswith(b"OK"):
                raise ShellError(f"{address}:{port} by {self._path}: {answer.decode(errors='replace').strip()}")
        except OSError as problem:
            link.close()
            raise ShellError(f"{address}:{port} by {self._path}: {problem}") from problem
        except BaseException:
            link.close()
            raise
        return link


class Shell:
    """A connection to a machine, its key checked.

    :param through: what stands between: the machine is reached from there
    :raises ShellError: nobody answers in time, or somebody else does
    """

    def __init__(self, door: Door, seconds: float, through: Way | None = None) -> None:
        self._door, self._seconds = door, seconds
        try:
            link = dial(door, seconds, through)
            self._transport = paramiko.Transport(link)
        except (OSError, EOFError, paramiko.SSHException) as problem:
            raise ShellError(f"{door.address}:{door.port}: {problem or type(problem).__name__}") from problem
        try:
            self._greet()
        except (OSError, EOFError, paramiko.SSHException) as problem:
            self._transport.close()
            raise ShellError(f"{door.address}:{door.port}: {problem or type(problem).__name__}") from problem
        except BaseException:
            self._transport.close()
            raise

    def _greet(self) -> None:
        transport = self._transport
        transport.banner_timeout = transport.auth_timeout = self._seconds
        transport.start_client(timeout=self._seconds)
        shown = transport.get_remote_server_key()
        if shown.asbytes() != base64.b64decode(self._door.host_key.split()[1]):
            raise ShellError(
                f"{self._door.address}:{self._door.port} shows another key than this testbed's machine has"
            )
        transport.auth_publickey("root", paramiko.Ed25519Key.from_private_key(io.StringIO(self._door.key)))

    def __enter__(self) -> Shell:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._transport.close()

    @property
    def alive(self) -> bool:
        """Whether the connection stands."""
        return self._transport.is_active()

    def channel(self, address: str, port: int, seconds: float) -> paramiko.Channel:
        """A connection made by that machine. :raises ShellError: it can't be"""
        try:
            return self._transport.open_channel("direct-tcpip", (address, port), ("127.0.0.1", 0), timeout=seconds)
        except (OSError, EOFError, paramiko.SSHException) as problem:
            raise ShellError(f"{address}:{port} from {self._door.address}: {problem}") from problem

    def run(self, command: str, seconds: float) -> Answer:
        """One command. :raises ShellError: the connection broke, or it took longer"""
        end = time.monotonic() + seconds
        try:
            with self._transport.open_session(timeout=seconds) as channel:
                channel.settimeout(seconds)
                channel.set_combine_stderr(True)
                channel.exec_command(command)
                said = bytearray()
                while data := channel.recv(65536):
                    said += data
                    if time.monotonic() > end:
                        raise ShellError(f"{command!r} took more than {seconds:g} s")
                return Answer(channel.recv_exit_status(), said.decode(errors="replace"))
        except (OSError, EOFError, paramiko.SSHException) as problem:
            raise ShellError(f"{command!r}: {problem or type(problem).__name__}") from problem


def dial(door: Door, seconds: float, through: Way | None) -> socket.socket | paramiko.Channel:
    """A stream to a machine's sshd. :raises OSError, ShellError: none"""
    if through is not None:
        return through.channel(door.address, door.port, seconds)
    return socket.create_connection((door.address, door.port), seconds)


def greets(door: Door, seconds: float, through: Way | None = None) -> bool:
    """Whether an sshd answers there: its greeting comes before any key is asked for."""
    with contextlib.suppress(OSError, EOFError, ShellError), contextlib.closing(dial(door, seconds, through)) as link:
        link.settimeout(seconds)
        return link.recv(255).startswith(_GREETING)
    return False
