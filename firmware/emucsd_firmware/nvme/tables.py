"""The lookup engine's admin commands: tables opened, closed, swapped, listed and counted (``emucsd_wire.vendor``)."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING

import numpy as np

from emucsd_firmware.lookup.tables import Space, TableRefused, Tables
from emucsd_firmware.nvme.request import Refused, Request
from emucsd_wire.logs import Effect
from emucsd_wire.nvme import Io, Status
from emucsd_wire.vendor import (
    MAX_EXTENTS,
    TABLE_EXTENT,
    TABLE_HEADER,
    TABLE_LIST_BYTES,
    TABLE_STATS,
    VendorAdmin,
)

if TYPE_CHECKING:
    from emucsd_firmware.controller import Controller
    from emucsd_firmware.nvme.admin import Handler

_MOST = TABLE_HEADER.size + MAX_EXTENTS * TABLE_EXTENT.size


class TableCommands:
    """Handlers, over the drive's one set of tables."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables

    def open(self, controller: Controller, request: Request) -> int:
        """TABLE_OPEN (C1h). :returns: the handle"""
        count = request.sqe.cdw10
        if not TABLE_HEADER.size <= count <= _MOST or (count - TABLE_HEADER.size) % TABLE_EXTENT.size:
            raise Refused(Status.INVALID_FIELD, "cdw10")
        data = request.read(count)
        header = TABLE_HEADER.unpack(data)
        namespaces = controller.subsystem.namespaces
        namespace = namespaces.find_active(header.nsid, controller.cntlid)
        space = Space(namespaces.first_lpn(namespace), namespace.blocks, 1 << namespace.lba_shift)
        extents = np.frombuffer(data, TABLE_EXTENT.dtype, offset=TABLE_HEADER.size)
        return self.tables.open(controller.number, header, extents, space)

    def close(self, controller: Controller, request: Request) -> None:
        """TABLE_CLOSE (C0h)."""
        self.tables.close(controller.number, request.sqe.cdw11)

    def swap(self, controller: Controller, request: Request) -> None:
        """TABLE_SWAP (C4h). What is sent after its completion sees the tables exchanged."""
        now = controller.drive.clock_now()
        self.tables.swap(controller.number, request.sqe.cdw11, request.sqe.cdw12, now)

    def list(self, controller: Controller, request: Request) -> int:
        """TABLE_LIST (C2h). :returns: how many tables are open"""
        if request.sqe.cdw10 != TABLE_LIST_BYTES:
            raise Refused(Status.INVALID_FIELD, "cdw10")
        request.write(self.tables.list(controller.number))
        return self.tables.count(controller.number)

    def stats(self, controller: Controller, request: Request) -> None:
        """TABLE_STATS (C6h)."""
        if request.sqe.cdw10 != TABLE_STATS.size:
            raise Refused(Status.INVALID_FIELD, "cdw10")
        request.write(self.tables.stats(controller.number, request.sqe.cdw11))


def register_table_commands(controller: Controller, tables: Tables) -> None:
    """Give a controller the table commands, and tell its hosts of the lookup commands.

    Its resets close the port's tables (its lookups must be dropped before), as does the loss of their namespace.
    """
    commands = TableCommands(tables)
    handlers: dict[int, Handler] = {
        VendorAdmin.TABLE_OPEN: commands.open,
        VendorAdmin.TABLE_CLOSE: commands.close,
        VendorAdmin.TABLE_LIST: commands.list,
        VendorAdmin.TABLE_SWAP: commands.swap,
        VendorAdmin.TABLE_STATS: commands.stats,
    }
    for opcode, handler in handlers.items():
        controller.register_admin(opcode, _with_the_drive_held(handler))
    for opcode in (Io.LOOKUP_SEND, Io.LOOKUP_READ):
        controller.register_io(opcode, Effect.SUPPORTED)
    controller.register_io(Io.TABLE_UPDATE, Effect.SUPPORTED | Effect.CHANGES_DATA)
    controller.on_reset.append(lambda: tables.close_port(controller.number))

    def namespace_gone(nsid: int, port: int | None) -> None:
        with controller.drive.plane.paused():
            tables.close_namespace(nsid, port)

    controller.subsystem.namespace_gone.append(namespace_gone)  # with two controllers twice: closed is closed


def _with_the_drive_held(handler: Handler) -> Handler:
    """Tables change only while the data plane is out of compiled code; what they refuse, the command does."""

    @wraps(handler)
    def held(controller: Controller, request: Request) -> int | None:
        with controller.drive.plane.paused():
            try:
                return handler(controller, request)
            except TableRefused as refused:
                raise Refused(refused.status) from refused

    return held
