"""Identify (Base 5.1.13): the controller, its namespaces, and lists of either."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from emucsd_firmware.nvme import events
from emucsd_firmware.nvme.namespaces import LBA_SHIFTS, Namespace
from emucsd_firmware.nvme.queues import ERROR_RING, NAMESPACES
from emucsd_firmware.nvme.request import Refused, Request
from emucsd_firmware.subsystem import FIRMWARE, MODEL
from emucsd_wire import identify as wire
from emucsd_wire.identify import Cns, DescriptorKind
from emucsd_wire.nvme import (
    COPY_MAX_BLOCKS,
    COPY_MAX_RANGE_BLOCKS,
    COPY_MAX_RANGES,
    MAX_TRANSFER,
    NSID_ALL,
    PAGE,
    Status,
)
from emucsd_wire.registers import VERSION_2_1, Bits, Word

if TYPE_CHECKING:
    from emucsd_firmware.controller import Controller

VENDOR = 0x1D1D  # with device 1F1F: what FEMU answers, so that its users' scripts find this drive
WARNING_KELVIN, CRITICAL_KELVIN = 343, 353
KEEP_ALIVE_UNIT = 10  # of 100 ms
ABORT_LIMIT = 3  # 0-based
SHUTDOWN_US = 60_000_000  # RTD3E: a full write buffer on slow flash takes its time
PAGE_BYTES = wire.IDENTIFY_BYTES

ONCS = (
    wire.Oncs.COMPARE
    | wire.Oncs.WRITE_UNCORRECTABLE
    | wire.Oncs.DATASET_MANAGEMENT
    | wire.Oncs.WRITE_ZEROES
    | wire.Oncs.SAVE_FEATURES
    | wire.Oncs.TIMESTAMP
    | wire.Oncs.VERIFY
    | wire.Oncs.COPY
)
SANICAP = (
    wire.Sanicap.CRYPTO_ERASE
    | wire.Sanicap.BLOCK_ERASE
    | wire.Sanicap.OVERWRITE
    | wire.Sanicap.NO_DEALLOCATE_INHIBITED
    | wire.Sanicap.NOT_MODIFIED_AFTER
)


class IdentifyDword(Word):
    """CDW10."""

    cns = Bits(7, 0)
    cntid = Bits(31, 16)


class CsiDword(Word):
    """CDW11."""

    cnssid = Bits(15, 0)
    csi = Bits(31, 24)


def identify(controller: Controller, request: Request) -> None:
    """Identify (06h): always 4096 bytes."""
    cns = IdentifyDword(request.sqe.cdw10).cns
    page = _PAGES.get(cns)
    if page is None:
        raise Refused(Status.INVALID_FIELD, "cdw10")
    data = page(controller, request)
    request.write(data.ljust(PAGE_BYTES, b"\0"))


def controller_page(controller: Controller, request: Request | None = None) -> bytes:
    """CNS 01h."""
    subsystem = controller.subsystem
    oacs = wire.Oacs.FORMAT | wire.Oacs.NAMESPACE_MANAGEMENT
    if controller.trapped:
        oacs |= wire.Oacs.DOORBELL_BUFFER
    cache = wire.Vwc.PRESENT if controller.features.has_write_cache else wire.Vwc(0)
    return wire.IDENTIFY_CONTROLLER.pack(
        wire.IdentifyController(
            vid=VENDOR,
            ssvid=VENDOR,
            sn=subsystem.serial.encode().ljust(20),
            mn=MODEL.encode().ljust(40),
            fr=FIRMWARE.encode().ljust(8),
            rab=6,
            ieee=bytes((0x00, 0x54, 0x52)),  # least significant byte first
            cmic=wire.Cmic.MULTI_PORT | wire.Cmic.MULTI_CONTROLLER,
            mdts=(MAX_TRANSFER // PAGE).bit_length() - 1,
            cntlid=controller.cntlid,
            ver=VERSION_2_1,
            rtd3r=SHUTDOWN_US,
            rtd3e=SHUTDOWN_US,
            oaes=wire.Oaes.NAMESPACE_ATTRIBUTE,
            ctratt=wire.Ctratt.HOST_ID_128,
            cntrltype=wire.CNTRLTYPE_IO,
            nvmsr=wire.NVMSR_STORAGE_DEVICE,
            oacs=oacs,
            acl=ABORT_LIMIT,
            aerl=events.LIMIT - 1,
            frmw=wire.FRMW_ONE_READ_ONLY_SLOT,
            lpa=wire.Lpa.EFFECTS | wire.Lpa.EXTENDED_DATA | wire.Lpa.SUPPORTED_PAGES,
            elpe=ERROR_RING - 1,
            wctemp=WARNING_KELVIN,
            cctemp=CRITICAL_KELVIN,
            tnvmcap=subsystem.namespaces.capacity,
            unvmcap=subsystem.namespaces.unallocated,
            kas=KEEP_ALIVE_UNIT,
            sanicap=SANICAP,
            sqes=0x66,
            cqes=0x44,
            nn=NAMESPACES,
            oncs=ONCS,
            vwc=cache | wire.Vwc.FLUSH_BROADCAST,
            cdfs=1,  # Copy descriptor format 0
            sgls=wire.Sgls.ANY_ALIGNMENT,
            subnqn=subsystem.nqn.encode(),
            psd0=wire.POWER_STATE.pack(wire.PowerState(mp=2500)),
        )
    )


def namespace_page(controller: Controller, namespace: Namespace) -> bytes:
    """CNS 00h and 11h for a namespace."""
    spaces, drive = controller.subsystem.namespaces, controller.subsystem.nvram.drive
    page_blocks = spaces.page_bytes >> namespace.lba_shift
    return wire.IDENTIFY_NAMESPACE.pack(
        _capabilities()._replace(
            nsze=namespace.blocks,
            ncap=namespace.blocks,
            nuse=namespace.blocks,
            nsfeat=wire.Nsfeat.ATOMIC_BOUNDARIES | wire.Nsfeat.ID_NOT_REUSED | wire.Nsfeat.OPTIMAL_SIZES,
            flbas=namespace.lba_format,
            nmic=wire.Nmic.SHARED if namespace.shared else 0,
            # a flash page is written as a whole or not at all, also when power goes
            nawun=page_blocks - 1,
            nawupf=page_blocks - 1,
            nabsn=page_blocks - 1,
            nabspf=page_blocks - 1,
            nvmcap=spaces.footprint(namespace.size),
            npwg=page_blocks - 1,
            npwa=page_blocks - 1,
            npdg=page_blocks - 1,
            npda=page_blocks - 1,
            nows=page_blocks - 1,
            mssrl=COPY_MAX_RANGE_BLOCKS,
            mcl=COPY_MAX_BLOCKS,
            msrc=COPY_MAX_RANGES - 1,
            nguid=namespace.nguid(drive),
            eui64=namespace.eui64(drive),
        )
    )


def _capabilities() -> wire.IdentifyNamespace:
    """What all namespaces have in common."""
    formats = [wire.LbaFormat(ms=0, lbads=shift, rp=0 if 1 << shift == PAGE else 2) for shift in LBA_SHIFTS]
    return wire.IdentifyNamespace(
        nlbaf=len(formats) - 1,
        dlfeat=wire.Dlfeat.READS_ZEROS | wire.Dlfeat.WRITE_ZEROES_DEALLOCATES,
        lbaf=b"".join(map(wire.LBA_FORMAT.pack, formats)),
    )


def _namespace(controller: Controller, request: Request) -> bytes:
    """CNS 00h: zeros for a namespace that is not attached; FFFFFFFFh asks for what all have in common."""
    if request.nsid == NSID_ALL:
        return wire.IDENTIFY_NAMESPACE.pack(_capabilities())
    namespace = controller.subsystem.namespaces.find(request.nsid, controller.cntlid)
    if namespace is None or controller.cntlid not in namespace.attached:
        return b""
    return namespace_page(controller, namespace)


def _allocated_namespace(controller: Controller, request: Request) -> bytes:
    """CNS 11h: also one that is attached to no controller."""
    namespace = controller.subsystem.namespaces.find(request.nsid, controller.cntlid)
    return namespace_page(controller, namespace) if namespace else b""


def _nsids(namespaces: list[Namespace], request: Request) -> bytes:
    """A list of up to 1024 ids above the one asked for."""
    if request.nsid >= NSID_ALL - 1:
        raise Refused(Status.INVALID_NAMESPACE, "nsid")
    found = [ns.nsid for ns in namespaces if ns.nsid > request.nsid][: wire.LIST_NSIDS]
    return struct.pack(f"<{len(found)}I", *found)


def _active(controller: Controller, request: Request) -> bytes:
    return _nsids(controller.subsystem.namespaces.active(controller.cntlid), request)


def _allocated(controller: Controller, request: Request) -> bytes:
    return _nsids(controller.subsystem.namespaces.allocated(controller.cntlid), request)


def _descriptors(controller: Controller, request: Request) -> bytes:
    """CNS 03h: EUI-64, NGUID, UUID and command set of an active namespace."""
    namespace = controller.subsystem.namespaces.find_active(request.nsid, controller.cntlid)
    drive = controller.subsystem.nvram.drive
    values = {
        DescriptorKind.EUI64: namespace.eui64(drive),
        DescriptorKind.NGUID: namespace.nguid(drive),
        DescriptorKind.UUID: namespace.uuid(drive).bytes,
        DescriptorKind.CSI: bytes((wire.Csi.NVM,)),
    }
    heads = {kind: wire.NamespaceDescriptor(kind, len(value)) for kind, value in values.items()}
    return b"".join(wire.NAMESPACE_DESCRIPTOR.pack(heads[kind]) + value for kind, value in values.items())


def _check_csi(request: Request) -> None:
    if CsiDword(request.sqe.cdw11).csi != wire.Csi.NVM:
        raise Refused(Status.INVALID_FIELD, "cdw11")


def _csi_namespace(controller: Controller, request: Request) -> bytes:
    """CNS 05h: no protection information, no storage tags: all zeros for every namespace."""
    _check_csi(request)
    if request.nsid != NSID_ALL:
        controller.subsystem.namespaces.find(request.nsid, controller.cntlid)
    return b""


def _csi_controller(controller: Controller, request: Request) -> bytes:
    """CNS 06h: no limits beyond MDTS and Copy's."""
    _check_csi(request)
    return wire.NVM_CONTROLLER.pack(wire.NvmController())


