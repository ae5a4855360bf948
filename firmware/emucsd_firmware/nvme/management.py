"""Namespace Management and Namespace Attachment (Base 5.1.20, 5.1.21)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from emucsd_firmware.nvme.namespaces import LBA_SHIFTS, Namespace
from emucsd_firmware.nvme.request import Refused, Request
from emucsd_wire.identify import IDENTIFY_BYTES, IDENTIFY_NAMESPACE, LIST_CONTROLLERS, Csi, Nmic
from emucsd_wire.nvme import NSID_ALL, Status
from emucsd_wire.registers import Bits, Word

if TYPE_CHECKING:
    from emucsd_firmware.controller import Controller

CREATE, DELETE = 0, 1
ATTACH, DETACH = 0, 1


class ManagementDword(Word):
    """CDW10 of both commands."""

    sel = Bits(3, 0)


class CommandSetDword(Word):
    """CDW11 of Namespace Management."""

    csi = Bits(31, 24)


def namespace_management(controller: Controller, request: Request) -> int:
    """Namespace Management (0Dh). :returns: the new namespace's id for a create"""
    match ManagementDword(request.sqe.cdw10).sel:
        case 0:
            return _create(controller, request)
        case 1:
            _delete(controller, request)
            return 0
        case _:
            raise Refused(Status.INVALID_FIELD, "cdw10")


def namespace_attachment(controller: Controller, request: Request) -> None:
    """Namespace Attachment (15h), all controllers of the list or none."""
    sel = ManagementDword(request.sqe.cdw10).sel
    if sel not in (ATTACH, DETACH):
        raise Refused(Status.INVALID_FIELD, "cdw10")
    if request.nsid == NSID_ALL:
        raise Refused(Status.INVALID_NAMESPACE, "nsid")
    namespace = _allocated(controller, request.nsid)
    ids = _controller_list(controller, request)
    if sel == ATTACH:
        if set(ids) & set(namespace.attached):
            raise Refused(Status.NAMESPACE_ALREADY_ATTACHED)
        if not namespace.shared and len(ids) + len(namespace.attached) > 1:
            raise Refused(Status.NAMESPACE_PRIVATE)
        controller.subsystem.attach(namespace, ids)
    else:
        if not set(ids) <= set(namespace.attached):
            raise Refused(Status.NAMESPACE_NOT_ATTACHED)
        controller.subsystem.detach(namespace, ids)


def _create(controller: Controller, request: Request) -> int:
    if CommandSetDword(request.sqe.cdw11).csi != Csi.NVM:
        raise Refused(Status.IO_COMMAND_SET_NOT_SUPPORTED, "cdw11")
    if request.nsid != 0:
        raise Refused(Status.INVALID_FIELD, "nsid")
    wanted = IDENTIFY_NAMESPACE.unpack(request.read(IDENTIFY_BYTES))
    if wanted.flbas >= len(LBA_SHIFTS):
        raise Refused(Status.INVALID_FORMAT)
    if (
        wanted.dps
        or wanted.nmic not in (0, Nmic.SHARED)
        or wanted.anagrpid
        or wanted.nvmsetid
        or wanted.endgid
        or wanted.lbstm
    ):
        raise Refused(Status.INVALID_FIELD)
    if wanted.ncap < wanted.nsze:
        raise Refused(Status.THIN_PROVISIONING_NOT_SUPPORTED)
    if wanted.nsze == 0 or wanted.ncap > wanted.nsze:
        raise Refused(Status.INVALID_FIELD)
    shift = LBA_SHIFTS[wanted.flbas]
    namespace = controller.subsystem.create_namespace(wanted.nsze << shift, shift, shared=bool(wanted.nmic))
    return namespace.nsid


def _delete(controller: Controller, request: Request) -> None:
    """One namespace, or for FFFFFFFFh every one that this controller knows of."""
    subsystem = controller.subsystem
    if request.nsid == NSID_ALL:
        gone = subsystem.namespaces.allocated(controller.cntlid)
    else:
        gone = [_allocated(controller, request.nsid)]
    for namespace in gone:
        subsystem.delete_namespace(namespace)


def _allocated(controller: Controller, nsid: int) -> Namespace:
    """:raises Refused: Invalid Field: there is no such namespace for this controller"""
    namespace = controller.subsystem.namespaces.find(nsid, controller.cntlid)
    if namespace is None:
        raise Refused(Status.INVALID_FIELD, "nsid")
    return namespace


def _controller_list(controller: Controller, request: Request) -> list[int]:
    """:raises Refused: it is empty, not in order, or names controllers that are not there"""
    words = struct.unpack(f"<{1 + LIST_CONTROLLERS}H", request.read(IDENTIFY_BYTES))
    count, ids = words[0], list(words[1 : 1 + words[0]])
    if not 0 < count <= LIST_CONTROLLERS or ids != sorted(set(ids)):
        raise Refused(Status.CONTROLLER_LIST_INVALID)
    if any(controller.subsystem.controller(cntlid) is None for cntlid in ids):
        raise Refused(Status.CONTROLLER_LIST_INVALID)
    return ids
