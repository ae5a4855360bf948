"""The inference sessions' admin commands: opened, closed and told of (``emucsd_wire.rm``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from emucsd_firmware.nvme.request import Refused, Request
from emucsd_firmware.nvme.sessions import end_session
from emucsd_firmware.session.sessions import SessionRefused, Sessions
from emucsd_wire.layout import Codec
from emucsd_wire.nvme import Status
from emucsd_wire.rm import (
    MAX_SESSIONS,
    RM_INFO_BYTES,
    RM_LAYER,
    RM_MODEL,
    RM_OPEN_BYTES,
    RM_REGISTERS,
    RM_TABLE,
    RmAdmin,
)

if TYPE_CHECKING:
    from emucsd_firmware.controller import Controller

W = TypeVar("W", bound=tuple[object, ...])


def _entries(codec: Codec[W], data: bytes, at: int, count: int) -> list[W]:
    return [codec.unpack(data, at + codec.size * index) for index in range(count)]


class SessionCommands:
    """Handlers, over the drive's one set of sessions. They run with the data plane held.

    :param address: of the drive's state
    """

    def __init__(self, sessions: Sessions, address: int) -> None:
        self.sessions = sessions
        self._address = address

    def register(self, controller: Controller) -> None:
        """Give a controller its commands. Its resets close the port's sessions; so does the loss of their namespace.

        To be called before the tables' own commands are registered: a reset must end sessions before it closes tables.
        """
        controller.register_admin(RmAdmin.RM_OPEN, self.open)
        controller.register_admin(RmAdmin.RM_CLOSE, self.close)
        controller.register_admin(RmAdmin.RM_INFO, self.info)
        controller.on_reset.append(lambda: self._end(self.sessions.of_port(controller.number), 0))

        def namespace_gone(nsid: int, port: int | None) -> None:
            with controller.drive.plane.paused():
                self._end(self.sessions.of_namespace(nsid, port), int(Status.INVALID_NAMESPACE))
            controller.drive.plane.kick()

        controller.subsystem.namespace_gone.append(namespace_gone)

    def open(self, controller: Controller, request: Request) -> int:
        """RM_OPEN (C9h). :returns: the session's id"""
        count = request.sqe.cdw10
        if not RM_MODEL.size <= count <= RM_OPEN_BYTES:
            raise Refused(Status.INVALID_FIELD, "cdw10")
        data = request.read(count)
        model = RM_MODEL.unpack(data)
        layers = model.bottom + model.top
        tables_at = RM_MODEL.size + layers * RM_LAYER.size
        if tables_at + model.tables * RM_TABLE.size != count:
            raise Refused(Status.RM_MODEL, "cdw10")
        try:
            made = self.sessions.prepare(
                controller.number,
                model,
                _entries(RM_LAYER, data, RM_MODEL.size, layers),
                _entries(RM_TABLE, data, tables_at, model.tables),
            )
        except SessionRefused as refused:
            raise Refused(refused.status) from refused
        with controller.drive.plane.paused():
            return self.sessions.open(controller.number, made, int(controller.queues.sessions.ctypes.data))

    def close(self, controller: Controller, request: Request) -> None:
        """RM_CLOSE (CCh): batches in flight are dropped, and who waits for one learns that its session is gone."""
        with controller.drive.plane.paused():
            self._end([self._slot(controller, request)], int(Status.RM_NO_SESSION))
        controller.drive.plane.kick()

    def info(self, controller: Controller, request: Request) -> None:
        """RM_INFO (CEh)."""
        if request.sqe.cdw10 != RM_INFO_BYTES:
            raise Refused(Status.INVALID_FIELD, "cdw10")
        self._slot(controller, request)
        request.write(self.sessions.info(controller.number, request.sqe.cdw11))

    def _slot(self, controller: Controller, request: Request) -> int:
        try:
            return self.sessions.slot(controller.number, request.sqe.cdw11)
        except SessionRefused as refused:
            raise Refused(refused.status, "cdw11") from refused

    def _end(self, slots: list[int], status: int) -> None:
        for slot in slots:
            end_session(self._address, slot, status)
            self.sessions.forget(slot)


def store_register(page: NDArray[np.uint8], word: int, value: int) -> None:
    """A host's dword, by message, into the page of RmRegisters: only what is the host's changes.

    :param word: index in the page
    """
    session, offset = divmod(4 * word, RM_REGISTERS.size)
    if session < MAX_SESSIONS and offset < RM_REGISTERS.offset("session"):
        page.view("<u4")[word] = value
