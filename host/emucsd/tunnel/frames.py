"""Batches of frames as the tunnel's commands carry them (``emucsd_wire.tunnel``), and what a switch reads of them."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from emucsd_wire.tunnel import FRAME_ALIGN, FRAME_HEADER, MIN_PACKET

LENGTH = struct.Struct("<I")
_ADDRESS = struct.Struct(">I")
_DESTINATION = 16  # of an IPv4 header
_ROUND = FRAME_HEADER + FRAME_ALIGN - 1
_MASK = -FRAME_ALIGN


def split(batch: memoryview) -> Iterator[memoryview]:
    """The packets of a batch. It ends quietly where the batch does not make sense: nothing of another is believed."""
    at, end = 0, len(batch)
    while at + FRAME_HEADER + MIN_PACKET <= end:
        (length,) = LENGTH.unpack_from(batch, at)
        if length < MIN_PACKET or at + FRAME_HEADER + length > end:
            return
        yield batch[at + FRAME_HEADER : at + FRAME_HEADER + length]
        at += (length + _ROUND) & _MASK


def is_ipv4(packet: memoryview) -> bool:
    """Whether to carry it: this network speaks IPv4."""
    return len(packet) >= MIN_PACKET and packet[0] >> 4 == 4


def destination(packet: memoryview) -> int:
    """Where an IPv4 packet goes, as a number."""
    number: int = _ADDRESS.unpack_from(packet, _DESTINATION)[0]
    return number


class Batch:
    """A batch that is being filled, in memory that a drive reads.

    :ivar size: bytes so far
    """

    def __init__(self, memory: memoryview) -> None:
        self._memory, self._limit = memory, len(memory)
        self.size = 0
        self.frames = 0

    def room(self, length: int) -> memoryview | None:
        """Where a packet of up to ``length`` bytes may be written, or None when the batch is too full for it."""
        start = self.size + FRAME_HEADER
        if self.size + ((length + _ROUND) & _MASK) > self._limit:
            return None
        return self._memory[start : start + length]

    def commit(self, length: int) -> None:
        """The packet in ``room`` has ``length`` bytes: it is in."""
        LENGTH.pack_into(self._memory, self.size, length)
        self.size += (length + _ROUND) & _MASK
        self.frames += 1

    def clear(self) -> None:
        self.size = self.frames = 0
