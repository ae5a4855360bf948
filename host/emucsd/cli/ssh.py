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
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console

from emucsd.cli.command import FAILED, USAGE, Command, CommandError, Option, Result, Settings

if TYPE_CHECKING:
    from paramiko import Channel

    from emucsd.ssh import Ssh

_PIECE = 1 << 16


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
        data = b"" if sys.stdin.isatty() else sys.stdin.buffer.read()
        if settings.json:
            done = ssh.run(line, data=data, timeout=None)
            return {"machine": settings.machine, "status": done.status, "out": done.out, "err": done.err,
                    "exit_code": _code(done.status)}  # fmt: skip
        status = ssh.run(line, data=data, timeout=None, tell=_print).status
        return {"machine": settings.machine, "exit_code": _code(status)}


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
            _pass_on(channel)
        return _code(channel.recv_exit_status())


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    """The terminal keeps nothing to itself; as it was afterwards, whatever happens."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin)
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


def _pass_on(channel: Channel) -> None:
    """Keys there, text back, until the shell ends."""
    keys: Any = sys.stdin.fileno()
    watched = [channel, keys]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if channel in ready:
            if not (data := channel.recv(_PIECE)):
                return
            os.write(sys.stdout.fileno(), data)
        if keys in ready:
            if typed := os.read(keys, _PIECE):
                channel.sendall(typed)
            else:
                watched.remove(keys)
                channel.shutdown_write()


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
