"""Which traffic class a die serves next: the MUX between block I/O, lookups and the drive's own work.

Asked whenever a die is free and operations of more than one class wait at it. All arguments are plain numbers:

- ``served``: the class that this die served last;
- ``block``, ``lookup``, ``background``: how long the oldest operation of that class has waited, in ns; -1: none waits;
- ``block_ns``, ``lookup_ns``, ``background_ns``: the array time that this die has given to each class so far.

The answer is a class: 0 block, 1 lookup, 2 background. An answer for which nothing waits is replaced by the lowest
class that does wait. ``schedule`` is the one in force; the others are there to be bound in its place.
"""

from __future__ import annotations

BLOCK, LOOKUP, BACKGROUND = 0, 1, 2
DEADLINES = (100_000, 200_000, 10_000_000)  # ns, by class
WEIGHTS = (4, 4, 1)  # shares of a die's time, by class


def round_robin(
    served: int, block: int, lookup: int, background: int, block_ns: int, lookup_ns: int, background_ns: int
) -> int:
    """In turn, as RM-SSD publishes it: the class after the one served last, if it waits, else the one after that."""
    if served == BLOCK:
        return LOOKUP if lookup >= 0 else BACKGROUND
    if served == LOOKUP:
        return BACKGROUND if background >= 0 else BLOCK
    return BLOCK if block >= 0 else LOOKUP


def block_first(
    served: int, block: int, lookup: int, background: int, block_ns: int, lookup_ns: int, background_ns: int
) -> int:
    """Strict: block I/O, then lookups, then the drive's own work."""
    if block >= 0:
        return BLOCK
    return LOOKUP if lookup >= 0 else BACKGROUND


def lookup_first(
    served: int, block: int, lookup: int, background: int, block_ns: int, lookup_ns: int, background_ns: int
) -> int:
    """Strict: lookups, then block I/O, then the drive's own work."""
    if lookup >= 0:
        return LOOKUP
    return BLOCK if block >= 0 else BACKGROUND


def deadline(
    served: int, block: int, lookup: int, background: int, block_ns: int, lookup_ns: int, background_ns: int
) -> int:
    """The class whose oldest operation is nearest to its deadline, or furthest past it."""
    chosen, best = BLOCK, 1 << 62
    if block >= 0:
        best = DEADLINES[BLOCK] - block
    if lookup >= 0 and DEADLINES[LOOKUP] - lookup < best:
        chosen, best = LOOKUP, DEADLINES[LOOKUP] - lookup
    if background >= 0 and DEADLINES[BACKGROUND] - background < best:
        chosen = BACKGROUND
    return chosen


def weighted_fair(
    served: int, block: int, lookup: int, background: int, block_ns: int, lookup_ns: int, background_ns: int
) -> int:
    """The class that has had least of this die's time for its weight."""
    chosen, best = BACKGROUND, 1 << 62
    if background >= 0:
        best = background_ns // WEIGHTS[BACKGROUND]
    if lookup >= 0 and lookup_ns // WEIGHTS[LOOKUP] <= best:
        chosen, best = LOOKUP, lookup_ns // WEIGHTS[LOOKUP]
    if block >= 0 and block_ns // WEIGHTS[BLOCK] <= best:
        chosen = BLOCK
    return chosen


schedule = round_robin
