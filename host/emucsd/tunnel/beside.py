"""A tunnel port on a controller that this process has attached already: one more queue pair, behind the drive's others.

The queue pair goes with a controller reset; the port then says that it is lost, and its channel makes another.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from emucsd.errors import ConnectionLost, EmucsdError, InvalidArgument
from emucsd.tunnel.direct import MEMORY_BYTES, Attached, DirectPort, admin_data, blank, send_doorbell
from emucsd.tunnel.pair import Doorbells, Ended, Memory
from emucsd.tunnel.port import CLOSED, Done, TunnelPort
from emucsd_wire.nvme import Admin, Sqe
from emucsd_wire.tunnel import TunnelSetup, TunnelStatus

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from emucsd.direct import Direct


class BesidePort:
    """A DirectPort on a ``Direct`` that others use too.

    :raises InvalidArgument: the drive has no queue pair left
    """

    def __init__(self, direct: Direct, number: int) -> None:
        controller, link = direct.controller, direct.link
        self._direct = direct
        self._admin = controller.admin
        if not controller.settled:
            raise ConnectionLost(f"{direct.name}: the controller is being reset")
        qid = controller.granted  # the last one: the drive's own are counted from the first
        if qid <= len(controller.queues):
            raise InvalidArgument(f"{direct.name}: all queue pairs are taken; open the drive with fewer queues")
        # the array stays until this port goes: a command that waits may still be given frames
        self._array = link.memory.array(MEMORY_BYTES)
        self._array[:] = 0
        memory = Memory(self._array.data, int(self._array.ctypes.data))
        doorbells = Doorbells(link.page_view, lambda offset, value: send_doorbell(link.vfio, offset, value))
        self._reset = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        with controller.lock:
            controller.on_reset.append(self._was_reset)
            self._reset = not controller.settled
        attached = Attached(memory, doorbells, link.vfio, self._run, admin_data(memory), self._leave)
        try:
            self._port = DirectPort(direct.name, number, qid, attached)
        except BaseException:
            self._forget()
            raise
        self.name, self.number, self.buffers = self._port.name, number, self._port.buffers

    name: str
    number: int
    buffers: Sequence[memoryview]

    def _was_reset(self) -> None:
        self._reset = True
        os.eventfd_write(self._wake, 1)

    def _run(self, sqe: Sqe) -> Ended:
        with self._direct.controller.lock:
            if not self._direct.controller.settled:
                raise ConnectionLost(f"{self._direct.name}: the controller is being reset")
            done = self._admin.call(sqe, timeout=10.0)
        return Ended(0, done.status, done.result & 0xFFFF_FFFF, done.result >> 32)

    def _check(self) -> None:
        if self._reset:
            raise ConnectionLost(f"{self.name}: the controller was reset")

    def _leave(self, port: DirectPort) -> None:
        if not self._reset:  # else the queue pair has gone already
            with contextlib.suppress(EmucsdError, OSError):
                if port.number == 0:
                    port.set_up(CLOSED)
                for opcode in (Admin.DELETE_SQ, Admin.DELETE_CQ):
                    self._run(blank(opcode, cdw10=port.qid))
                self._reset = True  # as good as: the drive uses its memory no more
        self._forget()

    def _forget(self) -> None:
        controller = self._direct.controller
        with controller.lock:  # a reset in another thread must not find a descriptor that is another's by now
            if self._was_reset in controller.on_reset:
                controller.on_reset.remove(self._was_reset)
            if not self._reset:  # the drive may write into this memory until then
                controller.on_reset.append(partial(_let_go, self._array))
            os.close(self._wake)

    # -- TunnelPort

    def filenos(self) -> list[int]:
        """And of what tells of a reset."""
        return [*self._port.filenos(), self._wake]

    def send(self, buffer: int, count: int) -> None:
        """TUNNEL_SEND."""
        self._port.send(buffer, count)

    def receive(self, buffer: int) -> None:
        """TUNNEL_RECEIVE."""
        self._port.receive(buffer)

    def flush(self) -> None:
        """Ring. :raises ConnectionLost: the controller was reset"""
        self._check()
        self._port.flush()

    def completions(self) -> list[Done]:
        """:raises ConnectionLost: the controller was reset"""
        self._check()
        return self._port.completions()

    def set_up(self, setup: TunnelSetup) -> None:
        """TUNNEL_SETUP."""
        self._port.set_up(setup)

    def status(self, *, join: bool = False) -> TunnelStatus:
        """TUNNEL_STATUS."""
        return self._port.status(join=join)

    def close(self) -> None:
        """Give the queue pair back."""
        self._port.close()


def _let_go(array: NDArray[np.uint8]) -> None:
    """Nothing to do: the reset that calls this also forgets it, and the memory with it."""


def beside(direct: Direct, number: int) -> TunnelPort:
    """:raises EmucsdError: no queue pair is left, or the drive is gone"""
    return BesidePort(direct, number)
