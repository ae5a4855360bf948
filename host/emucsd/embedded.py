"""The embedded default: a drive process of our own, started by ``Drive.start`` and gone when the drive is closed."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from emucsd.control import Control
from emucsd.errors import ConnectionLost, DriveDied, EmucsdError, InvalidArgument
from emucsd.process import START_TIMEOUT, command, last_words, launch

_STOP_TIMEOUT = 30.0
_TERMINATE_TIMEOUT = 5.0
_numbers = itertools.count()


class DriveProcess:
    """A running ``python -m emucsd_femu serve``. Leaving its ``with`` stops it.

    :param store: folder of its flash; None makes a temporary one, removed in the end
    :param profile: name or file
    :param size: bytes, or a text that the drive understands (``"64GiB"``); None leaves it to the profile
    :param settings: profile fields and FEMU's knobs, by name
    :param firmware: Python file with policies that replace the built-in ones
    :param durability: what a flush survives: ``process`` or ``machine``
    :param tell: is given the newest line of its log while it starts
    :raises StartFailed: it ended before it was ready, or was not ready in time; the text ends with its log
    """

    def __init__(
        self,
        *,
        profile: str | Path = "femu",
        size: int | str | None = None,
        store: Path | None = None,
        clock: str = "real",
        doorbells: str = "auto",
        name: str | None = None,
        settings: Mapping[str, Any] | None = None,
        firmware: str | Path | None = None,
        durability: str = "process",
        scratch: Path | None = None,
        tell: Callable[[str], None] | None = None,
        timeout: float = START_TIMEOUT,
    ) -> None:
        if clock not in ("real", "virtual"):
            raise InvalidArgument(f"clock {clock!r}: use 'real' or 'virtual'")
        self.name = name or f"embedded-{os.getpid()}-{next(_numbers)}"
        # sockets have short addresses: the runtime folder lies straight below /tmp
        self.runtime = Path(tempfile.mkdtemp(prefix="emucsd-"))
        self._temporary = store is None
        self.store = Path(tempfile.mkdtemp(prefix="emucsd-store-", dir=scratch)) if store is None else Path(store)
        self._lifeline = -1
        options = {
            "profile": str(profile),
            "size": None if size is None else str(size),
            "clock": clock,
            "doorbells": doorbells,
            "durability": durability,
            "firmware": None if firmware is None else str(firmware),
        }
        overrides = [f"{key}={_text(value)}" for key, value in (settings or {}).items()]
        self.argv = command(self.name, self.runtime, self.store, options, overrides)
        try:
            self._process = self._start(tell, timeout)
        except BaseException:
            self._clean()
            raise
        atexit.register(self.stop)  # for a drive that nobody closed

    def _start(self, tell: Callable[[str], None] | None, timeout: float) -> subprocess.Popen[bytes]:
        alive, self._lifeline = os.pipe()  # its end of file stops the drive, should we die without a word
        with open(alive, "rb"):
            return launch(self.argv, self.runtime, lifeline=alive, tell=tell, timeout=timeout)

    def log_tail(self) -> str:
        """The last lines that the drive wrote."""
        return last_words(self.runtime)

    # -- life --------------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The drive's process id."""
        return self._process.pid

    def exit_status(self, wait: float = 0.0) -> int | None:
        """How it ended, None while it runs; ``wait`` seconds are given to one that is just ending."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(wait)
        return self._process.returncode

    def lost(self, text: str) -> ConnectionLost:
        """What to raise when the connection to it is gone: its end may tell why."""
        if (status := self.exit_status(wait=1.0)) is None:
            return ConnectionLost(text)
        how = f"by signal {-status}" if status < 0 else f"with {status}"
        return DriveDied(f"the drive's process ended {how}\n{self.log_tail()}", status)

    def kill(self) -> None:
        """kill -9, as a power cut: a store that was given stays as it is."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> str:
        """Stop it and remove what was temporary. Harmless when repeated. :returns: how it went, for a log"""
        atexit.unregister(self.stop)
        told = "had ended"
        if self._process.poll() is None:
            told = self._stop()
        self._clean()
        return told

    def _stop(self) -> str:
        with contextlib.suppress(EmucsdError):
            Control(self.runtime, timeout=5.0).stop()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_TIMEOUT)
                return "stopped when asked"
        for number, patience in ((signal.SIGTERM, _TERMINATE_TIMEOUT), (signal.SIGKILL, None)):
            self._process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)
                return f"stopped by {number.name}"
        return "could not be stopped"

    def _clean(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        shutil.rmtree(self.runtime, ignore_errors=True)
        if self._temporary:
            shutil.rmtree(self.store, ignore_errors=True)

    def __enter__(self) -> DriveProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
