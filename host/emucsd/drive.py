"""A drive, attached: the front door of the client library."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from emucsd.admin import Admin
from emucsd.buffers import DEFAULT_BYTES
from emucsd.clock import Clock
from emucsd.control import Control
from emucsd.embedded import DriveProcess
from emucsd.errors import ControlError, InvalidArgument, InvalidNamespace
from emucsd.namespace import Namespace
from emucsd.passthrough import Answer, Data, entry, run
from emucsd.transport import Attachment, CommandQueue
from emucsd.tunnel.network import DEFAULT_MTU, DEFAULT_NETWORK
from emucsd_wire import paths
from emucsd_wire.identify import LBA_FORMAT, IdentifyController, IdentifyNamespace
from emucsd_wire.nvme import PAGE

if TYPE_CHECKING:
    from emucsd.isp.client import Isp
    from emucsd.isp.embedded import EmbeddedIsp
    from emucsd.tunnel.inside import Tunnel

DEFAULT_DEPTH = 256
_NO_MDTS = 1 << 40


class Drive:
    """One port of a drive: a controller, its queues, its namespaces.

    Make one with ``Drive.open`` (a drive that runs, or a device node of Linux's) or ``Drive.start`` (a drive of one's
    own); close it, or use it in a ``with``. Threads share a Drive: each is given a queue of its own as long as there
    are any.

    :ivar admin: identify, features, logs, namespace management, format
    :ivar clock: ``now`` and ``think(ns)``, in wall-clock or virtual ns
    :ivar folder: the drive's runtime folder, or the device node that it is reached by
    :ivar port: 0 is the host's, 1 the drive's own engine's
    :ivar process: the drive's process where ``start`` made it, else None
    """

    def __init__(self, attachment: Attachment, folder: Path, port: int, process: DriveProcess | None = None) -> None:
        """On an attachment, which is closed with this; ``open`` and ``start`` are the ones to call."""
        self.folder, self.port, self.process = folder, port, process
        self._attachment = attachment
        self._control: Control | None = None
        self._engine: EmbeddedIsp | None = None
        self._local = threading.local()
        self._turn = itertools.count()
        self._gone = False
        self._prepare()

    @classmethod
    def open(cls, name_or_dir: str | Path, **options: Any) -> Drive:
        """Attach to a drive that runs.

        :param name_or_dir: its name, or its runtime folder: this library's own driver attaches, and needs no root. Or a
            node of Linux's nvme driver (``/dev/nvme0``, ``/dev/nvme0n1``, ``/dev/ng0n1``): docs/linux.md
        :param options: ``port`` 0 or 1; ``queues`` (1 to 64 I/O queue pairs) of ``depth`` commands (up to 1023);
            ``memory``: bytes shared with the drive, sparse; ``timeout``: seconds for a reply of the transport.
            Through Linux: ``queues``, ``depth``, ``timeout``; ``way``: ``auto``, ``io_uring`` or ``ioctl``
        :raises DriveNotFound: nothing listens there, or there is no such node
        :raises NotOurDrive: the node is another device's
        :raises NotPermitted: Linux wants more rights
        """
        folder = Path(name_or_dir)
        if folder.parts[:2] == ("/", "dev") and not folder.is_dir():
            return cls._open_node(folder, **options)
        if not isinstance(name_or_dir, Path) and "/" not in name_or_dir and not folder.is_dir():
            folder = paths.runtime_folder(name_or_dir)
        return cls._attach(folder, None, **options)

    @classmethod
    def _attach(cls, folder: Path, process: DriveProcess | None, *, port: int = 0, **options: Any) -> Drive:
        from emucsd.direct import Direct  # compiled code, which the way through Linux does without

        if not 0 <= port < paths.PORTS:
            raise InvalidArgument(f"port {port}: a drive has ports 0 (host) and 1 (its own engine)")
        lost = None if process is None else process.lost
        return cls._on(Direct(folder, port=port, lost=lost, **options), folder, port, process)

    @classmethod
    def _open_node(cls, node: Path, **options: Any) -> Drive:
        from emucsd.linux.attachment import LinuxAttachment

        attachment = LinuxAttachment(node, **options)
        return cls._on(attachment, node, attachment.port, None)

    @classmethod
    def _on(cls, attachment: Attachment, folder: Path, port: int, process: DriveProcess | None) -> Drive:
        try:
            return cls(attachment, folder, port, process)
        except BaseException:
            attachment.close()
            raise

    @classmethod
    def start(
        cls,
        profile: str | Path = "femu",
        size: int | str | None = None,
        store: str | Path | None = None,
        clock: str = "real",
        *,
        port: int = 0,
        queues: int = 1,
        depth: int = DEFAULT_DEPTH,
        memory: int = DEFAULT_BYTES,
        doorbells: str = "auto",
        durability: str = "process",
        firmware: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
        isp: str | None = None,
        tell: Callable[[str], None] | None = None,
        **knobs: Any,
    ) -> Drive:
        """Start a drive process and attach to it; closing the Drive stops it.

        :param profile: name (``null``, ``femu``, ``rmssd``, ``newport``, ``cosmosplus``) or TOML file
        :param size: bytes, or text such as ``"64GiB"``; None is the profile's
        :param store: folder for its flash, kept; None makes a temporary one
        :param clock: ``real`` or ``virtual``
        :param durability: what a flush survives: the drive's ``process``, or the whole ``machine``
        :param firmware: Python file with policies that replace the built-in ones
        :param settings: overrides of the profile: ``{"nand.read_ns": 50_000}``
        :param isp: ``local``: with the ISP engine that runs on this machine, ``drive.isp`` (docs/isp.md); None: without
        :param tell: is given the newest line of the drive's log while it starts: the first start compiles for a while
        :param knobs: the same by FEMU's names: ``pg_rd_lat=50_000``
        :raises StartFailed: with the end of the drive's log
        :raises IspUnavailable: this machine can't run the engine; the text says what to change
        """
        if isp not in (None, "local") or (isp and (clock == "virtual" or port != 0)):
            raise InvalidArgument(f"isp {isp!r}: 'local', on a real clock and with port 0 for this process, or None")
        folder = None if store is None else Path(store)
        process = DriveProcess(
            profile=profile,
            size=size,
            store=folder,
            clock=clock,
            doorbells=doorbells,
            settings={**(settings or {}), **knobs},
            tell=tell,
            durability=durability,
            firmware=firmware,
        )
        try:
            drive = cls._attach(process.runtime, process, port=port, queues=queues, depth=depth, memory=memory)
            if isp is not None:
                drive._start_isp(tell)
        except BaseException:
            process.stop()
            raise
        return drive

    def _start_isp(self, tell: Callable[[str], None] | None) -> None:
        from emucsd.isp.embedded import EmbeddedIsp

        try:
            self._engine = EmbeddedIsp(self, tell)
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        """Everything that a controller reset takes away."""
        self.admin = Admin(self._attachment.admin)
        self.identity: IdentifyController = self.admin.controller()
        self._attachment.prepare()
        self._local = threading.local()
        self._turn = itertools.count()

    # -- life --------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Shut the controller down and leave; stop the process where it is ours. Harmless when repeated."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()
        if not self._gone:
            self._gone = True
            self._attachment.close()
        if self.process is not None:
            self.process.stop()

    def reset(self) -> None:
        """Controller reset: commands that are out are lost, queues are made anew (take them from ``queues`` again)."""
        self._attachment.reset()
        self._prepare()

    @property
    def control(self) -> Control:
        """The control API (status, stats, checkpoint, stop). :raises ControlError: none is in reach from here"""
        if self._control is None:
            if not self.folder.is_dir():
                raise ControlError("unreachable", f"{self.folder}: a drive's control API is where its process runs")
            self._control = Control(self.folder)
        return self._control

    @property
    def isp(self) -> Isp:
        """The Linux inside the drive: jobs on it. :raises InvalidArgument: the drive was started without it"""
        if self._engine is None:
            raise InvalidArgument("this drive has no ISP engine of ours: Drive.start(..., isp='local') starts one")
        return self._engine.client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Drive {self._attachment.name}: {len(self.queues)} queues of {self.depth}>"

    # -- memory ------------------------------------------------------------------------------------------------------

    def alloc(self, shape: int | tuple[int, ...], dtype: DTypeLike = np.uint8, align: int = PAGE) -> NDArray[Any]:
        """An uninitialised array that the drive reads and writes in place; freed when nothing looks at it any more.

        :raises BufferExhausted: open the drive with a larger ``memory``
        """
        return self._attachment.memory.array(shape, dtype, align)

    def borrow(self, shape: int | tuple[int, ...], dtype: DTypeLike = np.uint8) -> AbstractContextManager[NDArray[Any]]:
        """``alloc`` for the time of a ``with``; do not touch the array, or views of it, afterwards."""
        return self._attachment.memory.borrow(shape, dtype)

    def holds(self, array: NDArray[Any]) -> bool:
        """Whether the drive reaches this array as it is."""
        return self._attachment.memory.holds(array)

    # -- queues and time ---------------------------------------------------------------------------------------------

    @property
    def queues(self) -> Sequence[CommandQueue]:
        """The I/O queues."""
        return self._attachment.queues

    @property
    def depth(self) -> int:
        """Commands that can be out on one queue."""
        return self.queues[0].entries - 1 if self.queues else 0

    @property
    def queue(self) -> CommandQueue:
        """This thread's queue; with more threads than queues they share, one call at a time.

        :raises InvalidArgument: the drive was opened without I/O queues
        """
        chosen: CommandQueue | None = getattr(self._local, "queue", None)
        if chosen is None:
            if not self.queues:
                raise InvalidArgument("the drive was opened with queues=0; open it with at least one for I/O")
            chosen = self._local.queue = self.queues[next(self._turn) % len(self.queues)]
        return chosen

    @property
    def clock(self) -> Clock:
        """The drive's time."""
        return self._attachment.clock

    # -- namespaces --------------------------------------------------------------------------------------------------

    @property
    def max_transfer(self) -> int:
        """Bytes that one command may transfer: MDTS, and the driver's own limit."""
        most = PAGE << self.identity.mdts if self.identity.mdts else _NO_MDTS
        return min(most, self._attachment.most_bytes or most)

    @property
    def namespaces(self) -> list[Namespace]:
        """Namespaces attached to this port, asked anew each time."""
        return [self.namespace(nsid) for nsid in self.admin.active_namespaces()]

    def namespace(self, nsid: int = 1) -> Namespace:
        """One attached namespace. :raises InvalidNamespace: there is none of this id for this port"""
        found = self.admin.namespace(nsid)
        if found.nsze == 0:  # Base 5.1.13: inactive ids identify as zeros
            raise InvalidNamespace(f"IDENTIFY nsid {nsid}", 0x0B)
        return Namespace(nsid, found, _lba_bytes(found), self.max_transfer, lambda: self.queue)

    def create_namespace(self, blocks: int, lba_bytes: int = 4096, *, shared: bool = True) -> Namespace:
        """Make a namespace and attach it to this port (to others: ``admin.attach``)."""
        nsid = self.admin.create_namespace(blocks, lba_bytes, shared=shared)
        self.admin.attach(nsid, self.identity.cntlid)
        return self.namespace(nsid)

    # -- the tunnel ----------------------------------------------------------------------------------------------------

    def tunnel(self, network: str = DEFAULT_NETWORK, mtu: int = DEFAULT_MTU, *, private: bool | None = None) -> Tunnel:
        """The host's end of this drive's TCP/IP tunnel, in a thread of this process until it is closed: docs/tunnel.md.

        :param private: in a network namespace of its own; None: unless this process may configure this machine's
        :raises TunnelError: no network can be had
        """
        from emucsd.tunnel.inside import Tunnel

        return Tunnel([self], network, mtu, private=private)

    # -- any command -------------------------------------------------------------------------------------------------

    def passthrough(
        self,
        queue: Literal["admin", "io"],
        opcode: int,
        nsid: int = 0,
        *,
        data: Data | None = None,
        length: int = 0,
        out: NDArray[Any] | None = None,
        check: bool = True,
        timeout: float | None = None,
        **dwords: int,
    ) -> Answer:
        """Send any command and wait for it.

        :param data: for the drive: bytes or an array (used in place where it lies in the drive's memory)
        :param length: bytes that the drive answers with; or ``out``, an array of ``alloc`` for them
        :param dwords: ``cdw2``, ``cdw3``, ``cdw10`` … ``cdw15``
        :param check: False gives statuses in the Answer instead of raising
        :raises NvmeError: the drive refused
        """
        if queue not in ("admin", "io"):
            raise InvalidArgument(f"queue {queue!r}: use 'admin' or 'io'")
        chosen = self._attachment.admin if queue == "admin" else self.queue
        command = entry(opcode, nsid, **dwords)
        name = f"{queue} opcode {opcode:#04x} nsid {nsid:#x}"
        return run(chosen, command, data=data, length=length, out=out, name=name, check=check, timeout=timeout)


def _lba_bytes(found: IdentifyNamespace) -> int:
    index = found.flbas & 0xF | (found.flbas >> 5 & 0x3) << 4
    return 1 << int(LBA_FORMAT.unpack(found.lbaf, LBA_FORMAT.size * index).lbads)
