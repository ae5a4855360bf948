"""Interrupt vectors of one port: the client's eventfds, by SET_IRQS, and which of them the port may signal.

Only eventfds are taken, and they are made non-blocking: whoever writes to one must never wait for its reader. (That
flag belongs to the open file, so the client's own end becomes non-blocking too: poll before you read.)
"""

from __future__ import annotations

import contextlib
import errno
import os

from emucsd_femu.errors import MessageError
from emucsd_femu.messages import close_fds
from emucsd_femu.pci import VECTORS
from emucsd_femu.port import DevicePort
from emucsd_wire.vfio_user import IRQS, Irq, IrqAction, IrqSet

_DATA = int(IrqAction.DATA_NONE | IrqAction.DATA_BOOL | IrqAction.DATA_EVENTFD)
_ACTIONS = int(IrqAction.MASK | IrqAction.UNMASK | IrqAction.TRIGGER)
_COUNTS = {Irq.MSIX: VECTORS, Irq.ERR: 1, Irq.REQ: 1}


def irq_count(irq: int) -> int:
    """Vectors of an interrupt index; 0 for INTx and MSI, which this device has not."""
    return _COUNTS.get(Irq(irq), 0) if irq < IRQS else 0


def _is_eventfd(fd: int) -> bool:
    return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]"


class Interrupts:
    """The vectors of one client. MSI-X vectors reach the port; ERR and REQ are kept and never raised."""

    def __init__(self, port: DevicePort) -> None:
        self._port = port
        self._fds: dict[tuple[int, int], int] = {}  # (irq, vector) -> eventfd
        self._masked: set[tuple[int, int]] = set()

    def __len__(self) -> int:
        return len(self._fds)

    def set(self, request: IrqSet, data: bytes, fds: list[int]) -> None:
        """SET_IRQS. Descriptors that are used are taken out of ``fds``.

        :raises MessageError: nothing was changed
        """
        kind, action = request.flags & _DATA, request.flags & _ACTIONS
        if kind.bit_count() != 1 or action.bit_count() != 1 or request.flags & ~(_DATA | _ACTIONS):
            raise MessageError(errno.EINVAL, f"flags {request.flags:#x}: one kind of data and one action are needed")
        if request.start + request.vectors > irq_count(request.irq):
            limit = irq_count(request.irq)
            raise MessageError(
                errno.EINVAL, f"irq {request.irq} has {limit} vectors, not {request.start}+{request.vectors}"
            )
        wanted = [(request.irq, request.start + n) for n in range(request.vectors)]
        if kind == IrqAction.DATA_BOOL:
            if len(data) < request.vectors:
                raise MessageError(errno.EINVAL, f"{len(data)} bytes for {request.vectors} vectors")
            wanted = [key for key, chosen in zip(wanted, data, strict=False) if chosen]
        if kind == IrqAction.DATA_EVENTFD:
            self._set_eventfds(action, wanted, fds)
        elif action == IrqAction.TRIGGER and request.vectors == 0 and kind == IrqAction.DATA_NONE:
            self._disable(request.irq)
        elif action == IrqAction.TRIGGER:
            for key in wanted:
                self._raise(key)
        else:
            for key in wanted:
                self._mask(key, masked=action == IrqAction.MASK)

    def clear(self) -> None:
        """Forget every vector: the client is gone."""
        for key in list(self._fds):
            self._assign(key, None)
        self._masked.clear()

    def _set_eventfds(self, action: int, wanted: list[tuple[int, int]], fds: list[int]) -> None:
        if action != IrqAction.TRIGGER:
            raise MessageError(errno.EINVAL, "eventfds can't mask or unmask; use DATA_NONE or DATA_BOOL")
        if fds and len(fds) != len(wanted):
            raise MessageError(errno.EINVAL, f"{len(fds)} eventfds for {len(wanted)} vectors")
        if not all(_is_eventfd(fd) for fd in fds):
            raise MessageError(errno.EINVAL, "an interrupt needs an eventfd, another kind of descriptor came")
        given: list[int | None] = [*fds] if fds else [None] * len(wanted)
        fds.clear()
        for key, fd in zip(wanted, given, strict=True):
            self._assign(key, fd)

    def _assign(self, key: tuple[int, int], fd: int | None) -> None:
        old = self._fds.pop(key, None)
        if fd is not None:
            os.set_blocking(fd, False)
            self._fds[key] = fd
        if key not in self._masked:
            self._connect(key, fd)
        if old is not None:
            close_fds([old])

    def _connect(self, key: tuple[int, int], fd: int | None) -> None:
        irq, vector = key
        if irq == Irq.MSIX:
            self._port.set_vector(vector, fd)

    def _disable(self, irq: int) -> None:
        for key in [k for k in self._fds if k[0] == irq]:
            self._assign(key, None)
        self._masked = {k for k in self._masked if k[0] != irq}

    def _raise(self, key: tuple[int, int]) -> None:
        fd = self._fds.get(key)
        if fd is not None and key not in self._masked:
            with contextlib.suppress(BlockingIOError):  # a full counter is as raised as can be
                os.eventfd_write(fd, 1)

    def _mask(self, key: tuple[int, int], *, masked: bool) -> None:
        if masked and key not in self._masked:
            self._masked.add(key)
            self._connect(key, None)
        elif not masked and key in self._masked:
            self._masked.discard(key)
            self._connect(key, self._fds.get(key))
            self._raise(key)  # what happened while it was masked is not recorded: once too often is harmless
