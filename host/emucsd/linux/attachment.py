"""A drive behind Linux's nvme driver: descriptors of its nodes, an admin queue by ioctl, I/O queues by io_uring."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from emucsd.clock import RealClock
from emucsd.errors import ControllerFailed, DriveNotFound, InvalidArgument, NotOurDrive, RingUnavailable
from emucsd.linux import ioctl, nodes
from emucsd.linux.memory import ProcessMemory
from emucsd.linux.queue import IoctlQueue, LinuxQueue, RingQueue
from emucsd_wire.identify import Cns
from emucsd_wire.nvme import Admin

ADMIN_ENTRIES = 64
ADMIN_TIMEOUT = 65.0  # longer than the driver's own patience of 60
MAX_QUEUES = 64
MAX_DEPTH = 1023
_RESET_SECONDS = 60.0
_NODE_SECONDS = 10.0
_LOOK_SECONDS = 0.01
_QUEUE_SETTINGS = ("max_hw_sectors_kb", "max_segments")

T = TypeVar("T")
Way = Literal["auto", "io_uring", "ioctl"]


class LinuxAttachment:
    """One controller, through the kernel.

    :param node: any of its nodes
    :param queues: rings, of ``depth`` commands
    :param timeout: seconds that an I/O command may take without any progress, None: 35
    :param way: ``io_uring``, ``ioctl``, or ``auto``: ioctl only where io_uring can't be used
    :raises DriveNotFound: there is no such node
    :raises NotOurDrive: another device's
    :raises NotPermitted: this user may not open it
    :raises RingUnavailable: io_uring was asked for and can't be used
    """

    def __init__(
        self,
        node: Path,
        *,
        queues: int = 1,
        depth: int = 256,
        timeout: float | None = None,
        way: Way = "auto",
        memory: int = 0,
    ) -> None:
        del memory  # any of this process's memory will do: there is no limit to set
        if not 0 <= queues <= MAX_QUEUES or not 1 <= depth <= MAX_DEPTH:
            raise InvalidArgument(f"{queues} queues of {depth}: up to {MAX_QUEUES} of 1 to {MAX_DEPTH} can be had")
        if way not in ("auto", "io_uring", "ioctl"):
            raise InvalidArgument(f"way {way!r}: 'auto', 'io_uring' or 'ioctl'")
        self.controller = nodes.controller(nodes.controller_of(node))
        if not self.controller.ours:
            raise NotOurDrive(
                f"{node} is {self.controller.model!r}, no drive of this project; `nvme list` shows what there is"
            )
        self.name = str(self.controller.node)
        self.port = max(self.controller.cntlid - 1, 0)  # the drive numbers its controllers by port
        self.most_bytes = self._most_bytes()
        self.memory, self.clock = ProcessMemory(), RealClock()
        self._count, self._depth, self._timeout, self._way = queues, depth, timeout, way
        self._lock = threading.Lock()
        self._spaces: dict[int, int] = {}
        self._node = nodes.open_node(self.controller.node)
        self.admin: LinuxQueue = IoctlQueue(0, ADMIN_ENTRIES, lambda _: self._node, self.memory)
        self.admin.timeout = ADMIN_TIMEOUT
        self.queues: list[LinuxQueue] = []

    def _most_bytes(self) -> int:
        """What Linux sends in one command: its limit on bytes, and on scattered pages (one is lost to misalignment)."""
        limits = []
        for space in nodes.namespaces(self.controller.name):
            if space.block is not None:
                folder = Path("/sys/class/block") / space.block.name / "queue"
                size, segments = (int((folder / name).read_text()) for name in _QUEUE_SETTINGS)
                limits.append(min(size << 10, (segments - 1) * mmap.PAGESIZE))
        return min(limits, default=127 * 4096)

    # -- queues

    @property
    def way(self) -> str:
        """How I/O commands go: ``io_uring`` or ``ioctl``."""
        return "io_uring" if any(isinstance(queue, RingQueue) for queue in self.queues) else "ioctl"

    def prepare(self) -> None:
        """Make the I/O queues. :raises RingUnavailable: io_uring was asked for and can't be used"""
        for qid in range(1, self._count + 1):
            queue = self._queue(qid)
            queue.timeout = self._timeout or queue.timeout
            self.queues.append(queue)

    def _queue(self, qid: int) -> LinuxQueue:
        if self._way != "ioctl":
            try:
                return RingQueue(qid, self._depth + 1, self.space, self.memory)
            except RingUnavailable:
                if self._way == "io_uring":
                    raise
        return IoctlQueue(qid, self._depth + 1, self.space, self.memory)

    def space(self, nsid: int) -> int:
        """The descriptor of a namespace's character device.

        :raises InvalidArgument: Linux has no node for this nsid; it carries I/O commands to one namespace only
        """
        with self._lock:
            if (fd := self._spaces.get(nsid)) is None:
                fd = self._spaces[nsid] = nodes.open_node(self._find(nsid))
            return fd

    def _find(self, nsid: int) -> Path:
        if not 1 <= nsid < 0xFFFF_FFFF:
            raise InvalidArgument(f"nsid {nsid:#x}: Linux carries I/O commands to one namespace; name that")

        def found() -> Path | None:
            spaces = nodes.namespaces(self.controller.name)
            return next((s.character for s in spaces if s.nsid == nsid and s.character.exists()), None)

        if (path := found()) is None and nsid in self._active():
            ioctl.rescan(self._node)  # it may be new: the driver looks for those in its own time
            path = _until(found, _NODE_SECONDS)
        if path is None:
            known = ", ".join(str(space.nsid) for space in nodes.namespaces(self.controller.name)) or "none"
            raise InvalidArgument(f"nsid {nsid}: Linux has no node for it on {self.name}; it has: {known}")
        return path

    def _active(self) -> set[int]:
        """Namespaces that the drive has attached to this controller."""
        page = self.memory.array(4096)
        ioctl.admin(self._node, Admin.IDENTIFY, 0, page.ctypes.data, page.nbytes, cdw10=Cns.ACTIVE_NAMESPACES)
        return {int(nsid) for nsid in page.view("<u4") if nsid}

    # -- life

    def _close_queues(self) -> None:
        queues, self.queues = self.queues, []
        for queue in queues:
            queue.close()
        with self._lock:
            spaces, self._spaces = self._spaces, {}
        for fd in spaces.values():
            os.close(fd)

    def reset(self) -> None:
        """Have the driver reset the controller. :raises ControllerFailed: it does not come back"""
        self._close_queues()
        ioctl.reset(self._node)

        def live() -> bool:
            with contextlib.suppress(DriveNotFound):
                return nodes.controller(self.controller.name).state == "live"
            return False

        if not _until(live, _RESET_SECONDS):
            state = nodes.controller(self.controller.name).state
            raise ControllerFailed(f"{self.name} is {state!r} {_RESET_SECONDS:g} s after its reset; see dmesg")

    def close(self) -> None:
        """Close every descriptor; the drive stays Linux's. Harmless when repeated."""
        self._close_queues()
        if self._node >= 0:
            os.close(self._node)
            self._node = -1


def _until(look: Callable[[], T], seconds: float) -> T:
    """What ``look`` gives once that is true, or in the end."""
    deadline = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
    return found
