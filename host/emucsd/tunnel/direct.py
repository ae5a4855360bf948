"""A tunnel port over this library's own driver: its queue pair raises an eventfd, so a loop can wait for it.

``DirectPort.open`` attaches to the port's socket and has the controller to itself: a port serves one client. ``beside``
has the same on a controller that a Drive in this process has attached.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from emucsd.errors import ConnectionLost, ControllerFailed, DriveTimeout
from emucsd.tunnel.pair import Doorbells, Ended, Memory, Pair, pointers, prp_list
from emucsd.tunnel.port import BUFFER_BYTES, BUFFERS, RECEIVE_MS, SEND_MS, Done, check
from emucsd.vfio import VfioUser
from emucsd_wire import paths
from emucsd_wire.features import Feature
from emucsd_wire.nvme import CLOCK_WORDS_OFFSET, PAGE, Admin, Io, Register, Sqe
from emucsd_wire.registers import Aqa, Cap, Cc, Csts
from emucsd_wire.tunnel import TUNNEL_SETUP, TUNNEL_STATUS, StatusFlag, TunnelAdmin, TunnelSetup, TunnelStatus
from emucsd_wire.vfio_user import Region

_ENTRIES = 32
_IOVA = 1 << 32
_BASE = 4 * PAGE + BUFFERS * PAGE  # two queue pairs, a PRP list a buffer; then the buffers
_ADMIN_DATA = _BASE + BUFFERS * BUFFER_BYTES
MEMORY_BYTES = _ADMIN_DATA + PAGE
_PCI_COMMAND, _MEMORY_MASTER_NO_INTX = 4, 0x0406
_MODE, _ATTACHED = 0, 6  # ClockWords
_SECONDS = 10.0


def blank(opcode: int, **fields: int) -> Sqe:
    """A submission entry of zeros but for these."""
    return Sqe(opcode, *(0,) * 14)._replace(**fields)


class Client:
    """A connection to a port with a light controller on it: an admin queue that is polled, nothing else.

    :raises EmucsdError: the drive is not there, busy, or does not become ready
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.vfio = VfioUser(paths.port_socket(folder, number))
        try:
            self.memory = self._share()
            self.doorbells = self._map_doorbells()
            self._admin = Pair(self.memory.part(0, 2 * PAGE), 0, self.doorbells)
            self._enable()
        except BaseException:
            self.vfio.close()
            raise

    def _share(self) -> Memory:
        fd = os.memfd_create("emucsd-tunnel", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, MEMORY_BYTES)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            mapping = mmap.mmap(fd, MEMORY_BYTES)
            self.vfio.dma_map(fd, 0, _IOVA, MEMORY_BYTES)
        finally:
            os.close(fd)
        return Memory(memoryview(mapping), _IOVA)

    def _map_doorbells(self) -> Doorbells:
        mapping, info = self.vfio.map_region(Region.BAR0)
        page = None
        if mapping is not None and info.mappable_offset == Register.DOORBELLS:
            page = memoryview(mapping)
            words = page[CLOCK_WORDS_OFFSET - Register.DOORBELLS :][: 8 * (_ATTACHED + 1)].cast("q")
            # by the wall clock: the drive need not look for our doorbells while it sleeps. On a virtual clock: it is
            # not to wait for grants that this client never asks for
            words[_ATTACHED] = int(words[_MODE] == 0)
        return Doorbells(page, lambda offset, value: send_doorbell(self.vfio, offset, value))

    def _read(self, register: Register, size: int = 4) -> int:
        return int.from_bytes(self.vfio.region_read(Region.BAR0, register, size), "little")

    def _write(self, register: Register, value: int, size: int = 4) -> None:
        self.vfio.region_write(Region.BAR0, register, value.to_bytes(size, "little"))

    def _enable(self) -> None:
        command = int.from_bytes(self.vfio.region_read(Region.CONFIG, _PCI_COMMAND, 2), "little")
        enabled = (command | _MEMORY_MASTER_NO_INTX).to_bytes(2, "little")
        self.vfio.region_write(Region.CONFIG, _PCI_COMMAND, enabled)
        patience = max(Cap(self._read(Register.CAP, 8)).to * 0.5, 0.5)
        if Cc(self._read(Register.CC)).en:
            self._write(Register.CC, 0)
        self._await(0, patience)
        self._write(Register.AQA, Aqa.of(asqs=_ENTRIES - 1, acqs=_ENTRIES - 1))
        self._write(Register.ASQ, self._admin.sq_address, 8)
        self._write(Register.ACQ, self._admin.cq_address, 8)
        self._write(Register.CC, Cc.of(en=1, iosqes=6, iocqes=4))
        self._await(1, patience)
        self.admin(blank(Admin.SET_FEATURES, cdw10=Feature.NUMBER_OF_QUEUES))

    def _await(self, ready: int, patience: float) -> None:
        deadline = time.monotonic() + patience
        while (status := Csts(self._read(Register.CSTS))).rdy != ready:
            if status.cfs or time.monotonic() > deadline:
                raise ControllerFailed(
                    f"{self.vfio.path}: {status!r} {patience:g} s after CC.EN = {ready}; see its log"
                )
            time.sleep(0.001)

    def admin(self, sqe: Sqe) -> Ended:
        """Run an admin command; its data lie in ``admin_data``. :raises EmucsdError: it failed, or takes too long"""
        self._admin.enter(sqe)
        self._admin.ring()
        deadline, pause = time.monotonic() + _SECONDS, 0.0001
        while not (done := self._admin.take()):
            if time.monotonic() > deadline:
                raise DriveTimeout(
                    f"{self.vfio.path}: no answer to admin {sqe.opcode:#x} in {_SECONDS:g} s; see its log"
                )
            self.vfio.check()
            time.sleep(pause)
            pause = min(2 * pause, 0.01)
        return done[0]

    def close(self) -> None:
        """Hang up: the drive resets the controller and lets go of the memory."""
        with contextlib.suppress(Exception):
            self._write(Register.CC, 0)
        self.vfio.close()


