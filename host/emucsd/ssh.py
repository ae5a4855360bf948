"""A testbed's machines by SSH: commands, files, a terminal.

    with connect(record, "isp0") as isp:
        print(isp.run("uname -m").out)

A machine inside a drive has no network but the tunnel: it is reached through the host machine, or, where there is none,
through the proxy of the tunnel's host end. Every machine's key is checked against the testbed's record.
"""

from __future__ import annotations

import base64
import contextlib
import io
import logging
import select
import shlex
import socket
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import paramiko

from emucsd.errors import CommandFailed, DriveTimeout, MachineNotFound, MachineUnreachable
from emucsd.isp.errors import IspUnreachable
from emucsd.isp.reach import through_proxy

CONNECT_SECONDS = 60.0  # an emulated machine takes a second or two for the handshake, a busy one ten
_PIECE = 1 << 16
logging.getLogger("paramiko").addHandler(logging.NullHandler())  # what it has to say, our errors say too
_TROUBLE = (OSError, EOFError, paramiko.SSHException)


class Run(NamedTuple):
    """What a command did."""

    status: int  # its exit code; -1 when a signal ended it
    out: str
    err: str


class Ssh:
    """A connection to one machine, its key checked. Close it, or use it in a ``with``.

    :param link: a stream to its sshd; closed with the connection
    :param about: the machine's ``ssh`` in ``testbed.json``
    :param below: connections that this one stands on
    :raises MachineUnreachable: it does not answer, or as another machine
    """

    def __init__(
        self,
        name: str,
        link: Any,
        about: Mapping[str, Any],
        below: Sequence[Ssh] = (),
        timeout: float = CONNECT_SECONDS,
    ) -> None:
        self.name = name
        self._below = list(below)
        try:
            self._transport = paramiko.Transport(link)
        except _TROUBLE as exc:
            raise MachineUnreachable(f"{name}: {exc}") from exc
        try:
            self._greet(about, timeout)
        except BaseException as exc:
            self._transport.close()
            if isinstance(exc, _TROUBLE):
                raise MachineUnreachable(f"{name}: {exc or type(exc).__name__}; is it still booting?") from exc
            raise

    def _greet(self, about: Mapping[str, Any], timeout: float) -> None:
        transport = self._transport
        transport.banner_timeout = transport.auth_timeout = timeout
        transport.default_window_size = 16 << 20
        transport.start_client(timeout=timeout)
        if transport.get_remote_server_key().asbytes() != base64.b64decode(about["host_key"].split()[1]):
            raise MachineUnreachable(f"{self.name}: whoever answers shows another key than this testbed's machine has")
        transport.auth_publickey(about["user"], paramiko.Ed25519Key.from_private_key_file(about["key"]))

    def __enter__(self) -> Ssh:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._transport.close()
        for connection in reversed(self._below):
            connection.close()

    @property
    def alive(self) -> bool:
        """Whether the connection stands, as far as anybody knows."""
        return self._transport.is_active()

    def stream(self, address: str, port: int, timeout: float = CONNECT_SECONDS) -> paramiko.Channel:
        """A TCP connection made by that machine. :raises MachineUnreachable: it can't be"""
        try:
            return self._transport.open_channel("direct-tcpip", (address, port), ("127.0.0.1", 0), timeout=timeout)
        except _TROUBLE as exc:
            raise MachineUnreachable(f"{address}:{port} from {self.name}: {exc}") from exc

    def session(self, timeout: float = CONNECT_SECONDS) -> paramiko.Channel:
        """A channel for one command or shell. :raises MachineUnreachable: the connection is gone"""
        try:
            return self._transport.open_session(timeout=timeout)
        except _TROUBLE as exc:
            raise MachineUnreachable(f"{self.name}: {exc}") from exc

    # -- commands ----------------------------------------------------------------------------------------------------

    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = False,
        data: bytes = b"",
        timeout: float | None = 600.0,
        tell: Callable[[bytes, bool], None] | None = None,
    ) -> Run:
        """One command, to its end.

        :param command: a line for the machine's shell, or words
        :param check: an exit code other than 0 is an error
        :param data: its standard input
        :param timeout: seconds; None is for ever
        :param tell: is given each piece that it prints as it comes (the second argument: whether of standard error);
            nothing is collected then
        :raises CommandFailed: ``check``, and it failed
        :raises DriveTimeout: it still runs (and goes on)
        :raises MachineUnreachable: the connection broke
        """
        line = command if isinstance(command, str) else shlex.join(command)
        said: dict[bool, bytearray] = {False: bytearray(), True: bytearray()}
        take = tell or (lambda piece, error: said[error].extend(piece))
        with self.session() as channel:
            try:
                channel.exec_command(line)
                self._pump(channel, data, take, timeout, line)
                status = channel.recv_exit_status()
            except _TROUBLE as exc:
                if isinstance(exc, DriveTimeout):
                    raise
                raise MachineUnreachable(f"{self.name}: {line!r}: {exc or type(exc).__name__}") from exc
        done = Run(status, said[False].decode(errors="replace"), said[True].decode(errors="replace"))
        if check and status:
            raise CommandFailed(
                f"{self.name}: {line!r} ended with {status}\n{done.out[-2000:]}{done.err[-2000:]}", done
            )
        return done

    def _pump(
        self,
        channel: paramiko.Channel,
        data: bytes,
        take: Callable[[bytes, bool], None],
        timeout: float | None,
        line: str,
    ) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        left = memoryview(data)
        channel.setblocking(False)
        open_ = True
        while open_:
            if end is not None and time.monotonic() > end:
                raise DriveTimeout(f"{self.name}: {line!r} still runs after {timeout:g} s")
            if left and channel.send_ready():
                left = _sent(channel, left)
            elif not left and not channel.eof_sent and not channel.closed:
                channel.shutdown_write()
            else:
                select.select([channel], [], [], 0.01 if left else 0.5)
            while channel.recv_stderr_ready():
                take(channel.recv_stderr(_PIECE), True)
            while channel.recv_ready():
                take(channel.recv(_PIECE), False)
            open_ = not (channel.exit_status_ready() and channel.eof_received) and not channel.closed
        channel.setblocking(True)
        while piece := channel.recv(_PIECE):
            take(piece, False)
        while piece := channel.recv_stderr(_PIECE):
            take(piece, True)

    # -- files -------------------------------------------------------------------------------------------------------

    def put(self, source: str | Path | bytes, target: str) -> None:
        """A file, a folder, or bytes, to the machine.

        :param target: what it is to be called there; its folder is made
        :raises CommandFailed: it can't be written there
        """
        parent = shlex.quote(str(Path(target).parent))
        quoted = shlex.quote(target)
        if isinstance(source, bytes):
            self.run(f"mkdir -p {parent} && cat >{quoted}", data=source, check=True)
            return
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(source, arcname=Path(target).name)
        self.run(f"mkdir -p {parent} && tar -x -m -C {parent} -f -", data=packed.getvalue(), check=True)

    def get(self, source: str, target: str | Path | None = None) -> bytes:
        """A file of the machine's: its bytes, and, with ``target``, as a file here.

        :raises CommandFailed: it can't be read
        """
        pieces: list[bytes] = []
        errors = bytearray()
        line = f"cat {shlex.quote(source)}"
        done = self.run(line, tell=lambda piece, error: errors.extend(piece) if error else pieces.append(piece))
        if done.status:
            raise CommandFailed(f"{self.name}: {line!r}: {errors.decode(errors='replace').strip()}", done)
        content = b"".join(pieces)
        if target is not None:
            Path(target).write_bytes(content)
        return content


