"""Namespaces of the subsystem: who is attached where, who may know of whom, and what the data plane sees of it.

A namespace that is attached to the drive's own controller alone is *private*: for the host's controller it does not
exist. The host can neither see it in a list nor identify, attach, format or delete it. It stays private when it is
detached: only a command of the drive's own controller can give it to the host.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import TYPE_CHECKING

import msgspec

from emucsd_firmware.nvme.queues import NAMESPACES
from emucsd_firmware.nvme.request import Refused
from emucsd_wire.nvme import NSID_ALL, Status

if TYPE_CHECKING:
    from emucsd_firmware.nvme.queues import QueueSet

HOST_CONTROLLER = 1  # port 0's; port 1's is 2 and knows of every namespace
LBA_SHIFTS = (9, 12)  # the LBA formats: 512 and 4096 bytes, no metadata
OUI = bytes((0x52, 0x54, 0x00))  # locally administered, as QEMU's virtual devices use it


class Namespace(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One namespace, as ``nvram.json`` keeps it.

    ``made`` counts the namespaces that were ever created in this subsystem: identifiers are never used twice.
    """

    nsid: int
    size: int  # bytes
    lba_shift: int
    shared: bool
    attached: list[int]  # controller ids
    made: int
    private: bool = False

    @property
    def blocks(self) -> int:
        return self.size >> self.lba_shift

    @property
    def lba_format(self) -> int:
        return LBA_SHIFTS.index(self.lba_shift)

    def _digest(self, drive: uuid.UUID) -> bytes:
        return hashlib.sha256(drive.bytes + self.made.to_bytes(8, "little")).digest()

    def eui64(self, drive: uuid.UUID) -> bytes:
        """Globally unique as far as locally administered identifiers can be."""
        return OUI + self._digest(drive)[:5]

    def nguid(self, drive: uuid.UUID) -> bytes:
        return self._digest(drive)[16:24] + self.eui64(drive)

    def uuid(self, drive: uuid.UUID) -> uuid.UUID:
        return uuid.uuid5(drive, f"namespace {self.made}")

    def known_to(self, controller: int) -> bool:
        """Whether this namespace exists for a controller."""
        if controller != HOST_CONTROLLER or HOST_CONTROLLER in self.attached:
            return True
        return not (self.private or self.attached)

    def set_attached(self, controllers: set[int]) -> None:
        """Who has it from now on."""
        self.attached = sorted(controllers)
        if controllers:
            self.private = HOST_CONTROLLER not in controllers


class Namespaces:
    """All namespaces of a drive.

    :param records: the persistent list, changed in place
    :param capacity: bytes of the drive
    :param page_bytes: of a flash page: namespaces take whole pages
    """

    def __init__(self, records: list[Namespace], capacity: int, page_bytes: int) -> None:
        self._records = records
        self.capacity = capacity
        self.page_bytes = page_bytes
        self.region_pages = -(-capacity // page_bytes)

    def allocated(self, controller: int) -> list[Namespace]:
        """Namespaces that exist for a controller, by nsid."""
        return sorted((ns for ns in self._records if ns.known_to(controller)), key=lambda ns: ns.nsid)

    def active(self, controller: int) -> list[Namespace]:
        """Namespaces that are attached to a controller, by nsid."""
        return [ns for ns in self.allocated(controller) if controller in ns.attached]

    def all(self) -> list[Namespace]:
        return sorted(self._records, key=lambda ns: ns.nsid)

    def find(self, nsid: int, controller: int) -> Namespace | None:
        """An allocated namespace that a controller may know of, or None.

        :raises Refused: Invalid Namespace: no namespace can have that id
        """
        if not 1 <= nsid <= NAMESPACES:
            raise Refused(Status.INVALID_NAMESPACE, "nsid")
        return next((ns for ns in self.allocated(controller) if ns.nsid == nsid), None)

    def find_active(self, nsid: int, controller: int) -> Namespace:
        """:raises Refused: Invalid Namespace for an impossible id, Invalid Field for an inactive one (Base 3.2.1.5)"""
        namespace = self.find(nsid, controller)
        if namespace is None or controller not in namespace.attached:
            raise Refused(Status.INVALID_FIELD, "nsid")
        return namespace

    @property
    def unallocated(self) -> int:
        """Bytes that a new namespace could take."""
        return self.capacity - sum(self.footprint(ns.size) for ns in self._records)

    def footprint(self, size: int) -> int:
        """Bytes of flash pages that ``size`` bytes take."""
        return -(-size // self.page_bytes) * self.page_bytes

    def first_lpn(self, namespace: Namespace) -> int:
        return (namespace.nsid - 1) * self.region_pages

    def pages(self, namespace: Namespace) -> int:
        return self.footprint(namespace.size) // self.page_bytes

    def create(self, size: int, lba_shift: int, *, shared: bool, made: int) -> Namespace:
        """:raises Refused: there is no room, or no free id"""
        if self.footprint(size) > self.unallocated:
            raise Refused(Status.NAMESPACE_INSUFFICIENT_CAPACITY)
        taken = {ns.nsid for ns in self._records}
        nsid = next((n for n in range(1, NAMESPACES + 1) if n not in taken), None)
        if nsid is None:
            raise Refused(Status.NAMESPACE_ID_UNAVAILABLE)
        namespace = Namespace(nsid, size, lba_shift, shared, [], made)
        self._records.append(namespace)
        return namespace

    def delete(self, namespace: Namespace) -> None:
        self._records.remove(namespace)

    def targets(self, nsid: int, controller: int) -> list[Namespace]:
        """The namespace of an id, or for FFFFFFFFh all that are attached to a controller."""
        return self.active(controller) if nsid == NSID_ALL else [self.find_active(nsid, controller)]

    def publish(self, queues: QueueSet, controller: int) -> None:
        """Tell the data plane of one port what it may serve. Call it with the data plane out of compiled code."""
        view = queues.namespaces
        view["attached"] = 0
        for namespace in self.active(controller):
            record = view[namespace.nsid]
            record["blocks"], record["lba_shift"] = namespace.blocks, namespace.lba_shift
            record["first_lpn"] = self.first_lpn(namespace)
            record["write_protected"] = 0
            record["attached"] = 1
