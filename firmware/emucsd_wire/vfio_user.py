"""vfio-user, protocol 0.0, as far as this drive and its clients speak it: names are the specification's.

Header, commands and payload layouts: vfio-user specification (docs/interop/vfio-user.rst in QEMU). Region, IRQ and flag
values: linux/vfio.h. Everything is little-endian here; the specification says host endian, and the hosts that this
runs on are little-endian. Fields that the specification calls ``index`` and ``count`` are named after what they number:
every tuple has methods of those names.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import NamedTuple

from emucsd_wire.layout import U16, U32, U64, Codec


class Command(IntEnum):
    """Header.command. DMA_READ and DMA_WRITE go from server to client; this drive maps memory and sends neither."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15


# Header.flags
TYPE_MASK = 0xF
TYPE_COMMAND = 0
TYPE_REPLY = 1
NO_REPLY = 0x10
ERROR = 0x20


class Header(NamedTuple):
    """Start of every message."""

    message_id: U16  # the sender's; echoed in the reply
    command: U16
    size: U32  # of the whole message, header included
    flags: U32
    error: U32  # positive errno when ERROR is set


class Version(NamedTuple):
    """Fixed part of VERSION; a NUL-terminated JSON text of capabilities may follow."""

    major: U16
    minor: U16


class DmaMap(NamedTuple):
    """DMA_MAP request; the file descriptor to map, if any, comes with the header. The reply has no payload."""

    argsz: U32
    flags: U32  # DmaFlag
    offset: U64  # in the file
    address: U64  # I/O virtual address
    size: U64


class DmaUnmap(NamedTuple):
    """DMA_UNMAP request and reply."""

    argsz: U32
    flags: U32  # UnmapFlag
    address: U64
    size: U64


class DeviceInfo(NamedTuple):
    """DEVICE_GET_INFO request and reply."""

    argsz: U32
    flags: U32  # DeviceFlag
    regions: U32
    irqs: U32


class RegionInfo(NamedTuple):
    """DEVICE_GET_REGION_INFO request and reply; a chain of capabilities may follow the reply."""

    argsz: U32
    flags: U32  # RegionFlag
    region: U32
    cap_offset: U32  # of the first capability, from the start of this structure
    size: U64
    offset: U64  # what a client adds to an area's offset when it maps the descriptor


class SparseMmap(NamedTuple):
    """Sparse mmap capability with exactly one area: the only layout that every client accepts."""

    id: U16  # CAP_SPARSE_MMAP
    version: U16  # 1
    next: U32  # 0: last of the chain
    areas: U32  # 1
    reserved: U32
    offset: U64  # in the region
    size: U64


class IrqInfo(NamedTuple):
    """DEVICE_GET_IRQ_INFO request and reply."""

    argsz: U32
    flags: U32  # IrqFlag
    irq: U32
    vectors: U32


class IrqSet(NamedTuple):
    """Fixed part of DEVICE_SET_IRQS; DATA_BOOL bytes may follow, eventfds come with the header."""

    argsz: U32
    flags: U32  # IrqAction: one DATA_* and one of the others
    irq: U32
    start: U32
    vectors: U32


class RegionAccess(NamedTuple):
    """REGION_READ and REGION_WRITE, requests and replies; the data follow where they go."""

    offset: U64
    region: U32
    length: U32


class MultiWrite(NamedTuple):
    """One of REGION_WRITE_MULTI's writes; ``data`` holds ``length`` bytes, at most eight."""

    offset: U64
    region: U32
    length: U32
    data: U64


HEADER = Codec(Header, 16)
VERSION = Codec(Version, 4)
DMA_MAP = Codec(DmaMap, 32)
DMA_UNMAP = Codec(DmaUnmap, 24)
DEVICE_INFO = Codec(DeviceInfo, 16)
REGION_INFO = Codec(RegionInfo, 32)
SPARSE_MMAP = Codec(SparseMmap, 32)
IRQ_INFO = Codec(IrqInfo, 16)
IRQ_SET = Codec(IrqSet, 20)
REGION_ACCESS = Codec(RegionAccess, 16)
MULTI_WRITE = Codec(MultiWrite, 24)

MULTI_WRITES = 200  # the most writes in one REGION_WRITE_MULTI; their number is a u64 in front of them
CAP_SPARSE_MMAP = 1


class DmaFlag(IntFlag):
    """DmaMap.flags."""

    READ = 1
    WRITE = 2
    MMAP = 4  # newer clients say what a descriptor implies


class UnmapFlag(IntFlag):
    """DmaUnmap.flags."""

    DIRTY_BITMAP = 1
    ALL = 2  # with address and size 0


class DeviceFlag(IntFlag):
    """DeviceInfo.flags."""

    RESET = 1
    PCI = 2


class RegionFlag(IntFlag):
    """RegionInfo.flags."""

    READ = 1
    WRITE = 2
    MMAP = 4
    CAPS = 8


class IrqFlag(IntFlag):
    """IrqInfo.flags."""

    EVENTFD = 1
    MASKABLE = 2
    AUTOMASKED = 4
    NORESIZE = 8


class IrqAction(IntFlag):
    """IrqSet.flags: what the data are, and what to do."""

    DATA_NONE = 1
    DATA_BOOL = 2
    DATA_EVENTFD = 4
    MASK = 8
    UNMASK = 16
    TRIGGER = 32


class Region(IntEnum):
    """Region indexes of a PCI device."""

    BAR0 = 0
    BAR1 = 1
    BAR2 = 2
    BAR3 = 3
    BAR4 = 4
    BAR5 = 5
    ROM = 6
    CONFIG = 7
    VGA = 8


class Irq(IntEnum):
    """Interrupt indexes of a PCI device."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


REGIONS = len(Region)
IRQS = len(Irq)

# what this drive's server states in its VERSION reply
MAX_FDS = 16  # with one message; QEMU takes no more
MAX_TRANSFER = 65536  # bytes of one region access
PAGE_SIZES = 4096
MAX_MAPS = 65535

SOCKET_NAME = "cntrl"  # SPDK's: its traddr is the folder that holds the socket
OWN_CAPABILITY = "emucsd"  # a client that states this knows ClockWords and maps the doorbells