def _csi_active(controller: Controller, request: Request) -> bytes:
    _check_csi(request)
    return _active(controller, request)


def _csi_allocated(controller: Controller, request: Request) -> bytes:
    _check_csi(request)
    return _allocated(controller, request)


def _independent(controller: Controller, request: Request) -> bytes:
    """CNS 08h."""
    namespace = controller.subsystem.namespaces.find(request.nsid, controller.cntlid)
    if namespace is None or controller.cntlid not in namespace.attached:
        return b""
    return wire.INDEPENDENT_NAMESPACE.pack(
        wire.IndependentNamespace(
            nsfeat=wire.Nsfeat.ID_NOT_REUSED,
            nmic=wire.Nmic.SHARED if namespace.shared else 0,
            nstat=wire.Nstat.READY,
        )
    )


def _controller_list(ids: list[int], request: Request) -> bytes:
    """Up to 2047 controller ids from the one asked for, behind their count."""
    first = IdentifyDword(request.sqe.cdw10).cntid
    found = sorted(cntlid for cntlid in ids if cntlid >= first)[: wire.LIST_CONTROLLERS]
    return struct.pack(f"<{1 + len(found)}H", len(found), *found)


def _controllers(controller: Controller, request: Request) -> bytes:
    return _controller_list([c.cntlid for c in controller.subsystem.controllers], request)


