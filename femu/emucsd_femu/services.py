"""What a testbed runs beside its machines: the tunnel's host end where there is no host machine, local ISP engines.

Both are processes of other packages, kept alive; they end with the testbed, at the latest when its lifeline does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from emucsd_femu.description import Description, DriveOf
from emucsd_femu.drives import environment
from emucsd_femu.errors import TestbedError
from emucsd_wire import paths

AGENT_PORT = 7077
_PAUSES = (0.0, 1.0, 2.0, 5.0, 10.0)  # s, before it is started again
_LONG = 30.0  # s, after which it is taken to have worked
_STOP_SECONDS = 10.0
_NAMESPACES = ("--user", "--map-root-user", "--net", "--ipc", "--mount")
_PIDS = ("--pid", "--fork", "--mount-proc", "--kill-child")  # needs a /proc that the system has not masked


class Service:
    """A process that is started again whenever it ends.

    :param words: its command line; it ends when the pipe that ``--lifeline-fd`` names does
    :param log: what it prints
    """

    def __init__(self, name: str, words: Sequence[str], log: Path) -> None:
        self.name, self.log = name, log
        self.words = list(words)
        self._lifeline = -1
        self._process: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._begun = 0.0
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def keep(self) -> None:
        """Start it where it does not run, later and later while it ends early."""
        now = time.monotonic()
        if self.pid is not None:
            return
        if self._process is not None:
            self._failures = 1 if now - self._begun > _LONG else self._failures + 1
            self._process = None
            self._let_go()
        if now - self._begun < _PAUSES[min(self._failures, len(_PAUSES) - 1)]:
            return
        self._begun = now
        self.starts += 1
        self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        alive, self._lifeline = os.pipe()
        with open(alive, "rb"), open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [*self.words, "--lifeline-fd", str(alive)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=environment(), pass_fds=(alive,), start_new_session=True,
            )  # fmt: skip

    def stop(self) -> None:
        """Let it end, wait a little, kill it."""
        self._let_go()
        if self._process is None:
            return
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _let_go(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def last_words(self) -> str:
        """The end of what it printed."""
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace")[-2000:].strip()
        return ""


def proxy_socket(runtime: Path) -> Path:
    """The way into the tunnel's network where there is no host machine."""
    return paths.check_socket(runtime / "proxy")


def host_end(description: Description, runtime: Path) -> Service:
    """The tunnel's host end over all drives, in a network namespace of its own."""
    words = [sys.executable, "-m", "emucsd.tunnel", "host", "--private", "--network", description.tunnel.network]
    words += ["--proxy", str(proxy_socket(runtime))]
    words += ["--mtu", str(description.tunnel.mtu)] if description.tunnel.mtu is not None else []
    for drive in description.drives:
        words += ["--drive", str(paths.runtime_folder(drive.name))]
    return Service("tunnel", words, runtime / "tunnel.log")


def local_engine(name: str, drive: DriveOf, runtime: Path, *, tunnel: bool) -> Service:
    """A drive's engine as a process here, held to what the drive's profile gives it.

    :param tunnel: False: it is reached by the Unix socket ``agent`` in its folder
    :raises TestbedError: this machine allows no namespaces
    :raises FirmwareError: the profile can't be read
    """
    from emucsd_firmware.profile import load

    isp = load(drive.profile, **({} if drive.size is None else {"capacity_bytes": drive.size}), **dict(drive.set)).isp
    folder = runtime / name
    words = [*namespaces(), sys.executable, "-m", "emucsd_agent", "--drive", str(paths.runtime_folder(drive.name))]
    words += ["--token-file", str(runtime / "token"), "--work", str(folder / "work")]
    words += ["--cores", str(isp.cores), "--memory", str(isp.memory_bytes), "--cpu-share", str(isp.cpu_share)]
    words += [] if tunnel else ["--no-tunnel", "--listen", f"unix:{paths.check_socket(folder / 'agent')}"]
    return Service(name, words, folder / "log")


def namespaces() -> list[str]:
    """The command that enters namespaces of one's own, tried here and now. :raises TestbedError: it is not allowed"""
    program = shutil.which("unshare")
    if program is None:
        raise TestbedError('isp.engine = "local" needs `unshare` of util-linux 2.36 or later: apt install util-linux')
    said = ""
    for words in ((*_NAMESPACES, *_PIDS), _NAMESPACES):
        tried = subprocess.run([program, *words, "true"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if tried.returncode == 0:
            return [program, *words]
        said = tried.stderr.strip() or f"exit code {tried.returncode}"
    raise TestbedError(
        f'isp.engine = "local" needs namespaces, and unshare says: {said}; emucsd doctor says what to change, or take '
        'engine = "machine"'
    )
