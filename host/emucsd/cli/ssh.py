"""`emucsd ssh`: a shell on a machine, or one command."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console

from emucsd.cli.command import FAILED, USAGE, Command, CommandError, Option, Result, Settings

if TYPE_CHECKING:
    from paramiko import Channel

    from emucsd.ssh import Ssh

_PIECE = 1 << 16
_LOOK_SECONDS = 0.5
Take = Callable[[bytes, bool], None]  # a piece, and whether it is of standard error


def run(settings: Settings) -> Result:
    """The command's exit code is ours."""
    from emucsd.ssh import connect
    from emucsd.testbed import Testbed

    words = settings.command_line[1:] if settings.command_line[:1] == ["--"] else settings.command_line
    if not words and (settings.json or not sys.stdin.isatty()):
        raise CommandError("no command is given, and this is no terminal", "emucsd ssh host COMMAND …", USAGE)
    with Testbed.open(settings.testbed) as testbed, connect(testbed.status(), settings.machine) as ssh:
        if not words:
            return {"machine": settings.machine, "exit_code": _shell(ssh)}
        # one word is a line for the machine's shell, as `emucsd ssh host 'ls | wc'`; several are a command's own
        line = words[0] if len(words) == 1 else shlex.join(words)
        said: dict[bool, bytearray] = {False: bytearray(), True: bytearray()}
        with ssh.session() as channel:
            channel.exec_command(line)
            _pass_on(channel, (lambda piece, error: said[error].extend(piece)) if settings.json else _print)
            status = channel.recv_exit_status()
    out, err = (bytes(said[error]).decode(errors="replace") for error in (False, True))
    return {"machine": settings.machine, "status": status, "out": out, "err": err, "exit_code": _code(status)}


def _code(status: int) -> int:
    return status if status >= 0 else FAILED


def _print(piece: bytes, error: bool) -> None:
    stream = (sys.stderr if error else sys.stdout).buffer
    stream.write(piece)
    stream.flush()


def _shell(ssh: Ssh) -> int:
    """A login shell on a terminal as large as this one, its keys passed on as they are."""
    size = shutil.get_terminal_size()
    with ssh.session() as channel:
        channel.get_pty(os.environ.get("TERM", "vt100"), size.columns, size.lines)
        channel.invoke_shell()
        with _raw(), _resizing(channel):
            _pass_on(channel, _print)
        return _code(channel.recv_exit_status())


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    """The terminal keeps nothing to itself; as it was afterwards, whatever happens."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin, termios.TCSADRAIN)  # what was typed already counts too
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _resizing(channel: Channel) -> Iterator[None]:
    """The machine's terminal follows this window's size."""

    def resized(number: int, frame: FrameType | None) -> None:
        size = shutil.get_terminal_size()
        with contextlib.suppress(OSError):
            channel.resize_pty(size.columns, size.lines)

    before = signal.signal(signal.SIGWINCH, resized)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


def _pass_on(channel: Channel, take: Take) -> None:
    """What is typed or piped there, what it prints back, until it ends."""
    watched: list[Any] = [channel]
    keys = _input()
    if keys is None:
        channel.shutdown_write()
    else:
        watched.append(keys)
    while True:
        ready, _, _ = select.select(watched, [], [], _LOOK_SECONDS)
        while channel.recv_stderr_ready():
            take(channel.recv_stderr(_PIECE), True)
        while channel.recv_ready():
            take(channel.recv(_PIECE), False)
        if channel.exit_status_ready() and channel.eof_received and not channel.recv_ready():
            return
        if channel.closed:
            return
        if keys in ready and keys is not None:
            if typed := os.read(keys, _PIECE):
                with contextlib.suppress(OSError):  # it may have ended without reading all of it
                    channel.sendall(typed)
            else:
                watched.remove(keys)
                channel.shutdown_write()


def _input() -> int | None:
    """Standard input, where there is one."""
    try:
        return sys.stdin.fileno()
    except (OSError, ValueError):
        return None


def show(result: Result, console: Console) -> None:
    """What it printed has been seen already."""


COMMAND = Command(
    name="ssh",
    summary="a shell on a machine of a testbed, or one command there",
    run=run,
    show=show,
    options=(
        Option("machine", "host, isp0, isp1, …"),
        Option("command_line", "what to run there (default: a shell)", rest=True),
        Option("--testbed", "which testbed", "testbed", metavar="NAME"),
    ),
    examples=(
        "emucsd ssh host",
        "emucsd ssh isp0 nproc",
        "emucsd ssh host 'nvme list | wc -l'",
        "emucsd ssh --json host cat /proc/uptime",
    ),
)
