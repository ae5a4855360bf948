"""Drives that outlive the command that started them: `emucsd up`, `down` and `status` stand on this."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emucsd.control import Control
from emucsd.errors import DriveNotFound, DriveTimeout
from emucsd.process import START_TIMEOUT, launch
from emucsd_wire import paths

_STOP_TIMEOUT = 60.0


def start(
    argv: list[str],
    runtime: Path,
    *,
    tell: Callable[[str], None] | None = None,
    timeout: float = START_TIMEOUT,
    what: str = "drive",
) -> int:
    """Start a drive, or a testbed, and leave it.

    :returns: its process id
    :raises StartFailed: see ``process.launch``
    """
    runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
    process = launch(argv, runtime, tell=tell, timeout=timeout, what=what)
    process.returncode = 0  # it goes on without us: no warning that nobody waits for it
    return process.pid


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
