"""What says that a checkpoint is whole: 40 bytes, behind the payload in a file and before it on a raw namespace.

| bytes | what, little-endian |
| --- | --- |
| 8 | ``EMUCSDck`` |
| 4 | version, 1 |
| 4 | CRC-32 of the payload |
| 8 | generation: counts the saves at this place, from 1; 0: the place is claimed, and empty |
| 8 | bytes of the payload |
| 4 | 0 |
| 4 | CRC-32 of the 36 bytes before |
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from emucsd.stannis.errors import CheckpointDamaged

MAGIC = b"EMUCSDck"
VERSION = 1
_MARK = struct.Struct("<8sIIQQI")
_CRC = struct.Struct("<I")
BYTES = _MARK.size + _CRC.size
assert BYTES == 40, BYTES


class Mark(NamedTuple):
    """A valid seal."""

    generation: int
    length: int
    crc: int


def make(payload: bytes | memoryview, generation: int) -> bytes:
    """The seal of a payload."""
    mark = _MARK.pack(MAGIC, VERSION, zlib.crc32(payload), generation, len(payload), 0)
    return mark + _CRC.pack(zlib.crc32(mark))


def read(data: bytes | memoryview) -> Mark | None:
    """A seal, or None where these bytes are none or are damaged."""
    if len(data) != BYTES or _CRC.unpack(data[-_CRC.size :])[0] != zlib.crc32(data[: -_CRC.size]):
        return None
    magic, version, crc, generation, length, _ = _MARK.unpack(data[: -_CRC.size])
    return Mark(generation, length, crc) if (magic, version) == (MAGIC, VERSION) else None


def check(mark: Mark, payload: memoryview, where: str) -> None:
    """:raises CheckpointDamaged: the payload is not what was sealed"""
    if len(payload) != mark.length:
        raise CheckpointDamaged(f"{where}: {len(payload)} bytes of {mark.length}")
    if zlib.crc32(payload) != mark.crc:
        raise CheckpointDamaged(f"{where}: CRC {zlib.crc32(payload):#010x}, {mark.crc:#010x} when it was kept")
