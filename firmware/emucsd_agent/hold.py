"""The agent's hold on its drive: attached again whenever the drive comes back, and what jobs are told about it.

In the drive's own machine the kernel's driver holds port 1 and jobs find a block device. On the ``local`` engine the
direct client of this process does, and jobs find an NBD socket.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from emucsd_agent.disk import DiskServer
from emucsd_agent.server import log

_PORT = 1
_QUEUES = 8  # one for each of as many disk connections, and the tunnel's
_BACK_OFF = (0.05, 0.1, 0.2, 0.5, 1.0)  # s between two tries


class Hold:
    """A thread that attaches, waits until the drive is lost, and attaches again.

    :param where: /dev/nvmeN, or a drive's runtime folder
    :param work: the agent's folder: the disk's socket lies there
    :param environment: of jobs that start from now on; kept up to date
    """

    def __init__(self, where: str, work: Path, environment: MutableMapping[str, str]) -> None:
        self.where = where
        self._work, self._environment = work, environment
        self._closed = threading.Event()
        self._why = "attaching"
        self._drive: Any = None
        self._thread = threading.Thread(target=self._run, name="hold", daemon=True)
        self._thread.start()

    @property
    def direct(self) -> bool:
        """Whether this process drives port 1 itself."""
        return not self.where.startswith("/dev/")

    def describe(self) -> dict[str, Any]:
        """For reports."""
        return {"where": self.where, "attached": self._drive is not None, "why": self._why}

    def close(self) -> None:
        """Let the drive go."""
        self._closed.set()
        self._thread.join(10.0)

    def _run(self) -> None:
        tries = 0
        while not self._closed.is_set():
            try:
                self._attached()
                tries = 0
            except Exception as problem:  # no drive yet, another client on it, or it went away
                told = f"{type(problem).__name__}: {problem}"
                if told != self._why:
                    log(f"{self.where}: {told}")
                self._why = told
            self._closed.wait(_BACK_OFF[min(tries, len(_BACK_OFF) - 1)])
            tries += 1

    def _attached(self) -> None:
        """From attaching until the drive is lost, or this is closed."""
        with contextlib.ExitStack() as stack:
            if self.direct:
                from emucsd.drive import Drive

                drive = stack.enter_context(Drive.open(Path(self.where), port=_PORT, queues=_QUEUES))
                disk = DiskServer(drive, self._work / "disk")
                stack.callback(disk.close)
                self._environment["EMUCSD_DISK"] = disk.uri()
            else:
                drive = None
                self._environment["EMUCSD_DISK"] = _node(self.where)
            self._environment["EMUCSD_DRIVE"] = self.where
            self._drive, self._why = drive or self.where, ""
            stack.callback(self._lost)
            log(f"{self.where}: attached")
            self._watch(drive)

    def _lost(self) -> None:
        self._drive = None

    def _watch(self, drive: Any) -> None:
        """Until closed. :raises EmucsdError: the drive is gone"""
        while not self._closed.wait(1.0):
            if drive is not None:
                drive.admin.controller()  # answered, or ConnectionLost


def _node(controller: str) -> str:
    """The block device of the first namespace; "" where there is none. :raises EmucsdError: no such controller"""
    from emucsd.linux import nodes

    found = nodes.namespaces(Path(controller).name)
    return str(found[0].block) if found and found[0].block else ""