def _sent(channel: paramiko.Channel, left: memoryview) -> memoryview:
    """Send some. :returns: what is left; nothing when the command has ended without reading it"""
    try:
        return left[channel.send(bytes(left[:_PIECE])) :]
    except OSError:
        if channel.exit_status_ready() or channel.closed:
            return left[:0]
        raise


def connect(record: Mapping[str, Any], name: str, timeout: float = CONNECT_SECONDS) -> Ssh:
    """A connection to a machine of a testbed.

    :param record: what ``testbed.json`` holds
    :raises MachineNotFound: the testbed has no such machine
    :raises MachineUnreachable: it does not answer
    """
    machines = record["machines"]
    if name not in machines:
        raise MachineNotFound(f"no machine {name!r}; {record['name']} has {', '.join(machines) or 'none'}")
    about = machines[name]["ssh"]
    address, port = about["address"], int(about["port"])
    if before := about.get("via"):
        with contextlib.ExitStack() as stack:
            host = stack.enter_context(connect(record, before, timeout))
            made = Ssh(name, host.stream(address, port, timeout), about, [host], timeout)
            stack.pop_all()
            return made
    if proxy := about.get("proxy"):
        try:
            return Ssh(name, through_proxy(Path(proxy), address, port, timeout), about, (), timeout)
        except IspUnreachable as exc:
            raise MachineUnreachable(f"{name}: {exc}") from exc
    try:
        link = socket.create_connection((address, port), timeout)
    except OSError as exc:
        raise MachineUnreachable(f"{name} at {address}:{port}: {exc}; is it off? emucsd status says") from exc
    return Ssh(name, link, about, (), timeout)
