"""PCI configuration space of one port: an NVM Express endpoint as QEMU, Linux, firmware and SPDK expect it.

Type 0 header and capabilities as PCI Local Bus 3.0 and PCI Express Base 4.0 lay them out. QEMU sizes BARs itself and
emulates MSI-X control; all of it is still here, so that a client that does neither finds a whole device.

BAR0 (64-bit, 16 KiB): NVMe registers, doorbells in the page at 0x1000, registers of inference sessions in the one at
0x2000. BAR4: the MSI-X table. BAR5: its pending bits. Table, pending bits and doorbells lie in pages of their own: a
client maps the two pages from 0x1000 on and nothing else.
"""

from __future__ import annotations

from typing import NamedTuple

from emucsd_wire.layout import U8, U16, U32, Codec
from emucsd_wire.vfio_user import REGIONS, Region

BAR0_BYTES = 0x4000
DOORBELL_PAGE = 0x1000  # offset in BAR0, one page long; the sessions' registers are the page behind it
MAPPABLE_BYTES = 0x2000  # from there on: one area, as SPDK and older clients of ours look for one
USED_BYTES = DOORBELL_PAGE + MAPPABLE_BYTES  # of BAR0 (16 KiB as SPDK's own target); what is behind reads as zero
CONFIG_BYTES = 4096  # 256 would make QEMU show a conventional PCI device
MSIX_BYTES = 4096
VECTORS = 65  # the admin queue's and one for each I/O queue
REGION_BYTES = (BAR0_BYTES, 0, 0, 0, MSIX_BYTES, MSIX_BYTES, 0, CONFIG_BYTES, 0)  # by region; BAR1 is BAR0's upper half

VENDOR_ID = 0x1D1D  # what FEMU's devices report
DEVICE_ID = 0x1F1F

_PM = 0x40
_MSIX = 0x50
_PCIE = 0x60
_COMMAND = 0x04
_DEVICE_CONTROL = _PCIE + 8
_INITIATE_FLR = 0x8000


class Header(NamedTuple):
    """Type 0 configuration header."""

    vendor: U16
    device: U16
    command: U16
    status: U16
    revision: U8
    interface: U8
    subclass: U8
    base_class: U8
    cache_line: U8
    latency: U8
    header_type: U8
    bist: U8
    bar0: U32
    bar1: U32
    bar2: U32
    bar3: U32
    bar4: U32
    bar5: U32
    cardbus: U32
    subsystem_vendor: U16
    subsystem: U16
    rom: U32
    capabilities: U8
    reserved0: U8
    reserved1: U16
    reserved2: U32
    interrupt_line: U8
    interrupt_pin: U8
    min_grant: U8
    max_latency: U8


class PowerManagement(NamedTuple):
    """PCI Power Management capability."""

    id: U8
    next: U8
    capabilities: U16  # version 3
    control: U16  # power state 1:0, No_Soft_Reset 3
    bridge: U8
    data: U8


class MsiX(NamedTuple):
    """MSI-X capability."""

    id: U8
    next: U8
    control: U16  # table size - 1 in 10:0, function mask 14, enable 15
    table: U32  # offset | BAR
    pending: U32


class Express(NamedTuple):
    """PCI Express capability, version 2, as far as an endpoint fills it."""

    id: U8
    next: U8
    capabilities: U16  # version 3:0, type 7:4 (0: endpoint)
    device_capabilities: U32  # role-based error reporting 15, function level reset 28
    device_control: U16
    device_status: U16
    link_capabilities: U32  # speed 3:0, width 9:4
    link_control: U16
    link_status: U16


HEADER = Codec(Header, 64)
POWER_MANAGEMENT = Codec(PowerManagement, 8)
MSIX = Codec(MsiX, 12)
EXPRESS = Codec(Express, 20)

_GEN3_X4 = 0x43

_HEADER = Header(
    vendor=VENDOR_ID, device=DEVICE_ID, command=0, status=0x10, revision=1,
    interface=0x02, subclass=0x08, base_class=0x01,  # NVM Express I/O controller
    cache_line=0, latency=0, header_type=0, bist=0,
    bar0=0x4, bar1=0, bar2=0, bar3=0, bar4=0, bar5=0, cardbus=0,
    subsystem_vendor=VENDOR_ID, subsystem=DEVICE_ID, rom=0,
    capabilities=_PM, reserved0=0, reserved1=0, reserved2=0,
    interrupt_line=0, interrupt_pin=0,  # no pin: no client sets INTx up
    min_grant=0, max_latency=0,
)  # fmt: skip
_CAPABILITIES = {
    _PM: POWER_MANAGEMENT.pack(PowerManagement(0x01, _MSIX, 0x0003, 0x0008, 0, 0)),
    _MSIX: MSIX.pack(MsiX(0x11, _PCIE, VECTORS - 1, int(Region.BAR4), int(Region.BAR5))),
    _PCIE: EXPRESS.pack(Express(0x10, 0, 0x0002, 0x1000_8000, 0, 0, _GEN3_X4, 0, _GEN3_X4)),
}
_WRITABLE = {  # offset: mask, little-endian
    _COMMAND: (0x0547, 2),
    0x0C: (0xFF, 1),
    0x10: (~(BAR0_BYTES - 1) & 0xFFFF_FFFF, 4),
    0x14: (0xFFFF_FFFF, 4),
    0x20: (~(MSIX_BYTES - 1) & 0xFFFF_FFFF, 4),
    0x24: (~(MSIX_BYTES - 1) & 0xFFFF_FFFF, 4),
    0x3C: (0xFF, 1),
    _PM + 4: (0x0003, 2),
    _MSIX + 2: (0xC000, 2),
    _DEVICE_CONTROL: (0x7FFF, 2),  # Initiate Function Level Reset reads as zero
    _PCIE + 16: (0x01FB, 2),
    _PCIE + 40: (0x001F, 2),  # Device Control 2
}  # fmt: skip


def _masks() -> bytes:
    masks = bytearray(CONFIG_BYTES)
    for offset, (mask, size) in _WRITABLE.items():
        masks[offset : offset + size] = mask.to_bytes(size, "little")
    return bytes(masks)


def _initial() -> bytes:
    content = bytearray(CONFIG_BYTES)  # extended space: no capabilities
    content[: HEADER.size] = HEADER.pack(_HEADER)
    for offset, capability in _CAPABILITIES.items():
        content[offset : offset + len(capability)] = capability
    return bytes(content)


_MASKS = _masks()
_INITIAL = _initial()


class ConfigSpace:
    """The 4096 bytes, with read-only bits kept."""

    def __init__(self) -> None:
        self._content = bytearray(_INITIAL)

    def reset(self) -> None:
        """As after power-up."""
        self._content[:] = _INITIAL

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes; the caller has checked the range."""
        return bytes(self._content[offset : offset + length])

    def write(self, offset: int, data: bytes) -> bool:
        """Store the writable bits. :returns: whether this asked for a function level reset (the caller does it)"""
        for at, byte in enumerate(data, offset):
            mask = _MASKS[at]
            self._content[at] = (self._content[at] & ~mask) | (byte & mask)
        high = _DEVICE_CONTROL + 1 - offset
        return 0 <= high < len(data) and bool(data[high] & _INITIATE_FLR >> 8)


def region_bytes(region: int) -> int:
    """Size of a region, 0 where the device has none."""
    return REGION_BYTES[region] if region < REGIONS else 0
