"""The drive's control API: one JSON object a line over a Unix socket."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from emucsd.errors import ControlError, DriveNotFound, DriveTimeout, ProtocolError
from emucsd_wire import paths

_LARGEST = 16 << 20


class Control:
    """Requests to one drive. Each call is a connection of its own, so nothing is held open.

    :param folder: the drive's runtime folder
    """

    def __init__(self, folder: Path, timeout: float = 30.0) -> None:
        self.path, self.timeout = paths.control_socket(folder), timeout

    def call(self, do: str, **arguments: Any) -> dict[str, Any]:
        """One request; the answer without its ``ok``.

        :raises ControlError: the drive refused
        :raises DriveNotFound: nobody listens
        :raises DriveTimeout: no answer in time
        """
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as link:
                link.settimeout(self.timeout)
                link.connect(str(self.path))
                link.sendall(json.dumps({"do": do, **arguments}).encode() + b"\n")
                line = self._line(link)
        except TimeoutError as exc:
            raise DriveTimeout(
                f"{self.path}: no answer to {do!r} in {self.timeout:g} s; is the drive stopped?"
            ) from exc
        except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError, BrokenPipeError) as exc:
            raise DriveNotFound(f"no drive answers at {self.path}; start it first (emucsd up, or Drive.start)") from exc
        return self._answer(do, line)

    def _line(self, link: socket.socket) -> bytes:
        line = bytearray()
        while not line.endswith(b"\n"):
            if len(line) > _LARGEST or not (data := link.recv(1 << 16)):
                raise ProtocolError(f"{self.path}: {len(line)} bytes and no end of the line")
            line += data
        return bytes(line)

    def _answer(self, do: str, line: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(line)
            ok = answer.pop("ok")
        except (ValueError, AttributeError, KeyError) as exc:
            raise ProtocolError(f"{self.path}: {do!r} was answered with {line[:80]!r}") from exc
        if not ok:
            error = answer.get("error", {})
            raise ControlError(str(error.get("kind")), f"{do}: {error.get('message')}")
        return dict(answer)

    def status(self) -> dict[str, Any]:
        """What the drive is and does: settings, clients, health."""
        return self.call("status")

    def stats(self) -> dict[str, Any]:
        """Counters of every part of the drive."""
        return self.call("stats")

    def checkpoint(self) -> dict[str, Any]:
        """Write the map to the store now."""
        return self.call("checkpoint")

    def recssd(self, *, enabled: bool | None = None, clear: bool = False) -> dict[str, Any]:
        """Let the drive take RecSSD's commands or not, None as before.

        :param clear: start its statistics from zero
        :returns: statistics until now: counters, means in us, hit rate
        """
        return self.call("recssd", enabled=enabled, clear=clear)

    def stop(self) -> None:
        """Ask the drive to stop cleanly; it is gone a little later."""
        self.call("stop")
