"""The ``local`` ISP engine: the agent as a process of its own on this machine, in place of the drive's Linux.

It lives in its own user, network, PID and mount namespaces, is held to the cores, memory and processor share that the
drive's profile gives its engine, and reaches the drive through port 1 with the direct client. No root is needed where
the system lets users make namespaces.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emucsd.control import Control
from emucsd.isp.client import Isp
from emucsd.isp.errors import IspUnavailable
from emucsd.isp.reach import NOTE, Note
from emucsd.process import environment

START_SECONDS = 120.0
_STOP_SECONDS = 10.0
_TAIL = 2000
_NAMESPACES = ("--user", "--map-root-user", "--net", "--ipc", "--mount")
_PIDS = ("--pid", "--fork", "--mount-proc", "--kill-child")  # needs a /proc that the system has not masked


class LocalEngine:
    """A running local engine. Leaving its ``with`` stops it, with its jobs.

    :param runtime: the drive's runtime folder; the engine's own is ``isp`` in it
    :param cores, memory_bytes, cpu_share: instead of the profile's (``emucsd profile newport``)
    :param tunnel: False: it joins no tunnel, and is reached by a Unix socket: where there is no /dev/net/tun
    :param tell: is given lines about its start
    :raises IspUnavailable: this machine allows no namespaces; the text says what to change
    :raises DriveNotFound: no drive runs there
    """

    def __init__(
        self,
        runtime: Path,
        *,
        cores: int | None = None,
        memory_bytes: int | None = None,
        cpu_share: float | None = None,
        tunnel: bool = True,
        tell: Callable[[str], None] | None = None,
        timeout: float = START_SECONDS,
    ) -> None:
        self.runtime, self.tunnel = runtime, tunnel
        profile = Control(runtime).status()["drive"]["isp"]
        self.cores = cores or int(profile["cores"])
        self.memory_bytes = memory_bytes or int(profile["memory_bytes"])
        self.cpu_share = cpu_share or float(profile["cpu_share"])
        self.token = secrets.token_hex(16)
        self.folder = runtime / "isp"
        self.namespaces = probe()
        self._lifeline = -1
        self._prepare()
        self.argv = self._command()
        self._process = self._start(timeout, tell)
        atexit.register(self.stop)

    def _prepare(self) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(self.folder / "token", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(fd, "w") as file:
            file.write(self.token + "\n")

    def _command(self) -> list[str]:
        agent = [sys.executable, "-m", "emucsd_agent", "--drive", str(self.runtime)]
        agent += ["--token-file", str(self.folder / "token"), "--work", str(self.folder)]
        agent += ["--cores", str(self.cores), "--memory", str(self.memory_bytes), "--cpu-share", str(self.cpu_share)]
        if not self.tunnel:
            agent += ["--no-tunnel", "--listen", f"unix:{self.socket}"]
        return [*self.namespaces, *agent]

    @property
    def socket(self) -> Path:
        """Where an engine without a tunnel is reached."""
        return self.folder / "agent"

    def _start(self, timeout: float, tell: Callable[[str], None] | None) -> subprocess.Popen[bytes]:
        alive, self._lifeline = os.pipe()
        ready, theirs = os.pipe()
        try:
            with open(alive, "rb"), open(theirs, "wb"), open(self.folder / "log", "ab") as output:
                process = subprocess.Popen(
                    [*self.argv, "--ready-fd", str(theirs), "--lifeline-fd", str(alive)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(alive, theirs),
                    env=environment(),
                    start_new_session=True,
                )
            if tell is not None:
                tell("starting the ISP engine")
            try:
                self._await_ready(process, ready, timeout)
            except BaseException:
                process.kill()
                process.wait()
                raise
        except BaseException:
            self._clean()
            raise
        finally:
            os.close(ready)
        return process

    def _await_ready(self, process: subprocess.Popen[bytes], ready: int, timeout: float) -> None:
        """:raises IspUnavailable: it ended, or said that it can't run"""
        deadline = time.monotonic() + timeout
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([ready], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise IspUnavailable(f"the ISP engine was not ready in {timeout:g} s\n{self.log_tail()}")
            if not (piece := os.read(ready, 4096)):
                raise IspUnavailable(f"the ISP engine ended with {process.wait(5.0)}\n{self.log_tail()}")
            line += piece
        said = json.loads(line)
        if not said["ok"]:
            raise IspUnavailable(f"the ISP engine did not start: {said['error']['message']}")

    # -- using it ----------------------------------------------------------------------------------------------------

    def note(self, address: str = "", proxy: Path | None = None) -> Note:
        """How it is reached. :param address: on the tunnel's network :param proxy: of the tunnel's host end"""
        if not self.tunnel:
            return Note("", token=self.token, socket=str(self.socket))
        return Note(address, token=self.token, proxy=str(proxy or ""))

    def client(self, address: str = "", proxy: Path | None = None) -> Isp:
        """Its client; the way is noted beside the drive, so that ``emucsd isp`` finds it too."""
        note = self.note(address, proxy)
        note.write(self.runtime)
        return Isp.at(note)

    def log_tail(self) -> str:
        """The last lines that the agent wrote."""
        with contextlib.suppress(OSError):
            return (self.folder / "log").read_text(errors="replace")[-_TAIL:].strip() or "it wrote no log"
        return "it wrote no log"

    # -- life --------------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Of the process that holds its namespaces."""
        return self._process.pid

    def exit_status(self, wait: float = 0.0) -> int | None:
        """How it ended, None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(wait)
        return self._process.returncode

    def kill(self) -> None:
        """kill -9: all of it goes, jobs too."""
        self._process.kill()
        self._process.wait()

    def restart(self, timeout: float = START_SECONDS) -> None:
        """Start it again after it ended; the token stays."""
        self.stop(keep=True)
        self._process = self._start(timeout, None)
        atexit.register(self.stop)

    def stop(self, *, keep: bool = False) -> None:
        """Stop it and its jobs. Harmless when repeated. :param keep: leave its folder"""
        atexit.unregister(self.stop)
        if self._lifeline >= 0:
            os.close(self._lifeline)  # the agent ends by itself, in order
            self._lifeline = -1
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        if not keep:
            self._clean()

    def _clean(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        (self.runtime / NOTE).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


# -- whether namespaces can be had -----------------------------------------------------------------------------------


def probe() -> list[str]:
    """The command that enters the namespaces, tried here and now. :raises IspUnavailable: says what to change"""
    program = shutil.which("unshare")
    if program is None:
        raise IspUnavailable("the local ISP engine needs `unshare` of util-linux 2.36 or later: apt install util-linux")
    said = ""
    for words in ((*_NAMESPACES, *_PIDS), _NAMESPACES):
        tried = subprocess.run(
            [program, *words, "true"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if tried.returncode == 0:
            return [program, *words]
        said = tried.stderr.strip() or f"exit status {tried.returncode}"
    raise IspUnavailable(f"the local ISP engine needs namespaces, and unshare says: {said}. {_advice()}")


def _advice(root: Path = Path("/proc/sys")) -> str:
    """What keeps users from making namespaces here."""
    if _setting(root / "kernel/unprivileged_userns_clone") == "0":
        return "Allow user namespaces: sudo sysctl kernel.unprivileged_userns_clone=1 (keep it in /etc/sysctl.d)"
    if _setting(root / "user/max_user_namespaces") == "0":
        return "Allow user namespaces: sudo sysctl user.max_user_namespaces=10000 (keep it in /etc/sysctl.d)"
    if _setting(root / "kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "AppArmor restricts them (Ubuntu 23.10 and later): sudo sysctl "
            "kernel.apparmor_restrict_unprivileged_userns=0, or give this Python an AppArmor profile with `userns,`"
        )
    return (
        "In a container start it with --security-opt seccomp=unconfined --security-opt systempaths=unconfined (Docker, "
        'Podman) or --privileged; else run as root, or give the drive a machine instead: engine = "machine"'
    )


def _setting(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text().strip()
    return ""


def describe() -> dict[str, Any]:
    """For `emucsd doctor`: whether the local engine can run here, and why not."""
    try:
        command = probe()
    except IspUnavailable as problem:
        return {"ok": False, "why": str(problem)}
    return {"ok": True, "why": "in its own namespaces" + ("" if "--pid" in command else ", but for processes")}
