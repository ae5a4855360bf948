"""QEMU's monitor: QMP, one JSON object a line, over a Unix socket (docs/interop/qmp-spec.rst of QEMU).

    with Monitor.connect(path) as monitor:
        monitor.execute("stop")

One request at a time. What the machine tells of itself (events) is kept in the order in which it came.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any

from emucsd_femu.errors import MonitorError, MonitorRefused

_SECONDS = 30.0
_KEPT_EVENTS = 1000


class Monitor:
    """A connection to a machine's monitor, its handshake done.

    :param link: connected; closed with the monitor
    :param seconds: for each answer
    :ivar events: what the machine told, oldest first
    :raises MonitorError: whoever is there speaks no QMP
    """

    def __init__(self, link: socket.socket, seconds: float = _SECONDS) -> None:
        self._link, self._seconds = link, seconds
        self._received = bytearray()
        self._number = 0
        self.events: deque[dict[str, Any]] = deque(maxlen=_KEPT_EVENTS)
        end = time.monotonic() + seconds
        greeting = self._line(end)
        try:
            self.version = tuple(int(greeting["QMP"]["version"]["qemu"][part]) for part in ("major", "minor", "micro"))
        except (KeyError, TypeError, ValueError) as problem:
            raise MonitorError(f"the monitor greets with {str(greeting)[:200]}, which is no QMP") from problem
        self.execute("qmp_capabilities")

    @classmethod
    def connect(cls, path: Path, seconds: float = _SECONDS) -> Monitor:
        """:raises MonitorError: nobody listens, or does not answer in time"""
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            link.settimeout(seconds)
            link.connect(str(path))
            return cls(link, seconds)
        except OSError as problem:
            link.close()
            raise MonitorError(f"{path}: {problem}; has the machine ended?") from problem
        except BaseException:
            link.close()
            raise

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; the machine goes on."""
        self._link.close()

    def execute(self, command: str, **arguments: Any) -> Any:
        """One command. :returns: its answer

        :raises MonitorRefused: QEMU says no, and why
        :raises MonitorError: the connection broke, or there was no answer in time
        """
        self._number += 1
        request: dict[str, Any] = {"execute": command, "id": self._number}
        if arguments:
            request["arguments"] = {key.replace("_", "-"): value for key, value in arguments.items()}
        try:
            self._link.sendall(json.dumps(request).encode() + b"\n")
        except OSError as problem:
            raise MonitorError(f"{command}: the monitor is gone ({problem})") from problem
        end = time.monotonic() + self._seconds
        while True:
            answer = self._line(end)
            if "event" in answer:
                self.events.append(answer)
            elif answer.get("id") in (self._number, None):
                break
        if "error" in answer:
            error = answer["error"]
            raise MonitorRefused(f"QEMU refuses {command}: {error.get('desc')} ({error.get('class')})")
        return answer.get("return")

    def human(self, line: str) -> str:
        """A command that only the monitor for people has. :returns: what it prints"""
        return str(self.execute("human-monitor-command", command_line=line))

    def status(self) -> str:
        """``running``, ``paused``, ``prelaunch``, ``shutdown``, ..."""
        return str(self.execute("query-status")["status"])

    def wait_event(self, name: str, seconds: float) -> dict[str, Any]:
        """The next event of this name, one that came already included. :raises MonitorError: none came in time"""
        end = time.monotonic() + seconds
        while True:
            while self.events:
                if (event := self.events.popleft())["event"] == name:
                    return event
            answer = self._line(end)
            if "event" in answer:
                self.events.append(answer)

    def _line(self, end: float) -> dict[str, Any]:
        while (at := self._received.find(b"\n")) < 0:
            left = end - time.monotonic()
            try:
                self._link.settimeout(max(left, 0.001))
                data = self._link.recv(65536)
            except TimeoutError as problem:
                raise MonitorError(f"the monitor said nothing for {self._seconds:g} s") from problem
            except OSError as problem:
                raise MonitorError(f"the monitor is gone ({problem})") from problem
            if not data:
                raise MonitorError("the monitor hung up: the machine has ended")
            self._received += data
        line = bytes(self._received[:at])
        del self._received[: at + 1]
        with contextlib.suppress(ValueError):
            answer = json.loads(line)
            if isinstance(answer, dict):
                return answer
        raise MonitorError(f"the monitor sent {line[:200]!r}, which is no JSON object")
