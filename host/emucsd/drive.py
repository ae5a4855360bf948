"""A drive, attached: the front door of the client library."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from emucsd.admin import Admin
from emucsd.buffers import DEFAULT_BYTES, SharedMemory
from emucsd.clock import Clock
from emucsd.control import Control
from emucsd.controller import Controller
from emucsd.embedded import DriveProcess
from emucsd.errors import ConnectionLost, DriveDied, EmucsdError, InvalidArgument, InvalidNamespace
from emucsd.link import Link
from emucsd.namespace import Namespace
from emucsd.passthrough import Answer, Data, entry, run
from emucsd.queue import Queue
from emucsd.vfio import VfioUser
from emucsd_wire import paths
from emucsd_wire.identify import LBA_FORMAT, IdentifyController, IdentifyNamespace
from emucsd_wire.nvme import PAGE

DEFAULT_DEPTH = 256
_NO_MDTS = 1 << 40


class Drive:
    """One port of a drive: a controller, its queues, its namespaces.

    Make one with ``Drive.open`` (a drive that runs) or ``Drive.start`` (a drive of one's own); close it, or use it in a
    ``with``. Threads share a Drive: each is given a queue of its own as long as there are any.

    :ivar admin: identify, features, logs, namespace management, format
    :ivar control: the control API (status, stats, checkpoint, stop)
    :ivar clock: ``now`` and ``think(ns)``, in wall-clock or virtual ns
    :ivar process: the drive's process where ``start`` made it, else None
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        queues: int = 1,
        depth: int = DEFAULT_DEPTH,
        memory: int = DEFAULT_BYTES,
        timeout: float = 10.0,
        process: DriveProcess | None = None,
    ) -> None:
        """Attach; see ``open``, which takes names too."""
        if not 0 <= port < paths.PORTS:
            raise InvalidArgument(f"port {port}: a drive has ports 0 (host) and 1 (its own engine)")
        self.folder, self.port, self.process = folder, port, process
        self.control = Control(folder)
        self._local = threading.local()
        self._turn = itertools.count()
        self._entries = depth + 1
        self._count = queues
        self._closing = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            vfio = VfioUser(paths.port_socket(folder, port), timeout)
            vfio.lost = self._lost
            stack.callback(vfio.close)
            shared = SharedMemory(memory)
            stack.callback(shared.close)
            self._link = Link(vfio, shared)
            self._controller = Controller(self._link)
            self._prepare()
            self._closing = stack.pop_all()

    @classmethod
    def open(cls, name_or_dir: str | Path, **options: Any) -> Drive:
        """Attach to a drive that runs.

        :param name_or_dir: its name, or its runtime folder
        :param options: ``port`` 0 or 1; ``queues`` (1 to 64 I/O queue pairs) of ``depth`` commands (up to 1023);
            ``memory``: bytes shared with the drive, sparse; ``timeout``: seconds for a reply of the transport
        :raises DriveNotFound: nothing listens there
        """
        folder = Path(name_or_dir)
        if not isinstance(name_or_dir, Path) and "/" not in name_or_dir and not folder.is_dir():
            folder = paths.runtime_folder(name_or_dir)
        return cls(folder, **options)

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
        :param tell: is given the newest line of the drive's log while it starts: the first start compiles for a while
        :param knobs: the same by FEMU's names: ``pg_rd_lat=50_000``
        :raises StartFailed: with the end of the drive's log
        """
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
            return cls(process.runtime, port=port, queues=queues, depth=depth, memory=memory, process=process)
        except BaseException:
            process.stop()
            raise

    def _prepare(self) -> None:
        """Everything that a controller reset takes away."""
        self.admin = Admin(self._controller.admin)
        self.identity: IdentifyController = self.admin.controller()
        self._controller.create_queues(self._count, min(self._entries, self._controller.max_entries))
        self._local = threading.local()
        self._turn = itertools.count()

    def _lost(self, text: str) -> ConnectionLost:
        """What to raise when the connection is gone: a process of ours may have told why."""
        if self.process is not None and (status := self.process.exit_status(wait=1.0)) is not None:
            how = f"by signal {-status}" if status < 0 else f"with {status}"
            return DriveDied(f"the drive's process ended {how}\n{self.process.log_tail()}", status)
        return ConnectionLost(text)

    # -- life --------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Shut the controller down and leave; stop the process where it is ours. Harmless when repeated."""
        link, self._closing = self._closing, contextlib.ExitStack()
        with link:  # always hang up
            if not self._gone:
                with contextlib.suppress(EmucsdError):
                    self._controller.shutdown()
                    self._controller.disable()
        self._gone = True
        if self.process is not None:
            self.process.stop()

    _gone = False

    def reset(self) -> None:
        """Controller reset: commands that are out are lost, queues are made anew (take them from ``queues`` again)."""
        self._controller.reset()
        self._prepare()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Drive {self.folder} port {self.port}: {len(self.queues)} queues of {self.depth}>"

    # -- memory ------------------------------------------------------------------------------------------------------

    def alloc(self, shape: int | tuple[int, ...], dtype: DTypeLike = np.uint8, align: int = PAGE) -> NDArray[Any]:
        """An uninitialised array that the drive reads and writes in place; freed when nothing looks at it any more.

        :raises BufferExhausted: open the drive with a larger ``memory``
        """
        return self._link.memory.array(shape, dtype, align)

    @contextmanager
    def borrow(self, shape: int | tuple[int, ...], dtype: DTypeLike = np.uint8) -> Iterator[NDArray[Any]]:
        """``alloc`` for the time of a ``with``; do not touch the array, or views of it, afterwards."""
        with self._link.memory.borrow(shape, dtype) as array:
            yield array

    def holds(self, array: NDArray[Any]) -> bool:
        """Whether the drive reaches this array as it is."""
        return self._link.memory.holds(array)

    # -- queues and time ---------------------------------------------------------------------------------------------

    @property
    def queues(self) -> list[Queue]:
        """The I/O queues."""
        return self._controller.queues

    @property
    def depth(self) -> int:
        """Commands that can be out on one queue."""
        return self.queues[0].entries - 1 if self.queues else 0

    @property
    def queue(self) -> Queue:
        """This thread's queue; with more threads than queues they share, one call at a time.

        :raises InvalidArgument: the drive was opened without I/O queues
        """
        chosen: Queue | None = getattr(self._local, "queue", None)
        if chosen is None:
            if not self.queues:
                raise InvalidArgument("the drive was opened with queues=0; open it with at least one for I/O")
            chosen = self._local.queue = self.queues[next(self._turn) % len(self.queues)]
        return chosen

    @property
    def clock(self) -> Clock:
        """The drive's time."""
        return self._link.clock

    # -- namespaces --------------------------------------------------------------------------------------------------

    @property
    def max_transfer(self) -> int:
        """Bytes that one command may transfer (MDTS)."""
        return PAGE << self.identity.mdts if self.identity.mdts else _NO_MDTS

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
        chosen = self._controller.admin if queue == "admin" else self.queue
        command = entry(opcode, nsid, **dwords)
        name = f"{queue} opcode {opcode:#04x} nsid {nsid:#x}"
        return run(chosen, command, data=data, length=length, out=out, name=name, check=check, timeout=timeout)


def _lba_bytes(found: IdentifyNamespace) -> int:
    index = found.flbas & 0xF | (found.flbas >> 5 & 0x3) << 4
    return 1 << int(LBA_FORMAT.unpack(found.lbaf, LBA_FORMAT.size * index).lbads)
