"""A testbed's drives: each a ``python -m emucsd_femu serve`` of its own, which ends when its testbed does."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emucsd_femu.description import DriveOf
from emucsd_femu.errors import TestbedError
from emucsd_wire import paths

START_SECONDS = 600.0  # the very first start compiles the firmware
_STOP_SECONDS = 60.0
_TAIL = 2000
_PASSED_ON = ("PATH", "HOME", "LANG", "TMPDIR", "NUMBA_", "EMUCSD_", "XDG_", "COVERAGE_")


def environment() -> dict[str, str]:
    """For our own children: a small explicit one; they find their packages where we found ours."""
    chosen = {key: value for key, value in os.environ.items() if key.startswith(_PASSED_ON)}
    chosen["PYTHONPATH"] = os.pathsep.join(str(Path(part).resolve()) for part in sys.path if part)
    return chosen


def command(drive: DriveOf) -> list[str]:
    """The command line of a drive's process."""
    options = {"profile": drive.profile, "size": drive.size, "clock": drive.clock, "firmware": drive.firmware}
    return [
        *(sys.executable, "-m", "emucsd_femu", "serve"),
        *("--name", drive.name, "--runtime", str(paths.runtime_folder(drive.name)), "--store", str(store(drive))),
        *(word for flag, value in options.items() if value is not None for word in (f"--{flag}", value)),
        *(word for key, value in drive.set for word in ("--set", f"{key}={value}")),
    ]


def store(drive: DriveOf) -> Path:
    """Where its flash is kept."""
    return Path(drive.store) if drive.store else paths.store_folder(drive.name)


class DriveChild:
    """One drive's process.

    :param lifeline: the reading end of a pipe that its testbed holds open
    """

    def __init__(self, drive: DriveOf, lifeline: int) -> None:
        self.drive = drive
        self.runtime = paths.runtime_folder(drive.name)
        paths.port_socket(self.runtime, 0)  # too long a path is told before anything runs
        self.words = command(drive)
        self._lifeline = lifeline
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = -1
        self._said = b""

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Its process id while it lives."""
        return self._process.pid if self._process is not None and self.running else None

    def start(self) -> None:
        """Begin; ``wait_ready`` sees it through. :raises TestbedError: it runs already, here or elsewhere"""
        if self.running:
            raise TestbedError(f"drive {self.drive.name} runs already, process {self.pid}")
        self.runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._ready, theirs = os.pipe()
        self._said = b""
        more = ["--ready-fd", str(theirs), "--lifeline-fd", str(self._lifeline)]
        with open(theirs, "wb"), open(self.runtime / "output", "wb") as output:
            self._process = subprocess.Popen(
                [*self.words, *more], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment(),
                pass_fds=(theirs, self._lifeline), start_new_session=True,
            )  # fmt: skip

    def look(self, seconds: float) -> bool:
        """Wait a little for it to serve. :returns: whether it does :raises TestbedError: it said why not, or ended"""
        if self._ready < 0:
            return self.running
        if not select.select([self._ready], [], [], seconds)[0]:
            return False
        data = os.read(self._ready, 65536)
        self._said += data
        if data and not self._said.endswith(b"\n"):
            return False
        os.close(self._ready)
        self._ready = -1
        answer: dict[str, Any] = json.loads(self._said) if self._said else {}
        if not answer.get("ok"):
            why = answer.get("error", {}).get("message") or f"it ended before it served\n{self.last_words()}"
            raise TestbedError(f"drive {self.drive.name}: {why}\ncommand: {shlex.join(self.words)}")
        return True

    def last_words(self) -> str:
        """The end of its log."""
        with contextlib.suppress(OSError):
            return (self.runtime / "log").read_text(errors="replace")[-_TAIL:].strip()
        return ""

    def doing(self) -> str:
        """The newest line of its log, without time and place."""
        return self.last_words().rpartition("\n")[2].partition(": ")[2][:100] or "starting"

    def kill(self) -> None:
        """kill -9: a power cut of the drive."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def ask_to_stop(self) -> None:
        """The beginning of a clean stop."""
        if self._process is not None and self.running:
            self._process.terminate()

    def stop(self) -> None:
        """Stop it cleanly, else by force; then its runtime folder is gone."""
        self.ask_to_stop()
        if self._process is not None:
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
            shutil.rmtree(self.runtime, ignore_errors=True)
        if self._ready >= 0:
            os.close(self._ready)
            self._ready = -1


def await_all(drives: Sequence[DriveChild], *, cancelled: Any, progress: Any, seconds: float = START_SECONDS) -> None:
    """Until every one serves.

    :param cancelled: an Event: set, when nobody wants it any more
    :param progress: is given the newest line of a drive's log now and then
    :raises TestbedError: one does not
    """
    end = time.monotonic() + seconds
    for child in drives:
        while not child.look(0.2):
            if cancelled.is_set():
                raise TestbedError("stopped while it started")
            if time.monotonic() > end:
                raise TestbedError(f"drive {child.drive.name} did not serve in {seconds:g} s\n{child.last_words()}")
            progress(f"drive {child.drive.name}: {child.doing()}")
