"""A way's ring: room, the check of a batch, and how many frames a receiver can take.

A batch lies in the ring as it came, so taking and delivering are one copy each. It is checked where it lies, behind the
tail: the guest can no longer change it there, and nothing of a refused batch is ever seen.
"""

from __future__ import annotations

from emucsd_firmware.tunnel.state import Tunnel, Way
from emucsd_wire.tunnel import FRAME_ALIGN, FRAME_HEADER, MAX_BATCH, MIN_PACKET
from emucsd_wire.words import copy, get_u8, get_u32, jit, jit_inline, jit_unit

_ROUND = FRAME_HEADER + FRAME_ALIGN - 1
_MASK = -FRAME_ALIGN


@jit_inline
def frame_size(length: int) -> int:
    """Bytes of a frame whose packet has ``length``."""
    return (length + _ROUND) & _MASK


@jit_inline
def place(way: Way, at: int) -> int:
    """Address of the ring's byte ``at``."""
    return way.data + (at & (way.size - 1))


@jit_inline
def straight(way: Way, at: int) -> int:
    """Bytes from ``at`` to the end of the ring's memory."""
    return way.size - (at & (way.size - 1))


@jit_inline
def room(way: Way) -> int:
    return way.size - (way.tail - way.head)


@jit
def fits(tunnel: Tunnel, way: Way, count: int) -> bool:
    """Whether a batch of ``count`` bytes can be taken now, even when every frame of it is doubled."""
    wanted = 2 * count + way.spare_bytes if tunnel.faults != 0 or way.spare_bytes != 0 else count
    return room(way) >= wanted


@jit
def append(way: Way, source: int, count: int) -> None:
    """Copy ``count`` bytes behind the tail and move it; the caller has made sure of the room."""
    first = min(count, straight(way, way.tail))
    copy(place(way, way.tail), source, first)
    if count > first:
        copy(way.data, source + first, count - first)
    way.tail += count


@jit_inline
def _pair(address: int, index: int) -> int:
    """Two bytes in network order."""
    return (get_u8(address, index) << 8) | get_u8(address, index + 1)


@jit
def _packet_ok(way: Way, at: int, length: int) -> bool:
    """Whether the packet of the frame at ``at`` says the frame's length itself. The header is whole: it was checked."""
    cell = place(way, at)
    kind = get_u8(cell, FRAME_HEADER) >> 4
    if kind == 4:
        return get_u8(cell, FRAME_HEADER) & 15 >= 5 and _pair(cell, FRAME_HEADER + 2) == length
    if kind == 6:
        return length >= 40 and _pair(place(way, at + 8), 0) + 40 == length
    return False


@jit_unit
def check(tunnel: Tunnel, way: Way, count: int) -> int:
    """Check the ``count`` bytes behind the tail. :returns: 1 with their frames in ``tunnel.found``, or 0 with the
    offset of the first bad frame there"""
    at = 0
    frames = 0
    while at < count:
        length = get_u32(place(way, way.tail + at), 0)
        if length < MIN_PACKET or length > tunnel.mtu or frame_size(length) > count - at:
            tunnel.found = at
            return 0
        if not _packet_ok(way, way.tail + at, length):
            tunnel.found = at
            return 0
        at += frame_size(length)
        frames += 1
    tunnel.found = frames
    return 1


@jit_unit
def take_out(tunnel: Tunnel, way: Way, most: int) -> int:
    """How many bytes at the head are whole frames of ``most`` bytes in all; how many frames is in ``tunnel.found``."""
    taken = 0
    frames = 0
    waiting = way.tail - way.head
    while taken < waiting:
        size = frame_size(get_u32(place(way, way.head + taken), 0))
        if taken + size > most or taken + size > MAX_BATCH:
            break
        taken += size
        frames += 1
    tunnel.found = frames
    return taken
