"""An NVMe controller: bringing it up and down, and its queue pairs (Base 3.1.4, 3.5, 5.2)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from emucsd.errors import ControllerFailed, InvalidArgument, NvmeError
from emucsd.link import Link
from emucsd.passthrough import entry, run
from emucsd.queue import Queue
from emucsd_wire.features import Feature, Queues
from emucsd_wire.nvme import Admin, Register
from emucsd_wire.registers import CSS_NVM, SHN_NORMAL, SHST_COMPLETE, Aqa, Cap, Cc, Csts, Vs
from emucsd_wire.vfio_user import Region

ADMIN_ENTRIES = 64
ADMIN_TIMEOUT = 60.0
MAX_QUEUES = 64
MAX_ENTRIES = 1024
_PCI_COMMAND = 4
_MEMORY_MASTER_NO_INTX = 0x0406
_SHUTDOWN_TIMEOUT = 10.0


class Controller:
    """The controller behind one link, enabled. :raises ControllerFailed: it does not become ready"""

    def __init__(self, link: Link) -> None:
        self.link = link
        command = int.from_bytes(link.vfio.region_read(Region.CONFIG, _PCI_COMMAND, 2), "little")
        enabled = (command | _MEMORY_MASTER_NO_INTX).to_bytes(2, "little")
        link.vfio.region_write(Region.CONFIG, _PCI_COMMAND, enabled)
        self.cap = Cap(self.read(Register.CAP, 8))
        self.version = Vs(self.read(Register.VS))
        if self.cap.mpsmin != 0 or not self.cap.css & CSS_NVM or self.cap.dstrd != 0:
            raise ControllerFailed(
                f"{self.cap!r}: this client needs 4 KiB pages, the NVM command set and doorbells without stride"
            )
        self.max_entries = min(self.cap.mqes + 1, MAX_ENTRIES)
        self.queues: list[Queue] = []
        self.granted = 0  # queue pairs that the drive allows
        self.on_reset: list[Callable[[], None]] = []  # of others with queue pairs: called once, when these are gone
        self.settled = False  # its queues are made; else it is being reset
        self.lock = threading.RLock()  # held by those others while they use the admin queue or ``on_reset``
        self.admin = self._enable()

    # -- registers ---------------------------------------------------------------------------------------------------

    def read(self, register: Register, size: int = 4) -> int:
        """A register's value; 8 bytes for CAP, ASQ and ACQ."""
        return int.from_bytes(self.link.vfio.region_read(Region.BAR0, register, size), "little")

    def write(self, register: Register, value: int, size: int = 4) -> None:
        """Store a register."""
        self.link.vfio.region_write(Region.BAR0, register, value.to_bytes(size, "little"))

    @property
    def status(self) -> Csts:
        """CSTS, decoded."""
        return Csts(self.read(Register.CSTS))

    def _await(self, ready: int) -> None:
        """Until CSTS.RDY is as wanted. :raises ControllerFailed: fatal status, or not within CAP.TO"""
        allowed = max(self.cap.to * 0.5, 0.5)
        deadline = time.monotonic() + allowed
        while (status := self.status).rdy != ready:
            if status.cfs or time.monotonic() > deadline:
                raise ControllerFailed(
                    f"the controller shows {status!r} {allowed:g} s after CC.EN = {ready}; its log may say why, and "
                    "drive.reset() or a restart of the drive gets it out of there"
                )
            time.sleep(0.0005)
        if status.cfs:
            raise ControllerFailed(f"the controller reports a fatal error, {status!r}; its log may say why")

    # -- life --------------------------------------------------------------------------------------------------------

    def _enable(self) -> Queue:
        self.disable()
        entries = min(ADMIN_ENTRIES, self.max_entries)
        admin = Queue(self.link, 0, entries)
        admin.timeout = ADMIN_TIMEOUT
        self.write(Register.AQA, Aqa.of(asqs=entries - 1, acqs=entries - 1))
        self.write(Register.ASQ, admin.sq_address, 8)
        self.write(Register.ACQ, admin.cq_address, 8)
        self.write(Register.CC, Cc.of(en=1, iosqes=6, iocqes=4))
        self._await(1)
        return admin

    def disable(self) -> None:
        """Controller reset: every queue is gone, and the drive has let go of all memory of commands."""
        with self.lock:
            self.settled = False
        if Cc(self.read(Register.CC)).en:
            self.write(Register.CC, 0)
        self._await(0)
        with self.lock:
            hooks, self.on_reset = self.on_reset, []
            for hook in hooks:
                hook()
        for queue in self.queues:
            queue.close()
        self.queues.clear()

    def reset(self) -> None:
        """Disable and enable; I/O queues have to be made anew. :raises ControllerFailed: it does not come back"""
        self.admin = self._enable()

    def shutdown(self) -> None:
        """Normal shutdown: the drive puts everything where a power cut can't hurt it. :raises ControllerFailed: late"""
        self.write(Register.CC, Cc(self.read(Register.CC)).replace(shn=SHN_NORMAL))
        deadline = time.monotonic() + _SHUTDOWN_TIMEOUT
        while (status := self.status).shst != SHST_COMPLETE:
            if time.monotonic() > deadline:
                raise ControllerFailed(f"the controller shows {status!r} {_SHUTDOWN_TIMEOUT:g} s after CC.SHN = 1")
            time.sleep(0.0005)

    # -- queues ------------------------------------------------------------------------------------------------------

    def create_queues(self, count: int, entries: int) -> list[Queue]:
        """I/O queue pairs 1 to ``count``.

        :param entries: 2 to ``max_entries`` each
        :raises InvalidArgument: more or larger ones than the drive grants
        """
        if not 0 <= count <= MAX_QUEUES:
            raise InvalidArgument(f"{count} queue pairs: 1 to {MAX_QUEUES} can be had")
        if not 2 <= entries <= self.max_entries:
            raise InvalidArgument(f"{entries} entries a queue: this controller takes 2 to {self.max_entries}")
        if not self.queues:
            most = min(count + 1, MAX_QUEUES)  # one more, for the tunnel
            wanted = Queues.of(nsq=most - 1, ncq=most - 1)
            command = entry(Admin.SET_FEATURES, cdw10=Feature.NUMBER_OF_QUEUES, cdw11=wanted)
            granted = Queues(run(self.admin, command, name="Set Features Number of Queues").dw0)
            self.granted = min(granted.nsq, granted.ncq) + 1
            if self.granted < count:
                raise InvalidArgument(f"{count} queue pairs: the drive grants {self.granted}")
        made = [self._create_queue(qid, entries) for qid in range(1, count + 1)]
        self.settled = True
        return made

    def _create_queue(self, qid: int, entries: int) -> Queue:
        queue = Queue(self.link, qid, entries)
        try:
            shape = (entries - 1) << 16 | qid
            for opcode, address, flags in (
                (Admin.CREATE_CQ, queue.cq_address, 1),  # physically contiguous; polled, so no interrupts
                (Admin.CREATE_SQ, queue.sq_address, 1 | qid << 16),
            ):
                command = entry(opcode, cdw10=shape, cdw11=flags)._replace(prp1=address)
                run(self.admin, command, name=f"{opcode.name} {qid} of {entries} entries")
        except NvmeError:
            queue.close()
            raise
        self.queues.append(queue)
        return queue

    def delete_queue(self, queue: Queue) -> None:
        """Delete a queue pair on the drive; commands that were out never complete."""
        for opcode in (Admin.DELETE_SQ, Admin.DELETE_CQ):
            run(self.admin, entry(opcode, cdw10=queue.qid), name=f"{opcode.name} {queue.qid}")
        self.queues.remove(queue)
        queue.close()