def _namespace_controllers(controller: Controller, request: Request) -> bytes:
    """CNS 12h."""
    if request.nsid == NSID_ALL:
        raise Refused(Status.INVALID_FIELD, "nsid")
    namespace = controller.subsystem.namespaces.find(request.nsid, controller.cntlid)
    return _controller_list(namespace.attached if namespace else [], request)


def _primary(controller: Controller, request: Request) -> bytes:
    """CNS 14h: nothing of this controller is flexible."""
    page = wire.PrimaryCapabilities(cntlid=controller.cntlid, portid=controller.number)
    return wire.PRIMARY_CAPABILITIES.pack(page)


def _secondary(controller: Controller, request: Request) -> bytes:
    """CNS 15h: no secondary controllers."""
    return b""


def _command_sets(controller: Controller, request: Request) -> bytes:
    """CNS 1Ch: one combination, the NVM command set alone."""
    cntid = IdentifyDword(request.sqe.cdw10).cntid
    if cntid not in (0xFFFF, controller.cntlid, 0):
        raise Refused(Status.INVALID_FIELD, "cdw10")
    return struct.pack("<Q", 1 << wire.Csi.NVM)


_PAGES: dict[int, Callable[[Controller, Request], bytes]] = {
    Cns.NAMESPACE: _namespace,
    Cns.CONTROLLER: controller_page,
    Cns.ACTIVE_NAMESPACES: _active,
    Cns.NAMESPACE_DESCRIPTORS: _descriptors,
    Cns.CSI_NAMESPACE: _csi_namespace,
    Cns.CSI_CONTROLLER: _csi_controller,
    Cns.CSI_ACTIVE_NAMESPACES: _csi_active,
    Cns.INDEPENDENT_NAMESPACE: _independent,
    Cns.ALLOCATED_NAMESPACES: _allocated,
    Cns.ALLOCATED_NAMESPACE: _allocated_namespace,
    Cns.NAMESPACE_CONTROLLERS: _namespace_controllers,
    Cns.CONTROLLERS: _controllers,
    Cns.PRIMARY_CAPABILITIES: _primary,
    Cns.SECONDARY_CONTROLLERS: _secondary,
    Cns.CSI_ALLOCATED_NAMESPACES: _csi_allocated,
    Cns.COMMAND_SETS: _command_sets,
}
