"""A channel's event list: its dies that have something due, by (time, number). Short, and almost always appended to."""

from __future__ import annotations

from emucsd_firmware.nand.state import NEVER, Channel, Die, Nand, die_at
from emucsd_wire.words import jit, jit_inline


@jit_inline
def link(nand: Nand, channel: Channel, die: Die, number: int, due: int) -> None:
    """Put a die that isn't in the list into it. Times mostly ascend, so the search starts at the end."""
    dies = nand.dies
    before, after = channel.last, -1
    while before >= 0:
        other = die_at(dies, before)
        if other.due < due or (other.due == due and before < number):
            break
        after = before
        before = other.before
    die.due = due
    die.before = before
    die.after = after
    if before < 0:
        channel.first = number
        channel.due = due
    else:
        die_at(dies, before).after = number
    if after < 0:
        channel.last = number
    else:
        die_at(dies, after).before = number


@jit_inline
def pop(nand: Nand, channel: Channel) -> int:
    """Take the first die out: there is one."""
    number = channel.first
    die = die_at(nand.dies, number)
    after = die.after
    channel.first = after
    if after < 0:
        channel.last = -1
        channel.due = NEVER
    else:
        other = die_at(nand.dies, after)
        other.before = -1
        channel.due = other.due
    die.due = NEVER
    return number


@jit
def move(nand: Nand, channel: Channel, die: Die, number: int) -> None:
    """Put a die, in the list or not, where the earlier of its end and its wake belongs."""
    if die.due < NEVER:
        before, after = die.before, die.after
        if before < 0:
            channel.first = after
            channel.due = die_at(nand.dies, after).due if after >= 0 else NEVER
        else:
            die_at(nand.dies, before).after = after
        if after < 0:
            channel.last = before
        else:
            die_at(nand.dies, after).before = before
        die.due = NEVER
    due = min(die.end, die.wake)
    if due < NEVER:
        link(nand, channel, die, number, due)
