"""Log pages (Base 2.1 section 5.1.12.1) and asynchronous events (Base 5.1.2)."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Annotated, NamedTuple

from emucsd_wire.layout import U8, U16, U32, U64, Codec, Raw


class LogId(IntEnum):
    """Log page identifiers."""

    SUPPORTED_PAGES = 0x00
    ERROR = 0x01
    SMART = 0x02
    FIRMWARE_SLOT = 0x03
    CHANGED_NAMESPACES = 0x04
    EFFECTS = 0x05
    FEATURES = 0x12
    MI_COMMANDS = 0x13
    SANITIZE = 0x81


class ErrorEntry(NamedTuple):
    """Error Information (01h): one entry."""

    error_count: U64 = 0
    sqid: U16 = 0
    cid: U16 = 0
    status: U16 = 0  # as in a completion: phase bit 0, status above it
    location: U16 = 0xFFFF  # byte 7:0 and bit 10:8 of the entry's field at fault; FFFFh is none
    lba: U64 = 0
    nsid: U32 = 0
    vs: U8 = 0
    trtype: U8 = 0
    csi: U8 = 0
    opcode: U8 = 0
    cs: U64 = 0
    trtype_specific: U16 = 0
    reserved42: Annotated[bytes, Raw(21)] = b""
    version: U8 = 1


class SmartLog(NamedTuple):
    """SMART / Health Information (02h). 128-bit counters are two words here; the high one stays 0."""

    critical_warning: U8 = 0
    temperature: Annotated[bytes, Raw(2)] = b""  # kelvin, unaligned
    available_spare: U8 = 0
    spare_threshold: U8 = 0
    percentage_used: U8 = 0
    endurance_group_warning: U8 = 0
    reserved7: Annotated[bytes, Raw(25)] = b""
    data_units_read: U64 = 0  # thousands of 512 bytes, rounded up
    data_units_read_high: U64 = 0
    data_units_written: U64 = 0
    data_units_written_high: U64 = 0
    host_reads: U64 = 0
    host_reads_high: U64 = 0
    host_writes: U64 = 0
    host_writes_high: U64 = 0
    busy_minutes: U64 = 0
    busy_minutes_high: U64 = 0
    power_cycles: U64 = 0
    power_cycles_high: U64 = 0
    power_on_hours: U64 = 0
    power_on_hours_high: U64 = 0
    unsafe_shutdowns: U64 = 0
    unsafe_shutdowns_high: U64 = 0
    media_errors: U64 = 0
    media_errors_high: U64 = 0
    error_entries: U64 = 0
    error_entries_high: U64 = 0
    warning_minutes: U32 = 0
    critical_minutes: U32 = 0
    sensors: Annotated[bytes, Raw(16)] = b""
    reserved216: Annotated[bytes, Raw(296)] = b""


class FirmwareSlot(NamedTuple):
    """Firmware Slot Information (03h)."""

    afi: U8 = 0
    reserved1: Annotated[bytes, Raw(7)] = b""
    frs1: Annotated[bytes, Raw(8)] = b""
    reserved16: Annotated[bytes, Raw(496)] = b""


class SanitizeLog(NamedTuple):
    """Sanitize Status (81h)."""

    sprog: U16 = 0xFFFF  # of 65536; FFFFh when none is in progress
    sstat: U16 = 0
    scdw10: U32 = 0
    eto: U32 = 0xFFFF_FFFF  # seconds: overwrite, block erase, crypto erase; then the same without deallocation
    etbe: U32 = 0xFFFF_FFFF
    etce: U32 = 0xFFFF_FFFF
    etond: U32 = 0xFFFF_FFFF
    etbend: U32 = 0xFFFF_FFFF
    etcend: U32 = 0xFFFF_FFFF
    reserved32: Annotated[bytes, Raw(480)] = b""


ERROR_ENTRY = Codec(ErrorEntry, 64)
SMART_LOG = Codec(SmartLog, 512)
FIRMWARE_SLOT = Codec(FirmwareSlot, 512)
SANITIZE_LOG = Codec(SanitizeLog, 512)

EFFECTS_BYTES = 4096  # u32 of 256 admin opcodes, u32 of 256 I/O opcodes, reserved
SUPPORTED_PAGES_BYTES = 1024  # u32 of 256 log ids; features (12h) alike
MI_COMMANDS_BYTES = 4096
CHANGED_NAMESPACES = 1024  # entries of log page 04h
CHANGED_TOO_MANY = 0xFFFF_FFFF


class SanitizeStatus(IntEnum):
    """Bits 2:0 of SSTAT."""

    NEVER = 0
    COMPLETED = 1
    IN_PROGRESS = 2
    FAILED = 3
    COMPLETED_NO_DEALLOCATE = 4


SSTAT_GLOBAL_DATA_ERASED = 1 << 8


class Effect(IntFlag):
    """Command effects (Base figure 211), and with bits 20 up the scope of a feature (figure 256)."""

    SUPPORTED = 1 << 0
    CHANGES_DATA = 1 << 1  # LBCC
    CHANGES_NAMESPACE = 1 << 2  # NCC
    CHANGES_INVENTORY = 1 << 3  # NIC
    CHANGES_CAPABILITY = 1 << 4  # CCC
    ALONE_IN_NAMESPACE = 1 << 16  # CSE 001b
    ALONE = 2 << 16  # CSE 010b


class FeatureScope(IntFlag):
    """Bits 31:20 of a feature's entry in log page 12h."""

    NAMESPACE = 1 << 20
    CONTROLLER = 1 << 21
    SUBSYSTEM = 1 << 25


class CriticalWarning(IntFlag):
    """SMART critical warning; the same bits enable its events in Asynchronous Event Configuration."""

    SPARE = 1 << 0
    TEMPERATURE = 1 << 1
    RELIABILITY = 1 << 2
    READ_ONLY = 1 << 3


class EventType(IntEnum):
    """Asynchronous event types."""

    ERROR = 0
    SMART = 1
    NOTICE = 2
    IO_COMMAND_SET = 6


class Event(IntEnum):
    """Asynchronous events as type << 8 | information."""

    INVALID_DOORBELL = 0x000
    INVALID_DOORBELL_VALUE = 0x001
    INTERNAL_ERROR = 0x003
    RELIABILITY = 0x100
    TEMPERATURE = 0x101
    SPARE = 0x102
    NAMESPACE_ATTRIBUTE = 0x200
    SANITIZE_COMPLETED = 0x601
