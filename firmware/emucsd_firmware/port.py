"""One PCIe attachment of a drive, seen from the bus: registers, doorbells, guest memory, interrupts, reset.

This is the border that transports are written against. It knows no socket: vfio-user and an in-process test call the
same methods, all from the control thread.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from typing import TYPE_CHECKING

from emucsd_firmware.controller import Controller
from emucsd_firmware.errors import PortError
from emucsd_firmware.nvme.queues import BAR0_USED, QUEUES, VECTORS, QueueSet
from emucsd_firmware.nvme.registers import REGISTER_BYTES
from emucsd_firmware.nvme.session_setup import store_register
from emucsd_wire.logs import Event
from emucsd_wire.rm import RM_REGISTERS_OFFSET

if TYPE_CHECKING:
    from emucsd_firmware.nvme.hardware import DriveBorder
    from emucsd_firmware.subsystem import Subsystem

BAR0 = 0
BAR0_BYTES = BAR0_USED
DOORBELL_WORDS = (RM_REGISTERS_OFFSET - REGISTER_BYTES) // 4
MAPPED = -1  # in place of a doorbell's last message: somebody else writes it


class Alarm:
    """Makes an eventfd readable at a time: what is due rarely must not cost a thread that waits for it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._timer: threading.Timer | None = None
        self._due: int | None = None

    def set(self, due: int | None, now: int) -> None:
        """Ring at ``due`` (ns, as ``now``), and at no time that was set before; None: never."""
        if due == self._due:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due = None, due
        if due is not None:
            self._timer = threading.Timer(max(due - now, 0) / 1e9, self._ring, (due,))
            self._timer.daemon = True
            self._timer.start()

    def _ring(self, due: int) -> None:
        if self._due == due:
            self._due = None
            with contextlib.suppress(OSError):  # the drive is being closed
                os.eventfd_write(self._fd, 1)


class Port:
    """Port 0 faces the host, port 1 the drive's own engine.

    :param queues: the port's queues, doorbell page and guest memory
    """

    def __init__(self, number: int, drive: DriveBorder, subsystem: Subsystem, queues: QueueSet) -> None:
        self.number = number
        self.queues = queues
        self.controller = Controller(number, drive, subsystem, queues)
        self._drive = drive
        self._subsystem = subsystem
        self._alarm = Alarm(queues.admin_fd)
        self.trapped = False

    @property
    def trapped(self) -> bool:
        """Whether doorbell writes come as messages. The transport says so before its client enables the controller."""
        return self.controller.trapped

    @trapped.setter
    def trapped(self, value: bool) -> None:
        self.controller.trapped = value
        self.queues.record["trapped"] = int(value)

    @property
    def doorbell_fd(self) -> int:
        """Shared memory whose last two pages are those at BAR0 + 0x1000: doorbells, then the sessions' registers."""
        return self.queues.doorbell_fd

    @property
    def admin_fd(self) -> int:
        """An eventfd: readable when ``service`` has something to do."""
        return self.queues.admin_fd

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        """:raises PortError: outside of BAR0's registers, doorbells and sessions' registers"""
        self._check(region, offset, count)
        if offset + count <= REGISTER_BYTES:
            return self.controller.registers.read(offset, count)
        if offset < REGISTER_BYTES:
            head = REGISTER_BYTES - offset
            return self.region_read(region, offset, head) + self.region_read(region, REGISTER_BYTES, count - head)
        pages = self.queues.doorbells.tobytes() + self.queues.sessions.tobytes()
        return pages[offset - REGISTER_BYTES : offset - REGISTER_BYTES + count]

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        """Write registers (the controller's, or its sessions') or ring doorbells. :raises PortError: outside of them"""
        self._check(region, offset, len(data))
        if offset < REGISTER_BYTES:
            self.controller.write_register(offset, data)
            self._arm()
            return
        at = offset - REGISTER_BYTES
        if at % 4 or len(data) not in (4, 8):
            return  # doorbells are dwords; others are nobody's
        for index, value in enumerate(struct.unpack(f"<{len(data) // 4}I", data), at // 4):
            if index < DOORBELL_WORDS:
                self._ring(index, value)
            else:
                store_register(self.queues.sessions, index - DOORBELL_WORDS, value)

    def map(self, iova: int, size: int, address: int, writable: bool) -> None:
        """Give the drive ``size`` bytes of guest memory that lie at ``address`` in this process.

        :raises MemoryMapError: empty, overlapping, or too many
        """
        with self._drive.plane.paused():
            self.queues.memory.map(iova, size, address, writable)
            self.controller.resume()

    def unmap(self, iova: int, size: int) -> tuple[int, int]:
        """Take it back. When this returns nothing touches it any more. :returns: (address, size)

        :raises MemoryMapError: no range was mapped so
        """
        with self._drive.plane.paused():
            gone = self.queues.memory.unmap(iova, size)
            self.controller.suspend(iova, size)
            return gone

    def set_vector(self, vector: int, eventfd: int | None) -> None:
        """Choose what an MSI-X vector signals. When this returns the old eventfd is not used any more.

        :raises PortError: there is no such vector
        """
        if not 0 <= vector < VECTORS:
            raise PortError(f"vector {vector} of {VECTORS}; use 0 to {VECTORS - 1}")
        with self._drive.plane.paused():
            self.queues.vectors[vector] = -1 if eventfd is None else eventfd

    def reset(self) -> None:
        """Function level reset, device reset, or the client is gone. Mappings and vectors stay as they are."""
        self.controller.reset()
        self._arm()

    def service(self) -> bool:
        """Run pending admin commands and what is due. :returns: whether there was anything to do"""
        with contextlib.suppress(BlockingIOError):  # called without a ring: fine
            os.eventfd_read(self.admin_fd)
        worked = self.controller.service()
        self._arm()
        return worked

    def close(self) -> None:
        """The drive powers off."""
        self._alarm.set(None, 0)

    def _arm(self) -> None:
        self._alarm.set(self.controller.deadline, self._subsystem.now())

    def _check(self, region: int, offset: int, count: int) -> None:
        if region != BAR0 or offset < 0 or count <= 0 or offset + count > BAR0_BYTES:
            raise PortError(f"region {region} has nothing at {offset:#x}+{count:#x}; BAR0 ends at {BAR0_BYTES:#x}")

    def _ring(self, index: int, value: int) -> None:
        """A doorbell, or a word behind them, came as a message."""
        if index >= 2 * QUEUES:
            if self.trapped:
                self.queues.doorbells[index] = value
        elif not self.controller.ready:
            return
        elif not self._exists(index):
            self.controller.report(Event.INVALID_DOORBELL)
            return
        elif self.trapped or self._only_messages(index, value):
            self.queues.doorbells[index] = value
        if index == 0 or (index == 1 and self.controller.holds):
            os.eventfd_write(self.admin_fd, 1)
        self._drive.plane.kick()

    def _only_messages(self, index: int, value: int) -> bool:
        """Whether a client rings this doorbell by messages alone, though it could map the page.

        One that has it mapped repeats a doorbell only to wake the drive; when the message arrives the page may be
        ahead, and storing it would turn the queue back.
        """
        rung = self.controller.io_queues.rung
        if int(rung[index]) != int(self.queues.doorbells[index]):
            rung[index] = MAPPED
            return False
        rung[index] = value
        return True

    def _exists(self, index: int) -> bool:
        io = self.controller.io_queues
        return index < 2 or (index // 2 in io.cqs if index % 2 else index // 2 in io.sqs)
