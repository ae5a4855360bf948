"""The scheduling policies that come with the firmware, asked directly.

Their arguments: the class served last, three ages, three times; each in the order block, lookup, background.
"""

from __future__ import annotations

from emucsd_firmware.policies.schedule import (
    BACKGROUND,
    BLOCK,
    LOOKUP,
    block_first,
    deadline,
    lookup_first,
    round_robin,
    schedule,
    weighted_fair,
)


def test_default_is_round_robin() -> None:
    """RM-SSD publishes a round-robin MUX."""
    assert schedule is round_robin


def test_round_robin_goes_round() -> None:
    """The next class after the one served last that waits."""
    assert [round_robin(served, 0, 0, 0, 0, 0, 0) for served in (BLOCK, LOOKUP, BACKGROUND)] == [1, 2, 0]
    assert [round_robin(served, 0, -1, 0, 0, 0, 0) for served in (BLOCK, LOOKUP, BACKGROUND)] == [2, 2, 0]
    assert [round_robin(served, -1, 0, 0, 0, 0, 0) for served in (BLOCK, LOOKUP, BACKGROUND)] == [1, 2, 1]
    assert [round_robin(served, 0, 0, -1, 0, 0, 0) for served in (BLOCK, LOOKUP, BACKGROUND)] == [1, 0, 0]


def test_strict_orders() -> None:
    """One class before the other, the drive's own work last."""
    assert [block_first(0, *ages, 0, 0, 0) for ages in ((0, 9, 9), (-1, 0, 9), (-1, -1, 0))] == [0, 1, 2]
    assert [lookup_first(0, *ages, 0, 0, 0) for ages in ((9, 0, 9), (0, -1, 9), (-1, -1, 0))] == [1, 0, 2]


def test_deadline_takes_the_most_urgent() -> None:
    """100 us for block I/O, 200 us for lookups, 10 ms for background."""
    assert deadline(0, 10_000, 150_000, -1, 0, 0, 0) == LOOKUP
    assert deadline(0, 60_000, 150_000, -1, 0, 0, 0) == BLOCK
    assert deadline(0, 60_000, -1, 9_990_000, 0, 0, 0) == BACKGROUND


def test_weighted_fair_shares_time() -> None:
    """Who has had least for its weight: block and lookup 4, background 1."""
    assert weighted_fair(0, 0, 0, 0, 400, 399, 100) == LOOKUP
    assert weighted_fair(0, 0, 0, 0, 400, 400, 99) == BACKGROUND
    assert weighted_fair(0, 0, -1, 0, 400, 0, 101) == BLOCK
