"""The agent's hold on its drive: attached again when the drive comes back, the tunnel through it, what jobs are told.

In the drive's own machine the kernel's driver holds port 1 and jobs find a block device. On the ``local`` engine the
direct client of this process does, the tunnel has a queue pair of the same controller, and jobs find an NBD socket.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emucsd.isp.diskserver import DiskServer
from emucsd_agent.server import log

_PORT = 1
_QUEUES = 8  # one for each of as many disk connections, and the tunnel's
_BACK_OFF = (0.05, 0.1, 0.2, 0.5, 1.0)  # s between two tries


class Hold:
    """A thread that attaches, waits until the drive is lost, and attaches again. Nothing runs while nothing happens.

    :param where: /dev/nvmeN, or a drive's runtime folder
    :param work: the agent's folder: the disk's socket lies there
    :param joined: is told this engine's address when the tunnel is open; None: no tunnel is wanted
    """

    def __init__(self, where: str, work: Path, joined: Callable[[str], None] | None) -> None:
        self.where = where
        self._work, self._joined = work, joined
        self._closed = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._why = "attaching"
        self._attachment: Any = None  # of the direct client
        self._disk = ""
        self._tunnel: Any = None
        self._thread = threading.Thread(target=self._run, name="hold", daemon=True)
        self._thread.start()

    @property
    def direct(self) -> bool:
        """Whether this process drives port 1 itself."""
        return not self.where.startswith("/dev/")

    def describe(self) -> dict[str, Any]:
        """For reports."""
        tunnel = None if self._tunnel is None else self._tunnel.status()
        attached = self._attachment is not None if self.direct else os.path.exists(self.where)
        return {"where": self.where, "attached": attached, "why": "" if attached else self._why, "tunnel": tunnel}

    def variables(self) -> dict[str, str]:
        """What a job that starts now is told."""
        found = {"EMUCSD_DRIVE": self.where}
        if self._tunnel is not None and self._tunnel.address:
            found["EMUCSD_TUNNEL_ADDRESS"] = self._tunnel.address
            found["EMUCSD_HOST_ADDRESS"] = self._tunnel.host_address
        if disk := self._disk if self.direct else _node(self.where):
            found["EMUCSD_DISK"] = disk
        return found

    def close(self) -> None:
        """Leave the tunnel and let the drive go."""
        self._closed = True
        os.eventfd_write(self._wake, 1)
        self._thread.join(10.0)

    def _run(self) -> None:
        if self._joined is not None:
            self._join_tunnel(self._joined)
        try:
            if self.direct:
                self._keep_attached()
            else:
                self._wait(None)
        finally:
            if self._tunnel is not None:
                self._tunnel.close()

    def _join_tunnel(self, joined: Callable[[str], None]) -> None:
        """Start the tunnel's end: a thread that attaches, and attaches again, by itself."""
        from emucsd.tunnel.isp import IspEnd

        def changed() -> None:
            if end.address:
                joined(end.address)

        end = self._tunnel = IspEnd(self.where, self._open_port, changed=changed)
        end.start()

    def _open_port(self) -> Any:
        """Port 1 for the tunnel. :raises EmucsdError: the drive is not there"""
        from emucsd.errors import DriveNotFound

        if not self.direct:
            from emucsd.tunnel.opening import open_port

            return open_port(self.where, _PORT)
        from emucsd.tunnel.beside import beside

        attachment = self._attachment
        if attachment is None:
            raise DriveNotFound(f"{self.where}: {self._why}")
        return beside(attachment, _PORT)

    def _wait(self, seconds: float | None, socket: int | None = None) -> bool:
        """Until closed, or the other side of a socket has hung up. :returns: whether anything happened in time"""
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        if socket is not None:
            poller.register(socket, select.POLLRDHUP)
        return bool(poller.poll(None if seconds is None else seconds * 1000))

    def _keep_attached(self) -> None:
        tries = 0
        while not self._closed:
            try:
                self._attached()
                tries = 0
            except Exception as problem:  # no drive yet, another client on it, or it went away
                told = f"{type(problem).__name__}: {problem}"
                if told != self._why:
                    log(f"{self.where}: {told}")
                self._why = told
            self._wait(_BACK_OFF[min(tries, len(_BACK_OFF) - 1)])
            tries += 1

    def _attached(self) -> None:
        """From attaching until this is closed. :raises EmucsdError: the drive is gone, or was not there"""
        with contextlib.ExitStack() as stack:
            disk = self._open_disk(stack)
            stack.callback(self._lost)
            self._disk = disk.uri()
            log(f"{self.where}: attached")
            vfio = self._attachment.link.vfio
            while not self._closed:
                self._wait(None, vfio.fileno())
                vfio.check()

    def _open_disk(self, stack: contextlib.ExitStack) -> DiskServer:
        """Attach to port 1, and serve its namespaces to jobs."""
        from emucsd.direct import Direct
        from emucsd.drive import Drive

        attachment = Direct(Path(self.where), port=_PORT, queues=_QUEUES)
        stack.callback(attachment.close)
        drive = stack.enter_context(Drive(attachment, Path(self.where), _PORT))
        disk = DiskServer(drive, self._work / "disk", log)
        stack.callback(disk.close)
        self._attachment = attachment
        return disk

    def _lost(self) -> None:
        self._attachment, self._disk, self._why = None, "", "the drive is gone"


def _node(controller: str) -> str:
    """The block device of the first namespace; "" where there is none now."""
    from emucsd.linux import nodes

    try:
        found = nodes.namespaces(Path(controller).name)
    except OSError:
        return ""
    return str(found[0].block) if found and found[0].block else ""
