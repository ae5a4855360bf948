"""Attaching with this library's own NVMe driver: vfio-user socket, shared memory, controller, queues."""

from __future__ import annotations

import contextlib
from pathlib import Path

from emucsd.buffers import DEFAULT_BYTES, SharedMemory
from emucsd.clock import Clock
from emucsd.controller import Controller
from emucsd.errors import EmucsdError
from emucsd.link import Link
from emucsd.queue import Queue
from emucsd.transport import Lost
from emucsd.vfio import VfioUser
from emucsd_wire import paths

DEFAULT_DEPTH = 256


class Direct:
    """The direct client on one port.

    :param folder: the drive's runtime folder
    :param queues: I/O queue pairs, of ``depth`` commands
    :param memory: bytes shared with the drive, sparse
    :param timeout: seconds for a reply of the transport
    :param lost: makes the error to raise when the connection is gone
    :raises DriveNotFound: nothing listens there
    """

    most_bytes = 0

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        queues: int = 1,
        depth: int = DEFAULT_DEPTH,
        memory: int = DEFAULT_BYTES,
        timeout: float = 10.0,
        lost: Lost | None = None,
    ) -> None:
        self.name = f"{folder} port {port}"
        self._count, self._entries = queues, depth + 1
        self._closing = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            vfio = VfioUser(paths.port_socket(folder, port), timeout)
            if lost is not None:
                vfio.lost = lost
            stack.callback(vfio.close)
            shared = SharedMemory(memory)
            stack.callback(shared.close)
            self.link = Link(vfio, shared)
            self.controller = Controller(self.link)
            self._closing = stack.pop_all()

    @property
    def memory(self) -> SharedMemory:
        """What the drive has mapped of ours."""
        return self.link.memory

    @property
    def clock(self) -> Clock:
        """The drive's time."""
        return self.link.clock

    @property
    def admin(self) -> Queue:
        """The admin queue; another one after a reset."""
        return self.controller.admin

    @property
    def queues(self) -> list[Queue]:
        """The I/O queues; others after a reset."""
        return self.controller.queues

    def prepare(self) -> None:
        """Make the I/O queues: after attaching, and after each reset. :raises InvalidArgument: not granted"""
        self.controller.create_queues(self._count, min(self._entries, self.controller.max_entries))

    def reset(self) -> None:
        """Disable and enable the controller."""
        self.controller.reset()

    def close(self) -> None:
        """Shut the controller down and hang up. Harmless when repeated."""
        link, self._closing = self._closing, contextlib.ExitStack()
        with link:  # always hang up
            if not self._gone:
                with contextlib.suppress(EmucsdError):
                    self.controller.shutdown()
                    self.controller.disable()
        self._gone = True

    _gone = False
