"""A channel's bus: one transfer at a time, in the order in which they became ready."""

from __future__ import annotations

from emucsd_firmware.nand.state import NEVER, PROGRAM, Channel, Die, Nand, op_at
from emucsd_wire.words import jit_inline


@jit_inline
def transfer_time(nand: Nand, index: int) -> int:
    """How long an operation holds the bus: on its way out with its data, on its way in with its command."""
    op = op_at(nand.ops, index)
    if op.leaving != 0:
        return op.bus_ns
    return nand.command_ns + (op.bus_ns if op.kind == PROGRAM else 0)


@jit_inline
def transfer(nand: Nand, channel: Channel, first: int, last: int, now: int) -> None:
    """A list of operations is ready for the bus: behind those that were ready before."""
    if channel.bus_tail >= 0:
        op_at(nand.ops, channel.bus_tail).next = first
    else:
        time = transfer_time(nand, first)
        channel.bus_head = first
        channel.bus_end = now + time
        channel.busy_ns += time
    channel.bus_tail = last


@jit_inline
def next_transfer(nand: Nand, channel: Channel, now: int) -> int:
    """The transfer under way has ended; the next one starts. :returns: the operation that was transferred"""
    index = channel.bus_head
    following = op_at(nand.ops, index).next
    channel.bus_head = following
    if following >= 0:
        time = transfer_time(nand, following)
        channel.bus_end = now + time
        channel.busy_ns += time
    else:
        channel.bus_tail = -1
        channel.bus_end = NEVER
    return index


@jit_inline
def send(nand: Nand, channel: Channel, die: Die, now: int) -> None:
    """A group's pages are in the die's register: onto the bus with them."""
    index = die.group
    while index >= 0:
        op = op_at(nand.ops, index)
        op.leaving = 1
        index = op.next
    die.outgoing = die.members
    transfer(nand, channel, die.group, die.group_last, now)
