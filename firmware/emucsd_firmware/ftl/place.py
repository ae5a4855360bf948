"""Finding a place for a page of the host: which plane, and what to do when that one is full."""

from __future__ import annotations

from emucsd_firmware.ftl.barrier import barrier
from emucsd_firmware.ftl.blocks import plane_place
from emucsd_firmware.ftl.reclaim import any_place, collect, relieve
from emucsd_firmware.ftl.state import RESERVE, Ftl
from emucsd_firmware.nand.state import Nand
from emucsd_firmware.policy import pick_die, stream_of
from emucsd_wire.words import get_i64, jit, jit_inline, jit_unit, put_i64


@jit_inline
def stream_for(ftl: Ftl, old: int) -> int:
    """The stream of a host page that replaces the version with map entry ``old`` (0: none)."""
    if ftl.streams < 3:
        return stream_of(-1, ftl.mapped, ftl.streams)
    age = -1
    if old != 0:
        age = max(ftl.host_programs - get_i64(ftl.stamps, (old - 1) >> ftl.page_bits), 0)
    return stream_of(age, ftl.mapped, ftl.streams)


@jit_inline
def _turn(ftl: Ftl, stream: int) -> int:
    """Count this stream's pages, modulo the number of planes."""
    turn = get_i64(ftl.turns, stream)
    put_i64(ftl.turns, stream, turn + 1 if turn + 1 < ftl.planes else 0)
    return turn


@jit_unit
def room(ftl: Ftl, nand: Nand, now: int, job: int, stream: int) -> int:
    """Index of the place for a host page of this stream, after whatever collecting that takes; -1: there is none.

    :param job: waits for the collecting, as the page that caused it does
    """
    if ftl.disk_full != 0:
        return -1
    for _ in range(ftl.planes):
        plane = pick_die(ftl, nand, stream, _turn(ftl, stream))
        if plane < 0 or plane >= ftl.planes:
            plane = 0
        relieve(ftl, nand, now, job, plane >> ftl.plane_bits)
        index = plane_place(ftl, plane, stream, RESERVE, now)
        if index >= 0:
            return index
    return _make_room(ftl, nand, now, job, stream)


@jit
def _make_room(ftl: Ftl, nand: Nand, now: int, job: int, stream: int) -> int:
    """No plane had room: empty a whole block, in whichever die that works, and if need be mix streams.

    What it does is bounded by a block's pages in all but a drive that has run out of spare blocks.
    """
    index = _any_plane(ftl, stream, now)
    if index < 0 and ftl.limbo_count > 0:
        barrier(ftl)
        index = _any_plane(ftl, stream, now)
    for step in range(ftl.dies):
        if index >= 0:
            return index
        number = ftl.background_die + step
        number = number if number < ftl.dies else number - ftl.dies
        if collect(ftl, nand, now, job, number, ftl.pages) < 0:
            continue
        if ftl.limbo_count > 0:
            barrier(ftl)
        index = _any_plane(ftl, stream, now)
        if index < 0:
            index = any_place(ftl)
    return index if index >= 0 else any_place(ftl)


@jit
def _any_plane(ftl: Ftl, stream: int, now: int) -> int:
    for plane in range(ftl.planes):
        index = plane_place(ftl, plane, stream, RESERVE, now)
        if index >= 0:
            return index
    return -1