def admin_data(memory: Memory) -> Memory:
    """A page for an admin command's data."""
    return memory.part(_ADMIN_DATA, PAGE)


def send_doorbell(vfio: VfioUser, offset: int, value: int) -> None:
    """A doorbell as a message. :raises ConnectionLost: the drive has hung up"""
    message = vfio.posted_write(Region.BAR0, Register.DOORBELLS + offset, value.to_bytes(4, "little"))
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            os.write(vfio.fileno(), message)  # a stream socket takes a message of this size whole or not at all
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise DriveTimeout(f"{vfio.path} takes no doorbell; its log may say why") from None
            time.sleep(0.001)
        except OSError as problem:
            raise ConnectionLost(f"{vfio.path}: {problem.strerror}") from problem


class Attached(NamedTuple):
    """What a port needs of an attached controller.

    :ivar memory: MEMORY_BYTES of it, zeroed
    :ivar admin: runs an admin command
    :ivar admin_data: a page for its data
    :ivar leave: undoes what was made
    """

    memory: Memory
    doorbells: Doorbells
    vfio: VfioUser
    admin: Callable[[Sqe], Ended]
    admin_data: Memory
    leave: Callable[[DirectPort], None]


class DirectPort:
    """A queue pair for the tunnel on an attached controller; ``open`` attaches."""

    def __init__(self, name: str, number: int, qid: int, attached: Attached) -> None:
        self.name, self.number, self.qid = name, number, qid
        self._attached, self._vfio = attached, attached.vfio
        memory = attached.memory
        self._lists = [memory.part((4 + n) * PAGE, PAGE) for n in range(BUFFERS)]
        self._memory = [memory.part(_BASE + n * BUFFER_BYTES, BUFFER_BYTES) for n in range(BUFFERS)]
        for place, buffer in zip(self._lists, self._memory, strict=True):
            prp_list(place, buffer)
        self.buffers: Sequence[memoryview] = [buffer.view for buffer in self._memory]
        self._open = True
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._vfio.set_vector(qid, self._event)
            self._pair = Pair(memory.part(2 * PAGE, 2 * PAGE), qid, attached.doorbells)
            self._create()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, folder: Path, number: int) -> DirectPort:
        """Attach to a port. :raises EmucsdError: not there, busy, or not ready"""
        client = Client(folder, number)
        attached = Attached(
            client.memory,
            client.doorbells,
            client.vfio,
            client.admin,
            admin_data(client.memory),
            lambda port: client.close(),
        )
        try:
            return cls(f"{folder} port {number}", number, 1, attached)
        except BaseException:
            client.close()
            raise

    def _create(self) -> None:
        shape = (_ENTRIES - 1) << 16 | self.qid
        cq = blank(Admin.CREATE_CQ, prp1=self._pair.cq_address, cdw10=shape, cdw11=self.qid << 16 | 3)
        sq = blank(Admin.CREATE_SQ, prp1=self._pair.sq_address, cdw10=shape, cdw11=self.qid << 16 | 1)
        for sqe, name in ((cq, "CREATE_CQ"), (sq, "CREATE_SQ")):
            check(self._attached.admin(sqe).status, f"{self.name}: {name} {self.qid}")

    # -- TunnelPort

    def filenos(self) -> list[int]:
        """Of the interrupt, and of the connection: it becomes readable when the drive hangs up."""
        return [self._event, self._vfio.fileno()]

    def send(self, buffer: int, count: int) -> None:
        """TUNNEL_SEND."""
        self._enter(Io.TUNNEL_SEND, buffer, count, SEND_MS)

    def receive(self, buffer: int) -> None:
        """TUNNEL_RECEIVE."""
        self._enter(Io.TUNNEL_RECEIVE, buffer, BUFFER_BYTES, RECEIVE_MS)

    def _enter(self, opcode: int, buffer: int, count: int, milliseconds: int) -> None:
        prp1, prp2 = pointers(self._memory[buffer], self._lists[buffer].address, count)
        self._pair.enter(Sqe(opcode, 0, buffer, 0, 0, 0, 0, prp1, prp2, 0, 0, count, milliseconds, 0, 0))

    def flush(self) -> None:
        """Ring."""
        self._pair.ring()

    def completions(self) -> list[Done]:
        """:raises ConnectionLost: the drive has hung up"""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)
        done = [Done(cid, status & 0x7FF, dw0, dw1) for cid, status, dw0, dw1 in self._pair.take()]
        if not done:
            self._vfio.check()
        return done

    def set_up(self, setup: TunnelSetup) -> None:
        """TUNNEL_SETUP."""
        self._attached.admin_data.view[: TUNNEL_SETUP.size] = TUNNEL_SETUP.pack(setup)
        self._run(blank(TunnelAdmin.TUNNEL_SETUP))

    def status(self, *, join: bool = False) -> TunnelStatus:
        """TUNNEL_STATUS."""
        self._run(blank(TunnelAdmin.TUNNEL_STATUS, cdw11=StatusFlag.JOIN if join else 0))
        return TUNNEL_STATUS.unpack(self._attached.admin_data.view)

    def _run(self, sqe: Sqe) -> None:
        done = self._attached.admin(sqe._replace(prp1=self._attached.admin_data.address))
        check(done.status, f"{self.name}: {TunnelAdmin(sqe.opcode).name}", done.dw0)

    def close(self) -> None:
        """Leave the port, or give the queue pair back."""
        if self._open:
            self._open = False
            self._attached.leave(self)
            os.close(self._event)
