"""Features (Base 2.1 section 5.1.25): identifiers, and the bit fields and data structures that carry their values."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, NamedTuple

from emucsd_wire.layout import U8, Codec, Raw
from emucsd_wire.registers import Bits, Word


class Feature(IntEnum):
    """Feature identifiers."""

    ARBITRATION = 0x01
    POWER_MANAGEMENT = 0x02
    TEMPERATURE_THRESHOLD = 0x04
    ERROR_RECOVERY = 0x05
    VOLATILE_WRITE_CACHE = 0x06
    NUMBER_OF_QUEUES = 0x07
    INTERRUPT_COALESCING = 0x08
    INTERRUPT_VECTOR = 0x09
    WRITE_ATOMICITY = 0x0A
    ASYNC_EVENTS = 0x0B
    TIMESTAMP = 0x0E
    KEEP_ALIVE = 0x0F
    HOST_BEHAVIOR = 0x16
    SANITIZE_CONFIG = 0x17
    SOFTWARE_PROGRESS = 0x80
    HOST_IDENTIFIER = 0x81


class Select(IntEnum):
    """SEL of Get Features."""

    CURRENT = 0
    DEFAULT = 1
    SAVED = 2
    CAPABILITIES = 3


class Capability(IntEnum):
    """What Get Features answers to SEL 3, as bits."""

    SAVEABLE = 1
    NAMESPACE_SPECIFIC = 2
    CHANGEABLE = 4


class TemperatureThreshold(Word):
    """CDW11 of feature 04h."""

    tmpth = Bits(15, 0)  # kelvin
    tmpsel = Bits(19, 16)  # 0 composite, 1 to 8 sensors, 15 all
    thsel = Bits(21, 20)  # 0 over, 1 under


class Coalescing(Word):
    """CDW11 of feature 08h."""

    thr = Bits(7, 0)  # completions, 0-based
    time = Bits(15, 8)  # in 100 us


class Interrupt(Word):
    """CDW11 of feature 09h."""

    iv = Bits(15, 0)
    cd = Bits(16)


class Queues(Word):
    """CDW11 and DW0 of feature 07h, 0-based."""

    nsq = Bits(15, 0)
    ncq = Bits(31, 16)


class Timestamp(NamedTuple):
    """Data of feature 0Eh."""

    milliseconds: Annotated[bytes, Raw(6)]  # since 1970-01-01 UTC, little-endian
    attributes: U8  # bit 0 synch, bits 3:1 origin
    reserved: U8


class HostBehavior(NamedTuple):
    """Data of feature 16h."""

    acre: U8 = 0  # host understands Command Retry Delay
    etdas: U8 = 0
    lbafee: U8 = 0  # host understands extended LBA formats
    hdisns: U8 = 0
    cdfe: Annotated[bytes, Raw(2)] = b""  # copy descriptor formats that the host uses
    reserved6: Annotated[bytes, Raw(506)] = b""


TIMESTAMP = Codec(Timestamp, 8)
HOST_BEHAVIOR = Codec(HostBehavior, 512)

TIMESTAMP_SET_BY_HOST = 1 << 1
