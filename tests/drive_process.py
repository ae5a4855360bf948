"""A drive process for tests: started as a user's tools start it, waited for by its ready line, always ended."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from emucsd_wire import paths

START_SECONDS = 180.0  # the first start compiles the data plane
STOP_SECONDS = 30.0


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for a condition, with a deadline."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


class DriveProcess:
    """``python -m emucsd_femu serve`` in folders of its own.

    :param folder: where store and runtime folder go (the latter elsewhere when its path is too long for sockets)
    :param words: further options; the last of a kind counts
    :param fds: descriptors that it inherits
    """

    def __init__(self, folder: Path, *words: str, fds: tuple[int, ...] = ()) -> None:
        self.store = folder / "store"
        self.runtime = folder / "run"
        if len(os.fsencode(self.runtime)) > 80:
            self.runtime = Path(tempfile.mkdtemp(prefix="emucsd-test-"))
        if "--runtime" in words:
            self.runtime = Path(words[words.index("--runtime") + 1])
        self._words = list(words)
        self._fds = fds
        self.ready: dict[str, Any] = {}
        self.seconds = 0.0
        self.process = self._start()
        try:
            self.ready = self.wait_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> DriveProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()
        os.close(self._ready_fd)

    def _start(self) -> subprocess.Popen[str]:
        self._ready_fd, theirs = os.pipe()
        self.seconds = -time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "emucsd_femu", "serve", "--name", "test", "--runtime", str(self.runtime),
             "--store", str(self.store), "--ready-fd", str(theirs), *self._words],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            pass_fds=(theirs, *self._fds),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )  # fmt: skip
        os.close(theirs)
        return process

    def wait_ready(self) -> dict[str, Any]:
        """The line that says that it serves, or why not; {} when it died without a word."""
        line = b""
        end = time.monotonic() + START_SECONDS
        while not line.endswith(b"\n"):
            if not select.select([self._ready_fd], [], [], max(end - time.monotonic(), 0))[0]:
                raise AssertionError(f"not ready in {START_SECONDS} s:\n{self.log()}")
            piece = os.read(self._ready_fd, 65536)
            if not piece:
                return {}
            line += piece
        self.seconds += time.monotonic()
        said: dict[str, Any] = json.loads(line)
        return said

    def log(self) -> str:
        """What it has logged."""
        path = self.runtime / "log"
        return path.read_text() if path.exists() else ""

    def ask(self, do: str) -> dict[str, Any]:
        """One control request."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(STOP_SECONDS)
            client.connect(str(paths.control_socket(self.runtime)))
            client.sendall(json.dumps({"do": do}).encode() + b"\n")
            with client.makefile("rb") as answers:
                answer: dict[str, Any] = json.loads(answers.readline())
        return answer

    def port(self, number: int = 0) -> Path:
        """A port's socket."""
        return paths.port_socket(self.runtime, number)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process, and no other."""
        self.process.send_signal(number)

    def wait_end(self) -> int:
        """Its exit code."""
        return self.process.wait(STOP_SECONDS)

    def descriptors(self) -> int:
        """How many it has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def cpu_seconds(self) -> float:
        """Processor time that it has used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
