"""Faults on purpose: frames lost, doubled, or overtaken by the next one, so many per million, from a seed."""

from __future__ import annotations

from emucsd_firmware.tunnel.ring import append, frame_size
from emucsd_firmware.tunnel.state import HOLD_NS, NEVER, Tunnel, Way
from emucsd_wire.words import copy, get_u32, jit, jit_unit

_MULTIPLIER, _INCREMENT = 6364136223846793005, 1442695040888963407  # Knuth's MMIX; signed overflow wraps as it should
MILLION = 1_000_000


@jit
def _chance(tunnel: Tunnel, per_million: int) -> bool:
    tunnel.random = tunnel.random * _MULTIPLIER + _INCREMENT
    return ((tunnel.random >> 33) & 0x7FFFFFFF) % MILLION < per_million


@jit_unit
def pass_on(tunnel: Tunnel, way: Way, batch: int, count: int, now: int) -> None:
    """Put the checked frames at ``batch`` into the ring, except as the faults will have it."""
    at = 0
    while at < count:
        frame = batch + at
        size = frame_size(get_u32(frame, 0))
        at += size
        if _chance(tunnel, tunnel.loss):
            way.lost += 1
            continue
        if way.spare_bytes == 0 and _chance(tunnel, tunnel.reorder):
            copy(way.spare, frame, size)
            way.spare_bytes = size
            way.spare_until = now + HOLD_NS
            tunnel.wake = min(tunnel.wake, way.spare_until)
            way.reordered += 1
            continue
        append(way, frame, size)
        if _chance(tunnel, tunnel.duplicate):
            append(way, frame, size)
            way.duplicated += 1
        release_spare(way)


@jit
def release_spare(way: Way) -> None:
    """The frame that was held back goes on; there is room for it."""
    if way.spare_bytes != 0:
        append(way, way.spare, way.spare_bytes)
        way.spare_bytes = 0
    way.spare_until = NEVER
