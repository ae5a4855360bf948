"""The embedded default: a drive process of our own, started by ``Drive.start`` and gone when the drive is closed."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from emucsd.control import Control
from emucsd.errors import EmucsdError, InvalidArgument, StartFailed

START_TIMEOUT = 600.0  # the very first start compiles the firmware
_STOP_TIMEOUT = 30.0
_TERMINATE_TIMEOUT = 5.0
_LOG_TAIL = 2000
_PASSED_ON = ("PATH", "HOME", "LANG", "TMPDIR", "NUMBA_", "EMUCSD_", "XDG_", "COVERAGE_")
_numbers = itertools.count()


class DriveProcess:
    """A running ``python -m emucsd_femu serve``. Leaving its ``with`` stops it.

    :param store: folder of its flash; None makes a temporary one, removed in the end
    :param profile: name or file
    :param size: bytes, or a text that the drive understands (``"64G"``); None leaves it to the profile
    :param settings: profile fields and FEMU's knobs, by name
    :param firmware: Python file with policies that replace the built-in ones
    :param durability: what a flush survives: ``process`` or ``machine``
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
        self.argv = [
            *(sys.executable, "-m", "emucsd_femu", "serve"),
            *("--name", self.name, "--runtime", str(self.runtime), "--store", str(self.store)),
            *("--profile", str(profile), "--clock", clock, "--doorbells", doorbells, "--durability", durability),
            *(() if size is None else ("--size", str(size))),
            *(part for key, value in (settings or {}).items() for part in ("--set", f"{key}={_text(value)}")),
            *(() if firmware is None else ("--firmware", str(firmware))),
        ]
        try:
            self._process = self._spawn(timeout)
        except BaseException:
            self._clean()
            raise

    # -- start -------------------------------------------------------------------------------------------------------

    def _spawn(self, timeout: float) -> subprocess.Popen[bytes]:
        ready, theirs = os.pipe()
        alive, self._lifeline = os.pipe()  # its end of file stops the drive, should we die without a word
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, ready)
            with contextlib.closing(_Descriptors(theirs, alive)), open(self._output, "wb") as output:
                process = subprocess.Popen(
                    [*self.argv, "--ready-fd", str(theirs), "--lifeline-fd", str(alive)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(theirs, alive),
                    env=_environment(),
                    start_new_session=True,  # Ctrl-C is ours to handle: the drive stops when we close it
                )
            try:
                self._await_ready(process, ready, timeout)
            except BaseException:
                process.kill()
                process.wait()
                raise
        return process

    def _await_ready(self, process: subprocess.Popen[bytes], ready: int, timeout: float) -> None:
        """Until it has said, in one line, that it serves. :raises StartFailed: it said why not, or nothing"""
        deadline = time.monotonic() + timeout
        poller = select.poll()
        poller.register(ready, select.POLLIN)
        line = b""
        while not line.endswith(b"\n"):
            if not poller.poll(max(deadline - time.monotonic(), 0) * 1000):
                raise StartFailed(f"the drive was not ready in {timeout:g} s\n{self._explain()}")
            if not (part := os.read(ready, 4096)):
                status = process.wait(_TERMINATE_TIMEOUT)
                raise StartFailed(f"the drive ended with {status} before it was ready\n{self._explain()}")
            line += part
        answer = json.loads(line)
        if not answer.get("ok"):
            error = answer.get("error", {})
            raise StartFailed(
                f"the drive did not start: {error.get('kind')}: {error.get('message')}\n{self._explain()}"
            )

    @property
    def _output(self) -> Path:
        return self.runtime / "output"

    def _explain(self) -> str:
        return f"command: {shlex.join(self.argv)}\n{self.log_tail()}"

    def log_tail(self) -> str:
        """The last lines that the drive wrote."""
        tails = []
        for path in (self.runtime / "log", self._output):
            with contextlib.suppress(OSError):
                if text := path.read_text(errors="replace")[-_LOG_TAIL:].strip():
                    tails.append(f"{path.name}:\n{text}")
        return "\n".join(tails) or "it wrote no log"

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

    def kill(self) -> None:
        """kill -9, as a power cut: a store that was given stays as it is."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> str:
        """Stop it and remove what was temporary. Harmless when repeated. :returns: how it went, for a log"""
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


class _Descriptors:
    """Descriptors that contextlib.closing can close."""

    def __init__(self, *fds: int) -> None:
        self._fds = fds

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _environment() -> dict[str, str]:
    """A small explicit environment; the drive finds its packages where we found ours."""
    chosen = {key: value for key, value in os.environ.items() if key.startswith(_PASSED_ON)}
    chosen["PYTHONPATH"] = os.pathsep.join(str(Path(part).resolve()) for part in sys.path if part)
    return chosen
