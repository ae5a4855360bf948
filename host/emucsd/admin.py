"""What the admin queue is for: identify, features, logs, namespace management, format (Base 5.1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emucsd.errors import InvalidArgument
from emucsd.passthrough import Answer, Data, entry, run
from emucsd.transport import CommandQueue
from emucsd_wire.features import Feature, Select
from emucsd_wire.identify import (
    IDENTIFY_BYTES,
    IDENTIFY_CONTROLLER,
    IDENTIFY_NAMESPACE,
    LBA_FORMAT,
    Cns,
    IdentifyController,
    IdentifyNamespace,
    Nmic,
)
from emucsd_wire.logs import SMART_LOG, LogId, SmartLog
from emucsd_wire.nvme import NSID_ALL, PAGE
from emucsd_wire.nvme import Admin as Opcode

_LOG_PIECE = PAGE  # of a log page that one command brings
_ATTACH, _DETACH = 0, 1


class Admin:
    """Admin commands by name, on one admin queue. Every method raises NvmeError where the drive refuses."""

    def __init__(self, queue: CommandQueue) -> None:
        self._queue = queue

    def run(self, opcode: int, nsid: int = 0, *, data: Data | None = None, length: int = 0, **dwords: int) -> Answer:
        """One admin command; see ``passthrough.run``."""
        named = Opcode(opcode).name if opcode in Opcode._value2member_map_ else f"admin opcode {opcode:#04x}"
        name = f"{named} nsid {nsid:#x}"
        return run(self._queue, entry(opcode, nsid, **dwords), data=data, length=length, name=name)

    # -- identify ----------------------------------------------------------------------------------------------------

    def identify(self, cns: int, nsid: int = 0, *, cntid: int = 0, csi: int = 0) -> bytes:
        """A 4096-byte Identify structure."""
        cdw10, cdw11 = cns | cntid << 16, csi << 24
        return self.run(Opcode.IDENTIFY, nsid, length=IDENTIFY_BYTES, cdw10=cdw10, cdw11=cdw11).data.tobytes()

    def controller(self) -> IdentifyController:
        """CNS 01h."""
        return IDENTIFY_CONTROLLER.unpack(self.identify(Cns.CONTROLLER))

    def namespace(self, nsid: int) -> IdentifyNamespace:
        """CNS 00h: an attached namespace."""
        return IDENTIFY_NAMESPACE.unpack(self.identify(Cns.NAMESPACE, nsid))

    def allocated_namespace(self, nsid: int) -> IdentifyNamespace:
        """CNS 11h: a namespace, attached or not."""
        return IDENTIFY_NAMESPACE.unpack(self.identify(Cns.ALLOCATED_NAMESPACE, nsid))

    def active_namespaces(self) -> list[int]:
        """Ids of the namespaces attached to this controller."""
        return self._list(Cns.ACTIVE_NAMESPACES)

    def allocated_namespaces(self) -> list[int]:
        """Ids of every namespace of the subsystem."""
        return self._list(Cns.ALLOCATED_NAMESPACES)

    def owners(self, nsid: int) -> tuple[int, ...]:
        """Controllers that a namespace is attached to: 1 is port 0's, 2 port 1's."""
        page = np.frombuffer(self.identify(Cns.NAMESPACE_CONTROLLERS, nsid), "<u2")
        return tuple(int(controller) for controller in page[1 : 1 + int(page[0])])

    def _list(self, cns: Cns) -> list[int]:
        found = np.frombuffer(self.identify(cns), "<u4")
        return [int(nsid) for nsid in found if nsid]

    # -- features ----------------------------------------------------------------------------------------------------

    def get_feature(
        self, feature: int, nsid: int = 0, *, select: int = Select.CURRENT, cdw11: int = 0, length: int = 0
    ) -> Answer:
        """``dw0`` is the feature's value; ``data`` its structure of ``length`` bytes where it has one."""
        cdw10 = feature | select << 8
        return self.run(Opcode.GET_FEATURES, nsid, length=length, cdw10=cdw10, cdw11=cdw11)

    def set_feature(
        self, feature: int, value: int = 0, nsid: int = 0, *, data: Data | None = None, save: bool = False
    ) -> Answer:
        """Set a feature; ``dw0`` is what the drive made of it."""
        cdw10 = feature | int(save) << 31
        return self.run(Opcode.SET_FEATURES, nsid, data=data, cdw10=cdw10, cdw11=value)

    def write_cache(self, enabled: bool | None = None) -> bool:
        """Whether the volatile write cache is on, after switching it where ``enabled`` is given."""
        if enabled is not None:
            self.set_feature(Feature.VOLATILE_WRITE_CACHE, int(enabled))
        return bool(self.get_feature(Feature.VOLATILE_WRITE_CACHE).dw0 & 1)

    # -- logs --------------------------------------------------------------------------------------------------------

    def log_page(self, page: int, length: int, nsid: int = NSID_ALL, *, offset: int = 0, specific: int = 0) -> bytes:
        """``length`` bytes of a log page, fetched in pieces.

        :param specific: log specific parameter (LSP)
        :raises InvalidArgument: length or offset are no multiples of 4
        """
        if length <= 0 or length % 4 or offset % 4:
            raise InvalidArgument(
                f"log page of {length} bytes at {offset}: both are multiples of 4, the length above 0"
            )
        pieces = []
        for at in range(offset, offset + length, _LOG_PIECE):
            size = min(_LOG_PIECE, offset + length - at)
            dwords = size // 4 - 1
            # keep the page's events until the last piece has been read
            retain = int(at + size < offset + length) << 15
            cdw10 = page | specific << 8 | retain | (dwords & 0xFFFF) << 16
            low, high = at & 0xFFFF_FFFF, at >> 32
            answer = self.run(
                Opcode.GET_LOG_PAGE, nsid, length=size, cdw10=cdw10, cdw11=dwords >> 16, cdw12=low, cdw13=high
            )
            pieces.append(answer.data.tobytes())
        return b"".join(pieces)

    def smart(self) -> SmartLog:
        """Health information and the drive's counters (log page 02h)."""
        return SMART_LOG.unpack(self.log_page(LogId.SMART, SMART_LOG.size))

    # -- namespaces --------------------------------------------------------------------------------------------------

    def create_namespace(self, blocks: int, lba_bytes: int = 4096, *, shared: bool = True) -> int:
        """A new namespace of ``blocks`` LBAs, attached to nobody yet. :returns: its id"""
        fields = IdentifyNamespace(
            nsze=blocks, ncap=blocks, flbas=self.format_index(lba_bytes), nmic=Nmic.SHARED if shared else 0
        )
        return self.run(Opcode.NAMESPACE_MANAGEMENT, data=IDENTIFY_NAMESPACE.pack(fields), cdw10=0).dw0

    def delete_namespace(self, nsid: int) -> None:
        """Delete a namespace, or all (FFFFFFFFh), with its data."""
        self.run(Opcode.NAMESPACE_MANAGEMENT, nsid, cdw10=1)

    def attach(self, nsid: int, *controllers: int) -> None:
        """Attach a namespace to controllers (this one by default)."""
        self._attachment(nsid, controllers, _ATTACH)

    def detach(self, nsid: int, *controllers: int) -> None:
        """Detach a namespace from controllers (this one by default)."""
        self._attachment(nsid, controllers, _DETACH)

    def _attachment(self, nsid: int, controllers: tuple[int, ...], action: int) -> None:
        chosen = controllers or (self.controller().cntlid,)
        page = np.zeros(IDENTIFY_BYTES // 2, "<u2")
        page[: len(chosen) + 1] = (len(chosen), *chosen)
        self.run(Opcode.NAMESPACE_ATTACHMENT, nsid, data=page.tobytes(), cdw10=action)

    def formats(self, nsid: int = NSID_ALL) -> list[int]:
        """Bytes of an LBA in each LBA format."""
        found = self.namespace(nsid)
        table = np.frombuffer(found.lbaf, LBA_FORMAT.dtype)[: found.nlbaf + 1]
        return [1 << int(row["lbads"]) for row in table]

    def format_index(self, lba_bytes: int, nsid: int = NSID_ALL) -> int:
        """Number of the LBA format with so many bytes. :raises InvalidArgument: the drive has none"""
        known = self.formats(nsid)
        if lba_bytes not in known:
            raise InvalidArgument(f"LBAs of {lba_bytes} bytes: this drive formats {sorted(set(known))}")
        return known.index(lba_bytes)

    def format(self, nsid: int, lba_bytes: int | None = None, *, erase: bool = False) -> None:
        """Format a namespace: its data are gone; ``lba_bytes`` (default: as it is) is its new block size."""
        index = self.namespace(nsid).flbas & 0xF if lba_bytes is None else self.format_index(lba_bytes, nsid)
        self.run(Opcode.FORMAT_NVM, nsid, cdw10=index | int(erase) << 9)

    def changed_namespaces(self) -> NDArray[np.uint32]:
        """Ids of namespaces that changed since this was last read (log page 04h)."""
        found = np.frombuffer(self.log_page(LogId.CHANGED_NAMESPACES, IDENTIFY_BYTES, 0), "<u4")
        changed: NDArray[np.uint32] = found[found != 0]
        return changed
