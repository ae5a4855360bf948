"""Drives that outlive the command that started them: `emucsd up`, `down` and `status` stand on this."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from emucsd.control import Control
from emucsd.embedded import START_TIMEOUT
from emucsd.errors import DriveNotFound, DriveTimeout, StartFailed
from emucsd_wire import paths

_LOG_TAIL = 2000
_STOP_TIMEOUT = 60.0


def command(
    name: str, runtime: Path, store: Path, options: Mapping[str, str | None], settings: Iterable[str]
) -> list[str]:
    """The command line of a drive process. What the options and settings mean is the drive's to check.

    :param options: flags of `python -m emucsd_femu serve`, without dashes; None is left out
    :param settings: of the profile, each ``key=value``
    """
    return [
        *(sys.executable, "-m", "emucsd_femu", "serve"),
        *("--name", name, "--runtime", str(runtime), "--store", str(store)),
        *(part for flag, value in options.items() if value is not None for part in (f"--{flag}", value)),
        *(part for setting in settings for part in ("--set", setting)),
    ]


def start(
    argv: list[str], runtime: Path, *, tell: Callable[[str], None] | None = None, timeout: float = START_TIMEOUT
) -> int:
    """Start a drive in a session of its own and wait until it serves.

    :param tell: is given the newest line of the drive's log while it starts
    :returns: its process id
    :raises StartFailed: it could not start, ended, or was not ready in time; the text says why
    """
    runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
    ready, theirs = os.pipe()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, ready)
        with open(runtime / "output", "wb") as output, open(theirs, "wb"):
            process = subprocess.Popen(
                [*argv, "--ready-fd", str(theirs)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs,),
                start_new_session=True,
            )
        try:
            _await_ready(process, ready, runtime, tell, timeout)
        except BaseException:
            process.kill()
            process.wait()
            raise
    process.returncode = 0  # it goes on without us: no warning that nobody waits for it
    return process.pid


def _await_ready(
    process: subprocess.Popen[bytes], ready: int, runtime: Path, tell: Callable[[str], None] | None, timeout: float
) -> None:
    """The drive says one JSON line: that it serves, or why it can't."""
    deadline = time.monotonic() + timeout
    poller = select.poll()
    poller.register(ready, select.POLLIN)
    line = b""
    while not line.endswith(b"\n"):
        if not poller.poll(200):
            if time.monotonic() > deadline:
                raise StartFailed(f"the drive was not ready in {timeout:g} s\n{_last_words(runtime)}")
            if tell is not None:
                tell(_last_line(runtime))
            continue
        if not (data := os.read(ready, 65536)):
            raise StartFailed(f"the drive ended ({process.wait()}) before it was ready\n{_last_words(runtime)}")
        line += data
    said = json.loads(line)
    if not said["ok"]:
        raise StartFailed(f"the drive could not start: {said['error']['message']}")


def _last_line(runtime: Path) -> str:
    lines = _last_words(runtime).splitlines()
    return lines[-1] if lines else ""


def _last_words(runtime: Path) -> str:
    """The end of what a drive wrote: its log, and what never reached it."""
    tails = []
    for name in ("log", "output"):
        with contextlib.suppress(OSError):
            tails.append((runtime / name).read_text(errors="replace")[-_LOG_TAIL:].strip())
    return "\n".join(filter(None, tails))


def names() -> list[str]:
    """Drives that have a runtime folder, running or not."""
    root = paths.runtime_root()
    return sorted(p.parent.name for p in root.glob("*/drive.json")) if root.is_dir() else []


def described(name: str) -> dict[str, Any]:
    """What a drive wrote about itself when it started: pid and settings. :raises DriveNotFound: no such drive"""
    path = paths.runtime_folder(name) / "drive.json"
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as exc:
        known = ", ".join(names()) or "none"
        raise DriveNotFound(f"no drive {name!r} ({path}); there are: {known}") from exc


def running(name: str) -> bool:
    """Whether a drive of this name answers."""
    try:
        Control(paths.runtime_folder(name), timeout=5.0).status()
    except DriveNotFound:
        return False
    return True


def stop(name: str, *, force: bool = False) -> str:
    """Stop a drive and wait until its process is gone.

    :param force: kill -9, as a power cut
    :returns: how it went
    :raises DriveNotFound: no such drive
    :raises DriveTimeout: it was asked and is still there
    """
    pid = int(described(name)["pid"])
    folder = paths.runtime_folder(name)
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        shutil.rmtree(folder, ignore_errors=True)
        return "had ended"
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, process)
        if Control(folder, timeout=10.0).status()["pid"] != pid:
            raise DriveNotFound(f"{name!r} is not process {pid}, as its drive.json says; look at {folder}")
        if force:
            signal.pidfd_send_signal(process, signal.SIGKILL)
        else:
            Control(folder).stop()
        poller = select.poll()
        poller.register(process, select.POLLIN)
        if not poller.poll(_STOP_TIMEOUT * 1000):
            raise DriveTimeout(f"{name!r} (process {pid}) still runs after {_STOP_TIMEOUT:g} s; --force kills it")
    shutil.rmtree(folder, ignore_errors=True)
    return "killed" if force else "stopped"
