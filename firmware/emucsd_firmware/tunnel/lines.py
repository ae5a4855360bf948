"""Lines of waiters: in at the end, out at the front, or out of the middle when their time is over."""

from __future__ import annotations

from emucsd_firmware.tunnel.state import NEVER, Line, Tunnel
from emucsd_wire.words import get_i64, jit, put_i64


@jit
def enter(tunnel: Tunnel, line: Line, waiter: int, deadline: int) -> None:
    """Wait behind those who wait already, at most until ``deadline``."""
    put_i64(tunnel.following, waiter, 0)
    put_i64(tunnel.deadlines, waiter, deadline)
    if line.first == 0:
        line.first = waiter + 1
    else:
        put_i64(tunnel.following, line.last - 1, waiter + 1)
    line.last = waiter + 1
    tunnel.wake = min(tunnel.wake, deadline)


@jit
def pop(tunnel: Tunnel, line: Line) -> int:
    """Take out the first waiter; -1 when there is none."""
    waiter = line.first - 1
    if waiter >= 0:
        line.first = get_i64(tunnel.following, waiter)
    return waiter


@jit
def pop_expired(tunnel: Tunnel, line: Line, now: int) -> int:
    """Take out the first waiter whose deadline has come, wherever it stands; -1 when there is none."""
    before = 0
    here = line.first
    while here != 0:
        following = get_i64(tunnel.following, here - 1)
        if get_i64(tunnel.deadlines, here - 1) <= now:
            if before == 0:
                line.first = following
            else:
                put_i64(tunnel.following, before - 1, following)
            if line.last == here:
                line.last = before
            return here - 1
        before = here
        here = following
    return -1


@jit
def earliest(tunnel: Tunnel, line: Line) -> int:
    """The first deadline of a line, NEVER when it is empty."""
    when = NEVER
    here = line.first
    while here != 0:
        when = min(when, get_i64(tunnel.deadlines, here - 1))
        here = get_i64(tunnel.following, here - 1)
    return when
