"""Grants of virtual time: what hosts that follow the protocol wait for (``emucsd_wire.nvme.ClockWords``)."""

from __future__ import annotations

from emucsd_firmware.clock import NEVER
from emucsd_firmware.nvme.queues import PortState
from emucsd_firmware.state import DriveState, port_of
from emucsd_wire.words import jit, jit_inline, load_i64, store_i64

# ClockWords, as indexes of 64-bit words
HOST_NOW, WAIT, GRANTED, DRIVE_NOW, ASLEEP, ATTACHED = 1, 2, 3, 4, 5, 6


@jit_inline
def clock_word(port: PortState, index: int) -> int:
    return load_i64(port.words, index)


@jit
def attached_ports(drive: DriveState) -> int:
    """How many ports have a host that follows the grant protocol."""
    return min(clock_word(drive.port0, ATTACHED), 1) + min(clock_word(drive.port1, ATTACHED), 1)


@jit
def all_wait(drive: DriveState) -> bool:
    """Whether every host that follows the grant protocol waits for a grant."""
    for number in range(2):
        port = port_of(drive, number)
        if clock_word(port, ATTACHED) != 0 and clock_word(port, WAIT) == clock_word(port, GRANTED):
            return False
    return True


@jit_inline
def _thinking(port: PortState) -> bool:
    return clock_word(port, HOST_NOW) > clock_word(port, DRIVE_NOW)


@jit
def declared_time(drive: DriveState) -> int:
    """The time that the first thinking host has declared, NEVER when none thinks."""
    target = NEVER
    for number in range(2):
        port = port_of(drive, number)
        if clock_word(port, ATTACHED) != 0 and _thinking(port):
            target = min(target, clock_word(port, HOST_NOW))
    return target


@jit
def answered(drive: DriveState, before0: int, before1: int) -> bool:
    """Whether a host that waits has got a completion since."""
    if clock_word(drive.port0, ATTACHED) != 0 and drive.port0.posted != before0:
        return True
    return clock_word(drive.port1, ATTACHED) != 0 and drive.port1.posted != before1


@jit
def publish(drive: DriveState, before0: int, before1: int, idle: bool) -> None:
    """Tell the present time to each waiting host that has what it waits for.

    :param before0: completions of port 0 when the hosts began to wait, with ``before1`` for port 1
    :param idle: nothing is left to happen
    """
    clock = drive.clock
    for number in range(2):
        port = port_of(drive, number)
        if clock_word(port, ATTACHED) == 0:
            continue
        posted = port.posted != (before0 if number == 0 else before1)
        done = clock.now >= clock_word(port, HOST_NOW) if _thinking(port) else idle
        if posted or done:
            store_i64(port.words, DRIVE_NOW, clock.now)
            store_i64(port.words, GRANTED, clock_word(port, WAIT))
